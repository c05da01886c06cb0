"""config.pbtxt says what the spec says, in Triton's own schema."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from serving import pbtxt
from serving.spec import ANY, ModelSpec, Tensor
from training.models.wgan.spec import SPEC

PICTURE = Tensor(name="image", dtype="UINT8", shape=(ANY, ANY, 3))


def parsed(spec: ModelSpec) -> pb.ModelConfig:
    return text_format.Parse(pbtxt.render(spec), pb.ModelConfig())


def test_round_trip() -> None:
    """The text parses to the very configuration that was rendered."""
    assert parsed(SPEC) == pbtxt.config(SPEC)


def test_tensors() -> None:
    """Names, types and shapes of the wire contract are the spec's; the batch dimension is left out."""
    config = parsed(SPEC)
    (latent,), (image,) = config.input, config.output
    assert (latent.name, latent.data_type, list(latent.dims)) == ("latent", pb.TYPE_FP32, [100])
    assert (image.name, image.data_type, list(image.dims)) == ("image", pb.TYPE_UINT8, [128, 128, 3])
    assert config.max_batch_size == SPEC.batching.max_batch


def test_one_folder_serves_cpu_and_gpu() -> None:
    """The backend is named as Triton's own, and instances go where there is a device for them."""
    config = parsed(SPEC)
    (group,) = config.instance_group
    assert (config.backend, group.count) == ("onnxruntime", SPEC.instances)
    assert group.kind == pb.ModelInstanceGroup.KIND_AUTO
    assert config.parameters["intra_op_thread_count"].string_value == str(SPEC.threads)


def test_queue_refuses_what_it_cannot_serve_in_time() -> None:
    """The queue is bounded in length and in time, and what exceeds either is rejected, not delayed."""
    policy = parsed(SPEC).dynamic_batching.default_queue_policy
    assert policy.max_queue_size == SPEC.batching.queue_size
    assert policy.default_timeout_microseconds == SPEC.batching.queue_timeout_us
    assert policy.timeout_action == pb.ModelQueuePolicy.REJECT
    assert policy.allow_timeout_override


def test_previous_version_stays() -> None:
    """The newest two versions are served, so that a client of the one before is not cut off by a new one."""
    assert parsed(SPEC).version_policy.latest.num_versions == 2


@pytest.mark.parametrize("batch", [1, SPEC.batching.max_batch])
def test_warmup(batch: int) -> None:
    """The first request of either size finds the model warm."""
    samples = {sample.batch_size: sample for sample in parsed(SPEC).model_warmup}
    given = samples[batch].inputs["latent"]
    assert (given.data_type, list(given.dims), given.random_data) == (pb.TYPE_FP32, [100], True)


def test_free_size() -> None:
    """A free dimension is -1 on the wire and has a size while warming up."""
    config = parsed(replace(SPEC, inputs=(PICTURE,), outputs=(replace(PICTURE, name="larger"),)))
    assert list(config.input[0].dims) == [-1, -1, 3]
    sides = config.model_warmup[0].inputs["image"].dims
    assert list(sides) == [pbtxt.WARMUP_SIDE, pbtxt.WARMUP_SIDE, 3]


def test_labels() -> None:
    """Only a model with labels points at the file that holds them."""
    assert parsed(SPEC).output[0].label_filename == ""
    assert parsed(replace(SPEC, labels=("bag", "boot"))).output[0].label_filename == "labels.txt"
