"""Segments a garment from the floor, bed or wall behind it by one rule: the background extends beyond the picture.

inside = _garment_finder.find(picture)

The picture is cut into superpixels (SLIC, Achanta et al. 2012). By geodesic distance, over small steps of colour, a
background superpixel is near much of the border; a garment superpixel isn't, or only where a sleeve leaves the frame.
This is boundary connectivity (Zhu et al. 2014), which is robust to gradual changes of light. Then colour models of
garment and background are fitted, and every superpixel is reclassified jointly with its neighbours.
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

_MAX_SIDE: Final = 256
"""The longer side, in pixels, to which a picture is reduced."""
_SMALL: Final = 0.5
"""Fraction of the longer side below which a garment is cropped and segmented again."""
_SUPERPIXELS: Final = 300
"""Approximate number in a picture; the cost grows with its cube."""
_MAX_IN_A_ROW: Final = 32
_CELL: Final = 7
"""Side, in pixels, of a superpixel's cell in the initial grid."""
_COMPACTNESS: Final = 10.0
"""Distance in Lab that weighs as much as one cell's side."""
_SLIC_ITERATIONS: Final = 6

_SIGMAS: Final = (0.15, 0.3, 0.6)
"""Kernel widths as fractions of the garment's geodesic distance from the border; the three results are averaged."""
_DISTANCE_RANGE: Final = (4.0, 60.0)
"""Range, in Lab units, to which the garment's distance from the border is clipped."""
_COLOUR_SIGMA: Final = 5.0
"""Kernel width of both colour models, in Lab units."""
_CONTRAST_SIGMA: Final = 10.0
"""Kernel width of the affinity of neighbours, in Lab units."""
_MIN_AFFINITY: Final = 0.1
"""The affinity of neighbours of any colours; the same colour adds 1."""
_MARGIN: Final = 0.1
"""Fraction of the shorter side: the distance from the border within which background is likely."""
_ITERATIONS: Final = 5
_MAX_LOG_ODDS: Final = 5.0
"""Limit for one superpixel, either way."""


def find(picture: Image.Image) -> tuple[Image.Image, Mask]:
    """The part of an RGB picture with the garment, perhaps reduced, and the garment's mask (H, W) in it.

    The mask is empty if nothing stands out. A garment that is small in the picture is cropped and segmented again.
    """
    part, inside = _segmented(picture)
    box = Image.fromarray(inside).getbbox()
    if box and max(box[2] - box[0], box[3] - box[1]) < _SMALL * max(part.size):
        crop, found = _segmented(picture.crop(_padded(box, part.size, picture.size)))
        if found.any():
            return crop, found
    return part, inside


def _padded(
    box: tuple[int, int, int, int], small: tuple[int, int], large: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Maps a box in the small picture to the large one, with a margin like that around garments in photos."""
    # Each axis has its own scale: reducing a narrow picture keeps its aspect ratio only roughly.
    left, right = (box[k] * large[0] / small[0] for k in (0, 2))
    top, bottom = (box[k] * large[1] / small[1] for k in (1, 3))
    margin = max(right - left, bottom - top) / 4
    return (
        max(0, int(left - margin)), max(0, int(top - margin)),
        min(large[0], int(right + margin)), min(large[1], int(bottom + margin)),
    )  # fmt: skip


def _segmented(picture: Image.Image) -> tuple[Image.Image, Mask]:
    part = picture.copy()
    part.thumbnail((_MAX_SIDE, _MAX_SIDE))
    segments = Superpixels(lab(np.asarray(part.resize(_grid_size(part), Image.Resampling.LANCZOS))))
    garment = refined(segments, foreground_prior(segments))
    inside = Image.fromarray(garment[segments.labels] > 0.5).convert("L")
    # Superpixel outlines are ragged by single pixels.
    smooth = inside.filter(ImageFilter.MedianFilter(5)).resize(part.size, Image.Resampling.BILINEAR)
    return part, np.asarray(smooth) > 127


def _grid_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height in pixels: whole cells, so the aspect ratio is approximate."""
    scale = min(np.sqrt(_SUPERPIXELS / (picture.width * picture.height)), _MAX_IN_A_ROW / max(picture.size))
    width, height = (_CELL * max(1, round(scale * side)) for side in picture.size)
    return width, height


def lab(rgb: npt.NDArray[np.uint8]) -> Reals:
    """sRGB (H, W, 3) to CIE L*a*b* under D65: float32 (H, W, 3)."""
    levels = np.arange(256) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = linear[rgb] @ (np.array(to_xyz) / np.sum(to_xyz, axis=1, keepdims=True)).T
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lightness = 116 * f[..., 1] - 16
    a, b = 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])
    return np.asarray(np.stack([lightness, a, b], axis=-1), dtype=np.float32)


# --- superpixels


class Superpixels:
    """A picture (H, W, 3) in Lab cut into n superpixels: `labels` (H, W) gives the superpixel of each pixel.

    `area` (n,) is in pixels, `colour` (n, 3) the mean in Lab.
    """

    def __init__(self, colours: Reals) -> None:
        self.labels = slic(colours)
        self.count = int(self.labels.max()) + 1
        self.area = np.bincount(self.labels.ravel(), minlength=self.count)
        self.colour = self.mean(colours)

    def mean(self, values: npt.NDArray[np.floating[Any]]) -> Reals:
        """The mean of values (H, W, k) in each superpixel: (n, k)."""
        columns = values.reshape(self.labels.size, -1).T
        sums = [np.bincount(self.labels.ravel(), column, minlength=self.count) for column in columns]
        return (np.stack(sums, axis=1) / self.area[:, None]).astype(np.float32)

    @cached_property
    def border(self) -> Mask:
        """Which superpixels touch the picture's border: (n,)."""
        edges = (self.labels[0], self.labels[-1], self.labels[:, 0], self.labels[:, -1])
        return np.isin(np.arange(self.count), np.concatenate(edges))

    @cached_property
    def adjacent(self) -> Mask:
        """Which superpixels touch, even if only at a corner: (n, n)."""
        at, found = self.labels, np.zeros((self.count, self.count), bool)
        pairs = ((at[1:], at[:-1]), (at[:, 1:], at[:, :-1]), (at[1:, 1:], at[:-1, :-1]), (at[1:, :-1], at[:-1, 1:]))
        for one, other in pairs:
            found[one, other] = found[other, one] = True
        np.fill_diagonal(found, False)
        return found

    @cached_property
    def contrast(self) -> Reals:
        """How much two superpixels' colours differ beyond the usual difference between neighbours: (n, n)."""
        distances = _distances(self.colour)
        nearest = np.where(self.adjacent, distances, np.inf).min(axis=1)
        usual = nearest[np.isfinite(nearest)].mean() if self.count > 1 else 0.0
        return np.maximum(distances - usual, 0).astype(np.float32)


def _distances(colours: Reals) -> Reals:
    """Euclidean distances of all pairs: (n, 3) -> (n, n)."""
    squares = np.square(colours).sum(axis=1)
    return np.asarray(np.sqrt(np.maximum(squares[:, None] + squares - 2 * colours @ colours.T, 0)))


def slic(colours: Reals) -> _Indices:
    """k-means in colour and position, each pixel choosing among the nine superpixels around it: labels (H, W)."""
    rows, columns = colours.shape[0] // _CELL, colours.shape[1] // _CELL
    position = np.moveaxis(np.indices(colours.shape[:2], dtype=np.float32), 0, -1) * (_COMPACTNESS / _CELL)
    by_cell = np.concatenate([colours, position], axis=-1).reshape(rows, _CELL, columns, _CELL, 5)
    pixels = by_cell.swapaxes(1, 2).reshape(rows * columns, _CELL * _CELL, 5)
    candidates = _neighbours(rows, columns)
    assignment = np.zeros(pixels.shape[:2], np.intp) + np.arange(len(pixels))[:, None]
    for _ in range(_SLIC_ITERATIONS):
        centres = _centres(pixels, assignment)
        # |pixel - centre|^2 minus |pixel|^2. The last centre, infinitely far, stands for cells outside the picture.
        costs = np.append(np.square(centres).sum(axis=1), np.inf).astype(np.float32)[candidates][:, None]
        nearby = np.append(centres, np.zeros((1, 5), np.float32), axis=0)[candidates].swapaxes(1, 2)
        assignment = np.take_along_axis(candidates, (costs - 2 * pixels @ nearby).argmin(axis=2), axis=1)
    labels = np.unique(assignment, return_inverse=True)[1].reshape(rows, columns, _CELL, _CELL)
    return np.asarray(labels.swapaxes(1, 2).reshape(colours.shape[:2]))


def _centres(pixels: Reals, assignment: _Indices) -> Reals:
    count = np.maximum(np.bincount(assignment.ravel(), minlength=len(pixels)), 1)
    sums = [np.bincount(assignment.ravel(), pixels[..., k].ravel(), minlength=len(pixels)) for k in range(5)]
    return np.asarray(np.stack(sums, axis=1) / count[:, None], dtype=np.float32)


def _neighbours(rows: int, columns: int) -> _Indices:
    """Each cell and its eight neighbours: (cells, 9); the number of cells stands for a missing neighbour."""
    numbers = np.pad(np.arange(rows * columns).reshape(rows, columns), 1, constant_values=rows * columns)
    windows = np.lib.stride_tricks.sliding_window_view(numbers, (3, 3))
    return np.ascontiguousarray(windows.reshape(-1, 9))


# --- background and garment


def foreground_prior(segments: Superpixels) -> Reals:
    """The probability that each superpixel is not background, from its boundary connectivity: (n,)."""
    border = segments.border
    edges = segments.adjacent | (border[:, None] & border)
    distances = geodesic_distances(np.where(edges, segments.contrast, np.inf))
    scale = np.clip(np.percentile(distances[:, border].min(axis=1), 95), *_DISTANCE_RANGE)
    found = []
    for sigma in _SIGMAS:
        kernel = np.exp(-np.square(distances / (sigma * scale)) / 2)
        connectivity_squared = np.square(kernel[:, border].sum(axis=1)) / kernel.sum(axis=1)
        found.append(np.exp(-connectivity_squared / 2))
    return np.asarray(np.mean(found, axis=0), dtype=np.float32)


def geodesic_distances(weights: npt.NDArray[np.floating[Any]]) -> Reals:
    """Shortest-path lengths from edge weights (n, n), inf where there is no edge.

    Uses the Floyd-Warshall algorithm.
    """
    distances = weights.astype(np.float32)
    np.fill_diagonal(distances, 0)
    detour = np.empty_like(distances)
    for via in range(len(distances)):
        np.add(distances[:, [via]], distances[via], out=detour)
        np.minimum(distances, detour, out=distances)
    return distances


def refined(segments: Superpixels, prior: Reals) -> Reals:
    """How much of each superpixel is garment, (n,) in [0, 1], from its colour, its neighbours and `prior`."""
    from_border = segments.mean(_border_prior(segments.labels.shape))[:, 0]
    evidence = _logit(prior, 0.05, 0.95) + _logit(from_border, 0.02, 0.8)
    kernel = segments.area * np.exp(-np.square(_distances(segments.colour) / _COLOUR_SIGMA) / 2)
    alike = np.exp(-np.square(segments.contrast / _CONTRAST_SIGMA) / 2)
    affinity = np.where(segments.adjacent, alike + _MIN_AFFINITY, 0)
    smoothing = np.linalg.inv(np.diag(1 + affinity.sum(axis=1)) - affinity)  # (I + graph Laplacian)^-1
    garment = smoothing @ _sigmoid(evidence)
    for _ in range(_ITERATIONS):
        ratio = _likelihood(kernel, segments.area, garment) / _likelihood(kernel, segments.area, 1 - garment)
        garment = smoothing @ _sigmoid(np.clip(evidence + np.log(ratio), -_MAX_LOG_ODDS, _MAX_LOG_ODDS))
    return np.asarray(garment, dtype=np.float32)


def _likelihood(kernel: Reals, area: npt.NDArray[np.intp], members: Reals) -> Reals:
    """Likelihood of each superpixel's colour given `members`: a kernel density with a floor for outliers."""
    return np.asarray(kernel @ members / (area @ members + 1e-6) + 1e-4)


def _border_prior(shape: tuple[int, ...]) -> Reals:
    """The probability of garment from the distance to the border alone: (H, W)."""
    rows, columns = (np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5) for side in shape)
    margin = np.minimum(rows[:, None], columns) / (_MARGIN * min(shape))
    return np.asarray(1 - np.exp(-np.square(margin)), dtype=np.float32)


def _logit(probability: Reals, least: float, most: float) -> Reals:
    p = np.clip(probability, least, most)
    return np.asarray(np.log(p / (1 - p)))


def _sigmoid(log_odds: Reals) -> Reals:
    return np.asarray(1 / (1 + np.exp(-log_odds)))
