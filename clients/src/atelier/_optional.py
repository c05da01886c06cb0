"""Packages that the SDK can do without, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from atelier.errors import MissingPackage


def load(package: str, *, subject: str, otherwise: str = "") -> Any:
    """The package. Raises MissingPackage: that `subject` is not installed, or why it cannot be loaded."""
    try:
        return importlib.import_module(package)
    except ImportError as exc:
        absent = isinstance(exc, ModuleNotFoundError) and exc.name == package
        why = " ".join(str(exc).split())
        what = f"is not installed: pip install {package}" if absent else f"cannot be loaded: {why}"
        raise MissingPackage(f"{subject} {what}{otherwise}") from exc
