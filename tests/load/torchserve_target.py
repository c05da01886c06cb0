"""TorchServe under load: its gRPC inference API, by prepared messages and without a client of its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import model_config_pb2 as pb

from serving.repository import REPOSITORY, config
from serving.torchserve import client, server
from tests import traces
from tests.load.questions import Arrays, Question
from tests.load.targets import OPTIONS, Ask, Awaited, Failed, Kind

QUEUE_FULL = "has no worker to serve inference request"
"""TorchServe's words for a full queue, though every worker is up."""
CODES: dict[grpc.StatusCode, Kind] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline",
    grpc.StatusCode.UNAVAILABLE: "unavailable",
}


@dataclass(frozen=True, kw_only=True)
class TorchServe(Awaited):
    """At the gRPC address `url`, with its inference token."""

    url: str
    token: str = field(repr=False)
    repository: Path = REPOSITORY

    @contextlib.asynccontextmanager
    async def opened(self, questions: Sequence[Question]) -> AsyncIterator[Sequence[Ask]]:
        async with grpc.aio.insecure_channel(self.url, options=OPTIONS) as channel:
            call = channel.unary_unary(client.PREDICTIONS)
            yield [partial(self._asked, call, *self._prepared(question)) for question in questions]

    def _prepared(self, question: Question) -> tuple[bytes, Sequence[pb.ModelOutput]]:
        outputs = config(self.repository, question.model).output
        return client.question(question.model, question.inputs), outputs

    async def _asked(self, call: Any, message: bytes, outputs: Sequence[pb.ModelOutput]) -> Arrays:
        try:
            reply = await call(message, metadata=client.bearer(self.token), timeout=self.timeout_s)
            return client.answer(reply, outputs)[0]
        except client.Refused as exc:
            raise Failed("other", str(exc)) from exc
        except grpc.RpcError as exc:
            raise Failed(_kind(exc), str(exc.details())) from exc


def _kind(exc: grpc.RpcError) -> Kind:
    return "overloaded" if QUEUE_FULL in (exc.details() or "") else CODES.get(exc.code(), "other")


@contextlib.contextmanager
def torchserve(repository: Path, models: Sequence[str] = (), *, name: str = "torchserve") -> Iterator[TorchServe]:
    """TorchServe on this machine. Raises ServerError where it, or Java, is not installed."""
    with server.TorchServe(repository, models=models) as started:
        pids = tuple(traces.processes(started.running.id))
        yield TorchServe(name=name, url=started.grpc, token=started.token, repository=repository, pids=pids)
