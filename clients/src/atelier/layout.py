"""Arranges frames: the heat map of a latent vector beside its picture, and all frames side by side.

shown = [layout.beside(p, layout.heat_map(z, size=p.height, scale=3.0)) for p, z in zip(pictures, latents)]
layout.strip(shown, columns=20).save("strip.png")
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from atelier.errors import InvalidInput

Sides = tuple[int, int]

# Diverging: blue below zero, paper white at zero, red above, after Mondrian.
_COLORMAP = np.array([[54, 79, 179], [244, 241, 232], [185, 33, 19]], dtype=np.float64)
_BLACK = (0, 0, 0)
_PAPER = (244, 241, 232)


def heat_map(latent: npt.ArrayLike, *, size: int, scale: float) -> Image.Image:
    """Draws a vector of 100 as 10 x 10 squares, row by row: -scale blue, 0 white, +scale red. RGB, size x size pixels.

    Vectors of another length take the smallest square that holds them. Raises InvalidInput.
    """
    values = np.asarray(latent, dtype=np.float64).ravel()
    side = math.ceil(math.sqrt(values.size))
    if not (values.size and np.isfinite(values).all() and scale > 0 and size >= 2 * side):
        raise InvalidInput(f"heat map: needs finite values, scale {scale} above 0, size {size} of 2 pixels a square")
    line = max(1, size // 128)
    pitch = (size - line) // side
    colours = np.zeros((side * side, 3))
    for channel in range(3):
        colours[: values.size, channel] = np.interp(values / scale, [-1, 0, 1], _COLORMAP[:, channel])
    squares = np.rint(colours).astype(np.uint8).reshape(side, side, 3).repeat(pitch, 0).repeat(pitch, 1)
    squares[np.arange(side * pitch) % pitch < line] = 0
    squares[:, np.arange(side * pitch) % pitch < line] = 0
    canvas = Image.new("RGB", (size, size), _BLACK)
    margin = (size - side * pitch - line) // 2
    canvas.paste(Image.fromarray(squares), (margin, margin))
    return canvas


def symmetric_scale(latents: npt.ArrayLike) -> float:
    """The largest |z| of `latents`, so that one scale shows all of them; 1 if all are zero."""
    return float(np.abs(np.asarray(latents)).max(initial=0.0)) or 1.0


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures of one height on black, a sixteenth of the height apart."""
    canvas = Image.new("RGB", beside_sides(left.size, right.size), _BLACK)
    canvas.paste(left, (0, 0))
    canvas.paste(right, (canvas.width - right.width, 0))
    return canvas


def beside_sides(left: Sides, right: Sides) -> Sides:
    """The width and height of `beside`'s result for pictures of these sizes."""
    return left[0] + left[1] // 16 + right[0], left[1]


def strip(frames: Sequence[Image.Image], *, columns: int) -> Image.Image:
    """All frames in one picture, side by side, `columns` to a row."""
    if not frames or columns < 1:
        raise InvalidInput(f"strip: needs a frame and a column, has {len(frames)} and {columns}")
    width, height = frames[0].size
    gap = _strip_gap(height)
    sheet = Image.new("RGB", strip_sides(frames[0].size, len(frames), columns=columns), _PAPER)
    for index, frame in enumerate(frames):
        row, column = divmod(index, columns)
        sheet.paste(frame, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet


def strip_sides(frame: Sides, count: int, *, columns: int) -> Sides:
    """The width and height of `strip`'s result for `count` frames of this size."""
    gap = _strip_gap(frame[1])
    cells = min(columns, count), math.ceil(count / columns)
    return cells[0] * (frame[0] + gap) + gap, cells[1] * (frame[1] + gap) + gap


def _strip_gap(height: int) -> int:
    return max(1, height // 32)
