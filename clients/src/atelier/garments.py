"""Garments as the classifier sees them: photos turned into pictures like those of Fashion-MNIST, and their names.

    picture = garments.preprocess_garment(Image.open("shirt.jpg"))
    garments.NAMES["fr"][label]

A garment is white on black there, and fills its 28x28 pixels. A photo has a ground, shadows and margins.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps

SIZE: Final = 28
NAMES: Final[dict[str, tuple[str, ...]]] = {
    "en": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
    "fr": (
        "T-shirt/haut", "pantalon", "pull", "robe", "manteau", "sandales", "chemise", "baskets", "sac",
        "bottes de cheville",
    ),
}  # fmt: skip
"""The ten classes by language, in the order of the labels."""

Garment = npt.NDArray[np.uint8]

_SOURCE_SIDE: Final = 20


def preprocess_garment(picture: Image.Image, *, method: Literal["find", "source"] = "find") -> Garment:
    """What `classify` takes, from a photo of one garment: uint8 (28, 28), white garment on black.

    "find" tells the garment from its ground first. "source" takes the ground for white paper.
    """
    return _source(picture.convert("L")) if method == "source" else _find(picture.convert("L"))


def _source(gray: Image.Image) -> Garment:
    """The longest side becomes 20, sharpened, in the middle of a white canvas, then inverted."""
    scale = _SOURCE_SIDE / max(gray.size)
    width, height = (max(1, round(scale * side)) for side in gray.size)
    small = gray.resize((width, height), Image.Resampling.LANCZOS).filter(ImageFilter.SHARPEN)
    canvas = Image.new("L", (SIZE, SIZE), 255)
    canvas.paste(small, (round((SIZE - width) / 2), round((SIZE - height) / 2)))
    return np.asarray(ImageOps.invert(canvas)).copy()


def _find(gray: Image.Image) -> Garment:
    levels = np.asarray(gray.resize((256, 256)), dtype=np.float64)
    border = np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]])
    away = np.abs(levels - np.median(border)) > 40
    if not away.any():
        return np.zeros((SIZE, SIZE), np.uint8)
    rows, columns = np.flatnonzero(away.any(axis=1)), np.flatnonzero(away.any(axis=0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    cut = Image.fromarray(np.where(away, 255 - levels, 0).astype(np.uint8)).crop(box)
    fitted = ImageOps.pad(cut, (SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(fitted).copy()
