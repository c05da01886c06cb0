"""A classifier's inputs and its predictions.

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
"""How a picture is preprocessed: the methods of `preprocess_garment`, or not at all."""

Picture = Image.Image | npt.NDArray[np.uint8]
Pictures = Picture | Iterable[Picture]
Images = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Classification:
    """A model's prediction for one picture. `probabilities`, 0 to 1, covers every class, in label order."""

    probabilities: Mapping[str, float]
    model: str
    version: int

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.top(1)[0][0]

    @property
    def probability(self) -> float:
        """The probability of `label`, 0 to 1."""
        return self.top(1)[0][1]

    def top(self, count: int | None = None) -> list[tuple[str, float]]:
        """The `count` most probable classes (None: all) with their probabilities, best first.

        Raises InvalidInput if `count` is below 1 or not a whole number.
        """
        most = as_int(count)
        if count is not None and (most is None or most < 1):
            raise InvalidInput(f"top {count!r}: must be a whole number, 1 or more, or None")
        return sorted(self.probabilities.items(), key=lambda pair: -pair[1])[:most]

    def translated(self, language: str) -> Classification:
        """The same prediction with the class names in another language: "fr" or "en".

        Raises InvalidInput for any other language, or if the prediction does not have all ten classes.
        """
        if language not in NAMES:
            raise InvalidInput(f"language {language!r}: must be one of {', '.join(NAMES)}")
        if len(self.probabilities) != len(NAMES[language]):
            raise InvalidInput(f"{len(self.probabilities)} classes: only all {len(NAMES[language])} can be translated")
        return replace(self, probabilities=dict(zip(NAMES[language], self.probabilities.values(), strict=True)))


def prepared(picture: Image.Image, *, method: Method = "find") -> Images:
    """Preprocesses a picture for the network: uint8 (28, 28), white on black. Raises InvalidInput.

    "find" and "source" are for photos, see `preprocess_garment`; "raw" is for pictures already in that form.
    """
    _check_method(method)
    if method != "raw":
        return preprocess_garment(as_rgb(picture), method=method)
    if picture.size != (SIZE, SIZE):
        size = " x ".join(map(str, picture.size))
        raise InvalidInput(f"method raw takes a picture of {SIZE} x {SIZE}, and this is {size}; find is for photos")
    return np.asarray(as_rgb(picture).convert("L"))


def images(pictures: Pictures, *, method: Method = "find") -> Images:
    """Builds a classifier's input: uint8 (N, 28, 28, 1), white on black. Raises InvalidInput.

    Takes arrays (28, 28), (N, 28, 28) or (N, 28, 28, 1) of that kind, which are used as they are; Pillow pictures,
    which `prepared` preprocesses; or a list of either.
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
