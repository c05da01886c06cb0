"""Runs a model repository in this process with ONNX Runtime, for machines where tritonserver does not run.

with InProcessClient("serving/model_repository") as client:
    pictures = client.generate(latents.draw(4, seed=7))
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from atelier import _optional, _repository, _wire, errors, files
from atelier._address import Address
from atelier._client import Client
from atelier._protocol import Open, Send
from atelier._types import DEFAULT_TIMEOUT_S


class InProcessClient(Client):
    """A `Client` that needs no server: the same methods, answers and errors. Needs the package onnxruntime.

    Only `paint` is unavailable, because its model streams: it raises UnknownModel, and `models` omits the model.
    Raises InvalidInput if `repository` is not a folder, MissingPackage without onnxruntime. `timeout_s` does not
    interrupt a batch that is being computed.
    """

    def __init__(self, repository: str | Path, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        super().__init__(str(repository), timeout_s=timeout_s)

    def _connect(self, url: str | None) -> _OnnxRuntimeTransport:
        assert url is not None, "the constructor gives the folder"
        return _OnnxRuntimeTransport(Path(url))


class _OnnxRuntimeTransport:
    """Answers a client's requests as a Triton serving this repository would."""

    def __init__(self, repository: Path) -> None:
        self.address: Address | str = str(repository)
        self._runtime = _onnxruntime()
        self._folder = repository
        self._sessions: dict[Path, Any] = {}
        self._lock = threading.Lock()  # one batch at a time, on all cores
        if not files.is_dir(repository):
            raise errors.InvalidInput(f"{repository}: no such folder of models")

    def send(self, step: Send) -> Any:
        method: Callable[[Any], Any] = getattr(self, f"_{step.method}")
        with files.map_os_errors(self._folder, "read"):
            return method(step.request)

    def open(self, step: Open) -> Any:
        raise errors.UnknownModel(f"{self.address}: no {step.request.model_name} in this process; it needs a server")

    def close(self) -> None:
        with self._lock:
            self._sessions.clear()

    def _ServerReady(self, request: Any) -> Any:
        return pb.ServerReadyResponse(ready=True)

    def _ModelReady(self, request: Any) -> Any:
        versions = self._served(request.name)
        ready = int(request.version) in versions if request.version else bool(versions)
        return pb.ModelReadyResponse(ready=ready)

    def _RepositoryIndex(self, request: Any) -> Any:
        response = pb.RepositoryIndexResponse()
        for name in sorted(path.name for path in self._folder.iterdir() if path.is_dir()):
            for version in self._served(name):
                response.models.add(name=name, version=str(version), state="READY")
        return response

    def _ModelMetadata(self, request: Any) -> Any:
        return pb.ModelMetadataResponse(name=request.name, versions=map(str, self._versions(request.name)))

    def _ModelConfig(self, request: Any) -> Any:
        self._versions(request.name)
        return pb.ModelConfigResponse(config=_repository.config(self._folder, request.name))

    def _ModelInfer(self, request: Any) -> Any:
        version = self._version(request.model_name, request.model_version)
        inputs = _wire.tensors(request.inputs, request.raw_input_contents)
        names = [output.name for output in request.outputs]
        response = pb.ModelInferResponse(model_name=request.model_name, model_version=version)
        for name, array in self._infer(request.model_name, version, names, inputs).items():
            _wire.put(response.outputs, response.raw_output_contents, name, array)
        return response

    def _infer(self, model: str, version: str, names: list[str], inputs: dict[str, Any]) -> dict[str, Any]:
        """Computes the named outputs of a model, or of an ensemble by running its steps one after the other."""
        steps = _repository.steps(self._folder, model)
        if not steps:
            return self._run(model, version, names, inputs)
        tensors = dict(inputs)
        try:
            for step in steps:
                feed = {own: tensors[name] for own, name in step.input_map.items()}
                number = step.model_version if step.model_version > 0 else self._versions(step.model_name)[-1]
                outputs = self._run(step.model_name, str(number), list(step.output_map), feed)
                tensors |= {step.output_map[own]: array for own, array in outputs.items()}
            return {name: tensors[name] for name in names}
        except KeyError as exc:
            raise errors.ServerError(f"{self._folder / model}: no step of its config.pbtxt gives {exc}") from exc

    def _run(self, model: str, version: str, names: list[str], feed: dict[str, Any]) -> dict[str, Any]:
        path = self._folder / model / version / "model.onnx"
        try:
            with self._lock:
                if path not in self._sessions:
                    self._sessions[path] = self._session(path)
                return dict(zip(names, self._sessions[path].run(names, feed), strict=True))
        except Exception as exc:  # ONNX Runtime's errors share no narrower type
            raise errors.ServerError(f"{path}: {' '.join(str(exc).split())}") from exc

    def _session(self, path: Path) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        return self._runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def _served(self, model: str) -> list[int]:
        """The versions available in this process: none for a model that streams."""
        return [] if _repository.streams(self._folder, model) else _repository.versions(self._folder, model)

    def _versions(self, model: str) -> list[int]:
        found = _repository.versions(self._folder, model)
        if not found:
            raise errors.UnknownModel(model)
        return found

    def _version(self, model: str, asked: str) -> str:
        """The version to run: the one asked for or, if none is, the newest."""
        found = self._versions(model)
        if asked and int(asked) not in found:
            raise errors.UnknownVersion(asked)
        return asked or str(found[-1])


def _onnxruntime() -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it reports what it runs to Microsoft, see its Privacy.md
    return _optional.load("onnxruntime", subject="onnxruntime")
