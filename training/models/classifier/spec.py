"""The garment classifier's spec, for serving it and for its training Job. Torch-free."""

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
    # No delay: one picture takes 0.4 ms of a core, and requests that arrive while both instances are busy are batched
    # anyway. Why two instances and no preferred sizes: tests/load/evidence/classifier.md. In batches of eight, many
    # callers get 7 % more throughput, but p50 is 7 ms instead of 5 at 0.9 of capacity. A single instance oversleeps,
    # see wgan's spec. A backlog of 1,024 is 0.35 s of work; at twice the capacity, p99 is 0.8 s of the 2 s that a
    # request may wait (tests/load/evidence/classifier-overload.md).
    batching=Batching(max_batch=64, queue_size=1024),
    instances=2,
    threads=1,
    quantized=True,
    # Another ONNX Runtime may round ties differently: if this one computes operator by operator, one answer in a
    # hundred differs by more than 0.4e-3, and none of 3,000 by more than 0.017.
    golden_atol=0.02,
    # Half precision moves the float answers to the golden batch by 0.0016, and none of 1,000 answers by more than
    # 0.0037.
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
