"""What the stand-in of each model makes of a picture, uint8 (H, W, 3): what clients and scripts are held to."""

from __future__ import annotations

import numpy as np
import stand_in
from PIL import Image

from atelier import colorizing

STYLES = stand_in.STYLE.inputs[1].members


def styled(picture: Image.Image, style: str | dict[str, float], version: int = 2) -> stand_in.Images:
    """In a style, or in a blend by its weights."""
    weights = {style: 1.0} if isinstance(style, str) else style
    row = np.array([[weights.get(name, 0) for name in STYLES]], np.float32)
    return stand_in.styled(np.asarray(picture.convert("RGB"))[None], row, version)[0]


def colored(picture: Image.Image, stage: float = 2, version: int = 2) -> stand_in.Images:
    """Of its gray, at a stage."""
    gray = np.asarray(colorizing.grayed(picture))[None, ..., None]
    return stand_in.colored(gray, np.array([[stage]], np.float32), version)[0]


def upscaled(picture: Image.Image, version: int = 2) -> stand_in.Images:
    return stand_in.upscaled(np.asarray(picture)[None], version)[0]
