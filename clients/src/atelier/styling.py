"""Stylises pictures after paintings: prepares a style network's inputs and finishes its outputs.

photo = pictures.open_picture("photo.jpg", alpha=True)
client.stylize(photo, "starry-night")[0].save("painted.png")
client.stylize(photo, {"starry-night": 0.7, "great-wave": 0.3}, size=1024, keep_color=True)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from atelier import sizing
from atelier._contract import Contract, Tensors
from atelier._types import is_number, is_several
from atelier.errors import InvalidInput
from atelier.sizing import Groups, Photos, sized
from atelier.words import counted

Blend = Mapping[str, float]
"""Weights by style name; only their ratios matter."""
Style = str | Blend
Styles = Style | Iterable[Style]


@dataclass(frozen=True, eq=False)
class Work:
    """Pictures, each with its normalised style weights, to be stylised in batches of one size."""

    originals: tuple[Image.Image, ...]
    blends: tuple[Blend, ...]
    strength: float
    keep_color: bool
    groups: Groups

    @classmethod
    def of(
        cls,
        pictures: Photos,
        style: Styles,
        contract: Contract,
        *,
        size: int | None,
        strength: float,
        keep_color: bool,
    ) -> Work:
        """Checks and prepares the arguments of `Client.stylize`. Raises InvalidInput."""
        if not (is_number(strength) and 0 <= strength <= 1):
            raise InvalidInput(f"strength {strength!r}: must be a number from 0, the original, to 1")
        given = sizing.named(pictures)
        blends = _blends(style, len(given))
        originals = [
            sized(each, size=size, most=contract.max_pixels, name=name, done="stylised") for name, each in given
        ]
        groups = sizing.groups([each.size for each in originals], contract)
        return cls(tuple(originals), blends, strength, keep_color, tuple(groups))

    def batches(self, names: Sequence[str]) -> list[Tensors]:
        """A batch for each group. Raises InvalidInput for a style that is not among `names`."""
        weights = [_weight_vector(blend, names) for blend in self.blends]
        return [
            {
                "content": np.stack([np.asarray(sizing.colours(self.originals[index])) for index in group]),
                "style_weights": np.stack([weights[index] for index in group]),
            }
            for group in self.groups
        ]

    def finished(self, painted: Iterable[Image.Image], names: Sequence[str]) -> list[Image.Image]:
        """The results in the pictures' order, from the network's answers in the order of the groups."""
        return sizing.finished(painted, self.groups, lambda index, made: self._finish(index, made, names))

    def _finish(self, index: int, painted: Image.Image, names: Sequence[str]) -> Image.Image:
        original, info = self.originals[index], painted.info
        sizing.check_answer(painted, original.size)
        plain = original.convert("RGB")
        coloured = recoloured(painted, plain) if self.keep_color else painted
        made = sizing.with_alpha(Image.blend(plain, coloured, self.strength), original)
        made.info = {**info, "style": label(self.blends[index], names)}
        return made


def parsed(text: str) -> dict[str, float]:
    """Parses a blend as users type it, "starry-night=0.7,great-wave=0.3"; normalises it. Raises InvalidInput."""
    pairs = [part.partition("=")[::2] for part in text.split(",")]
    weights: dict[str, float] = {}
    try:
        for name, weight in pairs:
            _check_weight(name, float(weight))
            weights[slug(name)] = weights.get(slug(name), 0) + float(weight)
        return dict(_normalised(weights))
    except ValueError as exc:
        raise InvalidInput(f"{text!r} is no blend; give NAME=WEIGHT,NAME=WEIGHT") from exc


def label(style: Style, names: Sequence[str]) -> str:
    """The name of a style, or a blend with normalised weights, as `parsed` reads it: "scream=0.7,tableau=0.3"."""
    weights = _weight_vector(_normalised(style), names).tolist()
    shares = {name: share for name, share in zip(names, weights, strict=True) if share}
    return next(iter(shares)) if len(shares) == 1 else ",".join(f"{name}={share:.3g}" for name, share in shares.items())


# --- styles


def _blends(style: Styles, count: int) -> tuple[Blend, ...]:
    """The normalised weights for each of `count` pictures."""
    if isinstance(style, str | Mapping):
        return (_normalised(style),) * count
    if not is_several(style):
        raise _no_style(style)
    blends = tuple(map(_normalised, style))
    if len(blends) != count:
        raise InvalidInput(f"style: {len(blends)} for {counted(count, 'picture')}; give one for all, or one for each")
    return blends


def _check_weight(name: str, weight: object) -> None:
    if not (is_number(weight) and 0 <= weight < math.inf):
        raise InvalidInput(f"style: the weight of {name} is {weight!r}; it must be finite, and 0 or more")


def _normalised(style: Style) -> Blend:
    """Normalises the weights of a blend to a sum of 1. Raises InvalidInput."""
    if isinstance(style, str):
        return {style: 1.0}
    if not (isinstance(style, Mapping) and all(isinstance(name, str) for name in style)):
        raise _no_style(style)
    for name, weight in style.items():
        _check_weight(name, weight)
    if not (largest := max(style.values(), default=0)):
        raise InvalidInput("style: a blend needs a weight above 0")
    shares = {name: float(weight / largest) for name, weight in style.items()}  # a sum of the weights may overflow
    return {name: share / sum(shares.values()) for name, share in shares.items()}


def _weight_vector(blend: Blend, names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The weights of all styles, (len(names),). Names match in any case, and with spaces for hyphens."""
    indices = {slug(name): index for index, name in enumerate(names)}
    weights = np.zeros(len(names), np.float32)
    for name, weight in blend.items():
        if slug(name) not in indices:
            raise InvalidInput(f"no style {name!r}; there are {', '.join(names)}")
        weights[indices[slug(name)]] += weight
    return weights


def slug(name: str) -> str:
    """A style's name in the form used for comparison and in file names."""
    return re.sub(r"[\s_-]+", "-", name.strip().casefold())


def _no_style(given: object) -> InvalidInput:
    return InvalidInput(f"style: {given!r:.60} is neither a name nor weights by name")


def recoloured(painted: Image.Image, original: Image.Image) -> Image.Image:
    """Combines the luma of one RGB picture with the chroma of another of the same size."""
    luma, _, _ = painted.convert("YCbCr").split()
    _, cb, cr = original.convert("YCbCr").split()
    return Image.merge("YCbCr", (luma, cb, cr)).convert("RGB")
