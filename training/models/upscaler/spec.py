"""The upscaler, as it is served and as its Job asks for it. Torch-free."""

from serving.spec import ANY, Batching, ModelSpec, Tensor, Threshold

SCALE = 4
OVERLAP = 16
"""pixels to each side that clients cut tiles of a large picture with: no network may see farther"""

SPEC = ModelSpec(
    name="upscaler",
    summary="a picture four times as wide and as high",
    # Not `image` in and out, as ONNX has one name for one tensor.
    inputs=(Tensor(name="low_res", dtype="UINT8", shape=(ANY, ANY, 3)),),
    outputs=(Tensor(name="image", dtype="UINT8", shape=(ANY, ANY, 3)),),
    # A picture of 128 x 128 takes 36 ms on one core, and in a batch hardly less, so a CPU takes them one by one
    # (tests/load/evidence/upscaler.md): in fours many callers get 6 % more, and wait for 109 ms instead of 88 at 0.9 of
    # what it can. Two threads an instance would make a lone caller's 24 ms instead of 37, and many get 3 % fewer. One
    # instance alone oversleeps, see wgan's spec. 64 of them are 1.3 s of work, and at twice what it can p99 is 1.6 s
    # (tests/load/evidence/upscaler-overload.md); 64 of the largest would be some 40 s, by their
    # pixels, so that one is given up after 20 s.
    batching=Batching(max_batch=8, preferred=(1,), queue_size=64, queue_timeout_us=20_000_000),
    max_pixels=1 << 19,  # of what is sent; 16 times as many come back
    instances=2,
    threads=1,
    quantized=True,
    # As with style: the golden batch by up to 7 levels, and photographs by 9.
    golden_atol=14.0,
    # Every tensor rounded to 16 bits moves what floats make of the golden batch by 1 level, and photographs by no more.
    gpu_atol=2.0,
    # Over Pillow's bicubic. What ships gains 1.04 dB on Kodak's photographs and 13.3 on lines, after 12,500 steps; 860
    # steps gained 0.80 and 4.5 in floats.
    thresholds=(
        Threshold(metric="photos_gain_db", at_least=0.5, may_worsen_by=0.1),
        Threshold(metric="lines_gain_db", at_least=3.0, may_worsen_by=0.5),
    ),
    aims=(
        Threshold(metric="photos_gain_db", at_least=1.0),
        Threshold(metric="lines_gain_db", at_least=6.0),
    ),
)
