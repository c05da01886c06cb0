"""The shape of the generated table in `_models.py`: what one served model takes and gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tensor:
    """One input or output. `shape` leaves out the batch dimension; -1 is one that each request chooses."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Contract:
    """One served model. `labels` names the classes of a classifier, in order."""

    summary: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch: int
    labels: tuple[str, ...] = ()
