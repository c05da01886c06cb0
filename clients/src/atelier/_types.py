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
"""Called with a line for the user: a notice in addition to the result."""


class NotGiven:
    """Type of NOT_GIVEN, which stands for the client's own setting where None would mean something else."""

    def __repr__(self) -> str:
        return "NOT_GIVEN"


NOT_GIVEN: Final = NotGiven()


DEFAULT_TIMEOUT_S: Final = 30.0
"""The longest wait for one answer unless the caller says otherwise."""

MAX_IN_FLIGHT: Final = 2
"""Batches in flight at once: one per model instance of the shipped models. More would only wait in Triton's queue,
which rejects requests that wait for longer than its timeout."""


LARGEST_VERSION: Final = 2**63 - 1
"""The largest model version: Triton reads it as a signed 64-bit integer."""


def batch_size(count: int, max_batch: int) -> int:
    """The batch size for `count` items, at most `max_batch`: equal batches except the last, and no idle instance."""
    rounds = max(1, math.ceil(count / (max_batch * MAX_IN_FLIGHT)))
    return max(1, math.ceil(count / (rounds * MAX_IN_FLIGHT)))


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model in a server's repository. `versions` are ready for use; `state` is Triton's, such as READY."""

    name: str
    versions: tuple[int, ...]
    state: str


def as_int(value: object) -> int | None:
    """A Python or NumPy integer as an int; None for anything else, including bool."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a Python or NumPy real number, and not a bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def as_reals(value: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Converts an array-like of real numbers to float64. Raises TypeError for complex numbers, dates and text.

    The array-like itself may raise any exception, as PyTorch's tensors do.
    """
    found = np.asarray(value)
    if found.dtype.kind in "cmMSU":
        raise TypeError(f"{found.dtype} is no real number")
    return found.astype(np.float64, copy=False)


def check_alone(exc: Exception) -> None:
    """Raises InvalidInput if a generator raised `exc` because another thread or task is running it."""
    if "already executing" in str(exc) or "already running" in str(exc):
        raise InvalidInput("another thread or task is already waiting for the next one; only one may") from exc


def is_several(value: object) -> TypeGuard[Iterable[Any]]:
    """Whether it is iterable and not text; a 0-dimensional array only looks iterable."""
    try:
        iter(value)  # type: ignore[call-overload]
    except TypeError:
        return False
    return not isinstance(value, str | bytes)
