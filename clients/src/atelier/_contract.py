"""The shape of the generated table in `_models.py`: what one served model takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]
"""Arrays by the names of a model's tensors, all with one batch dimension in front."""

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "FP32": np.dtype("<f4"),
    "INT32": np.dtype("<i4"),
    "UINT8": np.dtype("u1"),
}
"""Triton's names of types, and the arrays whose bytes are what the wire carries."""


@dataclass(frozen=True)
class Tensor:
    """One input or output. `shape` leaves out the batch dimension; -1 is one that each request chooses."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    optional: bool = False

    def fits(self, array: Array) -> bool:
        """Whether a batch is of this type and shape."""
        sides = array.shape[1:]
        fixed = tuple(-1 if d == -1 else side for d, side in zip(self.shape, sides, strict=False))
        return len(sides) == len(self.shape) and fixed == self.shape and array.dtype == DTYPES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class Contract:
    """One served model. `labels` names the classes of a classifier, in order; `steps` are the models that an
    ensemble asks, one after the other.

    `max_batch` is 0 for a model that takes one request at a time, whose tensors then have no batch dimension;
    `max_pixels` is the most that a picture of free size may have, 0 any.
    """

    summary: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch: int
    max_pixels: int = 0
    labels: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
