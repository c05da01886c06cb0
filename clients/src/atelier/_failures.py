"""Maps a failed gRPC call to an error of the SDK: by its status code or, where that is vague, its details."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import grpc

from atelier import errors

_Kind = type[errors.AtelierError]
_Code = grpc.StatusCode

DEFAULT_RETRY_AFTER_S: Final = 0.5
"""After an overload of which the server says nothing more: a quarter of the shipped models' shortest queue timeout."""

BY_CODE: Final[dict[grpc.StatusCode, _Kind]] = {
    _Code.OK: errors.ServerError,  # as an error it makes no sense
    _Code.CANCELLED: errors.Cancelled,
    _Code.UNKNOWN: errors.ServerError,
    _Code.INVALID_ARGUMENT: errors.InvalidInput,
    _Code.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    _Code.NOT_FOUND: errors.UnknownModel,
    _Code.ALREADY_EXISTS: errors.ServerError,
    _Code.PERMISSION_DENIED: errors.AccessDenied,
    _Code.UNAUTHENTICATED: errors.AccessDenied,
    _Code.RESOURCE_EXHAUSTED: errors.Overloaded,
    _Code.FAILED_PRECONDITION: errors.ModelNotReady,
    _Code.ABORTED: errors.ServerError,
    _Code.OUT_OF_RANGE: errors.InvalidInput,
    _Code.UNIMPLEMENTED: errors.NotATritonServer,
    _Code.INTERNAL: errors.ServerError,
    _Code.UNAVAILABLE: errors.ServerUnreachable,
    _Code.DATA_LOSS: errors.ServerError,
}

BY_DETAILS: Final[tuple[tuple[grpc.StatusCode, str, _Kind], ...]] = (  # what Triton 2.51 says in them, in lower case
    (_Code.UNAVAILABLE, "exceeds maximum queue size", errors.Overloaded),
    (_Code.UNAVAILABLE, "request timeout expired", errors.Overloaded),
    (_Code.UNAVAILABLE, "not at ready state", errors.ModelNotReady),
    (_Code.UNAVAILABLE, "server not ready", errors.ModelNotReady),
    (_Code.NOT_FOUND, "has no available versions", errors.ModelNotReady),
    (_Code.NOT_FOUND, " version ", errors.UnknownVersion),
    (_Code.RESOURCE_EXHAUSTED, "message larger than max", errors.InvalidInput),
    (_Code.UNIMPLEMENTED, "decoupled", errors.ServerError),
    (_Code.UNAVAILABLE, "protocol is restricted", errors.AccessDenied),
)

_CONNECT_ERRORS: Final = ("failed to connect", "connections to all backends failing", "errors resolving")
"""How gRPC's details begin if no connection can be made."""

_HUNG_UP: Final = ("socket closed", "connection reset by peer")
"""What they say, in lower case, where one was made that ended before a word was said."""


class ReadTimeout(grpc.RpcError):  # type: ignore[misc]
    """The next response of a stream did not come in time: gRPC's own deadline is for the whole stream."""

    def code(self) -> grpc.StatusCode:
        return _Code.DEADLINE_EXCEEDED

    def details(self) -> str:
        return ""


class Refused(grpc.RpcError):  # type: ignore[misc]
    """A response of a stream that is an error: a message, from which the status code of a unary call is found.

    Triton can be asked to end a stream with the code itself (triton_grpc_error), but 2.51 then ended with signal 11
    at one refusal in 200, and at none of 4,000 without.
    """

    def __init__(self, text: str, inputs: Iterable[str]) -> None:
        super().__init__(text)
        self._text = text
        subjects, colon, _ = _without_id(text).partition(": ")
        if any(code is _Code.UNAVAILABLE and part in text.lower() for code, part, _ in BY_DETAILS):
            self._code = _Code.UNAVAILABLE
        elif colon and set(subjects.split(", ")) <= set(inputs):
            self._code = _Code.INVALID_ARGUMENT
        else:
            self._code = _Code.INTERNAL

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._text

    def trailing_metadata(self) -> None:
        return None


def raise_for_error(reply: Any, request: Any) -> Any:
    """A stream's reply to a request, as it is. Raises Refused if it is an error."""
    if reply is not None and reply.error_message:
        raise Refused(reply.error_message, [tensor.name for tensor in request.inputs])
    return reply


def kind(code: grpc.StatusCode, details: str) -> _Kind:
    """The class of the SDK's error for a call that failed with these."""
    lower = details.lower()
    return next((kind for c, part, kind in BY_DETAILS if c is code and part in lower), BY_CODE[code])


def error(rpc_error: grpc.RpcError, *, address: str, timeout_s: float) -> errors.AtelierError:
    """The SDK's error for a call that failed; its text is one line that says where, why and what to do."""
    cls = kind(rpc_error.code(), rpc_error.details() or "")
    why = reason(rpc_error)
    if cls is errors.Overloaded:
        retry_after_s = pushback_s(rpc_error) or DEFAULT_RETRY_AFTER_S
        text = f"{address}: the server has too much to do ({why}); try again in {retry_after_s:g} s"
        return errors.Overloaded(text, retry_after_s=retry_after_s)
    if cls is errors.ServerUnreachable:
        return cls(f"{address}: no server answers there ({why}); `make serve` starts one on this machine")
    if cls is errors.NotATritonServer:
        return not_triton(address, why)
    if cls is errors.DeadlineExceeded:
        return cls(f"{address}: no answer within {timeout_s:g} s (timeout_s): too busy, or no Triton server")
    return cls(f"{address}: {why or rpc_error.code().name}")


def is_connect_error(rpc_error: grpc.RpcError) -> bool:
    """Whether no gRPC connection was made; "unavailable" is also what a gateway says whose servers are down."""
    return (rpc_error.details() or "").startswith(_CONNECT_ERRORS)


def is_hang_up(rpc_error: grpc.RpcError) -> bool:
    """Whether a connection was taken and ended wordlessly: by Triton's HTTP ports, TLS, or a port that is forwarded."""
    return any(part in (rpc_error.details() or "").lower() for part in _HUNG_UP)


def not_triton(address: str, why: str) -> errors.NotATritonServer:
    if "CERTIFICATE_VERIFY_FAILED" in why:
        return errors.NotATritonServer(
            f"{address}: its certificate is not trusted ({why}); "
            "name the file of its certificate authority in GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
        )
    return errors.NotATritonServer(
        f"{address}: something answers there, but not as Triton's gRPC port does ({why}); "
        "that port is 8001 unless set otherwise, and 8000 is HTTP; over TLS it is grpcs://HOST:PORT"
    )


def reason(rpc_error: grpc.RpcError) -> str:
    """The details on one line; of gRPC's long chain of causes for a failed connection, only the last."""
    text = _without_id(rpc_error.details() or "")
    if text.startswith(_CONNECT_ERRORS):
        text = text.removesuffix(": OK").removesuffix(": Invalid certificate verification context")
        _, tls, why = text.partition("OPENSSL_internal:")
        text = why if tls else text.rstrip("] ").rsplit(": ", 1)[-1]
    return text


def _without_id(text: str) -> str:
    """On one line, without the request id that Triton puts in front."""
    return re.sub(r"^\[request id: [^\]]*\] ", "", " ".join(text.split()))


def pushback_s(rpc_error: grpc.RpcError) -> float | None:
    """gRPC's server pushback, which gateways send: how long to wait before the next attempt."""
    trailers = dict(iter(rpc_error.trailing_metadata() or ()))  # older grpc.aio's has keys() that are none
    text = str(trailers.get("grpc-retry-pushback-ms", ""))
    return int(text) / 1000 if text.isdecimal() and int(text) else None
