"""The served painter beside torch: how far its objective falls in as many evaluations, and how long it takes.

Run: ATELIER_DATA=DIR python -m tests.load.bench_painter      (last line of stdout: one JSON object)

    … --content PHOTO --style PAINTING      instead of one of DIR/photos/kodak and one of DIR/paintings

The reference is torch.optim.LBFGS (strong Wolfe line search, as much memory) with autograd, from the same start,
towards the same objective by the same backbone. Of both the objective is compared after the last iteration that was
finished within so many evaluations of it and its gradient. One evaluation is timed in process, in turn, with the same
threads.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

import atelier
from serving import cli, repository
from serving.backends.painter import knobs, painting
from serving.embedded import Embedded
from tests.load import benches
from tests.load.benches import seconds
from training.catalog import spec
from training.data.files import home
from training.data.photos import to_rgb
from training.errors import BadInput
from training.models.features import net as features
from training.models.painter.autograd import Closure, make_optimizer, targets_of

import onnxruntime

CHECKED = (25, 50, 100, 200)
"""Evaluations after which the two are compared."""
ITERATIONS, EVERY = 100, 10


class Progress(NamedTuple):
    """The objective after an iteration, and how often it has been evaluated by then."""

    evaluations: int
    objective: float


def opened(path: Path) -> Image.Image:
    """RGB, alpha on white. BadInput if it is not there, with the variable that says where the benchmarks' own are."""
    try:
        with Image.open(path) as picture:
            return to_rgb(picture, (255, 255, 255))
    except FileNotFoundError as error:
        where = "check its name, or set ATELIER_DATA to the folder of photos/ and paintings/"
        raise BadInput(f"{path} is not there; {where}") from error


def picture(path: Path, side: int) -> np.ndarray:
    return np.asarray(ImageOps.fit(opened(path), (side, side), Image.Resampling.LANCZOS))


def graph(folder: Path, threads: int) -> painting.Graph:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(folder / repository.MODEL), options, providers=["CPUExecutionProvider"])
    inputs = {node.name: tuple(n if isinstance(n, int) else 1 for n in node.shape) for node in session.get_inputs()}
    return painting.Graph(
        lambda outputs, feed: session.run(list(outputs), dict(feed)),
        inputs,
        [node.name for node in session.get_outputs()],
    )


def painter(of: painting.Graph, content: np.ndarray, style: np.ndarray, asked: knobs.Knobs) -> list[Progress]:
    """Iteration by iteration, as the backend paints."""
    count = 0

    def counted(outputs: Sequence[str], feed: painting.Feed) -> list[Any]:
        nonlocal count
        count += "gradient" in outputs
        return of.run(outputs, feed)

    trace: list[Progress] = []
    painting.paint(
        painting.Graph(counted, of.inputs, of.outputs), content, style, asked,
        lambda stroke: trace.append(Progress(count, stroke.evaluation.objective)),
    )  # fmt: skip
    return trace


def reference(closure: Closure, optimizer: torch.optim.Optimizer, evaluations: int) -> list[Progress]:
    trace = [Progress(1, closure())]
    while closure.evaluations < evaluations:
        optimizer.step(closure)
        trace.append(Progress(closure.evaluations, closure()))
    return trace


def objective_after(evaluations: int, trace: list[Progress]) -> float:
    return trace[bisect_right([each.evaluations for each in trace], evaluations) - 1].objective


def canvas_and_closure(
    vgg: features.Vgg, content: np.ndarray, style: np.ndarray, asked: knobs.Knobs
) -> tuple[torch.Tensor, Closure]:
    photo = painting.planes(content)
    canvas = torch.from_numpy(painting.initial_canvas(photo, asked))[None].clone().requires_grad_()
    targets = targets_of(vgg, torch.from_numpy(photo)[None], torch.from_numpy(painting.planes(style))[None])
    return canvas, Closure(vgg, canvas, targets, asked)


def bench_objective(of: painting.Graph, vgg: features.Vgg, content: np.ndarray, style: np.ndarray) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for start in knobs.STARTS:
        # More iterations than there can be evaluations to look at, and every one of them looked at.
        asked = knobs.read({
            "start": np.array([knobs.STARTS.index(start)]), "iterations": np.array([CHECKED[-1]]),
            "every": np.array([1]), "scales": np.array([1]),
        })  # fmt: skip
        ours = painter(of, content, style, asked)
        canvas, closure = canvas_and_closure(vgg, content, style, asked)
        theirs = reference(closure, make_optimizer(canvas, asked.optimizer), CHECKED[-1])
        ratios = {}
        print(f"start: {start}, {ours[0].objective:.4f}\nevaluations   painter   torch   ratio")
        for evaluations in CHECKED:
            one, other = objective_after(evaluations, ours), objective_after(evaluations, theirs)
            ratios[evaluations] = round(one / other, 4)
            print(f"{evaluations:11d} {one:9.4f} {other:7.4f} {one / other:7.3f}")
        told[start] = ratios
    return {"ratio": told}


def bench_evaluation(of: painting.Graph, vgg: features.Vgg, content: np.ndarray, style: np.ndarray) -> dict[str, float]:
    """One evaluation of a canvas that changes, in milliseconds."""
    asked = knobs.read({})
    canvas, closure = canvas_and_closure(vgg, content, style, asked)
    evaluate = painting.Evaluator(of, painting.planes(content), painting.planes(style), asked)
    times: dict[str, list[float]] = {"graph": [], "autograd": []}
    for _ in range(13):
        with torch.no_grad():
            canvas += 0.001  # both remember the last
        times["graph"].append(seconds(partial(evaluate, canvas.detach()[0].numpy())))
        times["autograd"].append(seconds(closure))
    medians = {f"{name}_ms": round(1000 * statistics.median(values[3:]), 1) for name, values in times.items()}
    print("one evaluation in process, median of 10: " + ", ".join(f"{n} {ms} ms" for n, ms in medians.items()))
    return medians


def bench_served(root: Path, content: np.ndarray, style: np.ndarray) -> dict[str, float]:
    """All of a painting through Triton and the SDK, streaming every tenth canvas."""
    with Embedded(root, models=["painter"]) as server, atelier.Client(server.grpc) as client:
        photo, style_image = Image.fromarray(content), Image.fromarray(style)
        for _ in client.paint(photo, style_image, iterations=2):  # warm-up: the first run allocates
            pass
        begun = time.perf_counter()
        came = [
            time.perf_counter() - begun for _ in client.paint(photo, style_image, iterations=ITERATIONS, every=EVERY)
        ]
    print(
        f"{ITERATIONS} iterations through Triton: {came[-1]:.1f} s, the first of {len(came)} canvases {came[0]:.1f} s"
    )
    return {"iterations": ITERATIONS, "served_s": round(came[-1], 2), "first_canvas_s": round(came[0], 2)}


def main() -> int:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=repository.REPOSITORY, help="default %(default)s")
    parser.add_argument("--content", type=Path, default=home() / "photos" / "kodak" / "kodim23.png", metavar="PHOTO")
    parser.add_argument(
        "--style", type=Path, default=home() / "paintings" / "van-gogh-starry-night.jpg", metavar="PAINTING"
    )
    parser.add_argument("--size", type=int, default=256, help="pixels a side of both, cut to squares")
    args = parser.parse_args()
    if args.size < painting.SMALLEST_SIDE:
        parser.error(f"--size: {args.size} is too few pixels for a painting; give {painting.SMALLEST_SIDE} or more")
    return benches.run(report, args)


def report(args: argparse.Namespace) -> dict[str, Any]:
    threads = spec("painter").threads
    torch.set_num_threads(threads)
    content, style = (picture(path, args.size) for path in (args.content, args.style))
    version = repository.newest(args.repository, "painter")
    vgg = features.load(repository.card(args.repository, "painter", version).data["backbone"]["name"])
    of = graph(args.repository / "painter" / str(version), threads)
    print(f"{args.content.name} in the manner of {args.style.name}, {args.size} x {args.size}, {threads} threads")
    measured = bench_objective(of, vgg, content, style)
    measured |= bench_evaluation(of, vgg, content, style)
    measured |= bench_served(args.repository, content, style)
    return {"bench": "painter", "version": version, "size": args.size, "threads": threads, **measured}


if __name__ == "__main__":
    sys.exit(main())
