"""From a failed gRPC call to an error of the SDK: by its status code or, where that is vague, its words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import grpc

from atelier import errors

_Kind = type[errors.AtelierError]
_Code = grpc.StatusCode

OVERLOAD_PAUSE_S: Final = 0.5
"""When to come back after an overload if the server gives no hint: a quarter of the usual queue timeout."""

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

BY_WORDS: Final[tuple[tuple[grpc.StatusCode, str, _Kind], ...]] = (  # Triton 2.51's, in lower case
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

_UNCONNECTED: Final = ("failed to connect", "connections to all backends failing", "errors resolving")
"""How gRPC's own account begins of a server that no connection can be made to."""


class Late(grpc.RpcError):  # type: ignore[misc]
    """The next answer of a stream did not come in time, which gRPC has no deadline for."""

    def code(self) -> grpc.StatusCode:
        return _Code.DEADLINE_EXCEEDED

    def details(self) -> str:
        return ""


class Refused(grpc.RpcError):  # type: ignore[misc]
    """An answer of a stream that is an error: words, of which the status code is found that other calls would have.

    Triton can be asked to end a stream with the code itself (triton_grpc_error), but 2.51 then ended with signal 11
    at one refusal in 200, and at none of 4,000 without.
    """

    def __init__(self, text: str, inputs: Iterable[str]) -> None:
        super().__init__(text)
        self._text = text
        head, found, _ = _without_id(text).partition(": ")
        names = set(head.split(", ")) <= set(inputs) if found else False
        unavailable = any(code is _Code.UNAVAILABLE and said in text.lower() for code, said, _ in BY_WORDS)
        about_inputs = _Code.INVALID_ARGUMENT if names else _Code.INTERNAL
        self._code = _Code.UNAVAILABLE if unavailable else about_inputs

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._text

    def trailing_metadata(self) -> None:
        return None


def answered(reply: Any, request: Any) -> Any:
    """A stream's reply to a request. Raises Refused if it is an error."""
    if reply is not None and reply.error_message:
        raise Refused(reply.error_message, [tensor.name for tensor in request.inputs])
    return reply


def kind(code: grpc.StatusCode, details: str) -> _Kind:
    words = details.lower()
    return next((kind for c, said, kind in BY_WORDS if c is code and said in words), BY_CODE[code])


def error(failed: grpc.RpcError, *, address: str, timeout_s: float) -> errors.AtelierError:
    """The SDK's error for a call that failed; its text is one line that says where, why and what to do."""
    found = kind(failed.code(), failed.details() or "")
    why = reason(failed)
    if found is errors.Overloaded:
        pause_s = _pushback_s(failed) or OVERLOAD_PAUSE_S
        text = f"{address}: the server has too much to do ({why}); try again in {pause_s:g} s"
        return errors.Overloaded(text, retry_after_s=pause_s)
    if found is errors.ServerUnreachable:
        return found(f"{address}: no server answers there ({why}); `make serve` starts one on this machine")
    if found is errors.NotATritonServer:
        return not_triton(address, why)
    if found is errors.DeadlineExceeded:
        return found(f"{address}: no answer within {timeout_s:g} s (timeout_s): too busy, or no Triton server")
    return found(f"{address}: {why or failed.code().name}")


def unconnected(failed: grpc.RpcError) -> bool:
    """Whether nobody there has spoken gRPC, and so there are no words of a gateway whose servers are down."""
    return (failed.details() or "").startswith(_UNCONNECTED)


def not_triton(address: str, why: str) -> errors.NotATritonServer:
    if "CERTIFICATE_VERIFY_FAILED" in why:
        return errors.NotATritonServer(
            f"{address}: its certificate is not trusted ({why}); "
            "name the file of its certificate authority in GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
        )
    return errors.NotATritonServer(
        f"{address}: something answers there, but not as Triton's gRPC port does ({why}); "
        "that port is 8001 unless set otherwise, and 8000 is HTTP"
    )


def reason(failed: grpc.RpcError) -> str:
    """The server's or gRPC's words on one line; of gRPC's account of a failed connection, only the last."""
    text = _without_id(failed.details() or "")
    if text.startswith(_UNCONNECTED):
        text = text.removesuffix(": OK").removesuffix(": Invalid certificate verification context")
        _, tls, why = text.partition("OPENSSL_internal:")
        text = why if tls else text.rstrip("] ").rsplit(": ", 1)[-1]
    return text


def _without_id(text: str) -> str:
    """On one line, without the request that Triton puts before its words."""
    return re.sub(r"^\[request id: [^\]]*\] ", "", " ".join(text.split()))


def _pushback_s(failed: grpc.RpcError) -> float | None:
    """gRPC's own hint when to come back, which gateways send."""
    hints = dict(iter(failed.trailing_metadata() or ()))  # older grpc.aio's has keys() that are none
    text = str(hints.get("grpc-retry-pushback-ms", ""))
    return int(text) / 1000 if text.isdecimal() and int(text) else None
