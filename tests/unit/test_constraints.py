"""deploy/constraints.txt: the packages that these tests run with, and images are made of, to the version."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from training import jobs

FILE = jobs.ROOT / "deploy" / "constraints.txt"
LINES = [line for line in FILE.read_text().splitlines() if not line.startswith("#")]
PINS = {canonicalize_name(pin.name): pin.specifier for pin in map(Requirement, LINES)}
PROJECT, CLIENTS = (
    tomllib.loads((jobs.ROOT / path).read_text())["project"] for path in ("pyproject.toml", "clients/pyproject.toml")
)
ASKED = [
    *(Requirement(text) for part in PROJECT["optional-dependencies"].values() for text in part),
    *(Requirement(text) for text in (*PROJECT["dependencies"], *CLIENTS["dependencies"])),
    *(Requirement(text) for text in CLIENTS["optional-dependencies"]["video"]),
]
UNPINNED = {PROJECT["name"], "setuptools", "tensorrt-cu13-bindings"}
"""itself, what a Python brings, and what pyproject.toml alone pins"""


def needed(asked: list[Requirement]) -> Iterator[str]:
    """Every package that they bring here, and what those bring in turn."""
    waiting, seen = list(asked), set()
    while waiting:
        wanted = waiting.pop()
        name, key = canonicalize_name(wanted.name), (wanted.name, frozenset(wanted.extras))
        if key in seen or name in UNPINNED or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        seen.add(key)
        yield name
        for text in distribution(name).requires or []:
            brought = Requirement(text)
            extras = wanted.extras or {""}
            if not brought.marker or any(brought.marker.evaluate({"extra": extra}) for extra in extras):
                brought.marker = None
                waiting.append(brought)


def test_nothing_that_is_installed_floats() -> None:
    """What two people install on one day or two, they install alike."""
    try:
        versions = {name: distribution(name).version for name in needed(ASKED)}
    except PackageNotFoundError as missing:
        pytest.fail(f"{missing} is not installed: make setup")
    assert len(versions) > len(ASKED) / 2
    assert {name: versions[name] for name in versions if name not in PINS} == {}
    assert {name: (found, str(PINS[name])) for name, found in versions.items() if found not in PINS[name]} == {}


def test_every_line_is_one_version() -> None:
    pins = [Requirement(line) for line in LINES]
    assert [str(pin) for pin in pins if [each.operator for each in pin.specifier] != ["=="] or pin.extras] == []
    assert len(PINS) == len(pins)


@pytest.mark.parametrize(
    "path", sorted((jobs.ROOT / "deploy" / "images").glob("*.Dockerfile")), ids=lambda path: path.stem
)
def test_images_are_made_of_these(path: Path) -> None:
    """Each `pip install` runs in a stage that has the file, or in one made from such a stage."""
    constrained: set[str] = set()
    stage = ""
    for line in path.read_text().replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, stage = rest.partition(" AS ")
            constrained |= {stage} if base in constrained else set()
        elif word == "ENV" and "PIP_CONSTRAINT=" in rest:
            constrained.add(stage)
        elif word == "RUN" and " install " in rest and "pip" in rest.replace("--without-pip", ""):
            assert stage in constrained, line
