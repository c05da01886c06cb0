"""What serving raises. Each message is one line for a person: flag, file or address, and the next step."""

from __future__ import annotations


class ServingError(Exception):
    """The root. A command-line entry point prints it as its only line and exits with status 2."""


class RepositoryError(ServingError):
    """A model repository, a version or a candidate is not as it must be; it was left as it was."""


class ServerError(ServingError):
    """tritonserver did not start, or could not be reached."""


class PortTaken(ServerError):
    """Something else listens on a port that tritonserver was to open."""


class Disagreement(ServingError):
    """A live model does not answer as its golden batch says."""
