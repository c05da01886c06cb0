"""Files that are written whole or not at all, and that are on disk once that is said."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def replace(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Writes the whole content, text as UTF-8, or leaves the file as it was."""
    beside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        beside.touch(mode)
        if isinstance(content, str):
            beside.write_text(content, encoding="utf-8")
        else:
            beside.write_bytes(content)
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
