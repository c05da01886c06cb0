"""Fast neural style, as it is served and as its Job asks for it. Torch-free."""

from serving.spec import ANY, Batching, ModelSpec, Tensor, Threshold

# The styles of the shipped version, in the order of its weights, after these paintings, all in the public domain.
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
    # Not `image` in and out, as ONNX has one name for one tensor; `content` is what it is to the painter, too.
    inputs=(
        Tensor(name="content", dtype="UINT8", shape=(ANY, ANY, 3)),
        Tensor(name="style_weights", dtype="FP32", shape=(ANY,), members=tuple(PAINTINGS)),
    ),
    outputs=(Tensor(name="image", dtype="UINT8", shape=(ANY, ANY, 3)),),
    # A picture of 256 x 256 takes 55 ms on one core, in a batch hardly less: a CPU takes them one by one, and the first
    # of four does not wait for the last (tests/load/evidence/style.md: p50 109 instead of 148 ms at 0.9 of what it can,
    # for 3 % fewer pictures). Two threads an instance would answer a lone caller in 37 ms, and many 6 % fewer. One
    # instance alone oversleeps, see wgan's spec. 64 of them are 1.7 s of work, and at twice what it can p99 is 1.9 s
    # (tests/load/evidence/style-overload.md); 64 of the largest would be a minute's, by their
    # pixels, so that one is given up after 20 s.
    batching=Batching(max_batch=4, preferred=(1,), queue_size=64, queue_timeout_us=20_000_000),
    max_pixels=2 << 20,
    instances=2,
    threads=1,
    quantized=True,
    # Another ONNX Runtime may round halves otherwise: computed operator by operator, the golden batch of this one moves
    # by up to 6 levels, and photographs by 16.
    golden_atol=12.0,
    # Every tensor rounded to 16 bits moves what floats make of the golden batch by 1 level, and photographs by up to 7.
    gpu_atol=4.0,
    # Bare photographs are at 3.8 and what ships is at 0.06; every picture is told for the painting that it is after.
    thresholds=(
        Threshold(metric="recognised", at_least=0.8, may_worsen_by=0.1),
        Threshold(metric="style", at_most=0.5, may_worsen_by=0.1),
    ),
)
