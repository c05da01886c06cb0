"""Writing files so that nothing half-written is ever seen: beside the target, then into its place."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from atelier.errors import InvalidInput


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to. It takes `target`'s place if the block succeeds, and goes if not.

    Makes missing parent folders. Raises InvalidInput, naming `target`, where the system refuses.
    """
    if target.is_dir() or not target.name:
        raise InvalidInput(f"{target}: is a folder; name a file")
    beside = target.with_name(f".{target.stem}-{secrets.token_hex(4)}{target.suffix}")
    with told(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            _sync(beside)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)


def check_writable(target: Path) -> None:
    """Raises InvalidInput if nothing can be made at `target`. Leaves nothing behind."""
    there = next(path for path in (target.absolute(), *target.absolute().parents) if path.exists())
    if not there.is_dir():
        there = there.parent if there == target.absolute() else there
    with told(target), tempfile.TemporaryDirectory(prefix=".atelier-", dir=there):
        pass


@contextlib.contextmanager
def told(target: Path) -> Iterator[None]:
    """Turns an OSError of the block into InvalidInput that names `target`."""
    try:
        yield
    except OSError as exc:
        raise InvalidInput(f"{target}: cannot be written: {exc.strerror or exc}") from exc


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
