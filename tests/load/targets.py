"""The targets of the load generator. A target is a description that is pickled for the generator's processes; opened
there, it provides a call for each prepared question.

To add one, derive from `AsyncTarget` (a call returns at once, and thousands may be in flight) or from `ThreadedTarget`
(a call blocks, and each caller has a thread), and implement `opened`. The outcome of a call is all of its question's
outputs, decoded, or `Failed`. It never retries, except through the SDK, which tries an unreachable server four times in
all, as it does for any application. Prepare everything in `opened`: what a call itself does is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import grpc
import grpc.aio
import numpy as np
import tritonclient.grpc.aio as tritonclient
import tritonclient.http as over_http
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype

from atelier import _failures, _wire, errors
from serving.spec import Ensemble
from tests.load import connections
from tests.load.questions import Array, Arrays, Question, ensemble, in_process, served

Kind = Literal["overloaded", "deadline", "unavailable", "wrong answer", "other"]
BY_ERROR: dict[type[errors.AtelierError], Kind] = {
    errors.Overloaded: "overloaded",
    errors.DeadlineExceeded: "deadline",
    errors.ServerUnreachable: "unavailable",
    errors.ModelNotReady: "unavailable",
}
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # else processes' and targets' channels to an address are shared
]
SERVICE = "/inference.GRPCInferenceService"
GRPC_CODES = {
    HTTPStatus.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.INTERNAL_SERVER_ERROR: grpc.StatusCode.INTERNAL,
    HTTPStatus.NOT_IMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
}
"""gRPC's code for each HTTP status with which Triton reports an error."""

Done = Callable[[Arrays | Exception], None]
Send = Callable[[Done], None]
"""Sends a request. Done is called once with its outcome, from the event loop, and not before this returns."""
Call = Callable[[], Arrays]
"""Sends a request and waits for its answer. Raises Failed."""


class Failed(Exception):
    """A request without a usable answer."""

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, kw_only=True)
class Target:
    """`pids` are the server's processes, whose CPU and memory are measured with those of their children.
    `statistics_url` is the gRPC address of the Triton whose statistics are read. Both may be empty."""

    name: str
    pids: tuple[int, ...] = ()
    statistics_url: str = ""
    timeout_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class AsyncTarget(Target, ABC):
    @abstractmethod
    def opened(self, questions: Sequence[Question]) -> AbstractAsyncContextManager[Sequence[Send]]:
        """A Send for each question, in order. Entered once in each process of the generator, in its event loop."""


@dataclass(frozen=True, kw_only=True)
class ThreadedTarget(Target, ABC):
    @abstractmethod
    def opened(self, questions: Sequence[Question]) -> AbstractContextManager[Sequence[Call]]:
        """A Call for each question, in order, which several threads may make at once."""


def from_coroutine(call: Callable[[], Awaitable[Arrays]]) -> Send:
    """Makes a Send from a coroutine function."""
    in_flight: set[asyncio.Task[None]] = set()  # asyncio itself does not keep them alive

    async def run(done: Done) -> None:
        outcome: Arrays | Exception
        try:
            outcome = await call()
        except Exception as exc:
            outcome = exc
        asyncio.get_running_loop().call_soon(done, outcome)

    def send(done: Done) -> None:
        task = asyncio.create_task(run(done))
        in_flight.add(task)
        task.add_done_callback(in_flight.discard)

    return send


async def gathered(send: Send, times: int = 1) -> list[Arrays | Exception]:
    """The outcomes of `times` concurrent requests."""
    outcomes = [asyncio.get_running_loop().create_future() for _ in range(times)]
    for outcome in outcomes:
        send(outcome.set_result)
    return await asyncio.gather(*outcomes)


def from_http(pool: connections.Pool, request: bytes, read: Callable[[connections.Answer], Arrays]) -> Send:
    """Makes a Send from a prepared HTTP request. `read` decodes the answer, whatever its status, and raises Failed for
    an error."""

    def decode(done: Done, answer: connections.Answer | OSError) -> None:
        outcome: Arrays | Exception
        if isinstance(answer, TimeoutError):
            outcome = Failed("deadline", "no answer in time")
        elif isinstance(answer, OSError):
            outcome = Failed("unavailable", f"{type(answer).__name__}: {answer}")
        else:
            try:
                outcome = read(answer)
            except Exception as exc:
                outcome = exc.with_traceback(None)  # else a reference cycle through this frame: work for the gc
        done(outcome)

    return lambda done: pool.send(request, partial(decode, done))


# --- Triton, by prepared requests


@dataclass(frozen=True, kw_only=True)
class Grpc(AsyncTarget):
    """Triton's gRPC at `url`, with requests serialised beforehand.

    With 32 callers of the classifier, tritonclient.grpc.aio costs the generator 1.2 times as much CPU as this, and a
    thread per caller 1.5 times.
    """

    url: str

    @contextlib.asynccontextmanager
    async def opened(self, questions: Sequence[Question]) -> AsyncIterator[Sequence[Send]]:
        async with grpc.aio.insecure_channel(self.url, options=CHANNEL_OPTIONS) as channel:
            unary = channel.unary_unary(f"{SERVICE}/ModelInfer", response_deserializer=pb.ModelInferResponse.FromString)
            stream = channel.stream_stream(
                f"{SERVICE}/ModelStreamInfer", response_deserializer=pb.ModelStreamInferResponse.FromString
            )
            yield [from_coroutine(partial(self._infer, unary, stream, *prepared(question))) for question in questions]

    async def _infer(self, unary: Any, stream: Any, message: bytes, streamed: bool) -> Arrays:
        try:
            if streamed:
                return await _first(stream(timeout=self.timeout_s), message)
            reply = await unary(message, timeout=self.timeout_s)
        except grpc.RpcError as exc:
            raise failed(_failures.kind(exc.code(), exc.details() or ""), exc.details()) from exc
        return _wire.tensors(reply.outputs, reply.raw_output_contents)


@dataclass(frozen=True, kw_only=True)
class Triton(Grpc):
    """Triton's HTTP at `http`, which leaves more CPU to the server; streams, which it does not have, go over gRPC."""

    http: str

    @contextlib.asynccontextmanager
    async def opened(self, questions: Sequence[Question]) -> AsyncIterator[Sequence[Send]]:
        async with super().opened(questions) as sends, connections.pool(self.http, self.timeout_s) as pool:
            yield [
                over_grpc if question.streamed else from_http(pool, posted(question, self.http), answered)
                for question, over_grpc in zip(questions, sends, strict=True)
            ]


def answered(answer: connections.Answer) -> Arrays:
    """Decodes Triton's answer over HTTP. Raises Failed for an error."""
    if answer.status != HTTPStatus.OK:
        text = json.loads(answer.body)["error"]
        raise failed(_failures.kind(GRPC_CODES.get(answer.status, grpc.StatusCode.UNKNOWN), text), text)
    head = int(answer.headers[b"inference-header-content-length"])
    return {
        name: np.frombuffer(answer.body, dtype, math.prod(shape), head + start).reshape(shape)
        for name, dtype, shape, start in layout(answer.body[:head])
    }


@functools.lru_cache(maxsize=256)
def layout(head: bytes) -> list[tuple[str, np.dtype[Any], tuple[int, ...], int]]:
    """Name, dtype, shape and offset behind the head of each tensor in the body. Heads repeat, hence the cache.

    The format is that of Triton's binary tensor data extension. tritonclient's own parser makes two classes for each
    answer, which takes as long as everything else that the generator does with it.
    """
    outputs = json.loads(head)["outputs"]
    sizes = [output["parameters"]["binary_data_size"] for output in outputs]
    return [
        (output["name"], np.dtype(triton_to_np_dtype(output["datatype"])), tuple(output["shape"]), start)
        for output, start in zip(outputs, itertools.accumulate(sizes, initial=0), strict=False)
    ]


def posted(question: Question, address: str) -> bytes:
    """The whole HTTP request."""
    given = [_tensor(over_http, name, array) for name, array in question.inputs.items()]
    wanted = [over_http.InferRequestedOutput(name) for name in question.expected]
    body, head = over_http.InferenceServerClient.generate_request_body(given, outputs=wanted)
    headers = {"Inference-Header-Content-Length": head}
    return connections.post(address, f"/v2/models/{question.model}/infer", headers, body)


def prepared(question: Question) -> tuple[bytes, bool]:
    """The serialised request, and whether a stream answers it."""
    request = pb.ModelInferRequest(model_name=question.model)
    for name, array in question.inputs.items():
        _wire.put(request.inputs, request.raw_input_contents, name, array)
    for name in question.expected:
        request.outputs.add(name=name)
    if question.streamed:
        request.parameters[_wire.SAY_FINAL].bool_param = True
    return request.SerializeToString(), question.streamed


async def _first(call: Any, message: bytes) -> Arrays:
    """A stream's first answer, returned once the last has arrived. A call that is dropped before its end is cancelled,
    and Triton 2.51 then can't unload the model."""
    first: Arrays = {}
    await call.write(message)
    while (reply := await call.read()) is not grpc.aio.EOF:
        if reply.error_message:
            raise _failures.Refused(reply.error_message, [])
        answer = reply.infer_response
        if _wire.is_final(answer):
            await call.done_writing()
        first = first or _wire.tensors(answer.outputs, answer.raw_output_contents)
    return first


def failed(error: type[errors.AtelierError], text: object) -> Failed:
    return Failed(BY_ERROR.get(error, "other"), str(text))


# --- the same through its official client, and through ours


@dataclass(frozen=True, kw_only=True)
class Tritonclient(AsyncTarget):
    """Through tritonclient.grpc.aio, as its examples do: each call builds its request anew."""

    url: str

    @contextlib.asynccontextmanager
    async def opened(self, questions: Sequence[Question]) -> AsyncIterator[Sequence[Send]]:
        async with tritonclient.InferenceServerClient(self.url, channel_args=CHANNEL_OPTIONS) as client:
            yield [from_coroutine(partial(self._asked, client, question)) for question in questions]

    async def _asked(self, client: Any, question: Question) -> Arrays:
        given = [_tensor(tritonclient, name, array) for name, array in question.inputs.items()]
        wanted = [tritonclient.InferRequestedOutput(name) for name in question.expected]
        try:
            answer = await client.infer(question.model, given, outputs=wanted, client_timeout=self.timeout_s)
        except InferenceServerException as exc:
            code = grpc.StatusCode[str(exc.status()).removeprefix("StatusCode.")]
            raise failed(_failures.kind(code, exc.message()), exc.message()) from exc
        return {name: answer.as_numpy(name) for name in question.expected}


def _tensor(client: ModuleType, name: str, array: Array) -> Any:
    tensor = client.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    return tensor.set_data_from_numpy(array)


# --- ONNX Runtime in this process: the upper bound


@dataclass(frozen=True, kw_only=True)
class InProcess(ThreadedTarget):
    """Runs the graphs of `repository` in the generator itself, with the threads of each spec. N callers are N threads,
    of which as many compute at once as the spec has instances."""

    repository: Path

    @contextlib.contextmanager
    def opened(self, questions: Sequence[Question]) -> Iterator[Sequence[Call]]:
        models = {question.model: self._model(question.model) for question in questions}
        yield [partial(models[question.model], question.inputs) for question in questions]

    def _model(self, model: str) -> Callable[[Arrays], Arrays]:
        asked = served(model)
        return ensemble(self.repository, asked) if isinstance(asked, Ensemble) else in_process(self.repository, asked)
