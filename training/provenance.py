"""What a run's directory says of how it was begun, in options.json, and published, in published.txt. Torch-free."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving import files, repository
from serving.errors import RepositoryError
from training.errors import BadInput

OPTIONS, PUBLISHED = "options.json", "published.txt"
FIELDS = ("preset", "options", "corpus", "commit", "machine", "command")


def read(run: Path, fields: Sequence[str] = FIELDS) -> dict[str, Any]:
    """What a run's options.json says. Raises BadInput, which names it, if it is missing, cut short or lacks a field."""
    path = run / OPTIONS
    try:
        made_by: dict[str, Any] = json.loads(path.read_text())
        if lacking := [name for name in fields if name not in made_by]:
            raise ValueError(f"no {lacking[0]}")
    except (OSError, ValueError, TypeError) as error:
        why = getattr(error, "strerror", None) or error
        raise BadInput(f"{path}: doesn't say how the run was begun ({why}); begin another --name") from error
    return made_by


def last(made_by: dict[str, Any]) -> dict[str, Any]:
    """Commit, machine and command of the last that worked at a run, of those that options.json has."""
    return [made_by, *made_by.get("resumed", [])][-1]


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
    said = path.read_text() if path.is_file() else ""
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
