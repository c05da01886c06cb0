"""The load generator's HTTP, against servers on a socket that answer well, badly, late or not at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.load import connections

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
TIMEOUT_S = 60.0


@contextlib.asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[connections.Pool]:
    """A pool for a server that hands each connection to `handler`, and closes it when that returns."""
    in_flight: set[asyncio.Task[None]] = set()

    async def handled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        in_flight.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await handler(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(handled, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server:
        async with connections.pool(f"{host}:{port}", TIMEOUT_S) as pool:
            yield pool
        await asyncio.gather(*in_flight)


async def asked(reader: asyncio.StreamReader) -> bytes:
    """The body of the next request."""
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = (line.split(b": ")[1] for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
    return await reader.readexactly(int(length))


async def answer_of(pool: connections.Pool, request: bytes) -> connections.Answer:
    """Raises what came in its place."""
    told = asyncio.get_running_loop().create_future()
    pool.send(request, told.set_result)
    if isinstance(came := await told, OSError):
        raise came
    return came


def put_forward(seconds: float) -> None:
    """The clock of this test's event loop, by which its timers run."""
    loop = asyncio.get_running_loop()
    before = loop.time
    loop.time = lambda: before() + seconds


def request(body: bytes = b"") -> bytes:
    return connections.post("anywhere", "/", {"X-Head": 1}, body)


async def test_answers_come_back_whole_over_connections_that_are_kept() -> None:
    """In whatever pieces they come; two at once take two connections, and the next ones no more."""
    opened = 0

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        while True:
            body = await asked(reader)
            answer = b"HTTP/1.1 503 Busy\r\nX-Its: own\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            for start in range(0, len(answer), 7):
                writer.write(answer[start : start + 7])
                await writer.drain()
                await asyncio.sleep(0)

    async with served(echo) as pool:
        for _ in range(3):
            answers = await asyncio.gather(answer_of(pool, request(b"first")), answer_of(pool, request(b"second" * 20)))
            assert [(answer.status, answer.body) for answer in answers] == [(503, b"first"), (503, b"second" * 20)]
            assert answers[0].headers[b"x-its"] == b"own"
    assert opened == 2


async def test_a_connection_that_the_server_closes_is_not_asked_again() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    async with served(once) as pool:
        for _ in range(3):
            assert (await answer_of(pool, request())).body == b"ok"


@pytest.mark.parametrize("words", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", b"220 mail ready\r\n"])
async def test_half_an_answer_none_or_no_http_is_an_error_and_the_next_request_goes_on(words: bytes) -> None:
    answers = iter([words, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"])

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(next(answers))
        await writer.drain()

    async with served(answer) as pool:
        with pytest.raises(ConnectionError):
            await answer_of(pool, request())
        assert (await answer_of(pool, request())).body == b"ok"


async def test_no_answer_in_time_is_a_timeout_and_its_late_answer_is_nobodys() -> None:
    late = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = await asked(reader)
        if body == b"first":
            put_forward(1.01 * TIMEOUT_S)
            await late.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()

    async with served(answer) as pool:
        with pytest.raises(TimeoutError):
            await answer_of(pool, request(b"first"))
        late.set()
        assert (await answer_of(pool, request(b"second"))).body == b"second"


async def test_each_request_of_a_kept_connection_has_its_own_time() -> None:
    """Each answer takes most of it, so that the second comes when the first one's would have been over."""

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await asked(reader)
            put_forward(0.6 * TIMEOUT_S)
            await asyncio.sleep(0.01)  # for timers that are due
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with served(slow) as pool:
        assert [(await answer_of(pool, request())).body for _ in range(2)] == [b"ok", b"ok"]
