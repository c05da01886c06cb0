"""The fast style against the slow one: one objective, one backbone, photographs that neither has seen.

Run: ATELIER_DATA=DIR python -m tests.load.bench_fast_slow      (last line of stdout: one JSON object)

Johnson et al. 2016 claim that one pass of their network is worth 50 to 100 iterations of Gatys' method. Here both are
judged by the objective that the network's card tells, squared errors all; the painter starts from noise and from the
photograph. Draws how its objective falls, and where the network's answer lies, as out/fast_slow.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from serving import cli, repository
from serving.backends.painter import knobs, painting
from tests.load import benches, tables
from tests.load.bench_painter import graph, opened, picture
from training import plots
from training.catalog import spec
from training.data.files import home
from training.models.painter.spec import CONTENT_LAYERS, STYLE_LAYERS

import onnxruntime

PHOTOS = tuple(f"kodak/kodim{k:02d}.png" for k in (1, 3, 5, 7, 8, 13, 16, 19, 21, 23))
PAINTINGS = {
    "starry-night": "van-gogh-starry-night.jpg",
    "great-wave": "hokusai-great-wave.jpg",
    "scream": "munch-the-scream.jpg",
}
CLAIMED = 50


def knobs_of(options: dict[str, Any], start: str, iterations: int) -> knobs.Knobs:
    """The objective that a network was trained for, as the painter's knobs say it."""
    layers = {"content_layers": CONTENT_LAYERS, "style_layers": STYLE_LAYERS}
    given = {name: np.array([float(one in options[name]) for one in offered]) for name, offered in layers.items()}
    given |= {f"{name}_weight": np.array([options[f"{name}_weight"]]) for name in ("content", "style", "tv")}
    return knobs.read({
        **given, "start": np.array([knobs.STARTS.index(start)]), "iterations": np.array([iterations]),
        "scales": np.array([1]),
    })  # fmt: skip


def fast(folder: Path, content: np.ndarray, style: int, styles: int) -> np.ndarray:
    """What the network makes of it: canvas (3, H, W) in [0, 1]."""
    session = onnxruntime.InferenceSession(str(folder / repository.MODEL), providers=["CPUExecutionProvider"])
    weights = np.eye(styles, dtype=np.float32)[[style]]
    (image,) = session.run(None, {"content": content[None], "style_weights": weights})
    return painting.planes(image[0])


def curve(evaluate: painting.Evaluator, start: np.ndarray, asked: knobs.Knobs) -> list[float]:
    """The painter's objective at its start and after each iteration."""
    objectives = [evaluate(start).objective]
    painting.MINIMIZERS[asked.optimizer](
        evaluate, start, asked.iterations, lambda evaluation: objectives.append(evaluation.objective)
    )
    return objectives + objectives[-1:] * (asked.iterations + 1 - len(objectives))  # where nothing was left to improve


def draw(curves: dict[str, np.ndarray], path: Path) -> None:
    """Each painter's objective as a multiple of the network's, over the iterations: the median, and half of all."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    for (start, ratios), color in zip(curves.items(), ("#c2410c", "#2b6cb0"), strict=True):
        low, middle, high = np.percentile(ratios, (25, 50, 75), axis=0)
        at = np.arange(len(middle))
        axes.plot(at, middle, color=color, label=f"painter, from {start}")
        axes.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)
    axes.axhline(1, color="black", linestyle="--", linewidth=1, label="one pass of the network")
    axes.set(yscale="log", xlabel="iterations of L-BFGS", ylabel="objective, as a multiple of the network's")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save(figure, path)


def compare(root: Path, iterations: int, side: int) -> tuple[dict[str, np.ndarray], int]:
    """By start the painter's objectives over the network's, (pictures, iterations + 1), and the version of style."""
    version = repository.newest(root, "style")
    card = repository.card(root, "style", version).data
    options, names = card["options"], card["members"]["style_weights"]
    of = graph(root / "painter" / str(repository.newest(root, "painter")), spec("painter").threads)
    curves: dict[str, list[list[float]]] = {start: [] for start in knobs.STARTS}
    for style, file in PAINTINGS.items():
        size = (options["style_size"],) * 2
        style_image = np.asarray(ImageOps.contain(opened(home() / "paintings" / file), size, Image.Resampling.LANCZOS))
        for photo in PHOTOS:
            content = picture(home() / "photos" / photo, side)
            planes = painting.planes(content)
            evaluate = painting.Evaluator(
                of, planes, painting.planes(style_image), knobs_of(options, "content", iterations)
            )
            canvas = fast(root / "style" / str(version), content, names.index(style), len(names))
            of_network = evaluate(canvas).objective
            for start, found in curves.items():
                asked = knobs_of(options, start, iterations)
                found.append(
                    [each / of_network for each in curve(evaluate, painting.initial_canvas(planes, asked), asked)]
                )
            print(f"{style:14} {photo:20} " + ", ".join(
                f"from {start} after {CLAIMED}: {found[-1][CLAIMED]:.2f}" for start, found in curves.items()
            ), flush=True)  # fmt: skip
    return {start: np.array(found) for start, found in curves.items()}, version


def main() -> int:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=repository.REPOSITORY, help="default %(default)s")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--side", type=int, default=256, help="pixels of the photographs, cut to squares")
    parser.add_argument("--out", type=tables.file, default=Path("out/fast_slow.png"))
    args = parser.parse_args()
    if args.iterations < CLAIMED:
        parser.error(f"--iterations: {args.iterations} are fewer than the {CLAIMED} that are looked at")
    if args.side < painting.SMALLEST_SIDE:
        parser.error(f"--side: {args.side} is too few pixels for a painting; give {painting.SMALLEST_SIDE} or more")
    return benches.run(report, args)


def report(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(spec("painter").threads)
    curves, version = compare(args.repository, args.iterations, args.side)
    draw(curves, args.out)
    told: dict[str, Any] = {"bench": "fast_slow", "version": version, "side": args.side}
    for start, ratios in curves.items():
        median = np.median(ratios, axis=0)
        break_even = int(np.argmax(median <= 1)) if (median <= 1).any() else None
        told[start] = {"ratio_after_50": round(float(median[CLAIMED]), 3), "network_is_worth_iterations": break_even}
        print(f"from {start}: after {CLAIMED} iterations {median[CLAIMED]:.2f} times the network's objective (median)")
    return told | {"pictures": len(ratios)}


if __name__ == "__main__":
    sys.exit(main())
