"""The replicas of a Triton, for serving.reload: looks them up, asks what each serves, and has it load versions."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tritonclient.grpc as triton
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from serving import repository as repo
from serving import verify
from serving.errors import ServerError, Unlisted, Unreachable
from serving.verify import TRIAL

LOAD_TIMEOUT_S = 300.0
ASK_TIMEOUT_S = 10.0
DNS = "dns:"

Resolver = Callable[[], list[str]]
"""Returns the addresses of the current replicas. Raises Unreachable if they can't be looked up."""


@dataclass(frozen=True)
class Replica:
    """A replica, known by the address of its gRPC port. Its methods raise Unreachable if nothing answers there, and
    ServerError with the server's reason if it refuses."""

    address: str
    repository: Path

    def __str__(self) -> str:
        return self.address

    def serves(self) -> dict[str, int]:
        """The newest ready version of each model that has one."""
        with self._client("what it serves") as (client, _):
            return verify.loaded(client, self.repository, ASK_TIMEOUT_S)

    def ready(self, model: str) -> list[int]:
        """All versions of one model that are ready, oldest first."""
        with self._client(f"which versions of {model} it serves") as (client, _):
            return verify.ready(client, self.repository, ASK_TIMEOUT_S).get(model, [])

    def load(self, model: str) -> None:
        """Loads the versions that the repository has now. Previous ones answer until then; requests in flight end."""
        with self._client(f"loading {model}") as (client, headers):
            client.load_model(model, headers=headers, client_timeout=LOAD_TIMEOUT_S)

    def verify(self, model: str, version: int, atol: float | None = None) -> float:
        """The largest difference from the golden batch; for an ensemble, from its steps' answers."""
        if repo.steps(self.repository, model):
            return verify.verify_ensemble(self.address, model, version, self.repository, atol)
        return verify.verify(self.address, model, version, self._folder(model, version) / repo.GOLDEN, atol)

    def try_out(self, model: str, version: int, atol: float | None = None) -> float:
        """Like `verify`, for a version that it does not serve: loads it under a name of its own that no client uses."""
        name, golden = f"{model}{TRIAL}", self._folder(model, version) / repo.GOLDEN
        with self._client(f"trying out {model} {version}") as (client, headers):
            try:
                client.load_model(
                    name,
                    headers=headers,
                    config=_trial_config(repo.config(self.repository, model), name),
                    files=_files(self.repository / model, version),
                    client_timeout=LOAD_TIMEOUT_S,
                )
                difference = verify.verify(self.address, name, version, golden, atol)
            except BaseException:  # the trial's error, or Ctrl-C, takes precedence over unloading's
                with contextlib.suppress(InferenceServerException):
                    client.unload_model(name, headers=headers, client_timeout=ASK_TIMEOUT_S)
                raise
            client.unload_model(name, headers=headers, client_timeout=ASK_TIMEOUT_S)
            return difference

    def end_trials(self, models: Sequence[str]) -> None:
        """Unloads trials that a killed hand-over may have left there."""
        with self._client("ending trials") as (client, headers):
            for model in models:
                client.unload_model(f"{model}{TRIAL}", headers=headers, client_timeout=ASK_TIMEOUT_S)

    def _folder(self, model: str, version: int) -> Path:
        return self.repository / model / str(version)

    @contextlib.contextmanager
    def _client(self, doing: str) -> Iterator[tuple[triton.InferenceServerClient, Mapping[str, str]]]:
        headers = repo.control_headers(self.repository)
        with verify.connect(self.address) as client:
            try:
                yield client, headers
            except InferenceServerException as exc:
                kind = Unreachable if exc.status() in verify.UNREACHABLE_CODES else ServerError
                raise kind(f"{self}: {doing}: {' '.join(exc.message().split())}") from exc


def _trial_config(config: pb.ModelConfig, name: str) -> str:
    """With one instance, and without the version policy, because only the version on trial is there."""
    config.name = name
    config.ClearField("version_policy")
    for group in config.instance_group:
        group.count = 1
    return str(json_format.MessageToJson(config, preserving_proto_field_name=True))


def _files(folder: Path, version: int) -> dict[str, bytes]:
    """A model folder with this version alone, as file overrides for Triton's load request."""
    found = [*folder.glob("[!.]*"), folder / str(version) / repo.MODEL]
    return {f"file:{path.relative_to(folder)}": path.read_bytes() for path in found if path.is_file()}


def resolver(servers: str) -> Resolver:
    """Parses `--servers`: HOST:PORT,HOST:PORT or dns:NAME:PORT, which is looked up each time."""
    if servers.startswith(DNS):
        name, port = _host_and_port(servers.removeprefix(DNS), servers)
        return lambda: _looked_up(name, port)
    addresses = ["{}:{}".format(*_host_and_port(each, servers)) for each in servers.split(",")]
    return lambda: addresses


def _host_and_port(address: str, servers: str) -> tuple[str, int]:
    host, _, port = address.strip().rpartition(":")
    if not host or "/" in host or not (port.isdecimal() and 0 < int(port) < 65536):
        raise ServerError(f"--servers {servers}: give HOST:PORT, more of them after commas, or dns:NAME:PORT")
    return host, int(port)


def _looked_up(name: str, port: int) -> list[str]:
    """Looks up the addresses; none if the name does not resolve, as that of a headless Service without a ready pod.
    Raises Unlisted if DNS does not answer."""
    try:
        found = socket.getaddrinfo(name, port, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except socket.gaierror as exc:
        if exc.errno == socket.EAI_AGAIN:
            raise Unlisted(f"--servers {DNS}{name}:{port}: {exc.strerror}; does DNS answer?") from exc
        return []
    except UnicodeError as exc:  # Python raises it for an invalid name, such as a..b
        raise ServerError(f"--servers {DNS}{name}:{port}: not a name ({exc}); give dns:NAME:PORT") from exc
    return sorted({f"{where[0]}:{port}" for *_, where in found})
