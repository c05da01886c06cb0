"""Generates config.pbtxt, with Triton's own protobuf schema, and the files beside it from a ModelSpec or Ensemble.

`python -m training.generate` writes them into the committed repository; publishing writes them into any other.
"""

from __future__ import annotations

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from serving import configs, plans
from serving.configs import NAME as CONFIG
from serving.spec import ANY, Batching, Ensemble, ModelSpec, Served, Step, Tensor

LABELS = "labels.txt"
MAX_PIXELS, MAX_STREAMS, GPU_ATOL = plans.MAX_PIXELS, "max_streams", "gpu_atol"
NEWEST = -1
GITKEEP = "1/.gitkeep"
"""Triton loads an ensemble only if it has a version folder, even an empty one, and Git doesn't track empty folders."""
WARMUP_SIDE = 64
"""Size of variable dimensions in warm-up requests, in pixels."""
HEADER = "# Generated from the model's spec.py by `python -m training.generate`; edit that instead.\n"


def files(spec: Served) -> dict[str, str]:
    """The files beside a model's versions: name -> text. A file comes before the one that refers to it."""
    if isinstance(spec, Ensemble):
        return {GITKEEP: "", CONFIG: render(spec)}
    labels = {LABELS: "".join(f"{label}\n" for label in spec.labels)} if spec.labels else {}
    return labels | {CONFIG: render(spec)}


def plan_files(spec: Served) -> dict[str, str]:
    """The further file of a model that can have TensorRT plans, for once every version in service has one: see
    serving.plans."""
    return {plans.CONFIG: plans.render(config(spec))} if plans.takes_plans(config(spec)) else {}


def render(spec: Served) -> str:
    """The text of config.pbtxt."""
    return HEADER + str(text_format.MessageToString(config(spec)))


def config(spec: Served) -> pb.ModelConfig:
    """Triton's configuration of one model, complete because the server runs without auto-completion."""
    made = pb.ModelConfig(
        name=spec.name,
        max_batch_size=spec.max_batch,
        input=[pb.ModelInput(name=t.name, data_type=_dtype(t), dims=t.shape, optional=t.optional) for t in spec.inputs],
        output=[_output(t, spec) for t in spec.outputs],
    )
    made.MergeFrom(_ensemble_fields(spec) if isinstance(spec, Ensemble) else _model_fields(spec))
    return made


def _ensemble_fields(spec: Ensemble) -> pb.ModelConfig:
    return pb.ModelConfig(
        platform="ensemble", ensemble_scheduling=pb.ModelEnsembling(step=[_step(step) for step in spec.steps])
    )


def _step(step: Step) -> pb.ModelEnsembling.Step:
    return pb.ModelEnsembling.Step(
        model_name=step.model.name, model_version=NEWEST, input_map=step.inputs, output_map=step.outputs
    )


def _model_fields(spec: ModelSpec) -> pb.ModelConfig:
    return pb.ModelConfig(
        backend=spec.backend,
        version_policy=pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=configs.VERSIONS_SERVED)),
        # KIND_AUTO: on GPUs if there are any, otherwise on the CPU, so that one folder serves both.
        instance_group=[pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_AUTO, count=spec.instances)],
        dynamic_batching=_batching(spec.batching) if spec.batching else None,
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=True) if spec.decoupled else None,
        parameters={key: pb.ModelParameter(string_value=text) for key, text in _parameters(spec).items()},
        model_warmup=[_warmup(spec, 1), _warmup(spec, spec.max_batch)] if spec.batching else [],
    )


def _parameters(spec: ModelSpec) -> dict[str, str]:
    """The `parameters`, which Triton's own ONNX Runtime backend, our backends and the clients read."""
    members = {tensor.name: ",".join(tensor.members) for tensor in spec.inputs if tensor.members}
    limit = {MAX_PIXELS: str(spec.max_pixels)} if spec.max_pixels else {}
    streams = {MAX_STREAMS: str(spec.streams)} if spec.decoupled else {}
    atol = {GPU_ATOL: f"{spec.gpu_atol:g}"} if spec.gpu_atol else {}
    return {"intra_op_thread_count": str(spec.threads)} | limit | streams | atol | members


def _dtype(tensor: Tensor) -> int:
    return int(pb.DataType.Value(f"TYPE_{tensor.dtype}"))


def _output(tensor: Tensor, spec: Served) -> pb.ModelOutput:
    labels = LABELS if isinstance(spec, ModelSpec) and spec.labels else ""
    return pb.ModelOutput(name=tensor.name, data_type=_dtype(tensor), dims=tensor.shape, label_filename=labels)


def _batching(batching: Batching) -> pb.ModelDynamicBatching:
    return pb.ModelDynamicBatching(
        preferred_batch_size=batching.preferred,
        max_queue_delay_microseconds=batching.queue_delay_us,
        default_queue_policy=pb.ModelQueuePolicy(
            timeout_action=pb.ModelQueuePolicy.REJECT,
            default_timeout_microseconds=batching.queue_timeout_us,
            allow_timeout_override=True,
            max_queue_size=batching.queue_size,
        ),
    )


def _warmup(spec: ModelSpec, batch: int) -> pb.ModelWarmup:
    inputs = {
        t.name: pb.ModelWarmup.Input(
            data_type=_dtype(t),
            dims=[(len(t.members) or WARMUP_SIDE) if d == ANY else d for d in t.shape],
            random_data=True,
        )
        for t in spec.inputs
    }
    return pb.ModelWarmup(name=f"batch of {batch}", batch_size=batch, inputs=inputs)
