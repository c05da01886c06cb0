"""Tells a garment in a photo from the floor, bed or wall behind it, by one rule: the ground runs out of the picture.

inside = _garment_finder.find(picture)

The picture is cut into patches of one colour each. From a patch of the ground a walk over small steps of colour
comes to much of the border; from a patch of the garment it doesn't, or only where a sleeve leaves the frame. That
is boundary connectivity (Zhu et al. 2014), and light that falls off slowly does not disturb it. Then both sides'
colours are learnt and every patch is judged anew, together with its neighbours.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Reals = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
_Indices = npt.NDArray[np.intp]

_LARGEST: Final = 256
"""Pixels of a side that are looked at."""
_SMALL: Final = 0.5
"""Share of the longest side below which a garment is looked at once more, from near."""
_CELLS: Final = 300
"""Patches in a picture, about; what they cost grows with the cube of their number."""
_CELLS_IN_A_ROW: Final = 32
_CELL: Final = 7
"""Pixels of a patch's side, to begin with."""
_COMPACT: Final = 10.0
"""Units of Lab that weigh as much as one cell's side (Achanta et al. 2012)."""
_SLIC_ROUNDS: Final = 6

_REACHES: Final = (0.15, 0.3, 0.6)
"""How far a walk goes, as a share of how far the garment is from the border: three answers, of which the mean."""
_FARTHEST: Final = (4.0, 60.0)
"""Units of Lab between which that distance is believed."""
_ALIKE: Final = 5.0
"""Units of Lab within which colours are alike, in learning them."""
_JOINED: Final = 10.0
"""Units of Lab within which neighbours belong together."""
_LOOSE: Final = 0.1
"""What joins neighbours of any colours, 1 being what joins those of the same."""
_MARGIN: Final = 0.1
"""Share of the shorter side within which the border makes the ground likely."""
_ROUNDS: Final = 5
_SURE: Final = 5.0
"""The most that is believed of one patch, in log odds."""


def find(picture: Image.Image) -> tuple[Image.Image, Mask]:
    """The part of an RGB picture with the garment, perhaps smaller, and which of its pixels (H, W) show it.

    None do where nothing stands out. A garment that is small in the picture is looked at twice.
    """
    part, inside = _look(picture)
    box = Image.fromarray(inside).getbbox()
    if box and max(box[2] - box[0], box[3] - box[1]) < _SMALL * max(part.size):
        closer, found = _look(picture.crop(_around(box, picture.width / part.width, picture.size)))
        if found.any():
            return closer, found
    return part, inside


def _around(box: tuple[int, int, int, int], scale: float, limit: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box with as much around it as garments on photos have, in a picture `scale` times as large."""
    left, top, right, bottom = (scale * side for side in box)
    margin = max(right - left, bottom - top) / 4
    return (
        max(0, int(left - margin)), max(0, int(top - margin)),
        min(limit[0], int(right + margin)), min(limit[1], int(bottom + margin)),
    )  # fmt: skip


def _look(picture: Image.Image) -> tuple[Image.Image, Mask]:
    part = picture.copy()
    part.thumbnail((_LARGEST, _LARGEST))
    patches = Patches(lab(np.asarray(part.resize(_size(part), Image.Resampling.LANCZOS))))
    inside = Image.fromarray(settled(patches, elsewhere(patches))[patches.labels] > 0.5).convert("L")
    # Patches end in single pixels.
    smooth = inside.filter(ImageFilter.MedianFilter(5)).resize(part.size, Image.Resampling.BILINEAR)
    return part, np.asarray(smooth) > 127


def _size(picture: Image.Image) -> tuple[int, int]:
    """Whole cells, so near enough the picture's proportions."""
    scale = min(np.sqrt(_CELLS / (picture.width * picture.height)), _CELLS_IN_A_ROW / max(picture.size))
    width, height = (_CELL * max(1, round(scale * side)) for side in picture.size)
    return width, height


def lab(rgb: npt.NDArray[np.uint8]) -> Reals:
    """sRGB (H, W, 3) to CIE L*a*b* under D65: float32 (H, W, 3)."""
    levels = np.arange(256) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = linear[rgb] @ (np.array(to_xyz) / np.sum(to_xyz, axis=1, keepdims=True)).T
    bent = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lightness = 116 * bent[..., 1] - 16
    red, blue = 500 * (bent[..., 0] - bent[..., 1]), 200 * (bent[..., 1] - bent[..., 2])
    return np.asarray(np.stack([lightness, red, blue], axis=-1), dtype=np.float32)


# --- patches


class Patches:
    """A picture (H, W, 3) in Lab cut into n patches of one colour: `labels` (H, W) says which pixel is whose."""

    def __init__(self, colours: Reals) -> None:
        self.labels = superpixels(colours)
        self.count = int(self.labels.max()) + 1
        self.area = np.bincount(self.labels.ravel(), minlength=self.count)
        self.colour = self.mean(colours)

    def mean(self, values: npt.NDArray[np.floating[Any]]) -> Reals:
        """Of values (H, W, k) in each patch: (n, k)."""
        columns = values.reshape(self.labels.size, -1).T
        sums = [np.bincount(self.labels.ravel(), column, minlength=self.count) for column in columns]
        return (np.stack(sums, axis=1) / self.area[:, None]).astype(np.float32)

    @cached_property
    def border(self) -> Mask:
        """Which patches touch the picture's border: (n,)."""
        edges = (self.labels[0], self.labels[-1], self.labels[:, 0], self.labels[:, -1])
        return np.isin(np.arange(self.count), np.concatenate(edges))

    @cached_property
    def touching(self) -> Mask:
        """Which patches touch, be it at a corner: (n, n)."""
        at, found = self.labels, np.zeros((self.count, self.count), bool)
        pairs = ((at[1:], at[:-1]), (at[:, 1:], at[:, :-1]), (at[1:, 1:], at[:-1, :-1]), (at[1:, :-1], at[:-1, 1:]))
        for here, there in pairs:
            found[here, there] = found[there, here] = True
        np.fill_diagonal(found, False)
        return found

    @cached_property
    def step(self) -> Reals:
        """How much two patches' colours differ beyond what neighbours differ by anyhow: (n, n)."""
        apart = _distances(self.colour)
        nearest = np.where(self.touching, apart, np.inf).min(axis=1)
        usual = nearest[np.isfinite(nearest)].mean() if self.count > 1 else 0.0
        return np.maximum(apart - usual, 0).astype(np.float32)


def _distances(colours: Reals) -> Reals:
    squares = np.square(colours).sum(axis=1)
    return np.asarray(np.sqrt(np.maximum(squares[:, None] + squares - 2 * colours @ colours.T, 0)))


def superpixels(colours: Reals) -> _Indices:
    """k-means in colour and place, each pixel choosing among the nine patches around it: labels (H, W)."""
    down, across = colours.shape[0] // _CELL, colours.shape[1] // _CELL
    place = np.moveaxis(np.indices(colours.shape[:2], dtype=np.float32), 0, -1) * (_COMPACT / _CELL)
    by_cell = np.concatenate([colours, place], axis=-1).reshape(down, _CELL, across, _CELL, 5)
    pixels = by_cell.swapaxes(1, 2).reshape(down * across, _CELL * _CELL, 5)
    around = _neighbours(down, across)
    choice = np.zeros(pixels.shape[:2], np.intp) + np.arange(len(pixels))[:, None]
    for _ in range(_SLIC_ROUNDS):
        centres = _centres(pixels, choice)
        # |pixel - centre|^2, less |pixel|^2. The last centre is infinitely far: there is no patch outside.
        costs = np.append(np.square(centres).sum(axis=1), np.inf).astype(np.float32)[around][:, None]
        at = np.append(centres, np.zeros((1, 5), np.float32), axis=0)[around].swapaxes(1, 2)
        choice = np.take_along_axis(around, (costs - 2 * pixels @ at).argmin(axis=2), axis=1)
    labels = np.unique(choice, return_inverse=True)[1].reshape(down, across, _CELL, _CELL)
    return np.asarray(labels.swapaxes(1, 2).reshape(colours.shape[:2]))


def _centres(pixels: Reals, choice: _Indices) -> Reals:
    count = np.maximum(np.bincount(choice.ravel(), minlength=len(pixels)), 1)
    sums = [np.bincount(choice.ravel(), pixels[..., k].ravel(), minlength=len(pixels)) for k in range(5)]
    return np.asarray(np.stack(sums, axis=1) / count[:, None], dtype=np.float32)


def _neighbours(down: int, across: int) -> _Indices:
    """Of each cell itself and its eight neighbours: (cells, 9); a number too many where there is none."""
    numbers = np.pad(np.arange(down * across).reshape(down, across), 1, constant_values=down * across)
    windows = np.lib.stride_tricks.sliding_window_view(numbers, (3, 3))
    return np.ascontiguousarray(windows.reshape(-1, 9))


# --- ground and garment


def elsewhere(patches: Patches) -> Reals:
    """How probably each patch is not of the ground, by how little of the border it is joined to: (n,)."""
    away = geodesic(np.where(patches.touching | (patches.border[:, None] & patches.border), patches.step, np.inf))
    farthest = np.clip(np.percentile(away[:, patches.border].min(axis=1), 95), *_FARTHEST)
    found = []
    for share in _REACHES:
        near = np.exp(-np.square(away / (share * farthest)) / 2)
        found.append(np.exp(-np.square(near[:, patches.border].sum(axis=1)) / near.sum(axis=1) / 2))
    return np.asarray(np.mean(found, axis=0), dtype=np.float32)


def geodesic(steps: npt.NDArray[np.floating[Any]]) -> Reals:
    """The lengths of the shortest walks, from those of single steps (n, n): Floyd and Warshall."""
    away = steps.astype(np.float32)
    np.fill_diagonal(away, 0)
    detour = np.empty_like(away)
    for via in range(len(away)):
        np.add(away[:, [via]], away[via], out=detour)
        np.minimum(away, detour, out=away)
    return away


def settled(patches: Patches, apart: Reals) -> Reals:
    """How much of each patch is garment, (n,) in [0, 1], when colours and neighbours have had their say."""
    evidence = _log_odds(apart, 0.05, 0.95) + _log_odds(patches.mean(_inner(patches.labels.shape))[:, 0], 0.02, 0.8)
    alike = patches.area * np.exp(-np.square(_distances(patches.colour) / _ALIKE) / 2)
    bonds = np.where(patches.touching, np.exp(-np.square(patches.step / _JOINED) / 2) + _LOOSE, 0)
    spread = np.linalg.inv(np.diag(1 + bonds.sum(axis=1)) - bonds)
    garment = spread @ _share(evidence)
    for _ in range(_ROUNDS):
        ratio = _likelihood(alike, patches.area, garment) / _likelihood(alike, patches.area, 1 - garment)
        garment = spread @ _share(np.clip(evidence + np.log(ratio), -_SURE, _SURE))
    return np.asarray(garment, dtype=np.float32)


def _likelihood(alike: Reals, area: npt.NDArray[np.intp], members: Reals) -> Reals:
    """Of each patch's colour among the members', a few of which may have any."""
    return np.asarray(alike @ members / (area @ members + 1e-6) + 1e-4)


def _inner(shape: tuple[int, ...]) -> Reals:
    """How probable a garment is by the distance from the border alone: (H, W)."""
    down, across = (np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5) for side in shape)
    margin = np.minimum(down[:, None], across) / (_MARGIN * min(shape))
    return np.asarray(1 - np.exp(-np.square(margin)), dtype=np.float32)


def _log_odds(share: Reals, least: float, most: float) -> Reals:
    share = np.clip(share, least, most)
    return np.asarray(np.log(share / (1 - share)))


def _share(log_odds: Reals) -> Reals:
    return np.asarray(1 / (1 + np.exp(-log_odds)))
