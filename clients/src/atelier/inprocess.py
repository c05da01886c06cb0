"""A model repository run in this process by ONNX Runtime, for machines where tritonserver does not run.

with InProcessClient("serving/model_repository") as client:
    pictures = client.generate(latents.draw(4, seed=7))
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb

from atelier import _wire, errors
from atelier._address import Address
from atelier._client import Client
from atelier._protocol import Open, Send
from atelier._types import DEFAULT_TIMEOUT_S


class InProcessClient(Client):
    """A `Client` that needs no server: the same methods, answers and errors. Needs the package onnxruntime.

    Raises InvalidInput if `repository` is not a folder, MissingPackage without onnxruntime. `timeout_s` does
    not interrupt a batch that is being computed.
    """

    def __init__(self, repository: str | Path, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        super().__init__(str(repository), timeout_s=timeout_s)

    def _connect(self, url: str) -> _OnnxRuntime:
        return _OnnxRuntime(Path(url))


class _OnnxRuntime:
    """Answers the requests of `Client` as a Triton with this repository would."""

    def __init__(self, repository: Path) -> None:
        self.address: Address | str = str(repository)
        self._runtime = _onnxruntime()
        self._repository = repository
        self._sessions: dict[Path, Any] = {}
        self._turn = threading.Lock()  # one batch at a time, each on every core
        if not repository.is_dir():
            raise errors.InvalidInput(f"{repository}: no such folder of models")

    def send(self, step: Send) -> Any:
        answer: Callable[[Any], Any] = getattr(self, f"_{step.method}")
        return answer(step.request)

    def open(self, step: Open) -> Any:
        raise errors.UnknownModel(f"{self.address}: no {step.request.model_name} in this process; it needs a server")

    def close(self) -> None:
        self._sessions.clear()

    def _ServerReady(self, request: Any) -> Any:
        return pb.ServerReadyResponse(ready=True)

    def _ModelReady(self, request: Any) -> Any:
        versions = self._versions(request.name)
        ready = int(request.version) in versions if request.version else bool(versions)
        return pb.ModelReadyResponse(ready=ready)

    def _RepositoryIndex(self, request: Any) -> Any:
        answer = pb.RepositoryIndexResponse()
        for name in sorted(path.name for path in self._repository.iterdir() if path.is_dir()):
            for version in self._versions(name):
                answer.models.add(name=name, version=str(version), state="READY")
        return answer

    def _ModelMetadata(self, request: Any) -> Any:
        self._file(request.name, "")
        return pb.ModelMetadataResponse(name=request.name, versions=map(str, self._versions(request.name)))

    def _ModelConfig(self, request: Any) -> Any:
        path = self._file(request.name, "").parents[1] / "config.pbtxt"
        try:
            config = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
        except (OSError, ValueError, text_format.ParseError) as exc:
            raise errors.ServerError(f"{path}: cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
        return pb.ModelConfigResponse(config=config)

    def _ModelInfer(self, request: Any) -> Any:
        path = self._file(request.model_name, request.model_version)
        feed = _wire.tensors(request.inputs, request.raw_input_contents)
        names = [output.name for output in request.outputs]
        answer = pb.ModelInferResponse(model_name=request.model_name, model_version=path.parent.name)
        for name, array in zip(names, self._run(path, names, feed), strict=True):
            _wire.put(answer.outputs, answer.raw_output_contents, name, array)
        return answer

    def _run(self, path: Path, names: list[str], feed: dict[str, Any]) -> list[Any]:
        try:
            with self._turn:
                if path not in self._sessions:
                    self._sessions[path] = self._session(path)
                return list(self._sessions[path].run(names, feed))
        except Exception as exc:  # ONNX Runtime's errors share no narrower type
            raise errors.ServerError(f"{path}: {' '.join(str(exc).split())}") from exc

    def _session(self, path: Path) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        return self._runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def _versions(self, model: str) -> list[int]:
        found = (self._repository / model).glob("*/model.onnx")
        return sorted(int(path.parent.name) for path in found if path.parent.name.isdecimal())

    def _file(self, model: str, version: str) -> Path:
        versions = self._versions(model)
        if not versions:
            raise errors.UnknownModel(model)
        if version and int(version) not in versions:
            raise errors.UnknownVersion(version)
        return self._repository / model / (version or str(versions[-1])) / "model.onnx"


def _onnxruntime() -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as exc:
        raise errors.MissingPackage("onnxruntime is not installed: pip install onnxruntime") from exc
