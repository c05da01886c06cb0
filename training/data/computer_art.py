"""Corpora after pioneers of computer art. Run: python -m training.data.computer_art schotter --out DIR

Each function lays out `count` plotter drawings at once, as paths in units of the picture (0..1, y down),
with a few knobs drawn per picture so that a corpus has something to learn: Nees' disorder, Molnár's holes,
Mohr's rotation, Nake's rhythm. `plot` then draws the paths with a pen. 10,000 pictures take 6 to
13 seconds of one core.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from training.data import files

SIZE = 128
OVERSAMPLING = 4  # drawn at 512 x 512 in black and white, then averaged: 17 grays are enough for a thin line


class Paths(NamedTuple):
    """S polylines of P points in each of N pictures, of which only those kept are drawn."""

    points: np.ndarray  # float (N, S, P, 2), x and y in 0..1
    kept: np.ndarray  # bool (N, S)


def all_of(points: np.ndarray) -> Paths:
    return Paths(points, np.ones(points.shape[:2], bool))


def plot(
    *layers: Paths, pen: float, ink: tuple[int, int, int], paper: tuple[int, int, int], size: int = SIZE
) -> np.ndarray:
    """Draw paths with a pen `pen` pixels wide at size 128, and in proportion at others: uint8 (N, size, size, 3)."""
    wide, width = size * OVERSAMPLING, round(pen * OVERSAMPLING * size / SIZE)
    count = len(layers[0].points)
    images = np.empty((count, size, size, 3), np.uint8)
    # lookup table from gray level to colour, from paper to ink: (256, 3)
    shade = np.linspace(0, 1, 256)[:, None]
    tones = np.rint(np.array(paper) * (1 - shade) + np.array(ink) * shade).astype(np.uint8)
    for i in range(count):
        sheet = Image.new("L", (wide, wide))
        pencil = ImageDraw.Draw(sheet)
        for points, kept in layers:
            chosen = np.rint(points[i][kept[i]] * wide)
            for path in chosen.reshape(len(chosen), -1).tolist():
                pencil.line(path, fill=255, width=width)
        images[i] = tones[np.asarray(sheet.reduce(OVERSAMPLING))]
    return images


def rotated(points: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Turn (..., 2) points about the origin by `angle` (...) radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = points[..., 0], points[..., 1]
    return np.stack([x * cos - y * sin, x * sin + y * cos], -1)


# --- Georg Nees, Schotter (gravel), 1968 ---------------------------------------------------------------


def schotter(count: int, *, seed: int, size: int = SIZE) -> np.ndarray:
    """12 x 22 squares in rank and file at the top, tumbling towards the bottom, as gravel does."""
    rng = np.random.default_rng(seed)
    columns, rows = 12, 22
    pitch = 5 / SIZE  # whole pixels, or the orderly squares at the top come out unevenly dark
    column, row = (g.ravel() for g in np.meshgrid(np.arange(columns), np.arange(rows)))
    centres = np.stack([column - (columns - 1) / 2, row - (rows - 1) / 2], 1) * pitch + 0.5

    # Nees lets rotation and shift grow with the row. Our pictures differ in how soon and how wildly.
    growth = rng.uniform(0.8, 2.0, (count, 1))
    wild = rng.uniform(0.5, 1.1, (count, 1)) * (row / (rows - 1)) ** growth  # (N, 264)
    angle = rng.uniform(-1, 1, wild.shape) * wild * np.pi / 3.5
    shift = rng.uniform(-1, 1, (*wild.shape, 2)) * wild[..., None] * pitch * 0.75

    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]) * pitch / 2
    points = rotated(corners, angle[..., None]) + (centres + shift)[:, :, None]
    return plot(all_of(points), pen=0.75, ink=(20, 20, 24), paper=(240, 236, 226), size=size)


# --- Vera Molnár, Interruptions, 1968/69 ---------------------------------------------------------------


def interruptions(count: int, *, seed: int, size: int = SIZE) -> np.ndarray:
    """A field of short strokes at random angles, with holes where some are left out."""
    rng = np.random.default_rng(seed)
    side = 28
    pitch = 1 / (side + 2)
    row, column = (g.ravel() for g in np.mgrid[:side, :side])
    centres = np.stack([column, row], 1) * pitch + 1.5 * pitch

    lean = rng.uniform(-0.35, 0.35, (count, 1))  # of the whole field
    spread = rng.uniform(0.25, 1.0, (count, 1))  # 1: a stroke may point anywhere
    angle = lean + rng.uniform(-1, 1, (count, side * side)) * spread * np.pi / 2
    length = rng.uniform(1.2, 1.8, (count, 1, 1, 1)) * pitch
    stroke = np.array([(0, -0.5), (0, 0.5)]) * length
    points = rotated(stroke, angle[..., None]) + centres[:, None]

    # Holes: where a smooth random field is lowest. 3 to 18 % of the strokes are missing.
    field = gaussian_filter(rng.standard_normal((count, side, side)), (0, 1.6, 1.6)).reshape(count, -1)
    missing = rng.uniform(0.03, 0.18, (count, 1))
    kept = field.argsort(1).argsort(1) >= missing * side * side
    return plot(Paths(points, kept), pen=0.75, ink=(16, 16, 18), paper=(244, 242, 236), size=size)


# --- Manfred Mohr, Cubic Limit, 1972-77 ----------------------------------------------------------------


def cubic_limit(count: int, *, seed: int, size: int = SIZE) -> np.ndarray:
    """An alphabet of signs: a turning cube that loses its twelve edges one after another."""
    rng = np.random.default_rng(seed)
    side = 5
    signs = side * side
    corners = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    edges = np.array([(a, b) for a in range(8) for b in range(a) if np.abs(corners[a] - corners[b]).sum() == 2])

    # From sign to sign, in reading order, the cube turns about two axes by steps drawn once per picture.
    step = np.arange(signs)
    yaw = rng.uniform(0, np.pi / 2, (count, 1)) + rng.uniform(-0.12, 0.12, (count, 1)) * step
    pitch = rng.uniform(0.3, 0.8, (count, 1)) + rng.uniform(-0.06, 0.06, (count, 1)) * step
    x, y, z = np.moveaxis(np.broadcast_to(corners, (count, signs, 8, 3)), -1, 0)
    x, z = np.moveaxis(rotated(np.stack([x, z], -1), yaw[..., None]), -1, 0)
    y = rotated(np.stack([y, z], -1), pitch[..., None])[..., 0]

    cell = 1 / (side + 0.4)
    row, column = np.divmod(step, side)
    centres = (np.stack([column, row], 1) + 0.7) * cell
    flat = np.stack([x, y], -1) * cell * 0.265 + centres[:, None]  # (N, 25, 8, 2)
    points = flat[:, :, edges].reshape(count, signs * 12, 2, 2)

    # Edges vanish in random order; how many are left falls from 12 to a few, or rises: both occur in his series.
    rank = rng.random((count, 12)).argsort(1).argsort(1)
    few = rng.integers(2, 7, (count, 1))
    left = np.rint(12 - (12 - few) * step / (signs - 1))
    left = np.where(rng.random((count, 1)) < 0.5, left, left[:, ::-1])
    kept = rank[:, None, :] < left[..., None]
    return plot(Paths(points, kept.reshape(count, -1)), pen=1.0, ink=(0, 0, 0), paper=(255, 255, 255), size=size)


# --- Frieder Nake, Hommage à Paul Klee, 1965 -----------------------------------------------------------


def hommage_klee(count: int, *, seed: int, size: int = SIZE) -> np.ndarray:
    """Wavering horizontals make bands; some of their cells fill with upright or zigzag lines; circles float above."""
    rng = np.random.default_rng(seed)
    bands, columns = 9, 9
    xs = np.linspace(0.04, 0.96, columns + 1) + rng.uniform(-0.035, 0.035, (count, columns + 1))
    xs[:, 0], xs[:, -1] = 0.04, 0.96  # (N, C+1)
    level = np.linspace(0.06, 0.94, bands + 1)
    ys = level[None, :, None] + rng.uniform(-0.03, 0.03, (count, bands + 1, columns + 1))
    horizontals = np.stack([np.broadcast_to(xs[:, None], ys.shape), ys], -1)  # (N, B+1, C+1, 2)

    # A cell is empty, or has uprights from its upper to its lower border, or lines that slant between them.
    lines = 7
    cells = (count, bands, columns)
    kind = rng.choice(3, cells, p=(0.45, 0.38, 0.17))
    upper = np.sort(rng.random((*cells, lines)), -1)
    lower = np.where(kind[..., None] == 1, upper, rng.random((*cells, lines)))
    left, right = horizontals[:, :, :-1], horizontals[:, :, 1:]

    def on_border(border: slice, along: np.ndarray) -> np.ndarray:
        a, b = left[:, border, :, None], right[:, border, :, None]
        return a + (b - a) * along[..., None]

    strokes = np.stack([on_border(slice(None, -1), upper), on_border(slice(1, None), lower)], -2)
    many = rng.integers(2, lines + 1, cells)[..., None] > np.arange(lines)
    kept = (kind[..., None] > 0) & many

    circles = 7
    turn = np.linspace(0, 2 * np.pi, 37)
    radius = rng.uniform(0.015, 0.09, (count, circles, 1, 1))
    rings = rng.uniform(0.12, 0.88, (count, circles, 1, 2)) + radius * np.stack([np.cos(turn), np.sin(turn)], -1)
    drawn = rng.integers(2, circles + 1, (count, 1)) > np.arange(circles)
    return plot(
        all_of(horizontals),
        Paths(strokes.reshape(count, -1, 2, 2), kept.reshape(count, -1)),
        Paths(rings, drawn),
        pen=0.75,
        ink=(24, 22, 30),
        paper=(238, 233, 220),
        size=size,
    )


CORPORA: dict[str, Callable[..., np.ndarray]] = {
    "schotter": schotter,
    "interruptions": interruptions,
    "cubic_limit": cubic_limit,
    "hommage_klee": hommage_klee,
}


def main() -> None:
    parser = files.parser(__doc__)
    parser.add_argument("name", choices=sorted(CORPORA), help="which corpus")
    args = parser.parse_args()
    files.save(CORPORA[args.name](args.count, seed=args.seed), args.out, name=args.name)


if __name__ == "__main__":
    files.run(main)
