"""The replicas of a Triton: where they are, what each serves, and what it is told to serve. serving.reload uses it."""

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
"""Returns the addresses of the replicas that there are now. Raises Unreachable where they can't be looked up."""


@dataclass(frozen=True)
class Replica:
    """One of them, by the address of its gRPC port. Its methods raise Unreachable where nothing answers there, and
    ServerError with the server's reason where it refuses."""

    address: str
    repository: Path

    def __str__(self) -> str:
        return self.address

    def serves(self) -> dict[str, int]:
        """The newest version that is ready, of each model that has one."""
        with self._client("what it serves") as (client, _):
            return verify.loaded(client, self.repository, ASK_TIMEOUT_S)

    def ready(self, model: str) -> list[int]:
        """All versions of one model that are ready, oldest first."""
        with self._client(f"which versions of {model} it serves") as (client, _):
            return verify.ready(client, self.repository, ASK_TIMEOUT_S).get(model, [])

    def load(self, model: str) -> None:
        """Loads the versions that the repository has now. Those before answer until then; a request under way ends."""
        with self._client(f"loading {model}") as (client, headers):
            client.load_model(model, headers=headers, client_timeout=LOAD_TIMEOUT_S)

    def verify(self, model: str, version: int, atol: float | None = None) -> float:
        """The largest difference from the golden batch; of an ensemble, from what its steps answer."""
        if repo.steps(self.repository, model):
            return verify.verify_ensemble(self.address, model, version, self.repository, atol)
        return verify.verify(self.address, model, version, self._folder(model, version) / repo.GOLDEN, atol)

    def try_out(self, model: str, version: int, atol: float | None = None) -> float:
        """The same of a version that it does not serve: loaded under a name of its own, it answers nobody else."""
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
            except BaseException:  # what the trial found, or Ctrl-C, goes before how it ended
                with contextlib.suppress(InferenceServerException):
                    client.unload_model(name, headers=headers, client_timeout=ASK_TIMEOUT_S)
                raise
            client.unload_model(name, headers=headers, client_timeout=ASK_TIMEOUT_S)
            return difference

    def end_trials(self, models: Sequence[str]) -> None:
        """Unloads what a hand-over that was killed may have left there."""
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
    """With one instance, and without the version policy: only the version that is tried out is there."""
    config.name = name
    config.ClearField("version_policy")
    for group in config.instance_group:
        group.count = 1
    return str(json_format.MessageToJson(config, preserving_proto_field_name=True))


def _files(folder: Path, version: int) -> dict[str, bytes]:
    """A model folder with this version alone, as the file overrides of Triton's load request."""
    found = [*folder.glob("[!.]*"), folder / str(version) / repo.MODEL]
    return {f"file:{path.relative_to(folder)}": path.read_bytes() for path in found if path.is_file()}


def resolver(servers: str) -> Resolver:
    """What `--servers` says: HOST:PORT,HOST:PORT or dns:NAME:PORT, which is looked up each time."""
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
    """No address is no replica: the name of a headless Service without a ready pod does not resolve. Raises Unlisted
    where DNS does not answer."""
    try:
        found = socket.getaddrinfo(name, port, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except socket.gaierror as exc:
        if exc.errno == socket.EAI_AGAIN:
            raise Unlisted(f"--servers {DNS}{name}:{port}: {exc.strerror}; does DNS answer?") from exc
        return []
    except UnicodeError as exc:  # Python's of what can be no name, such as a..b
        raise ServerError(f"--servers {DNS}{name}:{port}: not a name ({exc}); give dns:NAME:PORT") from exc
    return sorted({f"{where[0]}:{port}" for *_, where in found})
