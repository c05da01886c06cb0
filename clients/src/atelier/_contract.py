"""The types of the generated table in `_models.py`: the inputs and outputs of each served model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]
"""Arrays by tensor name, all with a leading batch dimension."""

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "FP32": np.dtype("<f4"),
    "INT32": np.dtype("<i4"),
    "UINT8": np.dtype("u1"),
}
"""Triton's datatypes, and the NumPy dtypes whose bytes are the same as on the wire: little-endian."""


@dataclass(frozen=True)
class Tensor:
    """One input or output. `shape` excludes the batch dimension; -1 is a dynamic dimension, set by each request."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    optional: bool = False

    def fits(self, array: Array) -> bool:
        """Whether a batch is of this type and shape."""
        sides = array.shape[1:]
        if array.dtype != DTYPES[self.dtype] or len(sides) != len(self.shape):
            return False
        return all(expected in (-1, side) for expected, side in zip(self.shape, sides, strict=True))


@dataclass(frozen=True, kw_only=True)
class Contract:
    """One served model. `labels` names the classes of a classifier, in order; `steps` are the models of an
    ensemble, in order.

    `max_batch` is 0 for a model that takes one request at a time, whose tensors then have no batch dimension;
    `max_pixels` limits pictures of dynamic size; 0 means no limit.
    """

    summary: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch: int
    max_pixels: int = 0
    labels: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
