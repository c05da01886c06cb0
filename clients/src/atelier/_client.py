"""The synchronous client: carries out the steps of `_protocol.py` over gRPC."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

import grpc
import numpy.typing as npt
from PIL import Image

from atelier import _address, colorizing, paths, styling, upscaling
from atelier._contract import Tensors
from atelier._protocol import Core, Flow, Open, Probe, Read, Sleep, Step, split_batches
from atelier._transport import GrpcTransport, Transport, accepts, closed_error
from atelier._types import DEFAULT_TIMEOUT_S, MAX_IN_FLIGHT, NOT_GIVEN, Model, NotGiven, check_alone
from atelier.classification import Classification, Method, Pictures, images
from atelier.errors import AtelierError
from atelier.latents import Latents, check
from atelier.painting import CONTENT, STYLE, CancelHandle, Commission, Knobs, Layers, Optimizer, Painting, Start, Stroke
from atelier.sizing import Photos
from atelier.styling import Styles
from atelier.tasks import CLASSIFY, COLORIZE, GENERATE, PAINT, STYLIZE, UPSCALE, Task

T = TypeVar("T")


class Frames(Iterator[Image.Image]):
    """Pictures as they come from the server, in order. `len` is how many there are in all.

    `latents`, float32 (frames, width), holds the vector of each. Raises AtelierError as its client does.
    """

    def __init__(self, latents: Latents, pictures: Iterator[Image.Image]) -> None:
        self.latents = latents
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self.latents)

    def __next__(self) -> Image.Image:
        try:
            return next(self._pictures)
        except ValueError as exc:
            check_alone(exc)
            raise


class Client:
    """A connection to one Triton server. Threads may share it; use it as a context manager, or close it.

    url: HOST:PORT of its gRPC port; grpcs:// for TLS, dns:/// to balance over all addresses of a name. None is what
    $ATELIER_URL says when the client is made, or localhost:8001.
    timeout_s: the deadline of each request in seconds, retries included; every method takes another.
    patient: also retry, within the timeout, while the server is overloaded.
    Every method raises AtelierError (see errors.py) and nothing else.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        patient: bool = False,
    ) -> None:
        self._transport = self._connect(url)
        self._core = Core(self._transport.address, timeout_s=timeout_s, patient=patient)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._transport.address)!r})"

    def close(self) -> None:
        """Closes the connection; calls in flight raise Cancelled, as every later one. Closing again does nothing."""
        self._closed = True
        self._transport.close()

    def ready(
        self,
        model: str | None = None,
        *,
        version: int | None = None,
        timeout_s: float | NotGiven = NOT_GIVEN,
    ) -> bool:
        """Whether the server, or one of its models, can answer now. False too while nothing answers there."""
        return self._run(self._core.ready(model, version, timeout_s))

    def models(self, *, timeout_s: float | NotGiven = NOT_GIVEN) -> list[Model]:
        """What the server holds, sorted by name; if its index is restricted, only the models that this SDK knows."""
        return self._run(self._core.models(timeout_s))

    def generate(
        self,
        latents: npt.ArrayLike,
        *,
        model: str = "wgan",
        version: int | None = None,
        timeout_s: float | NotGiven = NOT_GIVEN,
    ) -> list[Image.Image]:
        """Latents (N, 100), any N, to N RGB pictures, in order: 128 x 128 pixels, or 512 x 512 by "wgan_x4".

        version: None is the newest. They go in batches, several in flight at once, all to one version; `timeout_s` is
        for each batch. A picture's `info` says its model and version.
        """
        return list(self.stream(latents, model=model, version=version, timeout_s=timeout_s))

    def stream(
        self,
        latents: npt.ArrayLike,
        *,
        model: str = "wgan",
        version: int | None = None,
        timeout_s: float | NotGiven = NOT_GIVEN,
    ) -> Frames:
        """As `generate`, but each picture as soon as it is there: `for picture in tqdm(client.stream(z))`."""
        vectors = check(latents, width=GENERATE.contract(model).inputs[0].shape[0])
        batches = split_batches(GENERATE, {"latent": vectors}, model)
        return Frames(vectors, self._results(GENERATE, batches, model, version, self._core.resolve_timeout(timeout_s)))

    def walk(
        self,
        keyframes: npt.ArrayLike,
        *,
        steps: int = 20,
        path: paths.Path = "spline",
        loop: bool = False,
        model: str = "wgan",
        version: int | None = None,
        timeout_s: float | NotGiven = NOT_GIVEN,
    ) -> Frames:
        """A walk through keyframes (N, 100), two or more: `steps` frames from each to the next, as by `paths.walk`."""
        latents = paths.walk(keyframes, steps=steps, path=path, loop=loop)
        return self.stream(latents, model=model, version=version, timeout_s=timeout_s)

    def classify(
        self,
        pictures: Pictures,
        *,
        method: Method = "find",
        model: str = "classifier",
        version: int | None = None,
        timeout_s: float | NotGiven = NOT_GIVEN,
    ) -> list[Classification]:
        """One or more garments, any number, to as many answers, in order; batches as with `generate`.

        pictures: Pillow pictures, which are prepared by `method`, or what is prepared, uint8 (N, 28, 28), white on
        black; see `classification.images`.
        """
        batches = split_batches(CLASSIFY, {"image": images(pictures, method=method)}, model)
        return list(self._results(CLASSIFY, batches, model, version, self._core.resolve_timeout(timeout_s)))

    def styles(self, model: str = "style", *, timeout_s: float | NotGiven = NOT_GIVEN) -> tuple[str, ...]:
        """The names that `stylize` knows, as the server has them now."""
        STYLIZE.contract(model)
        return self._run(self._core.members(model, "style_weights", timeout_s))

    def stylize(
        self,
        pictures: Photos,
        style: Styles,
        *,
        size: int | None = None,
        strength: float = 1.0,
        keep_color: bool = False,
        model: str = "style",
        version: int | None = None,
        timeout_s: float | NotGiven = NOT_GIVEN,
    ) -> list[Image.Image]:
        """One or more pictures in the manner of paintings, in order: RGB, or RGBA if they have alpha.

        Both sides need 16 pixels or more; width x height is 2,097,152 at most. style: a name of `styles`, weights by
        names, which blends them, or one of either for each picture. size: the long side in pixels, else each stays as
        large as it is. strength: from 0, the original, to 1. keep_color: only the brightness changes. A result's
        `info` says its model, version and style.
        """
        contract = STYLIZE.contract(model)
        work = styling.Work.of(pictures, style, contract, size=size, strength=strength, keep_color=keep_color)
        if not work.originals:
            return []
        names = self.styles(model, timeout_s=timeout_s)
        painted = self._results(STYLIZE, work.batches(names), model, version, self._core.resolve_timeout(timeout_s))
        return work.finished(painted, names)

    def upscale(
        self,
        pictures: Photos,
        *,
        model: str = "upscaler",
        version: int | None = None,
        timeout_s: float | NotGiven = NOT_GIVEN,
    ) -> list[Image.Image]:
        """One or more pictures, four times as wide and as high, in order: RGB, or RGBA if they have alpha.

        Both sides need 16 pixels or more; a result has 67,108,864 at most. Large ones go in tiles, without a seam, and
        tiles in batches as with `generate`. A result's `info` says its model and version.
        """
        mosaic = upscaling.Mosaic(pictures, UPSCALE.contract(model))
        for tile in self._results(UPSCALE, mosaic.batches(), model, version, self._core.resolve_timeout(timeout_s)):
            mosaic.add(tile)
        return mosaic.finished()

    def colorize(
        self,
        pictures: Photos,
        *,
        stage: float = 2.0,
        saturation: float = 1.0,
        size: int | None = None,
        model: str = "colorizer",
        version: int | None = None,
        timeout_s: float | NotGiven = NOT_GIVEN,
    ) -> list[Image.Image]:
        """One or more pictures in colour, in order: RGB, or RGBA if they have alpha. Colour ones are grayed first.

        Both sides need 16 pixels or more; width x height is 4,194,304 at most. stage: from 1, regression alone,
        to 2, with adversarial training as well; between, a mixture. saturation: from 0, gray, to 3, times as colourful.
        size: the long side in pixels, else each stays as large as it is. A result's `info` says its model, version and
        stage.
        """
        contract = COLORIZE.contract(model)
        work = colorizing.Work.of(pictures, contract, stage=stage, saturation=saturation, size=size)
        return work.finished(
            self._results(COLORIZE, work.batches(), model, version, self._core.resolve_timeout(timeout_s))
        )

    def paint(
        self,
        content: Image.Image,
        style: Image.Image,
        *,
        iterations: int = Knobs.iterations,
        every: int = Knobs.every,
        content_weight: float = Knobs.content_weight,
        style_weight: float = Knobs.style_weight,
        tv_weight: float = Knobs.tv_weight,
        content_layers: Layers = CONTENT,
        style_layers: Layers = STYLE,
        start: Start = Knobs.start,
        seed: int = Knobs.seed,
        scales: int = Knobs.scales,
        optimizer: Optimizer = Knobs.optimizer,
        size: int | None = None,
        keep_color: bool = False,
        model: str = "painter",
        version: int | None = None,
        timeout_s: float | NotGiven = NOT_GIVEN,
    ) -> Painting:
        """The content painted in the manner of the style, step by step: a `Stroke` every so many iterations.

        Both sides of either need 16 pixels or more; width x height of the content is 1,048,576 at most. Iterations,
        weights, layers, seed and optimizer: see `painting.Knobs`. scales: sizes from coarse to fine, 0 as many as the
        content's size asks for. size: the content's long side in pixels, else it stays as large as it is. keep_color:
        only the brightness changes. `timeout_s` is for each response of the painter, which gives some between strokes
        that are far apart. To stop early, close the result or leave its `with` block: the painter goes on after a
        `break`, for as long as anything holds the result.
        """
        knobs = Knobs(
            iterations=iterations,
            every=every,
            content_weight=content_weight,
            style_weight=style_weight,
            tv_weight=tv_weight,
            content_layers=content_layers,
            style_layers=style_layers,
            start=start,
            seed=seed,
            scales=scales,
            optimizer=optimizer,
        )
        contract = PAINT.contract(model)
        commission = Commission.of(content, style, contract, knobs=knobs, size=size, keep_color=keep_color)
        handle = CancelHandle(self._transport.address)
        strokes = self._strokes(commission, model, version, self._core.resolve_timeout(timeout_s), handle)
        return Painting(strokes, handle)

    def _strokes(
        self, commission: Commission, model: str, version: int | None, timeout_s: float, handle: CancelHandle
    ) -> Generator[Stroke, None, None]:
        opened = self._core.open_stream(PAINT, commission.tensors(), model, version, timeout_s, handle.attach)
        try:
            stream, stroke = self._run(opened)
            while stroke is not None:
                next_stroke = self._core.read_stream(PAINT, stream, model, timeout_s)
                if last := stroke.iteration == stroke.total:
                    # Its end comes at once. Triton 2.51 can't unload a model whose stream was cancelled as it ended.
                    self._run(next_stroke)
                if commission.wants(stroke):
                    yield commission.finished(stroke)
                stroke = None if last else self._run(next_stroke)
        finally:
            handle.cancel()  # a stream whose first answer is of no use, too

    def _results(
        self, task: Task[T], batches: list[Tensors], model: str, version: int | None, timeout_s: float
    ) -> Iterator[T]:
        """One for each member of the batches, in order, all from one version; MAX_IN_FLIGHT batches at a time."""
        if len(batches) == 1:  # on the caller's thread: starting one takes 0.2 ms, and 2 ms where cores are busy
            yield from self._run(self._core.infer(task, batches[0], model, version, timeout_s))
            return
        pending = deque(batches)
        if version is None and pending:
            version = self._run(self._core.newest_version(model, timeout_s))
        in_flight: deque[Future[list[T]]] = deque()
        pool = ThreadPoolExecutor(MAX_IN_FLIGHT, thread_name_prefix="atelier")
        try:
            while pending or in_flight:
                while pending and len(in_flight) < MAX_IN_FLIGHT:
                    flow = self._core.infer(task, pending.popleft(), model, version, timeout_s)
                    in_flight.append(pool.submit(self._run, flow))
                yield from in_flight.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, flow: Flow[T]) -> T:
        """Carries out the steps of a flow, and returns its result."""
        try:
            step = next(flow)
            while True:
                try:
                    reply = self._perform(step)
                except (grpc.RpcError, AtelierError) as exc:
                    closed = self._closed and isinstance(exc, grpc.RpcError)
                    step = flow.throw(closed_error(self._transport.address) if closed else exc)
                else:
                    step = flow.send(reply)
        except StopIteration as done:
            result: T = done.value
            return result

    def _perform(self, step: Step) -> Any:
        if self._closed:
            raise closed_error(self._transport.address)
        match step:
            case Sleep(seconds):
                time.sleep(seconds)
                return None
            case Probe():
                return accepts(step)
            case Read(stream, timeout_s):
                return stream.read(timeout_s)
            case Open():
                return self._transport.open(step)
        return self._transport.send(step)

    def _connect(self, url: str | None) -> Transport:
        return GrpcTransport(_address.resolve(url))
