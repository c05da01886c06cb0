"""Reads the config.pbtxt files of a model repository, and adapts them to the versions that are in service.

One file covers all versions of a model, but some of it may hold for one version only: the names of that version's
styles, and the number of weights in its warm-up requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from serving.errors import RepositoryError

NAME = "config.pbtxt"
MEMBERS = "members"
"""Key in a version's card: the version's own names for an input's elements, by the input's name."""
VERSIONS_SERVED = 2
"""The newest version and the one before it, so that a client pinned to N-1 is answered at once."""

Members = Mapping[str, Sequence[str]]


def read(folder: Path) -> pb.ModelConfig:
    """A model's config.pbtxt, parsed; empty if it cannot be read, as tritonserver gives a better reason."""
    try:
        return _parsed((folder / NAME).read_text(encoding="utf-8")) or pb.ModelConfig()
    except (OSError, ValueError):
        return pb.ModelConfig()


def check(folder: Path) -> None:
    """Raises RepositoryError, with the reason, if a model's config.pbtxt cannot be read."""
    try:
        text_format.Parse((folder / NAME).read_text(encoding="utf-8"), pb.ModelConfig())
    except OSError as exc:
        raise RepositoryError(f"{folder / NAME}: {exc.strerror}") from exc
    except (ValueError, text_format.ParseError) as exc:
        raise RepositoryError(f"{folder / NAME}: {' '.join(str(exc).split())}") from exc


def fitted(text: str, members: Members, previous: Members | None) -> str:
    """Adapts the text to a newest version with `members`; `previous` are those of the version before, None if there is
    none.

    Versions whose members differ are not served side by side: requests to one would use the names of the other, and it
    could not be warmed up. If neither version has members of its own, the text is returned unchanged.
    """
    config = _parsed(text)
    if config is None or not (members or previous):
        return text
    for tensor in config.input:
        if tensor.name not in members:
            continue
        names = members[tensor.name]
        config.parameters[tensor.name].string_value = ",".join(names)
        for warmup in config.model_warmup:
            warmup.inputs[tensor.name].dims[:] = [len(names) if size < 0 else size for size in tensor.dims]
    config.version_policy.latest.num_versions = 1 if previous is not None and previous != members else VERSIONS_SERVED
    return _text(config, text)


def transitional(text: str) -> str:
    """The text to use while the newest version changes: a server started then serves either version, and warms up
    neither.

    A publisher that is killed meanwhile leaves it behind; the next publication replaces it.
    """
    if (config := _parsed(text)) is None:
        return text
    config.version_policy.latest.num_versions = 1
    config.ClearField("model_warmup")
    return _text(config, text)


def _parsed(text: str) -> pb.ModelConfig | None:
    try:
        return text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError:
        return None


def _text(config: pb.ModelConfig, like: str) -> str:
    """The text of `config`, with the header comments of `like`."""
    head = [line for line in like.splitlines(keepends=True) if line.startswith("#")]
    return "".join(head) + str(text_format.MessageToString(config))
