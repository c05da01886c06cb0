"""What a run's directory says of how it was begun, in options.json, and published, in published.txt. Torch-free."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from serving import files, repository
from serving.errors import RepositoryError
from training.errors import BadInput
from training.options import flag

OPTIONS, PUBLISHED = "options.json", "published.txt"
FIELDS = ("preset", "options", "corpus", "commit", "machine", "command")
KINDS: dict[str, type] = {"options": dict, "corpus": dict, "command": list, "resumed": list}


def read(run: Path, fields: Sequence[str] = FIELDS, *, instead: str = "begin another --name") -> dict[str, Any]:
    """What a run's options.json says. Raises BadInput, which names it and what to do, if it is missing or cut short,
    or if a field is missing or has the wrong type."""
    path = run / OPTIONS
    try:
        made_by: dict[str, Any] = json.loads(path.read_text())
        if not isinstance(made_by, dict):
            raise TypeError(f"a {type(made_by).__name__}")
        if lacking := [name for name in fields if name not in made_by]:
            raise ValueError(f"no {lacking[0]}")
        for name in (*fields, "resumed"):
            if name in made_by and not isinstance(made_by[name], KINDS.get(name, object)):
                raise TypeError(f"its {name} is a {type(made_by[name]).__name__}")
    except (OSError, ValueError, TypeError) as error:
        why = getattr(error, "strerror", None) or error
        raise BadInput(f"{path}: doesn't say how the run was begun ({why}); {instead}") from error
    return made_by


def last(made_by: dict[str, Any]) -> dict[str, Any]:
    """Commit, machine and command of the last that worked at a run, of those that options.json has."""
    return [made_by, *made_by.get("resumed", [])][-1]


def to_lower(options: Iterable[str]) -> str:
    """The flags of the learning rates among a run's options: what keeps another run from diverging."""
    return " or ".join(flag(name) for name in options if name.endswith("lr")) or "weight"


def diverged(options: Iterable[str]) -> str:
    """Why a run's weights are neither kept nor exported."""
    return f"the run has diverged: its weights are not finite; begin another --name with a lower {to_lower(options)}"


def write(run: Path, made_by: dict[str, Any]) -> None:
    files.write_atomically(run / OPTIONS, json.dumps(made_by, indent=2) + "\n")


def note(run: Path, model: str, version: int, into: Path) -> str:
    """Write a run's published.txt; return what it says."""
    said = f"published {model} version {version} in {into}\n"
    files.write_atomically(run / PUBLISHED, said)
    return said


def noted(path: Path) -> str:
    """What a run's published.txt says, while that is so; else "". The repository must hold the version, in service or
    rolled back, and not as another run's: a relative name may mean another folder here."""
    said = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    told = re.fullmatch(r"published (\S+) version (\d+) in (.+)\n", said)
    if told is None:
        return ""
    model, version, into = told[1], int(told[2]), Path(told[3])
    places = into / model / str(version), repository.withdrawn(into, model, version)
    run = read(path.parent, fields=()).get("run")
    return said if any(folder.is_dir() and _run(folder, default=run) == run for folder in places) else ""


def _run(version: Path, default: str | None) -> str | None:
    """Which run a version's card names; the default where it is damaged or names none, which is no other."""
    try:
        made_by: str | None = repository.Card.read(version / repository.CARD).data.get("run", default)
    except RepositoryError:
        return default
    return made_by
