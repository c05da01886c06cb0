"""The exceptions of `serving`. Each message is one line for the user: flag, file or address, and the next step."""

from __future__ import annotations


class ServingError(Exception):
    """The base class. A command-line entry point prints it as its only line and exits with status 2."""


class RepositoryError(ServingError):
    """A model repository, a version or a candidate is invalid; it was left unchanged."""


class ServerError(ServingError):
    """A server did not start, could not be reached, or refused what it was asked."""


class PortTaken(ServerError):
    """Something else already listens on a port that a server was meant to open."""


class Unreachable(ServerError):
    """Nothing answers at a server's address, or not in time, or the server is overloaded."""


class Unlisted(Unreachable):
    """The replicas can't be looked up: DNS does not answer."""


class Elsewhere(ServerError):
    """A server lacks the version that it was told to load: it serves another folder, or sees this one with a delay."""


class Disagreement(ServingError):
    """A live model's answers do not match its golden batch."""


class Refused(ServingError):
    """A replica that works with the previous version can't load this one, or its answers don't match the golden
    batch."""


class Withdrawn(ServingError):
    """A version was refused, and has been taken out of service on every replica."""


class PlanError(ServingError):
    """A TensorRT plan can't be built; one line per reason."""
