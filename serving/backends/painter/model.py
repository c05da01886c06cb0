"""A Triton backend in Python that paints, with the loss and gradient that `<version>/model.onnx` computes.

Decoupled: one thread per painting streams its canvases. At most config.pbtxt's `max_streams` run at once; one more is
rejected. Their evaluations take turns on the session's threads. A painting ends early when its client has gone.
"""

from __future__ import annotations

import ctypes
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Set before the first import: SciPy's vectors are small, and its BLAS would use a thread per core beside those of the
# session, which doubles a painting's time on busy cores. For the other variable see serving/__init__.py.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": os.environ.get("ORT_DISABLE_TELEMETRY", "1")}

import numpy as np
import triton_python_backend_utils as pb_utils

import onnxruntime as ort

if TYPE_CHECKING:
    from serving.backends.painter import knobs, painting
    from serving.backends.painter.turns import Turns
else:  # a model's process can import from this folder, but not from the packages around it
    import knobs
    import painting
    from turns import Turns

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
PICTURES = ("content", "style")
CODES = {"INVALID": "INVALID_ARG", "REJECTED": "UNAVAILABLE", "BACKEND": "INTERNAL"}
"""Triton's code for each reason to fail: the request is invalid, it is one too many, or the model failed."""


class Cancelled(Exception):
    """The client has cancelled its request, or the model is being unloaded."""


class TritonPythonModel:
    """One instance of one version of one model: Triton makes a process for each."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._name = config["name"]
        self._max_streams, self._max_pixels, threads = (
            _integer(config, key) for key in ("max_streams", "max_pixels", "intra_op_thread_count")
        )
        self._session = _session(Path(pb_utils.get_model_dir()) / "model.onnx", threads)
        self._failures = _Failures(args)
        self._turns = Turns()
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._stopping = False

    def execute(self, requests: list[Any]) -> None:
        """Starts the paintings; their threads send the responses."""
        for request in requests:
            self._start(request)

    def finalize(self) -> None:
        self._stopping = True
        for thread in tuple(self._threads):
            thread.join()

    def _start(self, request: Any) -> None:
        sender = request.get_response_sender()
        try:
            commission = _Commission(request, self._max_pixels)
        except knobs.BadRequest as exc:
            self._fail(sender, "INVALID", str(exc))
            return
        thread = threading.Thread(target=self._work, args=(sender, commission))
        with self._lock:
            full = len(self._threads) >= self._max_streams
            if not full:
                self._threads.add(thread)
        if full:
            # The SDK recognizes an overload by Triton's own wording.
            text = f"{self._name}: one more beside {self._max_streams} under way exceeds maximum queue size"
            self._fail(sender, "REJECTED", text)
        else:
            thread.start()

    def _work(self, sender: Any, commission: _Commission) -> None:
        error = self._paint(sender, commission)
        _return_memory()
        with self._lock:
            self._threads.remove(threading.current_thread())
        if error:
            self._fail(sender, "BACKEND", error)
        else:
            sender.send(flags=FINAL)

    def _fail(self, sender: Any, reason: str, text: str) -> None:
        self._failures.count(reason)
        error = pb_utils.TritonError(text, getattr(pb_utils.TritonError, CODES[reason]))
        sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)

    def _paint(self, sender: Any, commission: _Commission) -> str | None:
        """Paints and sends the canvases; returns the error message if it fails."""
        try:
            with self._turns.joined() as worker:
                painting.paint(
                    self._graph(sender, worker),
                    commission.content,
                    commission.style,
                    commission.knobs,
                    lambda stroke: sender.send(_answer(stroke)),
                )
        except Cancelled:
            return None
        except Exception as exc:
            return f"{self._name}: {_one_line(exc)}"
        return None

    def _graph(self, sender: Any, worker: object) -> painting.Graph:
        def run(outputs: Sequence[str], feed: painting.Feed) -> list[Any]:
            with self._turns.turn(worker):
                if self._stopping or sender.is_cancelled():
                    raise Cancelled
                return list(self._session.run(outputs, dict(feed)))

        inputs = {node.name: _shape(node) for node in self._session.get_inputs()}
        return painting.Graph(run, inputs, [node.name for node in self._session.get_outputs()])


class _Failures:
    """Counts requests answered with an error, by reason; see the onnxruntime backend."""

    def __init__(self, args: dict[str, str]) -> None:
        self._family = pb_utils.MetricFamily(
            name="atelier_backend_failures_total",
            description="Requests that a backend answered with an error.",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        version = {"model": args["model_name"], "version": args["model_version"]}
        self._counters = {reason: self._family.Metric(labels=version | {"reason": reason}) for reason in CODES}

    def count(self, reason: str) -> None:
        self._counters[reason].increment(1)


class _Commission:
    """A request, parsed and validated. Raises BadRequest if it is invalid."""

    def __init__(self, request: Any, max_pixels: int) -> None:
        self.knobs = knobs.read({name: _array(request, name) for name in knobs.KNOBS})
        self.content, self.style = (_picture(request, name, max_pixels) for name in PICTURES)
        most = painting.max_scales(self.content.shape[:2])
        if self.knobs.scales > most:
            raise knobs.BadRequest(f"scales: {self.knobs.scales} are too many for this content, which has {most}")


def _array(request: Any, name: str) -> knobs.Array | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _picture(request: Any, name: str, max_pixels: int) -> painting.Pixels:
    """A copy, as the request's own memory is freed with the request. Raises BadRequest."""
    pixels = np.array(_array(request, name), np.uint8)
    height, width, _ = pixels.shape
    if min(height, width) < painting.SMALLEST_SIDE:
        least = painting.SMALLEST_SIDE
        raise knobs.BadRequest(f"{name}: has {width} x {height} pixels, and needs {least} or more on each side")
    if height * width > max_pixels > 0:
        raise knobs.BadRequest(f"{name}: has {width} x {height} pixels, more than {max_pixels}; make it smaller")
    return pixels


def _answer(stroke: painting.Stroke) -> Any:
    tensors = {
        "image": stroke.pixels,
        "iteration": np.array([stroke.iteration], np.int32),
        "total": np.array([stroke.total], np.int32),
        "losses": stroke.evaluation.losses,
        "objective": np.array([stroke.evaluation.objective], np.float32),
    }
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in tensors.items()])


def _session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # see the onnxruntime backend
    options.enable_cpu_mem_arena = False  # it would keep the largest picture's memory for ever
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as exc:
        raise pb_utils.TritonModelException(f"{path}: {_one_line(exc)}") from exc


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(side if isinstance(side, int) else 1 for side in node.shape)


def _integer(config: dict[str, Any], key: str) -> int:
    text = config["parameters"].get(key, {}).get("string_value", "")
    if not text.isdecimal():
        raise pb_utils.TritonModelException(f"config.pbtxt: parameter {key} is {text!r}, and must be a whole number")
    return int(text)


def _return_memory() -> None:
    """Returns to the system the freed memory that glibc keeps: the server runs with MALLOC_TRIM_THRESHOLD_ set high."""
    ctypes.CDLL(None).malloc_trim(0)


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split()) or type(exc).__name__
