"""Reads a model repository as Triton does: which versions can be run, and the steps of an ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from atelier.errors import ServerError


def versions(repository: Path, model: str) -> list[int]:
    """The versions that can be run, oldest first; an ensemble's can if each of its steps has one."""
    if lacking(repository, model):
        return []
    return _numbers(repository / model) if steps(repository, model) else _trained(repository, model)


def lacking(repository: Path, model: str) -> list[str]:
    """Which of the models that `model` needs have no version: itself or, for an ensemble, its steps."""
    needed = [step.model_name for step in steps(repository, model)] or [model]
    return [name for name in needed if not _trained(repository, name)]


def steps(repository: Path, model: str) -> list[Any]:
    """The steps of an ensemble, in order; empty for a model with weights of its own."""
    try:
        return list(config(repository, model).ensemble_scheduling.step)
    except ServerError:
        return []  # a model with an unreadable config.pbtxt still runs


def streams(repository: Path, model: str) -> bool:
    """Whether it may answer a request more than once, which needs a server."""
    try:
        return bool(config(repository, model).model_transaction_policy.decoupled)
    except ServerError:
        return False


def config(repository: Path, model: str) -> Any:
    """Parses its config.pbtxt. Raises ServerError if that cannot be read."""
    path = repository / model / "config.pbtxt"
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, ValueError, text_format.ParseError) as exc:
        raise ServerError(f"{path}: cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc


def _trained(repository: Path, model: str) -> list[int]:
    """The versions with weights of their own."""
    return [number for number in _numbers(repository / model) if (repository / model / f"{number}/model.onnx").exists()]


def _numbers(folder: Path) -> list[int]:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal() and not name.startswith("0"))  # as tritonserver does
