"""Optional packages of the SDK, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from atelier.errors import MissingPackage


def load(package: str, *, subject: str, otherwise: str = "") -> Any:
    """Imports a package. Raises MissingPackage: `subject` is not installed, or cannot be loaded and why."""
    try:
        return importlib.import_module(package)
    except ImportError as exc:
        absent = isinstance(exc, ModuleNotFoundError) and exc.name == package
        why = " ".join(str(exc).split())
        what = f"is not installed: pip install {package}" if absent else f"cannot be loaded: {why}"
        raise MissingPackage(f"{subject} {what}{otherwise}") from exc
