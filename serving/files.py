"""Atomic and durable writes (all or nothing, on disk when the call returns), which folders are versions, and the names
of the files in them.
"""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path

MODEL, CARD, GOLDEN = "model.onnx", "card.json", "golden.npz"
VERSION = re.compile(r"[1-9][0-9]*")
"""Folder names that tritonserver takes for versions, exactly one for each version."""


def numbered(folder: Path) -> list[int]:
    """The versions in a model's folder, oldest first."""
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
        if os.name != "nt":  # Windows can't open folders
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
