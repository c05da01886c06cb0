"""Checks of a recipe's options, for its `__post_init__`. Each raises BadInput, which names the flag. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from training.errors import BadInput


def at_least(options: Any, **least: int) -> None:
    for name, few in least.items():
        if (value := getattr(options, name)) < few:
            raise BadInput(f"{flag(name)}: {value} is too few; give {few} or more")


def positive(options: Any, *names: str) -> None:
    for name in names:
        if not (value := getattr(options, name)) > 0:
            raise BadInput(f"{flag(name)}: {value} must be above 0")


def not_negative(options: Any, *names: str) -> None:
    """Rejects infinity and NaN, too, which can't be weights."""
    for name in names:
        if not 0 <= (value := getattr(options, name)) < math.inf:
            raise BadInput(f"{flag(name)}: {value} must be 0 or more")


def share(options: Any, *names: str) -> None:
    for name in names:
        if not 0 <= (value := getattr(options, name)) <= 1:
            raise BadInput(f"{flag(name)}: {value} must lie within 0 and 1")


def below_one(options: Any, *names: str) -> None:
    """Like `share`, but excludes 1."""
    for name in names:
        if not 0 <= (value := getattr(options, name)) < 1:
            raise BadInput(f"{flag(name)}: {value} must lie within 0 and 1, without 1")


def one_of(options: Any, **choices: Collection[str]) -> None:
    for name, known in choices.items():
        if (value := getattr(options, name)) not in known:
            raise BadInput(f"{flag(name)}: no {value!r}; there are {', '.join(known)}")


def flag(name: str) -> str:
    """An option's name as the command line writes it."""
    return f"--{name.replace('_', '-')}"
