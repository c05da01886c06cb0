"""The asynchronous client: carries out the steps of `_protocol.py` over gRPC's asyncio side."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import cached_property, partial
from typing import Any, Self, TypeVar

import grpc
import grpc.aio
import numpy.typing as npt
from PIL import Image
from tritonclient.grpc import service_pb2_grpc

from atelier import _address, _wire, colorizing, paths, styling, upscaling
from atelier._contract import Tensors
from atelier._failures import ReadTimeout, Refused, raise_for_error
from atelier._protocol import Core, Flow, Open, Probe, Read, Sleep, Step, split_batches
from atelier._types import DEFAULT_TIMEOUT_S, MAX_IN_FLIGHT, NOT_GIVEN, Model, NotGiven, check_alone
from atelier.classification import Classification, Method, Pictures, images
from atelier.errors import AtelierError, Cancelled, InvalidInput
from atelier.latents import Latents, check
from atelier.painting import (
    CONTENT,
    STYLE,
    AsyncPainting,
    CancelHandle,
    Commission,
    Knobs,
    Layers,
    Optimizer,
    Start,
    Stroke,
)
from atelier.sizing import Photos
from atelier.styling import Styles
from atelier.tasks import CLASSIFY, COLORIZE, GENERATE, PAINT, STYLIZE, UPSCALE, Task

T = TypeVar("T")


class AsyncFrames(AsyncIterator[Image.Image]):
    """`Frames` for `async for`."""

    def __init__(self, latents: Latents, pictures: AsyncIterator[Image.Image]) -> None:
        self.latents = latents
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self.latents)

    async def __anext__(self) -> Image.Image:
        try:
            return await anext(self._pictures)
        except RuntimeError as exc:
            check_alone(exc)
            raise


class AsyncClient:
    """`Client` for asyncio: same methods, options, errors. It stays in the event loop that first uses it.

    In another one its calls raise InvalidInput.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        patient: bool = False,
    ) -> None:
        self._address = _address.resolve(url)
        self._core = Core(self._address, timeout_s=timeout_s, patient=patient)
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._address)!r})"

    async def close(self) -> None:
        """Closes the connection; calls in flight raise Cancelled, as every later one. Closing again does nothing."""
        self._closed = True
        if "_channel" in vars(self):
            await self._channel.close()

    async def ready(
        self,
        model: str | None = None,
        *,
        version: int | None = None,
        timeout_s: float | NotGiven = NOT_GIVEN,
    ) -> bool:
        """Whether the server, or one of its models, can answer now. False too while nothing answers there."""
        return await self._run(self._core.ready(model, version, timeout_s))

    async def models(self, *, timeout_s: float | NotGiven = NOT_GIVEN) -> list[Model]:
        """What the server holds, sorted by name; see `Client.models`."""
        return await self._run(self._core.models(timeout_s))

    async def generate(
        self,
        latents: npt.ArrayLike,
        *,
        model: str = "wgan",
        version: int | None = None,
        timeout_s: float | NotGiven = NOT_GIVEN,
    ) -> list[Image.Image]:
        """Latents (N, 100), any N, to N RGB pictures, in order; see `Client.generate`."""
        frames = self.stream(latents, model=model, version=version, timeout_s=timeout_s)
        return [picture async for picture in frames]

    def stream(
        self,
        latents: npt.ArrayLike,
        *,
        model: str = "wgan",
        version: int | None = None,
        timeout_s: float | NotGiven = NOT_GIVEN,
    ) -> AsyncFrames:
        """As `generate`, but each picture as soon as it is there: `async for picture in client.stream(z)`."""
        vectors = check(latents, width=GENERATE.contract(model).inputs[0].shape[0])
        batches = split_batches(GENERATE, {"latent": vectors}, model)
        return AsyncFrames(
            vectors, self._results(GENERATE, batches, model, version, self._core.resolve_timeout(timeout_s))
        )

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
    ) -> AsyncFrames:
        """A walk through keyframes (N, 100), two or more: `steps` frames from each to the next, as by `paths.walk`."""
        latents = paths.walk(keyframes, steps=steps, path=path, loop=loop)
        return self.stream(latents, model=model, version=version, timeout_s=timeout_s)

    async def classify(
        self,
        pictures: Pictures,
        *,
        method: Method = "find",
        model: str = "classifier",
        version: int | None = None,
        timeout_s: float | NotGiven = NOT_GIVEN,
    ) -> list[Classification]:
        """One or more garments, any number, to as many answers, in order; see `Client.classify`."""
        prepared = await asyncio.to_thread(images, pictures, method=method)
        batches = split_batches(CLASSIFY, {"image": prepared}, model)
        results = self._results(CLASSIFY, batches, model, version, self._core.resolve_timeout(timeout_s))
        return [answer async for answer in results]

    async def styles(self, model: str = "style", *, timeout_s: float | NotGiven = NOT_GIVEN) -> tuple[str, ...]:
        """The names that `stylize` knows, as the server has them now."""
        STYLIZE.contract(model)
        return await self._run(self._core.members(model, "style_weights", timeout_s))

    async def stylize(
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
        """One or more pictures in the manner of paintings, in order; see `Client.stylize`."""
        prepare = partial(styling.Work.of, size=size, strength=strength, keep_color=keep_color)
        work = await asyncio.to_thread(prepare, pictures, style, STYLIZE.contract(model))
        if not work.originals:
            return []
        names = await self.styles(model, timeout_s=timeout_s)
        batches = await asyncio.to_thread(work.batches, names)
        results = self._results(STYLIZE, batches, model, version, self._core.resolve_timeout(timeout_s))
        return await asyncio.to_thread(work.finished, [picture async for picture in results], names)

    async def upscale(
        self,
        pictures: Photos,
        *,
        model: str = "upscaler",
        version: int | None = None,
        timeout_s: float | NotGiven = NOT_GIVEN,
    ) -> list[Image.Image]:
        """One or more pictures, four times as wide and as high, in order; see `Client.upscale`."""
        mosaic = await asyncio.to_thread(upscaling.Mosaic, pictures, UPSCALE.contract(model))
        batches = await asyncio.to_thread(mosaic.batches)
        tiles = self._results(UPSCALE, batches, model, version, self._core.resolve_timeout(timeout_s))
        async with contextlib.aclosing(tiles):
            async for tile in tiles:
                await asyncio.to_thread(mosaic.add, tile)
        return await asyncio.to_thread(mosaic.finished)

    async def colorize(
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
        """One or more pictures in colour, in order; see `Client.colorize`."""
        prepare = partial(colorizing.Work.of, stage=stage, saturation=saturation, size=size)
        work = await asyncio.to_thread(prepare, pictures, COLORIZE.contract(model))
        batches = await asyncio.to_thread(work.batches)
        results = self._results(COLORIZE, batches, model, version, self._core.resolve_timeout(timeout_s))
        return await asyncio.to_thread(work.finished, [picture async for picture in results])

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
    ) -> AsyncPainting:
        """The content painted in the manner of the style, step by step; see `Client.paint`.

        What is wrong with a picture is raised at the first stroke. To stop early, await the result's `close` or leave
        its `async with` block.
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
        prepare = partial(Commission.of, content, style, contract, knobs=knobs, size=size, keep_color=keep_color)
        handle = CancelHandle(self._address)
        strokes = self._strokes(prepare, model, version, self._core.resolve_timeout(timeout_s), handle)
        return AsyncPainting(strokes, handle)

    async def _strokes(
        self, prepare: Callable[[], Commission], model: str, version: int | None, timeout_s: float, handle: CancelHandle
    ) -> AsyncGenerator[Stroke, None]:
        commission = await asyncio.to_thread(prepare)
        tensors = await asyncio.to_thread(commission.tensors)
        opened = self._core.open_stream(PAINT, tensors, model, version, timeout_s, handle.attach)
        try:
            stream, stroke = await self._run(opened)
            while stroke is not None:
                next_stroke = self._core.read_stream(PAINT, stream, model, timeout_s)
                if last := stroke.iteration == stroke.total:
                    # Its end comes at once. Triton 2.51 can't unload a model whose stream was cancelled as it ended.
                    await self._run(next_stroke)
                if commission.wants(stroke):
                    yield await asyncio.to_thread(commission.finished, stroke)
                stroke = None if last else await self._run(next_stroke)
        finally:
            handle.cancel()  # a stream whose first answer is of no use, too

    async def _results(
        self, task: Task[T], batches: list[Tensors], model: str, version: int | None, timeout_s: float
    ) -> AsyncGenerator[T, None]:
        pending = deque(batches)
        if version is None and len(pending) > 1:
            version = await self._run(self._core.newest_version(model, timeout_s))
        in_flight: deque[asyncio.Task[list[T]]] = deque()
        try:
            while pending or in_flight:
                while pending and len(in_flight) < MAX_IN_FLIGHT:
                    flow = self._core.infer(task, pending.popleft(), model, version, timeout_s)
                    in_flight.append(asyncio.create_task(self._run(flow)))
                for result in await in_flight.popleft():
                    yield result
        finally:
            for call in in_flight:
                call.cancel()
            await asyncio.gather(*in_flight, return_exceptions=True)

    async def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    reply = await self._perform(step)
                except (grpc.RpcError, AtelierError) as exc:
                    step = flow.throw(exc)
                else:
                    step = flow.send(reply)
        except StopIteration as done:
            result: T = done.value
            return result

    async def _perform(self, step: Step) -> Any:
        if self._closed:
            raise self._cancelled_error()
        if self._loop is not asyncio.get_running_loop():
            raise InvalidInput(f"{self._address}: this client belongs to another event loop; make one in each")
        match step:
            case Sleep(seconds):
                return await asyncio.sleep(seconds)
            case Probe():
                return await _accepts(step)
            case Read(stream, timeout_s):
                return await self._await_call(stream.read(timeout_s))
            case Open(method, request):
                return _Stream(getattr(self._stub, method)(), request)
        return await self._await_call(getattr(self._stub, step.method)(step.request, timeout=step.timeout_s))

    async def _await_call(self, call: Awaitable[Any]) -> Any:
        """A call's response. Raises Cancelled if `close` has cancelled it, and not its task."""
        try:
            return await call
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task and task.cancelling():  # the caller's task, and not by close()
                raise
            raise self._cancelled_error() from exc

    def _cancelled_error(self) -> Cancelled:
        why = "this client is closed; make another one" if self._closed else "the painting was closed"
        return Cancelled(f"{self._address}: {why}")

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    @cached_property
    def _channel(self) -> Any:
        address = self._address
        if address.secure:
            credentials = grpc.ssl_channel_credentials()
            return grpc.aio.secure_channel(address.target, credentials, options=address.options)
        return grpc.aio.insecure_channel(address.target, options=address.options)

    @cached_property
    def _stub(self) -> Any:
        return service_pb2_grpc.GRPCInferenceServiceStub(self._channel)


class _Stream:
    """The stream of responses to one request; see `_transport._Stream`."""

    def __init__(self, call: Any, request: Any) -> None:
        self._call, self._request = call, request
        self._unsent = [request]
        self.cancel = call.cancel

    async def read(self, timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                while self._unsent:
                    await self._call.write(self._unsent.pop())
                message = await self._call.read()
                reply = raise_for_error(None if message is grpc.aio.EOF else message, self._request)
                if reply is not None and _wire.is_final(reply.infer_response):
                    await self._call.done_writing()
                    await self._call.read()
                return reply
        except TimeoutError as exc:
            raise ReadTimeout from exc
        except Refused:
            self.cancel()
            raise


async def _accepts(probe: Probe) -> bool:
    with contextlib.suppress(OSError, UnicodeError):
        opening = asyncio.open_connection(probe.host, probe.port)
        reader, writer = await asyncio.wait_for(opening, probe.timeout_s)
        with contextlib.closing(writer):
            try:
                return not probe.stays_s or bool(await asyncio.wait_for(reader.read(1), probe.stays_s))
            except TimeoutError:
                return True
    return False
