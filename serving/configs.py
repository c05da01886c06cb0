"""config.pbtxt as it stands in a model repository, and how it follows the versions that are in service.

It is one file for all versions of a model, and what it says may be true of one of them alone: the names of that
version's styles, and with how many weights it is warmed up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from serving.errors import RepositoryError

NAME = "config.pbtxt"
MEMBERS = "members"
"""In a version's card: names of the elements of an input that are its own, by the input's name."""
VERSIONS_SERVED = 2
"""The newest version and the one before it, so that a client pinned to N-1 is answered at once."""

Members = Mapping[str, Sequence[str]]


def read(folder: Path) -> pb.ModelConfig:
    """What a model's config.pbtxt says; nothing if it cannot be read, as tritonserver says better why."""
    try:
        return _parsed((folder / NAME).read_text(encoding="utf-8")) or pb.ModelConfig()
    except (OSError, ValueError):
        return pb.ModelConfig()


def check(folder: Path) -> None:
    """Raises RepositoryError, with the reason, where a model's config.pbtxt cannot be read."""
    try:
        text_format.Parse((folder / NAME).read_text(encoding="utf-8"), pb.ModelConfig())
    except OSError as exc:
        raise RepositoryError(f"{folder / NAME}: {exc.strerror}") from exc
    except (ValueError, text_format.ParseError) as exc:
        raise RepositoryError(f"{folder / NAME}: {' '.join(str(exc).split())}") from exc


def fitted(text: str, members: Members, previous: Members | None) -> str:
    """The text for a newest version with these members; `previous` are those of the version before, None for no such.

    Versions whose members differ are not served side by side: one would be asked by the names of the other, and could
    not be warmed up. Where no version has members of its own, the text stays as it is.
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
    """The text while the newest version changes: a server that starts then serves either, and warms neither up.

    A publisher that is killed meanwhile leaves it; the next publication puts it right.
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
    """Its text, with the comments at the head of `like`."""
    head = [line for line in like.splitlines(keepends=True) if line.startswith("#")]
    return "".join(head) + str(text_format.MessageToString(config))
