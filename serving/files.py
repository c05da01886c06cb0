"""Atomic and durable writes, whole or not at all and on disk when the call returns; and which folders are versions."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path

VERSION = re.compile(r"[1-9][0-9]*")
"""The name of a folder that tritonserver takes for a version, and for that one alone."""


def numbered(folder: Path) -> list[int]:
    """The versions that lie in a model's folder, oldest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in found if VERSION.fullmatch(path.name) and path.is_dir())


def write_atomically(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Writes the whole content, text as UTF-8, or leaves the file as it was."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        temporary.touch(mode)
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        else:
            temporary.write_bytes(content)
        fsync(temporary)
        temporary.replace(path)
        if os.name != "nt":  # Windows opens no folder
            fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Returns when the file's or folder's content is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
