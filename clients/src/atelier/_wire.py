"""Converts tensors to Open Inference Protocol messages and back, as specified by a model's contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from atelier._contract import DTYPES, Array, Contract, Tensors
from atelier.errors import ServerError

SAY_FINAL = "triton_enable_empty_final_response"
"""Request parameter that makes Triton end a stream with an empty response, marked as final."""

_DATATYPES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class InferResult:
    """The outputs for one batch, and the model and version that produced them."""

    model: str
    version: int
    tensors: Tensors


def request(tensors: Tensors, model: str, version: str, contract: Contract) -> Any:
    """Requests every output. `tensors` are the contract's inputs, 1 to max_batch of each, or 1 if that is 0."""
    message = pb.ModelInferRequest(model_name=model, model_version=version)
    for tensor in contract.inputs:
        if tensor.optional and tensor.name not in tensors:
            continue
        array = tensors[tensor.name]
        assert tensor.fits(array), f"{model}: {tensor} is given {array.dtype} {array.shape}"
        put(message.inputs, message.raw_input_contents, tensor.name, array if contract.max_batch else array[0])
    for tensor in contract.outputs:
        message.outputs.add(name=tensor.name)
    return message


def result(reply: Any, contract: Contract, count: int) -> InferResult:
    """Decodes the contract's outputs, `count` of each. Raises ServerError if they don't match the contract."""
    try:
        outputs = tensors(reply.outputs, reply.raw_output_contents)
        version = int(reply.model_version)
    except (KeyError, ValueError) as exc:
        raise ServerError(f"{reply.model_name}: its answer cannot be read ({exc})") from exc
    if not contract.max_batch:
        outputs = {name: array[None] for name, array in outputs.items()}
    for tensor in contract.outputs:
        array = outputs.get(tensor.name)
        if array is None:
            raise ServerError(f"{reply.model_name}: its answer has no output {tensor.name!r}")
        if array.shape[:1] != (count,) or not tensor.fits(array):
            actual, expected = f"{array.dtype} {array.shape}", f"{tensor.dtype} {(count, *tensor.shape)}"
            raise ServerError(f"{reply.model_name}: output {tensor.name!r} is {actual}, and must be {expected}")
    return InferResult(reply.model_name, version, outputs)


def is_final(reply: Any) -> bool:
    """Whether it is the empty response that ends a stream."""
    return bool(reply.parameters["triton_final_response"].bool_param) and not reply.outputs


def put(metadata: Any, contents: Any, name: str, array: Array) -> None:
    """Adds a tensor to a message: its name, type and shape to `metadata`, its bytes to `contents`."""
    metadata.add(name=name, datatype=_DATATYPES[array.dtype], shape=array.shape)
    contents.append(array.tobytes())


def tensors(metadata: Any, contents: Any) -> dict[str, Array]:
    """The tensors of a message. Raises KeyError for an unknown type, ValueError for bytes that do not fit its shape."""
    return {
        tensor.name: np.frombuffer(raw, DTYPES[tensor.datatype]).reshape(tuple(tensor.shape))
        for tensor, raw in zip(metadata, contents, strict=True)
    }
