"""Small types of the public interface that need neither gRPC nor a server."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Final, TypeGuard

import numpy as np
import numpy.typing as npt

from atelier.errors import InvalidInput

Say = Callable[[str], None]
"""Called with a line for the user: a notice beside the result."""


class NotGiven:
    """Type of NOT_GIVEN: "as the client was made", where None would mean something else."""

    def __repr__(self) -> str:
        return "NOT_GIVEN"


NOT_GIVEN: Final = NotGiven()


DEFAULT_TIMEOUT_S: Final = 30.0
"""The longest wait for one answer unless the caller says otherwise."""

MAX_IN_FLIGHT: Final = 2
"""Batches in flight at once: one for each instance that the shipped models have. More would only wait in Triton's
queue, which refuses what has waited for longer than its timeout."""


LARGEST_VERSION: Final = 2**63 - 1
"""Of a model: Triton reads it as a signed 64-bit integer."""


def batch_size(count: int, max_batch: int) -> int:
    """How many of `count` go in each batch, `max_batch` at most: all but the last alike, and no instance left idle."""
    rounds = max(1, math.ceil(count / (max_batch * MAX_IN_FLIGHT)))
    return max(1, math.ceil(count / (rounds * MAX_IN_FLIGHT)))


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that a server holds. `versions` can be used now; `state` is Triton's word, such as READY."""

    name: str
    versions: tuple[int, ...]
    state: str


def as_int(value: object) -> int | None:
    """An integer of Python's or NumPy's as an int; None for anything else, bool too."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number of Python's or NumPy's, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def as_reals(value: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """An array-like of real numbers in float64. Raises TypeError for complex numbers, dates and text.

    It may raise anything else, as PyTorch's tensors do.
    """
    found = np.asarray(value)
    if found.dtype.kind in "cmMSU":
        raise TypeError(f"{found.dtype} is no real number")
    return found.astype(np.float64, copy=False)


def check_alone(exc: Exception) -> None:
    """Raises InvalidInput if a generator raised `exc` because another thread or task is inside."""
    if "already executing" in str(exc) or "already running" in str(exc):
        raise InvalidInput("another thread or task is already waiting for the next one; only one may") from exc


def is_several(value: object) -> TypeGuard[Iterable[Any]]:
    """Whether it can be iterated over, and is no text; an array without dimensions only looks as if it could."""
    try:
        iter(value)  # type: ignore[call-overload]
    except TypeError:
        return False
    return not isinstance(value, str | bytes)
