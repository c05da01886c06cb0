"""A Triton backend in Python that serves `<version>/model.onnx` with ONNX Runtime on the CPU.

With it, `backend: "onnxruntime"` in config.pbtxt means the same where Triton's own C++ backend is not available.
`python -m serving.embedded` puts it into tritonserver's --backend-directory.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

import onnxruntime as ort

Array = npt.NDArray[Any]
Feed = dict[str, Array]

INVALID, BACKEND = "INVALID", "BACKEND"
"""Why a request fails: through its own fault, or through the model's, which Triton's metrics call BACKEND."""

CHUNK_PIXELS = 4 * 64 * 64
"""Pixels in one run, of pictures of variable size. In a network like Johnson's, a batch of four takes 0.73 of the time
of four runs at 32 x 32, the same at 64 x 64, 1.11 at 96 x 96, and at 512 x 512 1.12 and four times the memory: the
activations no longer fit into the cache."""


class TritonPythonModel:
    """One instance of one version of one model: Triton makes a process for each."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._batches = config["max_batch_size"] > 0
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        self._pictures = [tensor["name"] for tensor in config["input"] if _is_picture(tensor)]
        parameters = config.get("parameters", {})
        self._max_pixels = _integer(parameters, "max_pixels")
        named = {name: parameters[name]["string_value"] for name in self._inputs if name in parameters}
        self._members = {name: len(members.split(",")) for name, members in named.items()}
        path = Path(pb_utils.get_model_dir()) / "model.onnx"
        self._session = _session(path, parameters)
        self._failures = _Failures(args)
        ctypes.CDLL(None).malloc_trim(0)  # what loading the graph took: 32 of the colorizer's 120 MB
        _check(path, "input", self._inputs, self._session.get_inputs())
        _check(path, "output", self._outputs, self._session.get_outputs())

    def execute(self, requests: list[Any]) -> list[Any]:
        """Returns one response per request, in order. Requests of the same shape run as one batch."""
        feeds = [self._feed(request) for request in requests]
        responses = [self._refusal(feed) for feed in feeds]
        for group in self._groups({index: feed for index, feed in enumerate(feeds) if not responses[index]}):
            for index, response in zip(group, self._responses([feeds[i] for i in group]), strict=True):
                responses[index] = response
        return responses

    def finalize(self) -> None:
        del self._session

    def _feed(self, request: Any) -> Feed:
        return {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs}

    def _refusal(self, feed: Feed) -> Any:
        """The error response to a request with too large a picture; None if it has none."""
        for name in self._pictures if self._max_pixels else ():
            height, width = self._sides(feed[name])
            if height * width > self._max_pixels:
                size = f"{name}: {width} x {height} pixels are more than the {self._max_pixels:,} of max_pixels"
                error = pb_utils.TritonError(f"{size}; send a smaller picture", pb_utils.TritonError.INVALID_ARG)
                return self._failure(INVALID, error)
        return None

    def _failure(self, reason: str, error: Any) -> Any:
        self._failures.count(reason)
        return pb_utils.InferenceResponse(error=error)

    def _groups(self, feeds: dict[int, Feed]) -> Iterator[list[int]]:
        """Groups the keys of requests whose shapes differ in nothing but the batch size."""
        if not self._batches:
            yield from ([index] for index in feeds)
            return
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for index, feed in feeds.items():
            shape = tuple(array.shape[1:] for array in feed.values())
            groups.setdefault(shape, []).append(index)
        yield from groups.values()

    def _responses(self, feeds: list[Feed]) -> list[Any]:
        try:
            return self._run(feeds)
        except Exception as exc:
            if len(feeds) > 1:  # find the faulty request, and answer the others
                return [self._responses([feed])[0] for feed in feeds]
            if fault := self._fault(feeds[0]):
                return [self._failure(INVALID, pb_utils.TritonError(fault, pb_utils.TritonError.INVALID_ARG))]
            return [self._failure(BACKEND, pb_utils.TritonError(_one_line(exc)))]

    def _fault(self, feed: Feed) -> str:
        """Why a request that failed is itself invalid: an empty array, or not one number for each member. Returns an
        empty string for anything else that a graph rejects, such as too small a picture, as that can't be told from a
        fault of the graph."""
        for name, array in feed.items():
            given, wanted = array.shape[-1], self._members.get(name, array.shape[-1])
            if given != wanted:
                return f"{name}: {given} numbers, and this version takes {wanted}"
            if array.size == 0:
                return f"{name}: is empty"
        return ""

    def _run(self, feeds: list[Feed]) -> list[Any]:
        results = self._infer(_concatenated(feeds))
        if len(feeds) == 1:  # always so without batching, where outputs may be longer than inputs
            return [self._response(tuple(results))]
        sizes = [len(next(iter(feed.values()))) for feed in feeds]
        parts = zip(*(_split(result, sizes) for result in results), strict=True)
        return [self._response(arrays) for arrays in parts]

    def _infer(self, feed: Feed) -> list[Array]:
        """The outputs. Many pixels run in chunks, which is faster and limits memory."""
        count, chunk = len(next(iter(feed.values()))), self._chunk_size(feed)
        if not self._batches or count <= chunk:
            return list(self._session.run(self._outputs, feed))
        cuts = range(chunk, count, chunk)
        parts = zip(*(np.split(array, cuts) for array in feed.values()), strict=True)
        made = (self._session.run(self._outputs, dict(zip(feed, part, strict=True))) for part in parts)
        return [np.concatenate(arrays) for arrays in zip(*made, strict=True)]

    def _chunk_size(self, feed: Feed) -> int:
        """How many elements of this batch run at once."""
        largest = max((math.prod(self._sides(feed[name])) for name in self._pictures), default=1)
        return max(1, CHUNK_PIXELS // max(1, largest)) if self._pictures else sys.maxsize

    def _sides(self, picture: Array) -> tuple[int, int]:
        height, width = picture.shape[1:3] if self._batches else picture.shape[:2]
        return height, width

    def _response(self, arrays: tuple[Array, ...]) -> Any:
        pairs = zip(self._outputs, arrays, strict=True)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in pairs])


class _Failures:
    """Counts requests answered with an error, by reason, as Triton counts every response as a success. All instances of
    a version share the counters. Under TorchServe there are none."""

    def __init__(self, args: dict[str, str]) -> None:
        self._counters: dict[str, Any] = {}
        if hasattr(pb_utils, "MetricFamily"):
            self._family = pb_utils.MetricFamily(  # kept, as the counters would be deleted with it
                name="atelier_backend_failures_total",
                description="Requests that a backend answered with an error.",
                kind=pb_utils.MetricFamily.COUNTER,
            )
            version = {"model": args["model_name"], "version": args["model_version"]}
            for reason in (INVALID, BACKEND):
                self._counters[reason] = self._family.Metric(labels=version | {"reason": reason})

    def count(self, reason: str) -> None:
        if self._counters:
            self._counters[reason].increment(1)


def _is_picture(tensor: dict[str, Any]) -> bool:
    """Whether a request chooses its height and width."""
    sides = [int(side) for side in tensor["dims"]]
    return len(sides) == 3 and sides[:2] == [-1, -1]


def _concatenated(feeds: list[Feed]) -> Feed:
    if len(feeds) == 1:
        return feeds[0]
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def _split(array: Array, sizes: list[int]) -> list[Array]:
    """Views of `array`, one per request, without a copy. Eight take 1.5 us, with np.split 12."""
    ends = itertools.accumulate(sizes)
    return [array[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _session(path: Path, parameters: dict[str, dict[str, str]]) -> ort.InferenceSession:
    """The keys of `parameters` are those of Triton's C++ ONNX Runtime backend. 0 threads means one per core."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = _integer(parameters, "intra_op_thread_count")
    options.inter_op_num_threads = _integer(parameters, "inter_op_thread_count")
    # Waiting threads sleep, as other instances need their cores: 15 to 30 % faster on 2 busy cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as exc:
        raise pb_utils.TritonModelException(f"{path}: {_one_line(exc)}") from exc


def _check(path: Path, kind: str, names: list[str], found: list[ort.NodeArg]) -> None:
    for name in set(names) - {node.name for node in found}:
        have = ", ".join(node.name for node in found)
        raise pb_utils.TritonModelException(f"{path}: no {kind} {name!r}, which config.pbtxt has; it has {have}")


def _integer(parameters: dict[str, dict[str, str]], key: str) -> int:
    text = parameters.get(key, {}).get("string_value", "0")
    if not text.isdecimal():
        raise pb_utils.TritonModelException(f"config.pbtxt: parameter {key} is {text!r}, not a whole number")
    return int(text)


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())
