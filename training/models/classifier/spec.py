"""The classifier of garments, as it is served and as its Job asks for it. Torch-free."""

from serving.spec import Batching, ModelSpec, Tensor, Threshold

SIZE = 28
# In the order of Fashion-MNIST's labels, and as its authors write them.
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

SPEC = ModelSpec(
    name="classifier",
    summary="the kind of a garment, from a small gray picture (Fashion-MNIST)",
    inputs=(Tensor(name="image", dtype="UINT8", shape=(SIZE, SIZE, 1)),),
    outputs=(Tensor(name="probabilities", dtype="FP32", shape=(len(CLASSES),)),),
    # No delay: one picture takes a core 0.4 ms, and what comes while both instances are busy is batched anyhow.
    # Instances and no preferred sizes: tests/load/evidence/classifier.md. In eights many callers get 7 % more, and wait
    # for 7 ms instead of 5 at 0.9 of what it can. One alone oversleeps, see wgan's spec. 1,024 that wait are 0.35 s of
    # work; at twice what it can p99 is 0.8 s of the 2 s that one may wait (tests/load/evidence/classifier-overload.md).
    batching=Batching(max_batch=64, queue_size=1024),
    instances=2,
    threads=1,
    quantized=True,
    # Another ONNX Runtime may round halves otherwise: computed operator by operator, an answer in a hundred of this one
    # differs by more than 0.4e-3, and none of 3,000 by more than 0.017.
    golden_atol=0.02,
    # Halves move what floats answer to the golden batch by 0.0016, and none of 1,000 answers by more than 0.0037.
    gpu_atol=0.005,
    labels=CLASSES,
    thresholds=(
        Threshold(metric="test_accuracy", at_least=0.9, may_worsen_by=0.005),
        Threshold(metric="test_ece", at_most=0.03, may_worsen_by=0.01),
    ),
    aims=(
        Threshold(metric="test_accuracy", at_least=0.95),
        Threshold(metric="test_ece", at_most=0.01),
    ),
)
