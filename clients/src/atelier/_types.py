"""Small types of the public interface that need neither gRPC nor a server."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Final, TypeGuard

Say = Callable[[str], None]
"""Is told, in a line, of something beside the result."""


class NotGiven:
    """Type of NOT_GIVEN: "as the client is set", where None would mean something else."""

    def __repr__(self) -> str:
        return "NOT_GIVEN"


NOT_GIVEN: Final = NotGiven()


DEFAULT_TIMEOUT_S: Final = 30.0
"""The longest wait for one answer unless the caller says otherwise."""

IN_FLIGHT: Final = 2
"""Batches under way at once: one for each instance that the shipped models have. More would only wait in a queue that
Triton, after its timeout, empties by refusing."""


def per_batch(count: int, most: int) -> int:
    """How many of `count` go in each batch, at most so many: the batches are alike, and no instance waits idle."""
    rounds = max(1, math.ceil(count / (most * IN_FLIGHT)))
    return max(1, math.ceil(count / (rounds * IN_FLIGHT)))


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that a server holds. `versions` can be used now; `state` is Triton's word, such as READY."""

    name: str
    versions: tuple[int, ...]
    state: str


def whole(value: object) -> int | None:
    """A whole number of Python's or NumPy's, as Python's; None for anything else, a truth among it."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is one of Python's or NumPy's, and not a truth."""
    return isinstance(value, Real) and not isinstance(value, bool)
