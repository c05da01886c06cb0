"""The parameters of a request to the painter: each knob's default and range are defined here only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class BadRequest(ValueError):
    """A knob or a picture is invalid; the text is one line that names it."""


@dataclass(frozen=True)
class Knob:
    """An optional input. Each of its elements is a number from `least` to `most`."""

    default: tuple[float, ...]
    least: float
    most: float
    dtype: Literal["INT32", "FP32"] = "FP32"

    def value(self, name: str, given: Array) -> tuple[float, ...]:
        numbers: list[float] = given.ravel().tolist()
        if len(numbers) != len(self.default):
            raise BadRequest(f"{name}: has {len(numbers)} numbers, and must have {len(self.default)}")
        for number in numbers:
            if not self.least <= number <= self.most:  # rejects NaN, too
                raise BadRequest(f"{name}: {number:g} must be {self.least:g} to {self.most:g}")
        return tuple(numbers)


KNOBS: Final = {
    "iterations": Knob((100,), 0, 1000, "INT32"),
    "every": Knob((10,), 1, 1000, "INT32"),
    "content_weight": Knob((1.0,), 0, 1e6),
    "style_weight": Knob((5.0,), 0, 1e6),
    "tv_weight": Knob((10.0,), 0, 1e6),
    "content_layers": Knob((0.0, 0.0, 1.0, 0.0), 0, 1e3),
    "style_layers": Knob((1.0, 1.0, 1.0, 1.0, 1.0), 0, 1e3),
    "start": Knob((1,), 0, 1, "INT32"),
    "seed": Knob((0,), 0, np.iinfo(np.int32).max, "INT32"),
    "scales": Knob((0,), 0, 6, "INT32"),
    "optimizer": Knob((0,), 0, 1, "INT32"),
}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """One request's knobs, validated. With `scales` 0 the picture's size decides how many there are."""

    iterations: int
    every: int
    content_weight: float
    style_weight: float
    tv_weight: float
    content_layers: tuple[float, ...]
    style_layers: tuple[float, ...]
    start: Literal["noise", "content"]
    seed: int
    scales: int
    optimizer: Literal["l-bfgs", "adam"]

    def __post_init__(self) -> None:
        wants = {name: getattr(self, f"{name}_weight") * sum(getattr(self, f"{name}_layers")) for name in ASPECTS}
        if not any(wants.values()):
            raise BadRequest("content_weight, style_weight: both are 0, or all of their layers; give one of them more")


ASPECTS: Final = ("content", "style")
STARTS: Final = ("noise", "content")
OPTIMIZERS: Final = ("l-bfgs", "adam")


def read(given: Mapping[str, Array | None]) -> Knobs:
    """Validates a request's knobs, named as in KNOBS; those missing or None take their defaults. Raises BadRequest."""
    chosen: dict[str, Any] = {}
    for name, knob in KNOBS.items():
        array = given.get(name)
        value = knob.default if array is None else knob.value(name, array)
        chosen[name] = value if len(value) > 1 else value[0]
    chosen["start"] = STARTS[chosen["start"]]
    chosen["optimizer"] = OPTIMIZERS[chosen["optimizer"]]
    return Knobs(**chosen)
