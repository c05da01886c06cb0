"""What serving raises. Each message is one line for a person: flag, file or address, and the next step."""

from __future__ import annotations


class ServingError(Exception):
    """The root. A command-line entry point prints it as its only line and exits with status 2."""


class RepositoryError(ServingError):
    """A model repository, a version or a candidate is not as it must be; it was left as it was."""


class ServerError(ServingError):
    """A server did not start, could not be reached, or refused what it was asked."""


class PortTaken(ServerError):
    """Something else listens on a port that a server was to open."""


class Unreachable(ServerError):
    """Nothing answers at a server's address, or not in time, or the server is overloaded."""


class Unlisted(Unreachable):
    """Which replicas there are can't be looked up: DNS does not answer."""


class Elsewhere(ServerError):
    """A server has not got the version that it was told to load: it serves another folder, or sees this one late."""


class Disagreement(ServingError):
    """A live model does not answer as its golden batch says."""


class Refused(ServingError):
    """A replica that does well with the version before would not load this one, or disagrees with its golden batch."""


class Withdrawn(ServingError):
    """A version was refused, and has been taken out of service on every replica."""


class PlanError(ServingError):
    """A TensorRT plan can't be built; a line for each reason."""
