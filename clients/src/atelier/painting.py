"""Pictures painted step by step in the manner of any painting: what a painter is asked, and what it answers.

photo, style = pictures.open_picture("photo.jpg", alpha=True), pictures.open_picture("monet.jpg")
with client.paint(photo, style, iterations=200) as painting:
    for stroke in painting:
        stroke.image.save(f"{stroke.iteration}.png")
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Self, get_args

import numpy as np
from PIL import Image

from atelier._contract import Contract, Tensors
from atelier._types import as_int, check_alone, is_number
from atelier.errors import Cancelled, InvalidInput
from atelier.sizing import SMALLEST_SENT, colours, sized
from atelier.styling import recoloured

Start = Literal["noise", "content"]
Optimizer = Literal["l-bfgs", "adam"]
Layers = Mapping[str, float]
"""Weights by names of layers; those that it leaves out weigh nothing."""

STARTS: Final[tuple[Start, ...]] = get_args(Start)
OPTIMIZERS: Final[tuple[Optimizer, ...]] = get_args(Optimizer)
CONTENT_LAYERS: Final = ("conv2_2", "conv3_2", "conv4_2", "conv5_2")
STYLE_LAYERS: Final = ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1")
CONTENT: Final[Layers] = {"conv4_2": 1.0}
STYLE: Final[Layers] = dict.fromkeys(STYLE_LAYERS, 1.0)
MOST: Final = {
    "iterations": 1000, "every": 1000, "seed": 2**31 - 1, "scales": 6,
    "content_weight": 1e6, "style_weight": 1e6, "tv_weight": 1e6, "content_layers": 1e3, "style_layers": 1e3,
}  # fmt: skip
"""The painter's limits, above which it refuses."""
PIXELS_APART: Final = 1 << 22
"""Pixels times iterations from one response of the painter to the next: a core takes 11 s for them. The client drops
responses that nobody has asked for, so that its deadline for each need not grow with `every`."""


@dataclass(frozen=True, eq=False)
class Stroke:
    """The canvas after `iteration` of `total`. `objective`, which is minimised, is the weighted sum of the other three.

    `content_loss` and `style_loss` are relative errors, without a unit: of each layer the squared difference as a share
    of its target's square, in all by the layers' weights. `total_variation` is the mean square of the steps from pixel
    to pixel, of colours from 0 to 1.
    `image` is RGB, or RGBA if the content has alpha; while a large picture is painted coarsely it is smaller.
    """

    image: Image.Image
    iteration: int
    total: int
    content_loss: float
    style_loss: float
    total_variation: float
    objective: float


class CancelHandle:
    """Cancels the stream of a painting, from any thread or task: at once, or as soon as there is one."""

    def __init__(self, address: object) -> None:
        self._address = address
        self._stream: Any = None
        self._cancelled = False

    def attach(self, stream: Any) -> None:
        """Says which stream that is. Raises Cancelled if it is no longer wanted."""
        self._stream = stream
        if self._cancelled:
            stream.cancel()
            raise Cancelled(f"{self._address}: the painting was closed")

    def cancel(self) -> None:
        self._cancelled = True
        if self._stream is not None:
            self._stream.cancel()


class Painting(Iterator[Stroke]):
    """Strokes as they are painted, the start first, the finished picture last. Raises AtelierError as its client does.

    Closing it, or leaving its `with` block, ends the painting on the server, too.
    """

    def __init__(self, strokes: Generator[Stroke, None, None], handle: CancelHandle) -> None:
        self._strokes, self._handle = strokes, handle

    def __next__(self) -> Stroke:
        try:
            return next(self._strokes)
        except ValueError as exc:
            check_alone(exc)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it; another thread that waits for a stroke gets Cancelled. Closing again does nothing."""
        self._handle.cancel()
        with contextlib.suppress(ValueError):  # that thread is inside, and closes them as it leaves
            self._strokes.close()


class AsyncPainting(AsyncIterator[Stroke]):
    """`Painting` for `async for` and `async with`."""

    def __init__(self, strokes: AsyncGenerator[Stroke, None], handle: CancelHandle) -> None:
        self._strokes, self._handle = strokes, handle

    async def __anext__(self) -> Stroke:
        try:
            return await anext(self._strokes)
        except RuntimeError as exc:
            check_alone(exc)
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends it; another task that waits for a stroke gets Cancelled. Closing again does nothing."""
        self._handle.cancel()
        with contextlib.suppress(RuntimeError):  # that task is inside, and closes them as it leaves
            await self._strokes.aclose()


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """The options of `Client.paint`, with the painter's own defaults.

    iterations: of the optimizer, 0 to 1000. every: iterations from one stroke to the next, 1 to 1000. content_weight,
    style_weight, tv_weight (total variation): 0 to 1e6. content_layers, style_layers: weights by names of
    CONTENT_LAYERS and STYLE_LAYERS, 0 to 1000. start: the first canvas. seed: of the noise, 0 to 2**31 - 1.
    scales: 1 to 6, or 0. optimizer: l-bfgs or adam. Raises InvalidInput, which begins with the option's name.
    """

    iterations: int = 100
    every: int = 10
    content_weight: float = 1.0
    style_weight: float = 5.0
    tv_weight: float = 10.0
    content_layers: Layers = field(default_factory=lambda: CONTENT)
    style_layers: Layers = field(default_factory=lambda: STYLE)
    start: Start = "content"
    seed: int = 0
    scales: int = 0
    optimizer: Optimizer = "l-bfgs"

    def __post_init__(self) -> None:
        for name, least in {"iterations": 0, "every": 1, "seed": 0, "scales": 0}.items():
            _check_whole(name, getattr(self, name), least)
        for name in ("content_weight", "style_weight", "tv_weight"):
            _check_number(name, getattr(self, name), MOST[name])
        for name, known in {"content_layers": CONTENT_LAYERS, "style_layers": STYLE_LAYERS}.items():
            _check_layers(name, getattr(self, name), known)
        _check_choice("start", self.start, STARTS)
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        content = self.content_weight * sum(self.content_layers.values())
        style = self.style_weight * sum(self.style_layers.values())
        if not (content or style):
            raise InvalidInput("content_weight: is 0, as style_weight is, or all of their layers; one must be more")

    def tensors(self) -> dict[str, Any]:
        """As the painter takes them."""
        integers = {
            "iterations": self.iterations,
            "every": self.every,
            "seed": self.seed,
            "scales": self.scales,
            "start": STARTS.index(self.start),
            "optimizer": OPTIMIZERS.index(self.optimizer),
        }
        floats = {
            "content_weight": (self.content_weight,),
            "style_weight": (self.style_weight,),
            "tv_weight": (self.tv_weight,),
            "content_layers": [self.content_layers.get(name, 0) for name in CONTENT_LAYERS],
            "style_layers": [self.style_layers.get(name, 0) for name in STYLE_LAYERS],
        }
        return {name: np.array([[value]], np.int32) for name, value in integers.items()} | {
            name: np.array([value], np.float32) for name, value in floats.items()
        }


@dataclass(frozen=True, eq=False)
class Commission:
    """A painting to be made, checked and prepared."""

    content: Image.Image
    style: Image.Image
    knobs: Knobs
    keep_color: bool

    @classmethod
    def of(
        cls,
        content: Image.Image,
        style: Image.Image,
        contract: Contract,
        *,
        knobs: Knobs,
        size: int | None,
        keep_color: bool,
    ) -> Commission:
        """What `Client.paint` is given, checked and resized. Raises InvalidInput."""
        photo = sized(content, size=size, most=contract.max_pixels, name="content", done="painted")
        return cls(photo, _within(sized(style, name="style", done=None), photo.width * photo.height), knobs, keep_color)

    def tensors(self) -> Tensors:
        pictures = {name: np.asarray(colours(getattr(self, name)))[None] for name in ("content", "style")}
        return pictures | replace(self.knobs, every=self._apart).tensors()

    def wants(self, stroke: Stroke) -> bool:
        """Whether it is one of those asked for, and not one that only shows that the painter is at work."""
        return stroke.iteration % self.knobs.every == 0 or stroke.iteration == stroke.total

    @property
    def _apart(self) -> int:
        """Iterations from one response to the next: the largest divisor of `every` within PIXELS_APART."""
        most = max(1, PIXELS_APART // (self.content.width * self.content.height))
        return max(count for count in range(1, min(most, self.knobs.every) + 1) if self.knobs.every % count == 0)

    def finished(self, stroke: Stroke) -> Stroke:
        """With the colours of the content, where they are to be kept, and its alpha."""
        image, info = stroke.image, stroke.image.info
        original = self.content
        if original.size != image.size:
            original = original.resize(image.size, Image.Resampling.LANCZOS)
        if self.keep_color:
            image = recoloured(image, original.convert("RGB"))
        if original.mode == "RGBA":
            image.putalpha(original.getchannel("A"))
        image.info = info
        return replace(stroke, image=image)


def parsed(text: str) -> dict[str, float]:
    """Layers as people type them, "conv4_2=1,conv5_2=0.5". Raises InvalidInput."""
    pairs = [part.partition("=")[::2] for part in text.split(",")]
    try:
        return {layer.strip(): float(weight) for layer, weight in pairs}
    except ValueError as exc:
        raise InvalidInput(f"{text!r} must be LAYER=WEIGHT,LAYER=WEIGHT") from exc


def _within(style: Image.Image, pixels: int) -> Image.Image:
    """Reduced to as many pixels as the content has, but for sides of SMALLEST_SENT: the painter looks at no more."""
    factor = math.sqrt(pixels / (style.width * style.height))
    if factor >= 1:
        return style
    width, height = (max(SMALLEST_SENT, round(side * factor)) for side in style.size)
    return style.resize((width, height), Image.Resampling.LANCZOS)


# --- knobs


def _check_whole(name: str, value: object, least: int) -> None:
    number = as_int(value)
    if number is None or not least <= number <= MOST[name]:
        raise InvalidInput(f"{name} {value!r}: must be a whole number from {least} to {MOST[name]}")


def _check_number(name: str, value: object, most: float) -> None:
    if not (is_number(value) and 0 <= value <= most):  # NaN is not, either
        raise InvalidInput(f"{name} {value!r}: must be a number from 0 to {most:g}")


def _check_layers(name: str, layers: object, known: tuple[str, ...]) -> None:
    if not isinstance(layers, Mapping):
        raise InvalidInput(f"{name} {layers!r:.60}: must be weights by names of layers, such as {{{known[-1]!r}: 1}}")
    for layer, weight in layers.items():
        if layer not in known:
            raise InvalidInput(f"{name}: no layer {layer!r}; there are {', '.join(known)}")
        _check_number(f"{name}: {layer}", weight, MOST[name])


def _check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in known:
        raise InvalidInput(f"{name} {value!r}: must be one of {', '.join(known)}")
