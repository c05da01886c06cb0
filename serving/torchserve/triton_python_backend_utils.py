"""Stand-in for the module that Triton gives Python models, as far as serving/backends/onnxruntime/model.py uses it.

TorchServe's worker imports it from the archive by the same name, so that the same code runs the graph in both servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]

model_dir = ""
"""Set by the handler: a worker has one model."""


class TritonModelException(Exception):
    """A model that can't be loaded."""


class TritonError:
    INVALID_ARG = 3

    def __init__(self, message: str, code: int = 0) -> None:
        self._message = message

    def message(self) -> str:
        return self._message


class Tensor:
    def __init__(self, name: str, array: Array) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Array:
        return self._array


@dataclass(frozen=True)
class InferenceRequest:
    arrays: dict[str, Array]


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self.output_tensors, self.error = output_tensors, error


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor:
    return Tensor(name, request.arrays[name])


def get_model_dir() -> str:
    return model_dir
