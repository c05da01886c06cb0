"""Pictures in which no pixel is like another, so that whatever is left out, swapped or moved shows."""

from __future__ import annotations

import numpy as np
from PIL import Image


def picture(width: int = 40, height: int = 30, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """The same for the same seed; that with alpha has colours of its own."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4 if mode == "RGBA" else 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)
