"""config.pbtxt as it stands in a model repository, and how it follows the versions that are in service.

It is one file for all versions of a model, and what it says may be true of one of them alone: the names of that
version's styles, and with how many weights it is warmed up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

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


def fitted(text: str, members: Members, before: Members | None) -> str:
    """The text for a version with these members, the newest; `before` has those of the version before, None for none.

    Two versions with other members are not served side by side: one would be asked by the names of the other, and
    could not be warmed up. Where no version has members of its own, the text stays as it is.
    """
    config = _parsed(text)
    if config is None or not (members or before):
        return text
    for given in config.input:
        if given.name not in members:
            continue
        names = members[given.name]
        config.parameters[given.name].string_value = ",".join(names)
        for warmup in config.model_warmup:
            warmup.inputs[given.name].dims[:] = [len(names) if size < 0 else size for size in given.dims]
    config.version_policy.latest.num_versions = 1 if before is not None and before != members else VERSIONS_SERVED
    return _text(config, text)


def between(text: str) -> str:
    """The same for the moment in which the newest version changes: a server that starts then serves either, and warms
    neither up. After a publisher that was killed in it, the next publication puts it right."""
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
    """With the comments at the head of `like`."""
    head = [line for line in like.splitlines(keepends=True) if line.startswith("#")]
    return "".join(head) + str(text_format.MessageToString(config))
