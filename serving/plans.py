"""TensorRT plans in a model repository: which are valid, and whether Triton is configured to serve them.

A plan lies beside the model.onnx that it was built from, with a record of what it was built for. A Triton that runs
with --model-config-name=tensorrt serves the plans of a model that has configs/tensorrt.pbtxt, and otherwise its ONNX
graphs. So that file exists while every version in service has a valid plan, and is removed before a version without one
is added.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from serving import configs
from serving.files import CARD, numbered, write_atomically

NAME = "tensorrt"
"""For --model-config-name."""
CONFIG = f"configs/{NAME}.pbtxt"
PLAN, RECORD = "model.plan", "plan.json"
TARGET = f".{NAME}.json"
HEADER = f"# Made from config.pbtxt, in whose place it stands where Triton runs with --model-config-name={NAME}.\n"
CPU_ONLY = "intra_op_thread_count"
MAX_PIXELS = "max_pixels"


@dataclass(frozen=True)
class Target:
    """The GPU that a plan runs on, and the version of TensorRT that loads it. A plan works with no other."""

    gpu: str
    tensorrt: str

    def __str__(self) -> str:
        return f"TensorRT {self.tensorrt} on {self.gpu}"


def target(repository: Path) -> Target | None:
    """The target of the Triton that serves this repository, as serving.tensorrt noted; None before any on a GPU."""
    try:
        return Target(**json.loads((repository / TARGET).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def set_target(repository: Path, wanted: Target) -> None:
    """Records the target of the Triton that is to serve: from now on plans for any other are invalid."""
    write_atomically(repository / TARGET, json.dumps(asdict(wanted)) + "\n")


# --- plans


def takes_plans(config: pb.ModelConfig) -> bool:
    """Whether Triton itself runs the graph. Models run by our own backends, and ensembles, have no plans."""
    return str(config.backend) == "onnxruntime"


def is_good(version: Path, wanted: Target, config: pb.ModelConfig) -> bool:
    """Whether the version's plan is complete, and built from its graph for these limits and this target."""
    try:
        return bool(_read(version / RECORD) == _record(version, wanted, config))
    except (OSError, ValueError, KeyError):
        return False


def write_record(version: Path, wanted: Target, config: pb.ModelConfig) -> None:
    """Records, beside a plan that has just been put there, what it was built for."""
    write_atomically(version / RECORD, json.dumps(_record(version, wanted, config), indent=2) + "\n")


def remove(version: Path) -> None:
    for name in (RECORD, PLAN):
        (version / name).unlink(missing_ok=True)


def files(version: Path) -> list[str]:
    """The names of the plan and its record if both exist, else none."""
    found = [name for name in (PLAN, RECORD) if (version / name).is_file()]
    return found if len(found) == 2 else []


def _record(version: Path, wanted: Target, config: pb.ModelConfig) -> dict[str, Any]:
    limits = {"max_batch": config.max_batch_size, "max_pixels": max_pixels(config)}
    graph = _read(version / CARD)["sha256"]
    return {**asdict(wanted), "graph_sha256": graph, **limits, "plan_bytes": (version / PLAN).stat().st_size}


def max_pixels(config: pb.ModelConfig) -> int:
    """The most pixels of an input picture of dynamic size; 0 is no limit."""
    return int(config.parameters[MAX_PIXELS].string_value) if MAX_PIXELS in config.parameters else 0


# --- Triton's configuration


def reconcile(folder: Path, *, incoming: Iterable[Path] = (), outgoing: int = 0) -> bool:
    """Makes Triton serve the plans of a model if all versions in service have valid ones, its ONNX graphs otherwise.

    Before a change, `incoming` are the folders of the versions that it adds, and `outgoing` is how many it takes out of
    service: the configuration is then right before and after it. Returns whether plans are served. Changes nothing if
    no GPU has served.
    """
    wanted, config = target(folder.parent), configs.read(folder)
    if wanted is None:
        return False
    served = in_service(folder, config, outgoing) + list(incoming)
    good = takes_plans(config) and bool(served) and all(is_good(version, wanted, config) for version in served)
    _write(folder / CONFIG, render(config) if good else None)
    return good


def missed(folder: Path) -> Target | None:
    """The target, if a model that takes plans is served by its ONNX graphs instead; None if plans are served, or if no
    GPU has served."""
    told = (folder / CONFIG).is_file() or not takes_plans(configs.read(folder))
    return None if told else target(folder.parent)


def in_service(folder: Path, config: pb.ModelConfig, more: int = 0) -> list[Path]:
    """Folders of the versions that Triton loads, oldest first, and of up to `more` versions before them."""
    return [
        folder / str(number) for number in numbered(folder)[-(config.version_policy.latest.num_versions or 1) - more :]
    ]


def render(config: pb.ModelConfig) -> str:
    """The text of configs/tensorrt.pbtxt: the same tensors, batching and queue, for plans on GPUs."""
    made = pb.ModelConfig()
    made.CopyFrom(config)
    made.backend, made.default_model_filename = NAME, PLAN
    for group in made.instance_group:
        group.kind = pb.ModelInstanceGroup.KIND_GPU
    made.parameters.pop(CPU_ONLY, None)
    if made.dynamic_batching.preferred_batch_size:  # chosen on a CPU; a GPU gains from larger ones
        del made.dynamic_batching.preferred_batch_size[:]
    return HEADER + str(text_format.MessageToString(made))


def _write(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink(missing_ok=True)
    elif not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, text)


def _read(path: Path) -> Mapping[str, Any]:
    said = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(said, dict):
        raise ValueError(f"{path}: not an object")
    return said
