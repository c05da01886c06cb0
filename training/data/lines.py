"""The source program's corpus: three lines on black. Run: python -m training.data.lines --out DIR

Each picture has one vertical and two horizontal lines, each white or one of Mondrian's colours. 10,000 of
them are 492 MB and take about a second.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from training.data import files

SIZE = 128
THICKNESS = 5
COLORS = np.array([(255, 255, 255), (224, 184, 7), (185, 33, 19), (54, 79, 179)], np.uint8)


class Truth(NamedTuple):
    """What is drawn in N pictures: vertical, first horizontal, second horizontal, in this order."""

    positions: np.ndarray  # int (N, 3): the line's middle row or column, pixels
    colors: np.ndarray  # int (N, 3): index into COLORS


def truth(count: int, *, seed: int, all_uniform: bool = False) -> Truth:
    """The ground truth of the pictures that `draw` draws for the same arguments."""
    rng = np.random.default_rng(seed)
    low, high = 10, SIZE - 10
    x = rng.integers(low, high, count)
    y1 = rng.integers(low, high, count)
    # The source's program draws its second horizontal at about 48; its text says uniformly. Both are available.
    y2 = rng.integers(low, high, count) if all_uniform else np.rint(rng.normal(48, 1.2, count)).astype(int)
    return Truth(np.stack([x, y1, y2], 1), rng.integers(0, len(COLORS), (count, 3)))


def paint(positions: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Pictures uint8 (N, 128, 128, 3) of a Truth's lines: first the vertical, then the two horizontals over it."""
    images = np.zeros((len(positions), SIZE, SIZE, 3), np.uint8)
    each = np.arange(len(positions))[:, None]
    # (N, 5): the rows or columns that each line takes
    across = positions[..., None] + np.arange(THICKNESS) - THICKNESS // 2
    ink = COLORS[colors][:, :, None, None]
    images.swapaxes(1, 2)[each, across[:, 0]] = ink[:, 0]
    images[each, across[:, 1]] = ink[:, 1]
    images[each, across[:, 2]] = ink[:, 2]
    return images


def draw(count: int, *, seed: int, all_uniform: bool = False) -> np.ndarray:
    """`count` pictures, uint8 (N, 128, 128, 3); the same ones for the same arguments."""
    return paint(*truth(count, seed=seed, all_uniform=all_uniform))


def main() -> None:
    parser = files.parser(__doc__)
    parser.add_argument("--all-uniform", action="store_true", help="the second horizontal anywhere too")
    args = parser.parse_args()
    files.save(draw(args.count, seed=args.seed, all_uniform=args.all_uniform), args.out, name="lines")


if __name__ == "__main__":
    files.run(main)
