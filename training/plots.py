"""Pictures of a run: grids of samples and the losses over the steps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def grid(pictures: np.ndarray, *, columns: int, gap: int = 2) -> Image.Image:
    """uint8 (N, H, W, 3) side by side on gray, `columns` to a row."""
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 48, np.uint8)
    for k, picture in enumerate(pictures):
        y, x = gap + k // columns * (height + gap), gap + k % columns * (width + gap)
        sheet[y : y + height, x : x + width] = picture
    return Image.fromarray(sheet)


def save_grid(pictures: np.ndarray, path: Path, *, columns: int) -> None:
    with in_place_of(path) as beside:
        grid(pictures, columns=columns).save(beside)


def save_convergence(stats: list[dict[str, float]], path: Path, *, title: str, losses: str = "loss") -> None:
    """Every figure of stats.jsonl over the steps: the raw values faint, a running median over 2 % of the run strong.

    Without any figure, as of a run that goes on after a crash has lost its stats.jsonl, nothing is drawn.
    """
    names = [key for key in dict.fromkeys(key for row in stats for key in row) if key != "step"]
    if not names:
        print(f"{path}: not drawn, as stats.jsonl holds no figures of it", file=sys.stderr)
        return
    window = max(1, len(stats) // 50)
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    ends = []
    for name in names:
        steps, values = np.array([(row["step"], row[name]) for row in stats if name in row]).T
        smooth = running_median(values, window)
        (line,) = axes.plot(steps, smooth, label=name.replace("_", " "), linewidth=1.6)
        axes.plot(steps, values, color=line.get_color(), alpha=0.18, linewidth=0.6)
        ends += [smooth.min(), smooth.max()]
    # The first steps and single spikes would flatten everything else.
    margin = 0.1 * (max(ends) - min(ends)) or 1.0
    axes.set_ylim(min(ends) - margin, max(ends) + margin)
    axes.set_title(title, parse_math=False)  # a run's name may hold dollar signs
    axes.set(xlabel="step", ylabel=losses)
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)
    plt.close(figure)


def save(figure: Figure, path: Path, **options: Any) -> None:
    with in_place_of(path) as beside:
        figure.savefig(beside, **{"dpi": 110, "format": path.suffix[1:], **options})


@contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """Where to write a picture: beside, then in its place. A run that is stopped here, or whose disk is full, keeps the
    picture that it had."""
    beside = path.with_name(f".{path.name}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def running_median(values: np.ndarray, window: int) -> np.ndarray:
    """The median of each value's neighbourhood, as long as `values`."""
    half = window // 2
    padded = np.pad(values, half, mode="reflect")  # not the last value, repeated: a spike there would be the median
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=-1)
