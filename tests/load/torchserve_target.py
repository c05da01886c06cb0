"""TorchServe under load: prepared requests to its REST inference API, without a client of its own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from serving.repository import REPOSITORY, config
from serving.torchserve import client, server
from tests import traces
from tests.load import connections
from tests.load.questions import Arrays, Question
from tests.load.targets import AsyncTarget, Failed, Kind, Send, from_http

QUEUE_FULL = "has no worker to serve inference request"
"""TorchServe's message for a full queue, even if every worker is up."""
KINDS: dict[int, Kind] = {HTTPStatus.SERVICE_UNAVAILABLE: "unavailable"}


@dataclass(frozen=True, kw_only=True)
class TorchServe(AsyncTarget):
    """At the HTTP address `url`, with its inference token."""

    url: str
    token: str = field(repr=False)
    repository: Path = REPOSITORY

    @contextlib.asynccontextmanager
    async def opened(self, questions: Sequence[Question]) -> AsyncIterator[Sequence[Send]]:
        async with connections.pool(self.url, self.timeout_s) as pool:
            yield [from_http(pool, *self._prepared(question)) for question in questions]

    def _prepared(self, question: Question) -> tuple[bytes, Callable[[connections.Answer], Arrays]]:
        request = connections.post(self.url, *client.request(question.model, question.inputs, self.token))
        return request, partial(_answered, config(self.repository, question.model).output)


def _answered(outputs: Sequence[pb.ModelOutput], reply: connections.Answer) -> Arrays:
    if reply.status != HTTPStatus.OK:
        text = json.loads(reply.body)["message"]
        raise Failed("overloaded" if QUEUE_FULL in text else KINDS.get(reply.status, "other"), text)
    try:
        return client.response(reply.body, outputs)[0]
    except client.Refused as exc:
        raise Failed("other", str(exc)) from exc


@contextlib.contextmanager
def torchserve(repository: Path, models: Sequence[str] = ()) -> Iterator[TorchServe]:
    """TorchServe on this machine. Raises ServerError if it or Java is not installed."""
    with server.TorchServe(repository, models=models) as started:
        pids = tuple(traces.processes(started.running.id))
        yield TorchServe(name="torchserve", url=started.http, token=started.token, repository=repository, pids=pids)
