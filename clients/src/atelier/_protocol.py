"""The sans-I/O core of both clients: builds requests, reads responses, maps errors, decides what to retry.

Each operation is a flow: a generator that yields the steps it wants done and is sent their results. `Client`
and `AsyncClient` only carry the steps out, so neither can behave unlike the other.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import grpc
from tritonclient.grpc import service_pb2 as pb

from atelier import _failures, _wire, errors
from atelier._address import Address
from atelier._contract import Contract, Tensors
from atelier._models import MODELS
from atelier._types import LARGEST_VERSION, Model, NotGiven, as_int, batch_size, is_number
from atelier.tasks import Task, check_name

MAX_ATTEMPTS: Final = 4
"""Of a call whose server is unreachable; the deadline is for all of them together."""
INITIAL_BACKOFF_S: Final = 0.1
BACKOFF_MULTIPLIER: Final = 3.0
MAX_BACKOFF_S: Final = 2.0
JITTER: Final = 0.5
"""Share of a backoff by which it is longer or shorter at random, so that many clients do not come back as one."""
PROBE_TIMEOUT_S: Final = 2.0
HANG_UP_S: Final = 0.5
"""A forwarded port without a server ends a connection at once; a server waits for what it is asked."""
MAX_TIMEOUT_S: Final = 1e9
"""32 years. gRPC counts a deadline in nanoseconds from 1970 in 64 bits; what is beyond them has passed at once."""


@dataclass(frozen=True)
class Send:
    """Call `method` of the gRPC service. Its response is sent back, or its grpc.RpcError thrown in."""

    method: str
    request: Any
    timeout_s: float


@dataclass(frozen=True)
class Open:
    """Call `method`, whose responses are a stream, with one request. The stream to `Read` from is sent back at once."""

    method: str
    request: Any


@dataclass(frozen=True)
class Read:
    """Wait for the next response of a stream. It is sent back, or None at the end, or a grpc.RpcError thrown in."""

    stream: Any
    timeout_s: float


@dataclass(frozen=True)
class Sleep:
    """Wait before the next attempt."""

    seconds: float


@dataclass(frozen=True)
class Probe:
    """Find out whether `host` accepts TCP connections at `port`, and ends none within `stays_s`; True or False is sent
    back."""

    host: str
    port: int
    timeout_s: float
    stays_s: float = 0.0


Step = Send | Open | Read | Sleep | Probe
T = TypeVar("T")
Flow = Generator[Step, Any, T]


class Core:
    """The operations on one server, as flows. Remembers whether the server ever answered.

    `uniform` gives random numbers in [0, 1), for the jitter.
    """

    def __init__(
        self,
        address: Address | str,
        *,
        timeout_s: float,
        patient: bool,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self.address = address
        self._timeout_s = _checked_timeout(timeout_s)
        self._patient = patient
        self._clock = clock
        self._uniform = uniform
        self._answered = False

    def ready(self, model: str | None, version: int | None, timeout_s: float | NotGiven) -> Flow[bool]:
        if model is None:
            method, request = "ServerReady", pb.ServerReadyRequest()
        else:
            check_name(model)
            method, request = "ModelReady", pb.ModelReadyRequest(name=model, version=_version(version))
        try:
            answer = yield from self._call(method, request, timeout_s, max_attempts=1)
        except (errors.ServerUnreachable, errors.ModelNotReady, errors.DeadlineExceeded):
            return False
        return bool(answer.ready)

    def models(self, timeout_s: float | NotGiven) -> Flow[list[Model]]:
        try:
            answer = yield from self._call("RepositoryIndex", pb.RepositoryIndexRequest(), timeout_s)
        except errors.AccessDenied:
            return (yield from self._known_models(timeout_s))
        by_name = itertools.groupby(sorted(answer.models, key=lambda m: m.name), key=lambda m: m.name)
        return [_model(name, list(entries)) for name, entries in by_name]

    def _known_models(self, timeout_s: float | NotGiven) -> Flow[list[Model]]:
        """The models of MODELS that are served, asked for one by one: for a server that restricts its index."""
        found = []
        for name in MODELS:
            try:
                answer = yield from self._call("ModelMetadata", pb.ModelMetadataRequest(name=name), timeout_s)
            except (errors.UnknownModel, errors.ModelNotReady):
                continue
            found.append(Model(name=name, versions=tuple(sorted(map(int, answer.versions))), state="READY"))
        return found

    def newest_version(self, model: str, timeout_s: float | NotGiven) -> Flow[int]:
        """The version that a request without one would get now, which all batches of a call then ask for."""
        answer = yield from self._call_model(model, "ModelMetadata", pb.ModelMetadataRequest(name=model), timeout_s)
        if not answer.versions:
            raise errors.ModelNotReady(f"{self.address}: no version of {model} is ready; try again shortly")
        return max(int(version) for version in answer.versions)

    def members(self, model: str, tensor: str, timeout_s: float | NotGiven) -> Flow[tuple[str, ...]]:
        """The names of the elements of a vector input, from the parameter of its config.pbtxt that `tensor` names."""
        answer = yield from self._call_model(model, "ModelConfig", pb.ModelConfigRequest(name=model), timeout_s)
        named = {key: parameter.string_value for key, parameter in answer.config.parameters.items()}
        if not named.get(tensor):
            raise errors.UnknownModel(f"{self.address}: {model} has no names for its {tensor} in its config.pbtxt")
        return tuple(named[tensor].split(","))

    def infer(
        self, task: Task[T], tensors: Tensors, model: str, version: int | None, timeout_s: float | NotGiven
    ) -> Flow[list[T]]:
        """One batch: 1 to max_batch of each tensor that the task takes, to as many results."""
        contract = task.contract(model)
        request = _wire.request(tensors, model, _version(version), contract)
        reply = yield from self._call_model(model, "ModelInfer", request, timeout_s, version=version)
        return task.read(_wire.result(reply, contract, _count(tensors)), contract)

    def open_stream(
        self,
        task: Task[T],
        tensors: Tensors,
        model: str,
        version: int | None,
        timeout_s: float | NotGiven,
        attach: Callable[[Any], None],
    ) -> Flow[tuple[Any, T | None]]:
        """Opens a stream of results: the stream, for `read_stream`, and the first result. `attach` gets each stream
        that is tried, before anything is waited for."""
        contract = task.contract(model)
        metadata = pb.ModelMetadataRequest(name=model, version=_version(version))
        # Asked first, as a stream's own error for a model or version that is not there is vague.
        yield from self._call_model(model, "ModelMetadata", metadata, timeout_s, version=version)
        request = _wire.request(tensors, model, _version(version), contract)
        request.parameters[_wire.SAY_FINAL].bool_param = True
        stream, reply = yield from self._retry(partial(_open, request, attach), timeout_s)
        return stream, self._read_reply(task, reply, contract)

    def read_stream(self, task: Task[T], stream: Any, model: str, timeout_s: float | NotGiven) -> Flow[T | None]:
        """The next result of a stream; None after the last."""
        limit_s = self.resolve_timeout(timeout_s)
        try:
            reply = yield Read(stream, limit_s)
        except grpc.RpcError as exc:
            raise (yield from self._map_error(exc, limit_s)) from exc
        return self._read_reply(task, reply, task.contract(model))

    def _read_reply(self, task: Task[T], reply: Any, contract: Contract) -> T | None:
        if reply is None:
            raise errors.ServerError(f"{self.address}: the stream broke off before its last answer")
        if _wire.is_final(reply.infer_response):
            return None
        (result,) = task.read(_wire.result(reply.infer_response, contract, 1), contract)
        return result

    def resolve_timeout(self, timeout_s: float | NotGiven) -> float:
        """The timeout of a call in seconds: its own, or else the client's. Raises InvalidInput."""
        return self._timeout_s if isinstance(timeout_s, NotGiven) else _checked_timeout(timeout_s)

    def _call_model(
        self, model: str, method: str, request: Any, timeout_s: float | NotGiven, *, version: int | None = None
    ) -> Flow[Any]:
        """A call about a model. If it or its version is unknown, the error says what is served."""
        try:
            return (yield from self._call(method, request, timeout_s))
        except errors.UnknownModel as exc:
            text = f"{self.address}: there is no model {model}"
            raise errors.UnknownModel(text + (yield from self._served_hint(timeout_s))) from exc.__cause__
        except errors.UnknownVersion as exc:
            text = f"{self.address}: {model} has no version {version}"
            raise errors.UnknownVersion(text + (yield from self._served_hint(timeout_s))) from exc.__cause__

    def _served_hint(self, timeout_s: float | NotGiven) -> Flow[str]:
        try:
            models = yield from self.models(timeout_s)
        except errors.AtelierError:
            return ""
        served = "; ".join(f"{m.name} {', '.join(map(str, m.versions))}" for m in models if m.versions)
        return f" (served: {served or 'nothing'})"

    def _call(
        self, method: str, request: Any, timeout_s: float | NotGiven, *, max_attempts: int = MAX_ATTEMPTS
    ) -> Flow[Any]:
        return (yield from self._retry(partial(_send, method, request), timeout_s, max_attempts=max_attempts))

    def _retry(
        self, call: Callable[[float], Flow[T]], timeout_s: float | NotGiven, *, max_attempts: int = MAX_ATTEMPTS
    ) -> Flow[T]:
        """Makes a call, which is told the seconds that remain, again after a backoff while that may help."""
        limit_s = self.resolve_timeout(timeout_s)
        deadline = self._clock() + limit_s
        for attempt in itertools.count(1):
            try:
                answer = yield from call(max(deadline - self._clock(), 0.0))
            except grpc.RpcError as exc:
                error = yield from self._map_error(exc, limit_s)
                backoff_s = self._backoff_s(error, attempt, max_attempts)
                if backoff_s is not None:
                    backoff_s = max(backoff_s, _failures.pushback_s(exc) or 0.0)
                if backoff_s is None or self._clock() + backoff_s >= deadline:
                    raise error from exc
                yield Sleep(backoff_s)
            else:
                self._answered = True
                return answer
        raise AssertionError("unreachable")

    def _map_error(self, rpc_error: grpc.RpcError, timeout_s: float) -> Flow[errors.AtelierError]:
        """The SDK's error. gRPC says "unavailable", too, of a port that speaks another protocol: a TCP probe tells."""
        error = _failures.error(rpc_error, address=str(self.address), timeout_s=timeout_s)
        unreachable = isinstance(error, errors.ServerUnreachable) and _failures.is_connect_error(rpc_error)
        if unreachable and not self._answered and isinstance(self.address, Address):
            stays_s = HANG_UP_S if _failures.is_hang_up(rpc_error) else 0.0
            if (yield Probe(self.address.host, self.address.port, min(timeout_s, PROBE_TIMEOUT_S), stays_s)):
                return _failures.not_triton(str(self.address), _failures.reason(rpc_error))
        return error

    def _backoff_s(self, error: errors.AtelierError, attempt: int, max_attempts: int) -> float | None:
        """How long to wait before the next attempt, or None to give up."""
        if isinstance(error, errors.Overloaded):
            if not self._patient:
                return None
            initial_s = error.retry_after_s
        elif isinstance(error, errors.ServerUnreachable) and attempt < max_attempts:
            initial_s = INITIAL_BACKOFF_S
        else:
            return None
        backoff_s = min(initial_s * BACKOFF_MULTIPLIER ** min(attempt - 1, 9), MAX_BACKOFF_S)
        return backoff_s * (1 + JITTER * (2 * self._uniform() - 1))


def _send(method: str, request: Any, remaining_s: float) -> Flow[Any]:
    return (yield Send(method, request, remaining_s))


def _open(request: Any, attach: Callable[[Any], None], remaining_s: float) -> Flow[tuple[Any, Any]]:
    """A stream, and its first response."""
    stream = yield Open("ModelStreamInfer", request)
    attach(stream)
    return stream, (yield Read(stream, remaining_s))


def split_batches(task: Task[Any], tensors: Tensors, model: str) -> list[Tensors]:
    """All of the tensors, in order, in batches that the model takes. Raises UnknownModel."""
    max_batch = task.contract(model).max_batch
    count = _count(tensors)
    size = batch_size(count, max_batch)
    return [{name: array[k : k + size] for name, array in tensors.items()} for k in range(0, count, size)]


def _count(tensors: Tensors) -> int:
    return len(next(iter(tensors.values())))


def _checked_timeout(timeout_s: float) -> float:
    if is_number(timeout_s) and 0 < timeout_s <= MAX_TIMEOUT_S:
        return float(timeout_s)
    most = f"{MAX_TIMEOUT_S:,.0f} at most"
    raise errors.InvalidInput(f"timeout_s {timeout_s!r}: must be a number of seconds above 0, and {most}")


def _version(version: int | None) -> str:
    """As it goes over the wire: text, empty for the newest."""
    if version is None:
        return ""
    if (number := as_int(version)) is not None and 0 < number <= LARGEST_VERSION:
        return str(number)
    raise errors.InvalidInput(
        f"version {version!r}: must be a whole number from 1 to {LARGEST_VERSION}, or None for the newest"
    )


def _model(name: str, entries: list[Any]) -> Model:
    ready = sorted(int(entry.version) for entry in entries if entry.state == "READY")
    return Model(name=name, versions=tuple(ready), state="READY" if ready else entries[0].state or "UNAVAILABLE")
