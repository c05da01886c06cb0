"""Tensors to the Open Inference Protocol's messages and back, as a model's contract has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from atelier._contract import DTYPES, Array, Contract, Tensors
from atelier.errors import ServerError

SAY_FINAL = "triton_enable_empty_final_response"
"""The parameter of a request that has the end of its answers said."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Answer:
    """The outputs for one batch, and the version that gave them."""

    model: str
    version: int
    tensors: Tensors


def request(tensors: Tensors, model: str, version: str, wanted: Contract) -> Any:
    """Asks for every output. `tensors` are what `wanted` takes, 1 to max_batch of each, or 1 if that is 0."""
    made = pb.ModelInferRequest(model_name=model, model_version=version)
    for tensor in wanted.inputs:
        if tensor.optional and tensor.name not in tensors:
            continue
        array = tensors[tensor.name]
        assert tensor.fits(array), f"{model}: {tensor} is given {array.dtype} {array.shape}"
        put(made.inputs, made.raw_input_contents, tensor.name, array if wanted.max_batch else array[0])
    for tensor in wanted.outputs:
        made.outputs.add(name=tensor.name)
    return made


def answer(reply: Any, wanted: Contract, count: int) -> Answer:
    """The outputs of `wanted`, `count` of each. Raises ServerError for anything else."""
    try:
        found = tensors(reply.outputs, reply.raw_output_contents)
    except (KeyError, ValueError) as exc:
        raise ServerError(f"{reply.model_name}: its answer cannot be read ({exc})") from exc
    if not wanted.max_batch:
        found = {name: array[None] for name, array in found.items()}
    for tensor in wanted.outputs:
        array = found.get(tensor.name)
        if array is None:
            raise ServerError(f"{reply.model_name}: its answer has no output {tensor.name!r}")
        if array.shape[:1] != (count,) or not tensor.fits(array):
            had, needed = f"{array.dtype} {array.shape}", f"{tensor.dtype} {(count, *tensor.shape)}"
            raise ServerError(f"{reply.model_name}: output {tensor.name!r} is {had}, and must be {needed}")
    return Answer(reply.model_name, int(reply.model_version), found)


def is_final(reply: Any) -> bool:
    """Whether it is no answer, but says that there are no more."""
    return bool(reply.parameters["triton_final_response"].bool_param) and not reply.outputs


def put(described: Any, contents: Any, name: str, array: Array) -> None:
    """Adds a tensor to a message: what it is to `described`, its bytes to `contents`."""
    described.add(name=name, datatype=_NAMES[array.dtype], shape=array.shape)
    contents.append(array.tobytes())


def tensors(described: Any, contents: Any) -> dict[str, Array]:
    """The tensors of a message. Raises KeyError for an unknown type, ValueError for bytes that do not fit."""
    return {
        tensor.name: np.frombuffer(raw, DTYPES[tensor.datatype]).reshape(tuple(tensor.shape))
        for tensor, raw in zip(described, contents, strict=True)
    }
