"""Each way to reach the same models, for tests that hold whichever it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from atelier import AsyncClient, Client
from atelier.inprocess import InProcessClient
from serving.embedded import Embedded

WAYS = ("sync", "async", "in-process")
STREAMS = ("walk", "stream")


class Awaited:
    """An AsyncClient whose calls are run to their end, so that one test serves both clients."""

    def __init__(self, url: str, **options: Any) -> None:
        self.url, self.options = url, options

    def __enter__(self) -> Awaited:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*args: object, **kwargs: object) -> object:
            async with AsyncClient(self.url, **self.options) as client:
                found = getattr(client, name)(*args, **kwargs)
                return [picture async for picture in found] if name in STREAMS else await found

        return lambda *args, **kwargs: asyncio.run(call(*args, **kwargs))


def reach(way: str, server: Embedded) -> Client | Awaited:
    """A client to the server's models, by one of WAYS."""
    if way == "in-process":
        return InProcessClient(server.repository)
    return Client(server.grpc) if way == "sync" else Awaited(server.grpc)
