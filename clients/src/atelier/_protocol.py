"""The client without its I/O: builds requests, reads answers, names errors, decides what to try again.

Each operation is a flow: a generator that yields the steps it wants done and is sent their results. `Client`
and `AsyncClient` only carry the steps out, so neither can behave unlike the other.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc
from tritonclient.grpc import service_pb2 as pb

from atelier import _failures, _wire, errors
from atelier._address import Address
from atelier._contract import Contract, Tensors
from atelier._models import MODELS
from atelier._types import Model, NotGiven, is_number, per_batch, whole
from atelier.tasks import Task

ATTEMPTS: Final = 4
FIRST_PAUSE_S: Final = 0.1
PAUSE_GROWTH: Final = 3.0
LONGEST_PAUSE_S: Final = 2.0
JITTER: Final = 0.5
"""Each pause is longer or shorter by up to this part, so that many clients do not come back as one."""


@dataclass(frozen=True)
class Send:
    """Call `method` of the gRPC service. Its answer comes back, or its grpc.RpcError is thrown in."""

    method: str
    request: Any
    timeout_s: float


@dataclass(frozen=True)
class Open:
    """Call `method`, which answers with a stream, on one request. Something to `Read` from comes back at once."""

    method: str
    request: Any


@dataclass(frozen=True)
class Read:
    """Wait for the next answer of a stream. It comes back, or None at the end, or a grpc.RpcError is thrown in."""

    stream: Any
    timeout_s: float


@dataclass(frozen=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True)
class Probe:
    """Find out whether `host` accepts TCP connections at `port`; True or False comes back."""

    host: str
    port: int
    timeout_s: float


Step = Send | Open | Read | Pause | Probe
T = TypeVar("T")
Flow = Generator[Step, Any, T]


class Core:
    """The operations on one server, as flows. Remembers whether the server ever answered."""

    def __init__(
        self,
        address: Address | str,
        *,
        timeout_s: float,
        patient: bool,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.address = address
        self._timeout_s = _seconds(timeout_s)
        self._patient = patient
        self._clock = clock
        self._chance = chance
        self._answered = False

    def ready(self, model: str | None, version: int | None, timeout_s: float | NotGiven) -> Flow[bool]:
        if model is None:
            method, request = "ServerReady", pb.ServerReadyRequest()
        else:
            method, request = "ModelReady", pb.ModelReadyRequest(name=model, version=_version(version))
        try:
            answer = yield from self._call(method, request, timeout_s, attempts=1)
        except (errors.ServerUnreachable, errors.ModelNotReady, errors.DeadlineExceeded):
            return False
        return bool(answer.ready)

    def models(self, timeout_s: float | NotGiven) -> Flow[list[Model]]:
        try:
            answer = yield from self._call("RepositoryIndex", pb.RepositoryIndexRequest(), timeout_s)
        except errors.AccessDenied:
            return (yield from self._known(timeout_s))
        by_name = itertools.groupby(sorted(answer.models, key=lambda m: m.name), key=lambda m: m.name)
        return [_model(name, list(entries)) for name, entries in by_name]

    def _known(self, timeout_s: float | NotGiven) -> Flow[list[Model]]:
        """Those served of the models that this SDK speaks to: from a server that keeps its index to itself."""
        found = []
        for name in MODELS:
            try:
                answer = yield from self._call("ModelMetadata", pb.ModelMetadataRequest(name=name), timeout_s)
            except (errors.UnknownModel, errors.ModelNotReady):
                continue
            found.append(Model(name=name, versions=tuple(sorted(map(int, answer.versions))), state="READY"))
        return found

    def newest(self, model: str, timeout_s: float | NotGiven) -> Flow[int]:
        """The version that Triton would answer with now, for work of many batches to stay on."""
        answer = yield from self._about(model, "ModelMetadata", pb.ModelMetadataRequest(name=model), timeout_s)
        if not answer.versions:
            raise errors.ModelNotReady(f"{self.address}: no version of {model} is ready; try again shortly")
        return max(int(version) for version in answer.versions)

    def members(self, model: str, tensor: str, timeout_s: float | NotGiven) -> Flow[tuple[str, ...]]:
        """What the elements of a model's vector are called: a parameter in its config.pbtxt says so."""
        answer = yield from self._about(model, "ModelConfig", pb.ModelConfigRequest(name=model), timeout_s)
        named = {key: parameter.string_value for key, parameter in answer.config.parameters.items()}
        if not named.get(tensor):
            raise errors.UnknownModel(f"{self.address}: {model} has no names for its {tensor} in its config.pbtxt")
        return tuple(named[tensor].split(","))

    def infer(
        self, task: Task[T], tensors: Tensors, model: str, version: int | None, timeout_s: float | NotGiven
    ) -> Flow[list[T]]:
        """One batch: 1 to max_batch of each tensor that the task takes, to as many results."""
        wanted = task.contract(model)
        request = _wire.request(tensors, model, _version(version), wanted)
        reply = yield from self._about(model, "ModelInfer", request, timeout_s, version=version)
        return task.read(_wire.answer(reply, wanted, _count(tensors)), wanted)

    def stream(
        self, task: Task[T], tensors: Tensors, model: str, version: int | None, timeout_s: float | NotGiven
    ) -> Flow[tuple[Any, T | None]]:
        """Begins a stream of results: what to go on from, for `following`, and the first."""
        wanted = task.contract(model)
        about = pb.ModelMetadataRequest(name=model, version=_version(version))
        # A stream's own errors say less well what is not there.
        yield from self._about(model, "ModelMetadata", about, timeout_s, version=version)
        request = _wire.request(tensors, model, _version(version), wanted)
        request.parameters[_wire.SAY_FINAL].bool_param = True
        stream, reply = yield from self._tried(lambda left_s: _begun(request, left_s), timeout_s)
        return stream, self._streamed(task, reply, wanted)

    def following(self, task: Task[T], stream: Any, model: str, timeout_s: float | NotGiven) -> Flow[T | None]:
        """The next result of a stream; None after the last."""
        within_s = self.seconds(timeout_s)
        try:
            reply = yield Read(stream, within_s)
        except grpc.RpcError as exc:
            raise (yield from self._explained(exc, within_s)) from exc
        return self._streamed(task, reply, task.contract(model))

    def _streamed(self, task: Task[T], reply: Any, wanted: Contract) -> T | None:
        if reply is None:
            raise errors.ServerError(f"{self.address}: the stream broke off before its last answer")
        if _wire.is_final(reply.infer_response):
            return None
        (result,) = task.read(_wire.answer(reply.infer_response, wanted, 1), wanted)
        return result

    def seconds(self, timeout_s: float | NotGiven) -> float:
        return self._timeout_s if isinstance(timeout_s, NotGiven) else _seconds(timeout_s)

    def _about(
        self, model: str, method: str, request: Any, timeout_s: float | NotGiven, *, version: int | None = None
    ) -> Flow[Any]:
        """A call about a model. Where there is no such thing, the error says what there is."""
        try:
            return (yield from self._call(method, request, timeout_s))
        except errors.UnknownModel as exc:
            text = f"{self.address}: there is no model {model}"
            raise errors.UnknownModel(text + (yield from self._there(timeout_s))) from exc.__cause__
        except errors.UnknownVersion as exc:
            text = f"{self.address}: {model} has no version {version}"
            raise errors.UnknownVersion(text + (yield from self._there(timeout_s))) from exc.__cause__

    def _there(self, timeout_s: float | NotGiven) -> Flow[str]:
        try:
            models = yield from self.models(timeout_s)
        except errors.AtelierError:
            return ""
        served = "; ".join(f"{m.name} {', '.join(map(str, m.versions))}" for m in models if m.versions)
        return f" (served: {served or 'nothing'})"

    def _call(self, method: str, request: Any, timeout_s: float | NotGiven, *, attempts: int = ATTEMPTS) -> Flow[Any]:
        return (yield from self._tried(lambda left_s: _sent(method, request, left_s), timeout_s, attempts=attempts))

    def _tried(
        self, attempted: Callable[[float], Flow[T]], timeout_s: float | NotGiven, *, attempts: int = ATTEMPTS
    ) -> Flow[T]:
        """What a flow gives that is told the seconds left, and is begun again where that may help."""
        within_s = self.seconds(timeout_s)
        deadline = self._clock() + within_s
        for attempt in itertools.count(1):
            try:
                answer = yield from attempted(max(deadline - self._clock(), 0.0))
            except grpc.RpcError as exc:
                failure = yield from self._explained(exc, within_s)
                pause_s = self._pause_s(failure, attempt, attempts)
                if pause_s is None or self._clock() + pause_s >= deadline:
                    raise failure from exc
                yield Pause(pause_s)
            else:
                self._answered = True
                return answer
        raise AssertionError("unreachable")

    def _explained(self, failed: grpc.RpcError, timeout_s: float) -> Flow[errors.AtelierError]:
        """The SDK's error. gRPC says "unavailable" of a port that talks something else, too: TCP tells."""
        failure = _failures.error(failed, address=str(self.address), timeout_s=timeout_s)
        strange = isinstance(failure, errors.ServerUnreachable) and _failures.unconnected(failed)
        if strange and not self._answered and isinstance(self.address, Address):
            probe = Probe(self.address.host, self.address.port, min(timeout_s, LONGEST_PAUSE_S))
            if (yield probe):
                return _failures.not_triton(str(self.address), _failures.reason(failed))
        return failure

    def _pause_s(self, failure: errors.AtelierError, attempt: int, attempts: int) -> float | None:
        """How long to wait before trying again, or None to give up."""
        if isinstance(failure, errors.Overloaded):
            if not self._patient:
                return None
            first = failure.retry_after_s
        elif isinstance(failure, errors.ServerUnreachable) and attempt < attempts:
            first = FIRST_PAUSE_S
        else:
            return None
        grown = min(first * PAUSE_GROWTH ** min(attempt - 1, 9), LONGEST_PAUSE_S)
        return grown * (1 + JITTER * (2 * self._chance() - 1))


def _sent(method: str, request: Any, left_s: float) -> Flow[Any]:
    return (yield Send(method, request, left_s))


def _begun(request: Any, left_s: float) -> Flow[tuple[Any, Any]]:
    """A stream, and its first answer."""
    stream = yield Open("ModelStreamInfer", request)
    return stream, (yield Read(stream, left_s))


def batches(task: Task[Any], tensors: Tensors, model: str) -> list[Tensors]:
    """All of the tensors, in order, in batches that the model takes. Raises UnknownModel."""
    most = task.contract(model).max_batch
    count = _count(tensors)
    size = per_batch(count, most)
    return [{name: array[k : k + size] for name, array in tensors.items()} for k in range(0, count, size)]


def _count(tensors: Tensors) -> int:
    return len(next(iter(tensors.values())))


def _seconds(timeout_s: float) -> float:
    if is_number(timeout_s) and 0 < timeout_s < math.inf:
        return float(timeout_s)
    raise errors.InvalidInput(f"timeout_s {timeout_s!r}: must be a number of seconds above 0, and finite")


def _version(version: int | None) -> str:
    """On the wire a version is text, and no text is the newest."""
    if version is None:
        return ""
    if (number := whole(version)) is not None and number > 0:
        return str(number)
    raise errors.InvalidInput(f"version {version!r}: must be a whole number from 1, or None for the newest")


def _model(name: str, entries: list[Any]) -> Model:
    ready = sorted(int(entry.version) for entry in entries if entry.state == "READY")
    return Model(name=name, versions=tuple(ready), state="READY" if ready else entries[0].state or "UNAVAILABLE")
