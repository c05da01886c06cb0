"""TorchServe's handler for every model: decodes requests, runs them by this project's Triton backend, and encodes.

An archive contains this file and, beside it, the modules that it imports.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from serving.backends.onnxruntime.model import TritonPythonModel
from serving.torchserve import tensors


class Handler:
    """One worker: TorchServe starts a process for each, and passes it the requests gathered during a batch delay."""

    def initialize(self, context: Any) -> None:
        config = context.model_yaml_config["triton"]
        self._inputs, self._max_batch = config["input"], config["max_batch_size"]
        pb_utils.model_dir = context.system_properties["model_dir"]
        self._model = TritonPythonModel()
        try:
            self._model.initialize({"model_config": json.dumps(config)})
        except pb_utils.TritonModelException as exc:
            raise pb_utils.TritonModelException(f"failed to load {context.model_name!r}: {exc}") from None
        # TorchServe logs three lines per batch, which its frontend reads and parses again.
        logging.getLogger().setLevel(logging.WARNING)

    def handle(self, data: Sequence[dict[str, Any]], context: Any) -> list[bytes]:
        """Replies to each request, in order. A refusal is text, because in gRPC a batch has only one status."""
        requests = [self._request(fields) for fields in data]
        taken = [request for request in requests if not isinstance(request, str)]
        answers = iter(self._model.execute(taken))
        batch = len(taken)
        return [
            tensors.refusal(request) if isinstance(request, str) else _reply(batch, next(answers))
            for request in requests
        ]

    def _request(self, fields: dict[str, Any]) -> Any:
        """The request as Triton would pass it, or a text that says what is wrong with it."""
        try:
            arrays = {tensor["name"]: self._array(tensor, fields) for tensor in self._inputs}
        except ValueError as exc:
            return str(exc)
        if len({len(array) for array in arrays.values()}) > 1:
            return f"batches of different sizes: { {name: len(array) for name, array in arrays.items()} }"
        return pb_utils.InferenceRequest(arrays)

    def _array(self, tensor: dict[str, Any], fields: dict[str, Any]) -> tensors.Array:
        """Decodes a tensor and checks it as Triton does against config.pbtxt. Raises ValueError."""
        name, dims = tensor["name"], [int(side) for side in tensor["dims"]]
        if name not in fields:
            raise ValueError(f"no input {name!r}; this model takes {', '.join(each['name'] for each in self._inputs)}")
        if not isinstance(fields[name], bytes | bytearray):  # TorchServe decodes JSON and text by itself
            raise ValueError(f"{name}: not bytes; send it as application/octet-stream")
        try:
            array, taken = tensors.unpack(fields[name], tensors.DTYPES[tensor["data_type"]], len(dims) + 1)
        except ValueError as exc:
            raise ValueError(f"{name}: {exc}") from exc
        batch, *sides = array.shape
        if any(wanted not in (-1, side) for wanted, side in zip(dims, sides, strict=True)):
            raise ValueError(f"{name}: shape {sides}, and this model takes {dims}")
        if not 1 <= batch <= self._max_batch:
            raise ValueError(f"{name}: a batch of {batch}; this model takes 1 to {self._max_batch}")
        if taken < len(fields[name]):
            raise ValueError(f"{name}: {len(fields[name]) - taken} bytes too many for {array.dtype} of {array.shape}")
        return array


def _reply(batch: int, response: Any) -> bytes:
    if response.error:
        return tensors.refusal(response.error.message())
    return tensors.reply(batch, (tensor.as_numpy() for tensor in response.output_tensors))
