"""The SDK's exceptions. All that it raises on purpose are `AtelierError`s, whose messages say what to do."""

from __future__ import annotations

import functools


class AtelierError(Exception):
    """The base class. Catch this to catch everything that the SDK raises on purpose."""


class InvalidInput(AtelierError):
    """An argument, an option or a file is wrong; sending it again will not help."""


class ServerUnreachable(AtelierError):
    """Nothing answers at the address, or the connection broke and stayed broken."""


class NotATritonServer(AtelierError):
    """Something answers at the address, but not in Triton's gRPC protocol, or its certificate is not trusted."""


class UnknownModel(AtelierError):
    """The server, or this version of the SDK, has no model of that name that can do the task."""


class UnknownVersion(AtelierError):
    """The server knows the model, but does not serve that version of it."""


class ModelNotReady(AtelierError):
    """The model is there but cannot answer: it is loading, was unloaded, or failed to load."""


class Overloaded(AtelierError):
    """The server is up, but its queue is full or too slow. Try again after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        return functools.partial(type(self), retry_after_s=self.retry_after_s), self.args


class DeadlineExceeded(AtelierError):
    """No answer came within `timeout_s`."""


class Cancelled(AtelierError):
    """The call was cancelled before its answer came, for example by closing the client."""


class AccessDenied(AtelierError):
    """The server, or a gateway in front of it, refused this caller."""


class ServerError(AtelierError):
    """The server failed on a request that looked valid. The message includes the server's own."""


class MissingPackage(AtelierError):
    """This needs an optional package; the message gives the pip command, or says why it cannot be loaded."""
