"""The upscaler's spec, for serving it and for its training Job. Torch-free."""

from serving.spec import ANY, Batching, ModelSpec, Tensor, Threshold

SCALE = 4
OVERLAP = 16
"""pixels that clients add to each side of a large picture's tiles: no network's receptive field may reach farther"""

SPEC = ModelSpec(
    name="upscaler",
    summary="a picture four times as wide and as high",
    # The input isn't called `image` like the output, because tensor names are unique in ONNX.
    inputs=(Tensor(name="low_res", dtype="UINT8", shape=(ANY, ANY, 3)),),
    outputs=(Tensor(name="image", dtype="UINT8", shape=(ANY, ANY, 3)),),
    # A picture of 128 x 128 takes 36 ms on one core, and hardly less in a batch, so a CPU takes them one by one
    # (tests/load/evidence/upscaler.md): in batches of four, many callers get 6 % more throughput, but p50 is 109 ms
    # instead of 88 at 0.9 of capacity. Two threads per instance would answer a lone caller in 24 ms instead of 37, but
    # give many callers 3 % less throughput. A single instance oversleeps, see wgan's spec. A backlog of 64 is 1.3 s of
    # work, and at twice the capacity p99 is 1.6 s (tests/load/evidence/upscaler-overload.md); 64 of the largest
    # pictures would take some 40 s, going by their pixels, so a request times out in the queue after 20 s.
    batching=Batching(max_batch=8, preferred=(1,), queue_size=64, queue_timeout_us=20_000_000),
    max_pixels=1 << 19,  # of the input; the output has 16 times as many
    instances=2,
    threads=1,
    quantized=True,
    # As with style; here the golden batch moves by up to 7 levels, and photographs by 9.
    golden_atol=14.0,
    # Rounding every tensor to 16 bits moves the float answers to the golden batch by 1 level, and to photographs by no
    # more.
    gpu_atol=2.0,
    # Gains over Pillow's bicubic. The shipped version gains 1.04 dB on Kodak's photographs and 13.3 dB on lines, after
    # 12,500 steps; 860 steps gained 0.80 and 4.5 dB, in floats.
    thresholds=(
        Threshold(metric="photos_gain_db", at_least=0.5, may_worsen_by=0.1),
        Threshold(metric="lines_gain_db", at_least=3.0, may_worsen_by=0.5),
    ),
    aims=(
        Threshold(metric="photos_gain_db", at_least=1.0),
        Threshold(metric="lines_gain_db", at_least=6.0),
    ),
)
