"""Paints by optimising the canvas (Gatys et al. 2015) until the network's activations match the targets.

    paint(graph, content, style, knobs, show)

The graph computes loss and gradient; this module has the targets, the sizes and the optimizers. A large picture is
painted coarse to fine: composing it at a small size is cheap, and makes large strokes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.optimize import minimize

if TYPE_CHECKING:
    from serving.backends.painter.knobs import Knobs

SMALLEST_SIDE: Final = 16
"""At this size, the deepest layer's activations have a height and width of 1."""
COARSEST_SIDE: Final = 256
"""Approximate longer side of the first scale, if the picture's size decides how many there are."""
LBFGS_MEMORY: Final = 10
"""Number of past steps from which L-BFGS approximates the curvature."""
ADAM_LR: Final = 0.02
ADAM_BETAS: Final = (0.9, 0.999)
NOISE_STD: Final = 0.15
"""Standard deviation around gray."""

Pixels = npt.NDArray[np.uint8]
"""(H, W, 3), RGB."""
Floats = npt.NDArray[np.float32]
Feed = Mapping[str, Floats]
Size = tuple[int, ...]
"""Height and width."""


@dataclass(frozen=True)
class Graph:
    """The graph that computes loss and gradient. `run` returns the named outputs; `inputs` maps names to shapes, with
    variable sides as 1."""

    run: Callable[[Sequence[str], Feed], list[Any]]
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Sequence[str]

    def targets(self, photo: Floats, style: Floats) -> dict[str, Floats]:
        """The photo's activations and the style's Gram matrices, computed by the graph itself."""
        return self._answers(photo, "answer_", "content_") | self._answers(style, "own_gram_", "gram_")

    def _answers(self, picture: Floats, made: str, wanted: str) -> dict[str, Floats]:
        outputs = [name for name in self.outputs if name.startswith(made)]
        nothing = {name: np.zeros(shape, np.float32) for name, shape in self.inputs.items()}
        answers = self.run(outputs, nothing | {"canvas": picture[None]})
        return {wanted + name.removeprefix(made): answer for name, answer in zip(outputs, answers, strict=True)}


class Evaluation(NamedTuple):
    """The graph's outputs for a canvas (3, H, W). `losses` are content, style and total variation, unweighted."""

    canvas: Floats
    losses: Floats
    objective: float
    gradient: Floats


class Evaluator:
    """Canvas -> Evaluation, for one size of a painting. Caches the last canvas, which optimizers ask for again."""

    def __init__(self, graph: Graph, photo: Floats, style: Floats, knobs: Knobs) -> None:
        self._run = graph.run
        weights = (knobs.content_weight, knobs.style_weight, knobs.tv_weight)
        self._feed = graph.targets(photo, style) | {
            "content_layers": np.array([knobs.content_layers], np.float32),
            "style_layers": np.array([knobs.style_layers], np.float32),
            "weights": np.array([weights], np.float32),
        }
        self._last: Evaluation | None = None

    def __call__(self, canvas: npt.NDArray[Any]) -> Evaluation:
        canvas = canvas.astype(np.float32)
        if self._last is None or not np.array_equal(canvas, self._last.canvas):
            feed = self._feed | {"canvas": canvas[None]}
            losses, objective, gradient = self._run(("losses", "objective", "gradient"), feed)
            self._last = Evaluation(canvas, losses[0], float(objective.item()), gradient[0])
        return self._last


@dataclass(frozen=True)
class Stroke:
    """A canvas after `iteration` of `total` iterations."""

    evaluation: Evaluation
    iteration: int
    total: int

    @property
    def pixels(self) -> Pixels:
        return pixels(self.evaluation.canvas)


Show = Callable[[Stroke], None]


def paint(graph: Graph, content: Pixels, style: Pixels, knobs: Knobs, show: Show) -> None:
    """Shows the initial canvas, then one every `knobs.every` iterations, and the last, whose iteration is the total."""
    sizes = scales(content.shape[:2], knobs.scales)
    counter = _Counter(knobs, show)
    canvas: Floats | None = None
    for size, iterations in zip(sizes, split_iterations(knobs.iterations, len(sizes)), strict=True):
        if iterations or size == sizes[-1]:
            photo = planes(resized(content, size))
            evaluate = Evaluator(graph, photo, planes(resized(style, fitted(style.shape[:2], size))), knobs)
            canvas = initial_canvas(photo, knobs) if canvas is None else enlarged(canvas, size)
            counter.start(evaluate(canvas))
            MINIMIZERS[knobs.optimizer](evaluate, canvas, iterations, counter.step)
            canvas = counter.finish(iterations).canvas


class _Counter:
    """Counts iterations over all scales, and shows the canvases that are asked for."""

    def __init__(self, knobs: Knobs, show: Show) -> None:
        self._every, self._total = knobs.every, knobs.iterations
        self._show = show
        self._scale_begins = self._count = 0
        self._shown: int | None = None
        self._evaluation: Evaluation

    def start(self, evaluation: Evaluation) -> None:
        """A scale begins."""
        self._scale_begins, self._evaluation = self._count, evaluation
        if self._shown is None:
            self._tell()

    def step(self, evaluation: Evaluation) -> None:
        self._count, self._evaluation = self._count + 1, evaluation
        if self._count % self._every == 0:
            self._tell()

    def finish(self, iterations: int) -> Evaluation:
        """A scale ends. If it converged early, the remaining iterations count as done."""
        self._count = self._scale_begins + iterations
        if self._count == self._total != self._shown:
            self._tell()
        return self._evaluation

    def _tell(self) -> None:
        self._shown = self._count
        self._show(Stroke(self._evaluation, self._count, self._total))


# --- optimizers: each calls back after every iteration

_Callback = Callable[[Evaluation], None]


def _lbfgs(evaluate: Evaluator, start: Floats, iterations: int, callback: _Callback) -> None:
    """Without bounds: for 512 x 512 pixels SciPy takes 10 s to set them up, and five times as long for a step."""

    def objective(flat: npt.NDArray[np.float64]) -> tuple[float, Floats]:
        evaluation = evaluate(flat.reshape(start.shape))
        return evaluation.objective, evaluation.gradient.ravel()

    def after_iteration(flat: npt.NDArray[np.float64]) -> None:
        callback(evaluate(flat.reshape(start.shape)))

    if iterations:
        options = {"maxiter": iterations, "maxcor": LBFGS_MEMORY, "ftol": 0, "gtol": 0}
        minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", callback=after_iteration, options=options)


def _adam(evaluate: Evaluator, start: Floats, iterations: int, callback: _Callback) -> None:
    """Kingma and Ba 2015."""
    canvas, first_moment, second_moment = start, np.zeros_like(start), np.zeros_like(start)
    beta1, beta2 = ADAM_BETAS
    for count in range(1, iterations + 1):
        gradient = evaluate(canvas).gradient
        first_moment += (1 - beta1) * (gradient - first_moment)
        second_moment += (1 - beta2) * (gradient * gradient - second_moment)
        step_size = ADAM_LR * math.sqrt(1 - beta2**count) / (1 - beta1**count)
        canvas = np.clip(canvas - step_size * first_moment / (np.sqrt(second_moment) + 1e-8), 0, 1)
        callback(evaluate(canvas))


MINIMIZERS: Final = {"l-bfgs": _lbfgs, "adam": _adam}


# --- sizes


def max_scales(size: Size) -> int:
    """The largest number of scales: 1, and one for each time that a picture can be halved down to SMALLEST_SIDE."""
    return 1 + int(math.log2(min(size) / SMALLEST_SIDE))


def scales(size: Size, count: int) -> list[Size]:
    """The sizes of `count` scales, coarse to fine, each twice the one before; 0 means as many as make the first about
    COARSEST_SIDE."""
    wanted = count or 1 + max(0, round(math.log2(max(size) / COARSEST_SIDE)))
    return [_scaled(size, 0.5**k) for k in reversed(range(min(wanted, max_scales(size))))]


def split_iterations(iterations: int, count: int) -> list[int]:
    """Iterations for each of `count` scales: twice as many as for the next, where each costs four times as much."""
    coarse = [iterations * 2 ** (count - 1 - k) // (2**count - 1) for k in range(count - 1)]
    return [*coarse, iterations - sum(coarse)]


def fitted(style: Size, canvas: Size) -> Size:
    """The style's size for a canvas: as many pixels, so that both are at the same scale, but never enlarged."""
    return _scaled(style, min(1, math.sqrt(math.prod(canvas) / math.prod(style))))


def _scaled(size: Size, factor: float) -> Size:
    return tuple(max(SMALLEST_SIDE, round(side * factor)) for side in size)


# --- canvases


def initial_canvas(photo: Floats, knobs: Knobs) -> Floats:
    """Where the optimisation starts: the photo, or noise."""
    if knobs.start == "content":
        return photo
    noise = np.random.default_rng(knobs.seed).normal(0.5, NOISE_STD, photo.shape)
    return np.clip(noise, 0, 1).astype(np.float32)


def planes(picture: Pixels) -> Floats:
    """(H, W, 3) of 0 to 255 -> (3, H, W) of 0 to 1."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32) / np.float32(255)


def pixels(canvas: Floats) -> Pixels:
    """(3, H, W), 0 to 1 and a little beyond -> (H, W, 3) of 0 to 255."""
    levels = np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(1, 2, 0))


def resized(picture: Pixels, size: Size) -> Pixels:
    height, width = size
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def enlarged(canvas: Floats, size: Size) -> Floats:
    height, width = size
    larger = (Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in canvas)
    return np.stack([np.asarray(plane) for plane in larger])
