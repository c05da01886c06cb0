"""The SDK as a target: what an application would call, with pictures in and pictures out, retries included."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

import atelier
from atelier import errors
from atelier.painting import CONTENT_LAYERS, OPTIMIZERS, STARTS, STYLE_LAYERS, Stroke
from tests.load.questions import Array, Arrays, Question, served
from tests.load.targets import AsyncTarget, Call, Send, ThreadedTarget, failed, from_coroutine


@dataclass(frozen=True, kw_only=True)
class Sdk(AsyncTarget):
    """Through `AsyncClient`."""

    url: str

    @contextlib.asynccontextmanager
    async def opened(self, questions: Sequence[Question]) -> AsyncIterator[Sequence[Send]]:
        async with atelier.AsyncClient(self.url, timeout_s=self.timeout_s) as client:
            yield [from_coroutine(partial(self._asked, prepared(client, question), question)) for question in questions]

    async def _asked(self, call: Callable[[], Any], question: Question) -> Arrays:
        try:
            if question.model == "painter":
                return outputs(question, [stroke async for stroke in call()])
            return outputs(question, await call())
        except errors.AtelierError as exc:
            raise failed(type(exc), exc) from exc


@dataclass(frozen=True, kw_only=True)
class SdkThreads(ThreadedTarget):
    """Through `Client`, which all threads share."""

    url: str

    @contextlib.contextmanager
    def opened(self, questions: Sequence[Question]) -> Iterator[Sequence[Call]]:
        with atelier.Client(self.url, timeout_s=self.timeout_s) as client:
            yield [partial(self._asked, prepared(client, question), question) for question in questions]

    def _asked(self, call: Callable[[], Any], question: Question) -> Arrays:
        try:
            return outputs(question, list(call()))
        except errors.AtelierError as exc:
            raise failed(type(exc), exc) from exc


def prepared(client: atelier.Client | atelier.AsyncClient, question: Question) -> Callable[[], Any]:
    """The client's method that makes the same request, with its arguments bound."""
    first, *rest = question.inputs.values()
    match question.model:
        case "classifier":
            return partial(client.classify, first)
        case "style":
            names = served("style").inputs[1].members
            return partial(client.stylize, _picture(first), dict(zip(names, rest[0][0].tolist(), strict=True)))
        case "colorizer":
            return partial(client.colorize, _picture(first), stage=float(rest[0][0, 0]))
        case "upscaler":
            return partial(client.upscale, _picture(first))
        case "painter":
            return partial(client.paint, **_painting(question.inputs))
        case _:
            return partial(client.generate, first, model=question.model)


def _picture(pixels: Array) -> Image.Image:
    """The picture of a batch of one; in Pillow a gray one has no channel dimension."""
    return Image.fromarray(pixels.squeeze())


def _painting(given: Arrays) -> dict[str, Any]:
    """The painter's inputs as `paint` takes them."""
    knobs = {name: array[0].item() for name, array in given.items() if array.shape == (1,)}
    layers = {"content_layers": CONTENT_LAYERS, "style_layers": STYLE_LAYERS}
    named = {name: dict(zip(names, given[name].tolist(), strict=True)) for name, names in layers.items()}
    pictures = {name: Image.fromarray(given[name]) for name in ("content", "style")}
    chosen = {"start": STARTS[knobs["start"]], "optimizer": OPTIMIZERS[knobs["optimizer"]]}
    return knobs | named | pictures | chosen


def outputs(question: Question, results: Sequence[Any]) -> Arrays:
    """Converts what the SDK returned to the model's own outputs."""
    match question.model:
        case "classifier":
            rows = [list(result.probabilities.values()) for result in results]
            return {"probabilities": np.array(rows, np.float32)}
        case "painter":
            return _stroke(results[0])
        case _:
            return {"image": np.stack([np.asarray(picture) for picture in results])}


def _stroke(stroke: Stroke) -> Arrays:
    losses = [stroke.content_loss, stroke.style_loss, stroke.total_variation]
    return {
        "image": np.asarray(stroke.image),
        "iteration": np.array([stroke.iteration], np.int32),
        "total": np.array([stroke.total], np.int32),
        "losses": np.array(losses, np.float32),
        "objective": np.array([stroke.objective], np.float32),
    }
