"""What a classifier takes, and what it answers.

answer = client.classify(pictures.open_picture("boot.jpg"))[0]
answer.label, answer.probability, answer.translated("fr").top(3)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from atelier._types import as_int, is_several
from atelier.errors import InvalidInput
from atelier.garments import NAMES, SIZE, preprocess_garment
from atelier.pictures import as_rgb

Method = Literal["find", "source", "raw"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)
"""How a picture is prepared: the ways of `preprocess_garment`, and not at all."""

Picture = Image.Image | npt.NDArray[np.uint8]
Pictures = Picture | Iterable[Picture]
Images = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Classification:
    """A model's prediction for one picture. `probabilities`, 0 to 1, has every class, in the order of its labels."""

    probabilities: Mapping[str, float]
    model: str
    version: int

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.top(1)[0][0]

    @property
    def probability(self) -> float:
        """That of `label`, 0 to 1."""
        return self.top(1)[0][1]

    def top(self, count: int | None = None) -> list[tuple[str, float]]:
        """The `count` most probable classes, or all, with their probabilities, best first.

        Raises InvalidInput for a count below 1, and for what is no whole number.
        """
        most = as_int(count)
        if count is not None and (most is None or most < 1):
            raise InvalidInput(f"top {count!r}: must be a whole number, 1 or more, or None")
        return sorted(self.probabilities.items(), key=lambda pair: -pair[1])[:most]

    def translated(self, language: str) -> Classification:
        """The same with the classes' names in another language: "fr", or "en".

        Raises InvalidInput for any other, and if it has not all ten classes.
        """
        if language not in NAMES:
            raise InvalidInput(f"language {language!r}: must be one of {', '.join(NAMES)}")
        if len(self.probabilities) != len(NAMES[language]):
            raise InvalidInput(f"{len(self.probabilities)} classes: only all {len(NAMES[language])} can be translated")
        return replace(self, probabilities=dict(zip(NAMES[language], self.probabilities.values(), strict=True)))


def prepared(picture: Image.Image, *, method: Method = "find") -> Images:
    """A picture as the network is to see it: uint8 (28, 28), white on black. Raises InvalidInput.

    "find" and "source" are for photos, see `preprocess_garment`; "raw" is for pictures that are like that already.
    """
    _check_method(method)
    if method != "raw":
        return preprocess_garment(as_rgb(picture), method=method)
    if picture.size != (SIZE, SIZE):
        size = " x ".join(map(str, picture.size))
        raise InvalidInput(f"method raw takes a picture of {SIZE} x {SIZE}, and this is {size}; find is for photos")
    return np.asarray(as_rgb(picture).convert("L"))


def images(pictures: Pictures, *, method: Method = "find") -> Images:
    """What a classifier takes: uint8 (N, 28, 28, 1), white on black. Raises InvalidInput.

    Of arrays (28, 28), (N, 28, 28) or (N, 28, 28, 1) of that kind, which stay as they are; of Pillow pictures, as
    `prepared` makes them; or of a list of either.
    """
    _check_method(method)
    if isinstance(pictures, Image.Image | np.ndarray):
        return _batch(pictures, method)
    if not is_several(pictures):
        raise _no_picture(pictures)
    return np.concatenate([np.empty((0, SIZE, SIZE, 1), np.uint8), *(_batch(each, method) for each in pictures)])


def _check_method(method: str) -> None:
    if not isinstance(method, str) or method not in METHODS:
        raise InvalidInput(f"method {method!r}: must be one of {', '.join(METHODS)}")


def _batch(picture: Any, method: Method) -> Images:
    if isinstance(picture, Image.Image):
        picture = prepared(picture, method=method)
    if not isinstance(picture, np.ndarray):
        raise _no_picture(picture)
    with_channel = picture if picture.shape[-1:] == (1,) else picture[..., None]
    batch = with_channel[None] if with_channel.ndim == 3 else with_channel
    if batch.dtype != np.uint8 or batch.shape[1:] != (SIZE, SIZE, 1):
        kind = f"{picture.dtype} {picture.shape}"
        raise InvalidInput(f"pictures: {kind} must be uint8 (N, {SIZE}, {SIZE}), white garments on black")
    return batch


def _no_picture(given: object) -> InvalidInput:
    return InvalidInput(f"pictures: {given!r:.60} is not one; atelier.pictures.open_picture reads a file")
