"""The colorizer, as it is served and as its Job asks for it. Torch-free."""

from serving.spec import ANY, Batching, ModelSpec, Tensor, Threshold

SPEC = ModelSpec(
    name="colorizer",
    summary="a gray photograph of a landscape in colour",
    inputs=(
        Tensor(name="gray", dtype="UINT8", shape=(ANY, ANY, 1)),
        # 1: as regression left it; 2: as it came out of its game with a critic; between: a mixture, beyond: more of it.
        Tensor(name="stage", dtype="FP32", shape=(1,)),
    ),
    outputs=(Tensor(name="image", dtype="UINT8", shape=(ANY, ANY, 3)),),
    # One by one, as with style. In fours many callers get 5 % more pictures, as Triton has less to do for each. But
    # where it joins the requests of two callers, one instance computes and the other idles: they get 68 to 82 a second
    # in batches of two, four, eight or any size, instead of 84 (tests/load/evidence/colorizer.md), and in load reports
    # p99 at half of what it can was 79 ms in fours, in windows of 2 s, and is 59, in windows of 6 s. Two threads an
    # instance would make a lone caller's 16 ms instead of 22. 64 that wait are 0.7 s of work, and at twice what it can
    # p99 is 0.8 s (tests/load/evidence/colorizer-overload.md); 64 of the largest would be some 45 s, by their pixels,
    # so that one is given up after 20 s.
    batching=Batching(max_batch=8, preferred=(1,), queue_size=64, queue_timeout_us=20_000_000),
    max_pixels=4 << 20,
    instances=2,
    threads=1,
    quantized=True,
    # As with style: the golden batch by up to 2 levels, and photographs by no more.
    golden_atol=4.0,
    # Every tensor rounded to 16 bits moves what floats make of the golden batch by 2 levels, and photographs by 3.
    gpu_atol=4.0,
    # 1 and 0 are to leave it gray, 1.28 and 0.99 to borrow the colours of the nearest training picture. What ships has
    # 0.81 and 1.03; after regression alone 0.74 and 0.75.
    thresholds=(
        Threshold(metric="ciede2000_to_gray", at_most=1.0, may_worsen_by=0.03),
        Threshold(metric="colourfulness_to_truth", at_least=0.5, may_worsen_by=0.1),
    ),
    aims=(
        Threshold(metric="ciede2000_to_gray", at_most=0.85),
        Threshold(metric="colourfulness_to_truth", at_least=0.8),
        Threshold(metric="colourfulness_to_truth", at_most=1.2),
    ),
)
