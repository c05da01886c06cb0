"""Pictures four times as wide and as high: the tiles that an upscaler is sent, and how they are joined.

photo = pictures.open_picture("photo.jpg", alpha=True)
client.upscale(photo)[0].save("large.png")
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from PIL import Image

from atelier import sizing
from atelier._contract import Contract, Tensors
from atelier.errors import InvalidInput
from atelier.sizing import SMALLEST_SENT, Photos

SCALE: Final = 4
MOST: Final = 1 << 26
"""Pixels of a result: 8,192 x 8,192, which are 256 MB in Pillow's memory."""
OVERLAP: Final = 16
"""Pixels between what is kept of a tile and its edge, beyond which the picture goes on. The network's receptive field
reaches no further, so what is kept is as of the whole picture, and no seam can be seen."""
TILE: Final = 256
"""The longest side of a tile. Eight of 256 x 256, a batch, are all the pixels that the upscaler takes at once, and
two cores share even a small photo. On a core, in floats, a pixel that is kept takes 7.3 us; in tiles of 512 6.2, of 128
9.6."""


@dataclass(frozen=True)
class Span:
    """A tile along one side of a picture, in pixels: from `start` to `stop`, of which `first` to `last` are kept."""

    start: int
    stop: int
    first: int
    last: int


def spans(side: int, most: int = TILE) -> list[Span]:
    """A side in tiles of one length, `most` or less. What is kept of them covers it once.

    Each begins and ends OVERLAP or more before and after what is kept of it, or with the side.
    """
    if side <= most:
        return [Span(0, side, 0, side)]
    count = math.ceil((side - 2 * OVERLAP) / (most - 2 * OVERLAP))
    length = math.ceil((side + 2 * OVERLAP * (count - 1)) / count)
    starts = [index * (side - length) // (count - 1) for index in range(count)]
    cuts = [0, *((one + length + other) // 2 for one, other in pairwise(starts)), side]
    return [Span(at, at + length, *kept) for at, kept in zip(starts, pairwise(cuts), strict=True)]


@dataclass(frozen=True)
class Tile:
    """A part of one of several pictures."""

    picture: int
    across: Span
    down: Span

    @property
    def size(self) -> tuple[int, int]:
        return self.across.stop - self.across.start, self.down.stop - self.down.start

    def cut(self, picture: Image.Image) -> Image.Image:
        return picture.crop((self.across.start, self.down.start, self.across.stop, self.down.stop))

    def paste(self, made: Image.Image, into: Image.Image) -> None:
        """What is kept of it, enlarged, in its place in the enlarged picture."""
        left, top = self.across.first, self.down.first
        box = (left, top, self.across.last, self.down.last)
        inside = [SCALE * (edge - at) for edge, at in zip(box, 2 * (self.across.start, self.down.start), strict=True)]
        into.paste(made.crop((inside[0], inside[1], inside[2], inside[3])), (SCALE * left, SCALE * top))


class Mosaic:
    """Pictures to be enlarged, in batches of tiles of one size, each tile put in its place as it comes back."""

    def __init__(self, pictures: Photos, contract: Contract) -> None:
        """What `Client.upscale` is given. Raises InvalidInput."""
        self._originals = [checked(each, name=name) for name, each in sizing.named(pictures)]
        self._made = [Image.new("RGB", (SCALE * each.width, SCALE * each.height)) for each in self._originals]
        self._batches = _batches([each.size for each in self._originals], contract)
        self._pending = deque(tile for batch in self._batches for tile in batch)

    def batches(self) -> list[Tensors]:
        colours = [sizing.colours(each) for each in self._originals]
        return [
            {"low_res": np.stack([np.asarray(tile.cut(colours[tile.picture])) for tile in batch])}
            for batch in self._batches
        ]

    def add(self, made: Image.Image) -> None:
        """The network's answer to the next tile. Raises ServerError if it is of another size."""
        tile = self._pending.popleft()
        sizing.check_answer(made, tile.size, scale=SCALE)
        whole = self._made[tile.picture]
        tile.paste(made, into=whole)
        whole.info = dict(made.info)

    def finished(self) -> list[Image.Image]:
        """The enlarged pictures, when all tiles are there."""
        assert not self._pending, f"{len(self._pending)} tiles are missing"
        return [sizing.with_alpha(*pair) for pair in zip(self._made, self._originals, strict=True)]


def checked(picture: Any, *, name: str = "picture") -> Image.Image:
    """A picture as it is enlarged: upright RGB or RGBA of 8 bits.

    Raises InvalidInput, beginning with `name`: no picture, a side below SMALLEST_SENT, or a result above MOST pixels.
    """
    given = sizing.upright(picture, name=name)
    width, height = given.size
    if min(given.size) < SMALLEST_SENT:
        need = f"both sides must have {SMALLEST_SENT} or more; give a larger picture"
        raise InvalidInput(f"{name}: has {width} x {height} pixels, and {need}")
    if SCALE * width * SCALE * height > MOST:
        fit = sizing.scaled(given.size, sizing.longest(given.size, MOST // SCALE**2))
        limit = f"more than the limit of {MOST:,}; reduce it to {fit[0]} x {fit[1]} or less"
        raise InvalidInput(f"{name}: would come to {SCALE * width} x {SCALE * height} pixels, {limit}")
    return given


def _batches(sizes: Sequence[tuple[int, int]], contract: Contract) -> list[list[Tile]]:
    side = min(TILE, math.isqrt(contract.max_pixels or TILE**2))
    tiles = [
        Tile(index, across, down)
        for index, (width, height) in enumerate(sizes)
        for down in spans(height, side)
        for across in spans(width, side)
    ]
    groups = sizing.groups([tile.size for tile in tiles], contract)
    return [[tiles[place] for place in group] for group in groups]
