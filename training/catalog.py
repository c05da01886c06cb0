"""The models this project knows: one folder each under training/models. No registry to edit.

`spec` stays torch-free; only `recipe` imports the training code.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from serving.spec import ModelSpec, Served

if TYPE_CHECKING:
    from training.jobs import Job

MODELS = Path(__file__).parent / "models"


def names() -> list[str]:
    """Every served model and ensemble (those with a spec.py), in alphabetical order."""
    return sorted(path.parent.name for path in MODELS.glob("*/spec.py"))


def trained() -> list[str]:
    """Every model with a train.py: those that are served, and the backbone of some of them."""
    return sorted(path.parent.name for path in MODELS.glob("*/train.py"))


def served(name: str) -> Served:
    """What is served under `name`."""
    spec = import_module(f"training.models.{name}.spec").SPEC
    assert isinstance(spec, Served), f"training/models/{name}/spec.py: SPEC is a {type(spec).__name__}"
    return spec


def spec(name: str) -> ModelSpec:
    """The same for a model with weights of its own; an ensemble has none."""
    spec = served(name)
    assert isinstance(spec, ModelSpec), f"{name} is an ensemble, which has no weights of its own"
    return spec


def job(name: str) -> Job | None:
    """The Job that trains it on a cluster; None for a model without a job.py, which no Job trains."""
    if not (MODELS / name / "job.py").exists():
        return None
    job: Job = import_module(f"training.models.{name}.job").JOB
    return job


def multinode(name: str) -> Job | None:
    """The same on several nodes; None for a model that only one worker can train."""
    if job(name) is None:
        return None
    return getattr(import_module(f"training.models.{name}.job"), "MULTINODE", None)


def jobs(name: str) -> list[Job]:
    """Those of the two that exist."""
    return [found for found in (job(name), multinode(name)) if found]


def recipe(name: str) -> ModuleType:
    """The training module, with `Options`, `PRESETS`, `load_corpus`, `train`, `load_net` and `evaluate`. Imports torch.

    That of a served model also has `served` and `golden` (and `members` if versions differ in the names of an input's
    elements; `graph_golden` if the spec has a graph; `quantization` if it is quantized; `backbone` if it has one), any
    other has `weights`. Where not every network is valid for --init, there is a `check_init`.
    """
    return import_module(f"training.models.{name}.train")
