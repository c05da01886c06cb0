"""config.pbtxt says what the spec says, in Triton's own schema."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from serving import pbtxt
from serving.spec import ANY, ModelSpec, Served, Tensor
from training import catalog
from training.models.classifier.spec import SPEC as CLASSIFIER
from training.models.wgan.spec import SPEC
from training.models.wgan_x4.spec import SPEC as WGAN_X4

SERVED = [catalog.served(name) for name in catalog.names()]
SPECS = [spec for spec in SERVED if isinstance(spec, ModelSpec)]
of_all = pytest.mark.parametrize("spec", SERVED, ids=lambda spec: spec.name)
of_each = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
of_those_in_batches = pytest.mark.parametrize("spec", [s for s in SPECS if s.batching], ids=lambda spec: spec.name)
PICTURE = Tensor(name="image", dtype="UINT8", shape=(ANY, ANY, 3))
OTHER = (replace(PICTURE, name="larger"),)


def parsed(spec: Served) -> pb.ModelConfig:
    return text_format.Parse(pbtxt.render(spec), pb.ModelConfig())


@of_all
def test_round_trip(spec: Served) -> None:
    """The text parses to the very configuration that was rendered."""
    assert parsed(spec) == pbtxt.config(spec)


@pytest.mark.parametrize(
    ("spec", "given", "made"),
    [
        pytest.param(SPEC, ("latent", pb.TYPE_FP32, [100]), ("image", pb.TYPE_UINT8, [128, 128, 3]), id="wgan"),
        pytest.param(
            CLASSIFIER,
            ("image", pb.TYPE_UINT8, [28, 28, 1]),
            ("probabilities", pb.TYPE_FP32, [10]),
            id="classifier",
        ),
        pytest.param(WGAN_X4, ("latent", pb.TYPE_FP32, [100]), ("image", pb.TYPE_UINT8, [512, 512, 3]), id="wgan_x4"),
    ],
)
def test_tensors(spec: Served, given: tuple[object, ...], made: tuple[object, ...]) -> None:
    """Names, types and shapes of the wire contract are the spec's; the batch dimension is left out."""
    config = parsed(spec)
    (into,), (out,) = config.input, config.output
    assert (into.name, into.data_type, list(into.dims)) == given
    assert (out.name, out.data_type, list(out.dims)) == made
    assert config.max_batch_size == spec.max_batch > 0


@of_each
def test_one_folder_serves_cpu_and_gpu(spec: ModelSpec) -> None:
    """One backend for both, and instances go where there is a device for them."""
    config = parsed(spec)
    (group,) = config.instance_group
    assert (config.backend, group.count) == (spec.backend, spec.instances)
    assert group.kind == pb.ModelInstanceGroup.KIND_AUTO
    assert config.parameters["intra_op_thread_count"].string_value == str(spec.threads)


@of_those_in_batches
def test_queue_refuses_what_it_cannot_serve_in_time(spec: ModelSpec) -> None:
    """The queue is bounded in length and in time, and what exceeds either is rejected, not delayed."""
    policy = parsed(spec).dynamic_batching.default_queue_policy
    assert policy.max_queue_size == spec.batching.queue_size
    assert policy.default_timeout_microseconds == spec.batching.queue_timeout_us
    assert policy.timeout_action == pb.ModelQueuePolicy.REJECT
    assert policy.allow_timeout_override


def test_previous_version_stays() -> None:
    """The newest two versions are served, so that a client of the one before is not cut off by a new one."""
    assert parsed(SPEC).version_policy.latest.num_versions == 2


@of_those_in_batches
def test_warmup(spec: ModelSpec) -> None:
    """The first request finds the model warm, whether it holds one item or as many as it may."""
    config = parsed(spec)
    assert [sample.batch_size for sample in config.model_warmup] == [1, spec.max_batch]
    for sample in config.model_warmup:
        assert set(sample.inputs) == {tensor.name for tensor in config.input}
        for tensor in config.input:
            given = sample.inputs[tensor.name]
            assert (given.data_type, given.random_data) == (tensor.data_type, True)
            assert all(d == side or (d == -1 and side > 0) for d, side in zip(tensor.dims, given.dims, strict=True))


def test_free_size() -> None:
    """A free dimension is -1 on the wire and has a size while warming up."""
    config = parsed(replace(SPEC, inputs=(PICTURE,), outputs=OTHER))
    assert list(config.input[0].dims) == [-1, -1, 3]
    sides = config.model_warmup[0].inputs["image"].dims
    assert list(sides) == [pbtxt.WARMUP_SIDE, pbtxt.WARMUP_SIDE, 3]


def test_names_of_elements() -> None:
    """A vector whose elements have names is as long as there are names while warming up, and config.pbtxt has them."""
    weights = Tensor(name="style_weights", dtype="FP32", shape=(ANY,), members=("great-wave", "scream"))
    config = parsed(replace(SPEC, inputs=(PICTURE, weights), outputs=OTHER, max_pixels=1 << 20))
    assert list(config.model_warmup[0].inputs["style_weights"].dims) == [2]
    assert config.parameters["style_weights"].string_value == "great-wave,scream"
    assert config.parameters["max_pixels"].string_value == "1048576"


def test_a_stream_takes_single_requests() -> None:
    """A decoupled model has no batch dimension, no batcher, another backend and inputs that may be left out."""
    knob = Tensor(name="iterations", dtype="INT32", shape=(1,), optional=True)
    stream = replace(SPEC, inputs=(PICTURE, knob), outputs=OTHER, batching=None, decoupled=True, backend="painter")
    config = parsed(stream)
    assert (config.max_batch_size, config.backend, config.model_transaction_policy.decoupled) == (0, "painter", True)
    assert not config.HasField("dynamic_batching")
    assert [tensor.optional for tensor in config.input] == [False, True]
    assert not config.model_warmup


def test_labels() -> None:
    """Only a classifier points at a file of labels, which stands beside config.pbtxt then: one class a line."""
    assert parsed(SPEC).output[0].label_filename == ""
    assert list(pbtxt.files(SPEC)) == ["config.pbtxt"]
    assert parsed(CLASSIFIER).output[0].label_filename == "labels.txt"
    assert pbtxt.files(CLASSIFIER)["labels.txt"].splitlines() == list(CLASSIFIER.labels)


def test_an_ensemble_is_its_steps_and_nothing_else() -> None:
    """Each step is the newest version of its model, which alone has a backend, instances and a queue."""
    config = parsed(WGAN_X4)
    first, second = config.ensemble_scheduling.step
    assert (first.model_name, dict(first.input_map), dict(first.output_map)) == (
        "wgan", {"latent": "latent"}, {"image": "low_res"},
    )  # fmt: skip
    assert (second.model_name, dict(second.input_map), dict(second.output_map)) == (
        "upscaler", {"low_res": "low_res"}, {"image": "image"},
    )  # fmt: skip
    assert first.model_version == second.model_version == -1
    assert (config.platform, config.backend, config.max_batch_size) == ("ensemble", "", 8)
    assert {field.name for field, _ in config.ListFields()} == {
        "name", "platform", "max_batch_size", "input", "output", "ensemble_scheduling",
    }  # fmt: skip


def test_an_ensemble_has_the_folder_of_a_version() -> None:
    """Without one Triton does not load it, and Git keeps no empty folder; there are no weights to put there."""
    assert pbtxt.files(WGAN_X4)["1/.gitkeep"] == ""
    assert set(pbtxt.files(WGAN_X4)) == {"1/.gitkeep", "config.pbtxt"}
