"""Upscales pictures to four times their width and height: cuts them into tiles for an upscaler, and joins the results.

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
"""The most pixels of a result: 8,192 x 8,192, for which Pillow uses 256 MB."""
OVERLAP: Final = 16
"""Pixels between the kept part of a tile and any tile edge inside the picture. The network's receptive field reaches no
further, so the kept part is the same as from the whole picture, and no seam is visible."""
TILE: Final = 256
"""The longest side of a tile. A batch of eight 256 x 256 tiles has all the pixels that the upscaler takes at once, and
two cores share even a small photo. On one core, in floats, a kept pixel takes 7.3 us; in tiles of 512 it takes 6.2 us,
in tiles of 128 9.6 us."""


@dataclass(frozen=True)
class Span:
    """A tile's extent along one side of a picture: pixels `start` to `stop`, of which `first` to `last` are kept."""

    start: int
    stop: int
    first: int
    last: int


def spans(side: int, most: int = TILE) -> list[Span]:
    """Divides a side into tiles of one length, `most` or less, whose kept parts cover it exactly once.

    At either end each tile extends at least OVERLAP beyond its kept part, or to the end of the side.
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
    """A tile of one of several pictures."""

    picture: int
    across: Span
    down: Span

    @property
    def size(self) -> tuple[int, int]:
        return self.across.stop - self.across.start, self.down.stop - self.down.start

    def cut(self, picture: Image.Image) -> Image.Image:
        return picture.crop((self.across.start, self.down.start, self.across.stop, self.down.stop))

    def paste(self, made: Image.Image, into: Image.Image) -> None:
        """Pastes the kept part of `made`, the upscaled tile, in its place in the upscaled picture."""
        left, top = self.across.first, self.down.first
        box = (left, top, self.across.last, self.down.last)
        inside = [SCALE * (edge - at) for edge, at in zip(box, 2 * (self.across.start, self.down.start), strict=True)]
        into.paste(made.crop((inside[0], inside[1], inside[2], inside[3])), (SCALE * left, SCALE * top))


class Mosaic:
    """Pictures to be upscaled in batches of tiles of one size; each tile is pasted in its place as it comes back."""

    def __init__(self, pictures: Photos, contract: Contract) -> None:
        """Checks and prepares the arguments of `Client.upscale`. Raises InvalidInput."""
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
        """Adds the network's answer for the next tile. Raises ServerError if its size is wrong."""
        tile = self._pending.popleft()
        sizing.check_answer(made, tile.size, scale=SCALE)
        whole = self._made[tile.picture]
        tile.paste(made, into=whole)
        whole.info = dict(made.info)

    def finished(self) -> list[Image.Image]:
        """The upscaled pictures, once all tiles have been added."""
        assert not self._pending, f"{len(self._pending)} tiles are missing"
        return [sizing.with_alpha(*pair) for pair in zip(self._made, self._originals, strict=True)]


def checked(picture: Any, *, name: str = "picture") -> Image.Image:
    """Prepares a picture for upscaling: upright 8-bit RGB or RGBA.

    Raises InvalidInput, beginning with `name`, if it is not a picture, has a side below SMALLEST_SENT, or would exceed
    MOST pixels when upscaled.
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
