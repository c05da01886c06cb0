"""Files that are written whole or not at all, and that are on disk once that is said."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def replace(path: Path, text: str, mode: int = 0o666) -> None:
    """Writes the whole text or leaves the file as it was."""
    beside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        beside.touch(mode)
        beside.write_text(text, encoding="utf-8")
        sync(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Returns when the file's or folder's content is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
