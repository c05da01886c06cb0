"""Painting as an optimisation (Gatys et al. 2015): the canvas moves until the network sees in it what it is to see.

    paint(graph, content, style, knobs, show)

The graph gives loss and gradient; here are its targets, the sizes and the steps. A large picture is painted coarse to
fine: what is composed small is cheap, and its strokes are large.
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
"""The deepest layer then has one place left."""
COARSEST_SIDE: Final = 256
"""About the longer side at which a picture begins whose size chooses the scales."""
MEMORY: Final = 10
"""Steps that L-BFGS remembers."""
ADAM_STEP: Final = 0.02
ADAM_DECAYS: Final = (0.9, 0.999)
NOISE: Final = 0.15
"""Standard deviation around gray."""

Pixels = npt.NDArray[np.uint8]
"""(H, W, 3), RGB."""
Floats = npt.NDArray[np.float32]
Feed = Mapping[str, Floats]
Size = tuple[int, ...]
"""Height and width."""


@dataclass(frozen=True)
class Graph:
    """The graph of loss and gradient. `run` gives the named outputs; `inputs` have their shapes, free sides as 1."""

    run: Callable[[Sequence[str], Feed], list[Any]]
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Sequence[str]

    def targets(self, photo: Floats, style: Floats) -> dict[str, Floats]:
        """What the canvas is to answer as the photo does, and as the style: the graph's own answers to both."""
        return self._answers(photo, "answer_", "content_") | self._answers(style, "own_gram_", "gram_")

    def _answers(self, picture: Floats, made: str, wanted: str) -> dict[str, Floats]:
        outputs = [name for name in self.outputs if name.startswith(made)]
        nothing = {name: np.zeros(shape, np.float32) for name, shape in self.inputs.items()}
        answers = self.run(outputs, nothing | {"canvas": picture[None]})
        return {wanted + name.removeprefix(made): answer for name, answer in zip(outputs, answers, strict=True)}


class Seen(NamedTuple):
    """What the graph makes of a canvas (3, H, W). `losses` are content, style, total variation, unweighted."""

    canvas: Floats
    losses: Floats
    objective: float
    gradient: Floats


class Look:
    """Canvas -> Seen, for one size of a painting. Remembers the last canvas, which optimizers come back to."""

    def __init__(self, graph: Graph, photo: Floats, style: Floats, knobs: Knobs) -> None:
        self._run = graph.run
        weights = (knobs.content_weight, knobs.style_weight, knobs.tv_weight)
        self._feed = graph.targets(photo, style) | {
            "content_layers": np.array([knobs.content_layers], np.float32),
            "style_layers": np.array([knobs.style_layers], np.float32),
            "weights": np.array([weights], np.float32),
        }
        self._last: Seen | None = None

    def __call__(self, canvas: npt.NDArray[Any]) -> Seen:
        canvas = canvas.astype(np.float32)
        if self._last is None or not np.array_equal(canvas, self._last.canvas):
            feed = self._feed | {"canvas": canvas[None]}
            losses, objective, gradient = self._run(("losses", "objective", "gradient"), feed)
            self._last = Seen(canvas, losses[0], float(objective.item()), gradient[0])
        return self._last


@dataclass(frozen=True)
class Stroke:
    """A canvas after so many of all iterations."""

    seen: Seen
    iteration: int
    total: int

    @property
    def pixels(self) -> Pixels:
        return pixels(self.seen.canvas)


Show = Callable[[Stroke], None]


def paint(graph: Graph, content: Pixels, style: Pixels, knobs: Knobs, show: Show) -> None:
    """Shows the start, then a canvas every so many iterations, and the last, whose iteration is the total."""
    sizes = scales(content.shape[:2], knobs.scales)
    counter = _Counter(knobs, show)
    canvas: Floats | None = None
    for size, iterations in zip(sizes, shared(knobs.iterations, len(sizes)), strict=True):
        if iterations or size == sizes[-1]:
            photo = planes(resized(content, size))
            look = Look(graph, photo, planes(resized(style, fitted(style.shape[:2], size))), knobs)
            canvas = started(photo, knobs) if canvas is None else enlarged(canvas, size)
            counter.start(look(canvas))
            STEPS[knobs.optimizer](look, canvas, iterations, counter.step)
            canvas = counter.finish(iterations).canvas


class _Counter:
    """Counts iterations over all scales, and shows those that are asked for."""

    def __init__(self, knobs: Knobs, show: Show) -> None:
        self._every, self._total = knobs.every, knobs.iterations
        self._show = show
        self._scale_begins = self._count = 0
        self._shown: int | None = None
        self._seen: Seen

    def start(self, seen: Seen) -> None:
        """A scale begins."""
        self._scale_begins, self._seen = self._count, seen
        if self._shown is None:
            self._tell()

    def step(self, seen: Seen) -> None:
        self._count, self._seen = self._count + 1, seen
        if self._count % self._every == 0:
            self._tell()

    def finish(self, iterations: int) -> Seen:
        """A scale ends. Where nothing was left to improve it did so early, and what was to come counts as done."""
        self._count = self._scale_begins + iterations
        if self._count == self._total != self._shown:
            self._tell()
        return self._seen

    def _tell(self) -> None:
        self._shown = self._count
        self._show(Stroke(self._seen, self._count, self._total))


# --- steps: each looks, moves the canvas, and tells of every iteration

_Step = Callable[[Seen], None]


def _lbfgs(look: Look, start: Floats, iterations: int, step: _Step) -> None:
    """Without bounds: SciPy takes 10 s to set them up for 512 x 512 pixels, and five times as long for a step."""

    def worth(flat: npt.NDArray[np.float64]) -> tuple[float, Floats]:
        seen = look(flat.reshape(start.shape))
        return seen.objective, seen.gradient.ravel()

    def told(flat: npt.NDArray[np.float64]) -> None:
        step(look(flat.reshape(start.shape)))

    if iterations:
        options = {"maxiter": iterations, "maxcor": MEMORY, "ftol": 0, "gtol": 0}
        minimize(worth, start.ravel(), jac=True, method="L-BFGS-B", callback=told, options=options)


def _adam(look: Look, start: Floats, iterations: int, step: _Step) -> None:
    """Kingma and Ba 2015."""
    canvas, mean, square = start, np.zeros_like(start), np.zeros_like(start)
    first, second = ADAM_DECAYS
    for count in range(1, iterations + 1):
        gradient = look(canvas).gradient
        mean += (1 - first) * (gradient - mean)
        square += (1 - second) * (gradient * gradient - square)
        size = ADAM_STEP * math.sqrt(1 - second**count) / (1 - first**count)
        canvas = np.clip(canvas - size * mean / (np.sqrt(square) + 1e-8), 0, 1)
        step(look(canvas))


STEPS: Final = {"l-bfgs": _lbfgs, "adam": _adam}


# --- sizes


def most_scales(size: Size) -> int:
    """How often a picture can be halved, and once more, for the coarsest to have SMALLEST_SIDE."""
    return 1 + int(math.log2(min(size) / SMALLEST_SIDE))


def scales(size: Size, count: int) -> list[Size]:
    """So many sizes, coarse to fine, each twice the one before; 0 is as many as begin at about COARSEST_SIDE."""
    wanted = count or 1 + max(0, round(math.log2(max(size) / COARSEST_SIDE)))
    return [_scaled(size, 0.5**k) for k in reversed(range(min(wanted, most_scales(size))))]


def shared(iterations: int, count: int) -> list[int]:
    """Iterations for each of so many scales: every scale has twice as many as the next, which costs four times."""
    coarse = [iterations * 2 ** (count - 1 - k) // (2**count - 1) for k in range(count - 1)]
    return [*coarse, iterations - sum(coarse)]


def fitted(style: Size, canvas: Size) -> Size:
    """A style is looked at with as many pixels as the canvas has, so at its scale, but never larger than it is."""
    return _scaled(style, min(1, math.sqrt(math.prod(canvas) / math.prod(style))))


def _scaled(size: Size, factor: float) -> Size:
    return tuple(max(SMALLEST_SIDE, round(side * factor)) for side in size)


# --- canvases


def started(photo: Floats, knobs: Knobs) -> Floats:
    """What is painted over: the photo, or noise."""
    if knobs.start == "content":
        return photo
    noise = np.random.default_rng(knobs.seed).normal(0.5, NOISE, photo.shape)
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
