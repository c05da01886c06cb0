"""The spec of fast neural style, for serving it and for its training Job. Torch-free."""

from serving.spec import ANY, Batching, ModelSpec, Tensor, Threshold

# The styles of the shipped version, in the order of `style_weights`, and their paintings, all in the public domain.
PAINTINGS = {
    "composition-vii": "Wassily Kandinsky, Composition VII, 1913",
    "flowering-tree": "Sakai Hoitsu, a flowering tree on gold, early 19th century",
    "grande-jatte": "Georges Seurat, A Sunday on La Grande Jatte, 1884-1886",
    "great-wave": "Katsushika Hokusai, The Great Wave off Kanagawa, about 1831",
    "grey-felt-hat": "Vincent van Gogh, Self-Portrait with Grey Felt Hat, 1887",
    "scream": "Edvard Munch, The Scream, 1893",
    "shipwreck": "J. M. W. Turner, The Wreck of a Transport Ship, about 1810",
    "starry-night": "Vincent van Gogh, The Starry Night, 1889",
    "tableau": "Piet Mondrian, a composition of about 1913",
    "water-lilies": "Claude Monet, Water Lilies, 1910s",
}

SPEC = ModelSpec(
    name="style",
    summary="a photograph in the manner of a painting, or of several",
    # The input isn't called `image` like the output, because tensor names are unique in ONNX. The painter, too, calls
    # it `content`.
    inputs=(
        Tensor(name="content", dtype="UINT8", shape=(ANY, ANY, 3)),
        Tensor(name="style_weights", dtype="FP32", shape=(ANY,), members=tuple(PAINTINGS)),
    ),
    outputs=(Tensor(name="image", dtype="UINT8", shape=(ANY, ANY, 3)),),
    # A picture of 256 x 256 takes 55 ms on one core, and hardly less in a batch: so a CPU takes them one by one, and
    # the first of four does not wait for the last (tests/load/evidence/style.md: p50 is 109 ms instead of 148 at 0.9 of
    # capacity, for 3 % less throughput). Two threads per instance would answer a lone caller in 37 ms, but give many
    # callers 6 % less throughput. A single instance oversleeps, see wgan's spec. A backlog of 64 is 1.7 s of work, and
    # at twice the capacity p99 is 1.9 s (tests/load/evidence/style-overload.md); 64 of the largest pictures would take
    # a minute, going by their pixels, so a request times out in the queue after 20 s.
    batching=Batching(max_batch=4, preferred=(1,), queue_size=64, queue_timeout_us=20_000_000),
    max_pixels=2 << 20,
    instances=2,
    threads=1,
    quantized=True,
    # Another ONNX Runtime may round ties differently: if this one computes operator by operator, the golden batch moves
    # by up to 6 levels, and photographs by 16.
    golden_atol=12.0,
    # Rounding every tensor to 16 bits moves the float answers to the golden batch by 1 level, and to photographs by up
    # to 7.
    gpu_atol=4.0,
    # `style` is 3.8 for bare photographs and 0.06 for the shipped version, whose pictures are all recognised.
    thresholds=(
        Threshold(metric="recognised", at_least=0.8, may_worsen_by=0.1),
        Threshold(metric="style", at_most=0.5, may_worsen_by=0.1),
    ),
)
