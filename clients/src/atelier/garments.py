"""Turns photos of garments into pictures like Fashion-MNIST's for the classifier, and names its classes.

    seen = garments.preprocess_garment(pictures.open_picture("shirt.jpg"))
    client.classify(seen)[0].translated("fr").label

In Fashion-MNIST a garment is white on black and fills the frame; in a photo it lies on a floor or hangs on a wall.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps

from atelier import _garment_finder
from atelier._models import MODELS
from atelier.errors import InvalidInput

SIZE: Final = 28
NAMES: Final[dict[str, tuple[str, ...]]] = {
    "en": MODELS["classifier"].labels,
    "fr": (
        "T-shirt/haut", "pantalon", "pull", "robe", "manteau", "sandales", "chemise", "baskets", "sac",
        "bottes de cheville",
    ),
}  # fmt: skip
"""The names of the ten classes by language, in label order."""

Garment = npt.NDArray[np.uint8]

_SOURCE_SIDE: Final = 20
_WIDTH_FACTOR: Final = 0.9
"""Laid flat, garments are 1.1 to 1.4 times as wide as Fashion-MNIST's, whose sleeves hang down."""
_SHOE_ASPECT: Final = 1.6
"""A garment wider than this multiple of its height is a shoe, and keeps its aspect ratio."""


def preprocess_garment(picture: Image.Image, *, method: Literal["find", "source"] = "find") -> Garment:
    """Turns a photo of one upright garment into input for `classify`: uint8 (28, 28), white garment on black.

    "find" segments the garment from its background; the result is all zeros if nothing stands out. "source" assumes a
    white background. `picture` has any size and mode; `pictures.as_rgb` handles unusual modes better than Pillow's
    conversion does. Raises InvalidInput for any other method.
    """
    if method not in ("find", "source"):
        raise InvalidInput(f"method {method!r}: must be find or source")
    return _as_the_source(picture) if method == "source" else _found(picture)


def _as_the_source(picture: Image.Image) -> Garment:
    """Resizes the longer side to 20 pixels, sharpens, inverts, and centres the result on black."""
    gray = picture.convert("L")
    width, height = (max(1, round(_SOURCE_SIDE / max(gray.size) * side)) for side in gray.size)
    small = gray.resize((width, height), Image.Resampling.LANCZOS).filter(ImageFilter.SHARPEN)
    return _centred(ImageOps.invert(small))


def _found(picture: Image.Image) -> Garment:
    """Segments the garment, inverts it, and scales it to fill the black frame."""
    part, inside = _garment_finder.find(picture.convert("RGB"))
    box = Image.fromarray(inside).getbbox()
    if box is None:
        return np.zeros((SIZE, SIZE), np.uint8)
    alone = Image.fromarray(np.where(inside, 255 - np.asarray(part.convert("L")), np.uint8(0)))
    size = _fitted((box[2] - box[0]) / (box[3] - box[1]))
    return _centred(alone.resize(size, Image.Resampling.LANCZOS, box=box))


def _fitted(aspect: float) -> tuple[int, int]:
    """Width and height in the frame for a garment of aspect ratio `aspect` (width / height)."""
    if aspect > _SHOE_ASPECT:
        return SIZE, max(1, round(SIZE / aspect))
    return max(1, round(SIZE * min(1, _WIDTH_FACTOR * aspect))), SIZE


def _centred(picture: Image.Image) -> Garment:
    """Centres a gray picture of at most SIZE pixels a side in the black frame."""
    frame = Image.new("L", (SIZE, SIZE))
    frame.paste(picture, (round((SIZE - picture.width) / 2), round((SIZE - picture.height) / 2)))
    return np.array(frame)
