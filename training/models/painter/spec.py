"""The painter's spec, for serving it and for its training Job. Torch-free."""

from serving.backends.painter.knobs import KNOBS
from serving.spec import ANY, Graph, ModelSpec, Tensor, Threshold

# Gatys et al. 2015 use conv4_2 for content, and these five for style. Here a request may take the content from the
# second convolution of any of the blocks 2 to 5.
CONTENT_LAYERS = ("conv2_2", "conv3_2", "conv4_2", "conv5_2")
STYLE_LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1")


def _numbers(name: str, *shape: int) -> Tensor:
    return Tensor(name=name, dtype="FP32", shape=shape)


# One picture at a time. Channel dimensions are dynamic, too: another backbone has other widths.
GRAPH = Graph(
    inputs=(
        _numbers("canvas", 1, 3, ANY, ANY),
        *(_numbers(f"content_{name}", 1, ANY, ANY, ANY) for name in CONTENT_LAYERS),
        *(_numbers(f"gram_{name}", 1, ANY, ANY) for name in STYLE_LAYERS),
        _numbers("content_layers", 1, len(CONTENT_LAYERS)),
        _numbers("style_layers", 1, len(STYLE_LAYERS)),
        _numbers("weights", 1, 3),
    ),
    outputs=(
        _numbers("losses", 1, 3),
        _numbers("objective", 1, 1),
        _numbers("gradient", 1, 3, ANY, ANY),
        *(_numbers(f"answer_{name}", 1, ANY, ANY, ANY) for name in CONTENT_LAYERS),
        *(_numbers(f"own_gram_{name}", 1, ANY, ANY) for name in STYLE_LAYERS),
    ),
)

SPEC = ModelSpec(
    name="painter",
    summary="a photograph painted step by step in the manner of any painting (Gatys et al. 2015)",
    inputs=(
        Tensor(name="content", dtype="UINT8", shape=(ANY, ANY, 3)),
        Tensor(name="style", dtype="UINT8", shape=(ANY, ANY, 3)),
        *(
            Tensor(name=name, dtype=knob.dtype, shape=(len(knob.default),), optional=True)
            for name, knob in KNOBS.items()
        ),
    ),
    outputs=(
        Tensor(name="image", dtype="UINT8", shape=(ANY, ANY, 3)),
        Tensor(name="iteration", dtype="INT32", shape=(1,)),
        Tensor(name="total", dtype="INT32", shape=(1,)),
        _numbers("losses", 3),
        _numbers("objective", 1),
    ),
    backend="painter",
    batching=None,
    decoupled=True,
    graph=GRAPH,
    max_pixels=1 << 20,  # evaluating a picture of that many takes 1.3 GB
    threads=2,
    # For the losses, which are relative errors. For the graph's tensors, relative to each one's largest magnitude.
    golden_atol=1e-3,
    # The backward pass is written by hand, and a bug in it would still paint something.
    thresholds=(Threshold(metric="gradient_error", at_most=1e-4, may_worsen_by=1e-4),),
)
