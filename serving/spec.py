"""What a served model is: its tensors, how it batches, what a new version must reach before it is published.

A spec is the single source of config.pbtxt, the training Job and the SDK's tensor table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Dtype = Literal["FP32", "UINT8"]
ANY = -1
"""A dimension that each request chooses."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One input or output. `shape` leaves out the batch dimension; `ANY` marks a free one."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        _require(_is_name(self.name), f"tensor name {self.name!r}: lower-case letters, digits and _")
        _require(bool(self.shape), f"tensor {self.name}: shape is empty")
        _require(all(d == ANY or d > 0 for d in self.shape), f"tensor {self.name}: shape {self.shape}")


@dataclass(frozen=True, kw_only=True)
class Batching:
    """Triton's dynamic batcher for one model. Times are microseconds, as in config.pbtxt."""

    max_batch: int
    preferred: tuple[int, ...] = ()
    queue_delay_us: int = 0
    queue_size: int = 64
    queue_timeout_us: int = 2_000_000

    def __post_init__(self) -> None:
        _require(self.max_batch > 0, f"max_batch {self.max_batch}: must be 1 or more")
        _require(
            all(0 < p <= self.max_batch for p in self.preferred),
            f"preferred batches {self.preferred}: must lie within 1 to max_batch {self.max_batch}",
        )
        _require(self.queue_delay_us >= 0, f"queue_delay_us {self.queue_delay_us}: must not be negative")
        _require(self.queue_size > 0, f"queue_size {self.queue_size}: must be 1 or more")
        _require(self.queue_timeout_us > 0, f"queue_timeout_us {self.queue_timeout_us}: must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A bound that a candidate's metric must meet, and how far it may fall behind the live version's."""

    metric: str
    at_least: float | None = None
    at_most: float | None = None
    may_worsen_by: float = 0.0

    def __post_init__(self) -> None:
        one_bound = (self.at_least is None) != (self.at_most is None)
        _require(one_bound, f"threshold {self.metric}: give at_least or at_most, not both")
        _require(self.may_worsen_by >= 0, f"threshold {self.metric}: may_worsen_by must not be negative")

    def refusal(self, value: float, live: float | None) -> str | None:
        """The reason to refuse `value` beside the live version's, or None if it passes."""
        if self.at_least is not None:
            if not value >= self.at_least:
                return f"{self.metric} {value:.4g} is below {self.at_least:.4g}"
            fell = live is not None and value < live - self.may_worsen_by
        else:
            assert self.at_most is not None
            if not value <= self.at_most:
                return f"{self.metric} {value:.4g} is above {self.at_most:.4g}"
            fell = live is not None and value > live + self.may_worsen_by
        if fell:
            return f"{self.metric} {value:.4g} is worse than the live {live:.4g} by more than {self.may_worsen_by:.4g}"
        return None


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One served model, from the wire to its gate.

    `threads` are intra-op threads of each of `instances`; `golden_atol` is the largest difference, in the
    output's own unit, by which an answer may differ from the golden batch. A version that misses a threshold
    is not published; one that misses an aim says so in its card.
    """

    name: str
    summary: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batching: Batching
    instances: int = 1
    threads: int = 2
    golden_atol: float = 1.0
    labels: tuple[str, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    aims: tuple[Threshold, ...] = ()

    def __post_init__(self) -> None:
        _require(_is_name(self.name), f"model name {self.name!r}: lower-case letters, digits and _")
        _require(bool(self.inputs) and bool(self.outputs), f"{self.name}: needs an input and an output")
        names = [t.name for t in (*self.inputs, *self.outputs)]
        _require(len(set(names)) == len(names), f"{self.name}: tensor names repeat: {names}")
        widths = [t.shape for t in self.outputs] if self.labels else []
        named = f"{self.name}: {len(self.labels)} labels for outputs of {widths}"
        _require(all(width == (len(self.labels),) for width in widths), named)
        _require(self.instances > 0 and self.threads > 0, f"{self.name}: instances and threads must be 1 or more")


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[a-z][a-z0-9_]*", text) is not None


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
