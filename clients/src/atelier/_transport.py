"""The synchronous client's transport: a gRPC channel to a Triton."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import grpc
from tritonclient.grpc import service_pb2_grpc

from atelier import _address, _wire
from atelier._failures import ReadTimeout, raise_for_error
from atelier._protocol import Open, Probe, Send
from atelier.errors import Cancelled


class Transport(Protocol):
    """Carries a client's requests to whatever answers them."""

    @property
    def address(self) -> _address.Address | str: ...

    def send(self, step: Send) -> Any:
        """Returns the response's protobuf. Raises grpc.RpcError or AtelierError."""

    def open(self, step: Open) -> Any:
        """Opens a stream: `read(timeout_s)` gives the next protobuf, None at the end, or raises; `cancel()` ends it."""

    def close(self) -> None: ...


class GrpcTransport:
    """A gRPC channel to a server."""

    def __init__(self, address: _address.Address) -> None:
        self.address: _address.Address | str = address
        if address.secure:
            credentials = grpc.ssl_channel_credentials()
            self._channel = grpc.secure_channel(address.target, credentials, options=address.options)
        else:
            self._channel = grpc.insecure_channel(address.target, options=address.options)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def send(self, step: Send) -> Any:
        try:
            return getattr(self._stub, step.method)(step.request, timeout=step.timeout_s)
        except ValueError as exc:  # gRPC raises it if another thread has closed the channel
            raise closed_error(self.address) from exc

    def open(self, step: Open) -> _Stream:
        try:
            return _Stream(getattr(self._stub, step.method), step.request, self.address)
        except ValueError as exc:
            raise closed_error(self.address) from exc

    def close(self) -> None:
        self._channel.close()


class _Stream:
    """The stream of responses to one request."""

    def __init__(self, method: Any, request: Any, address: object) -> None:
        self._address = address
        self._ended = threading.Event()
        self._timed_out = self._cancelled = False
        self._request = request
        self._call = method(self._requests())

    def read(self, timeout_s: float) -> Any:
        timer = threading.Timer(min(timeout_s, threading.TIMEOUT_MAX), self._time_out)
        timer.daemon = True
        timer.start()
        try:
            reply = raise_for_error(next(self._call, None), self._request)
            if reply is not None and _wire.is_final(reply.infer_response):
                # Let it end by itself: cancelling it now could leave Triton 2.51 unable to unload the model.
                self._ended.set()
                next(self._call, None)
            return reply
        except BaseException as exc:
            cancelled = self._cancelled
            self.cancel()
            if self._timed_out:
                raise ReadTimeout from exc
            if cancelled and isinstance(exc, grpc.RpcError):
                raise Cancelled(f"{self._address}: the painting was closed") from exc
            raise
        finally:
            timer.cancel()

    def cancel(self) -> None:
        self._cancelled = True
        self._call.cancel()
        self._ended.set()

    def _requests(self) -> Iterator[Any]:
        """Yields the one request, and keeps the request stream open until the responses have ended or it is cancelled.

        Half-closed earlier, it could be cancelled after its end, and Triton 2.51 then can't unload the model.
        """
        yield self._request
        self._ended.wait()

    def _time_out(self) -> None:
        self._timed_out = True
        self.cancel()


def closed_error(address: object) -> Cancelled:
    return Cancelled(f"{address}: this client is closed; make another one")


def accepts(probe: Probe) -> bool:
    # Python raises UnicodeError for an invalid host name, such as a..b.
    with (
        contextlib.suppress(OSError, UnicodeError),
        socket.create_connection((probe.host, probe.port), probe.timeout_s) as connection,
    ):
        connection.settimeout(probe.stays_s)
        try:
            return not probe.stays_s or bool(connection.recv(1))
        except TimeoutError:
            return True
    return False
