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
from atelier._failures import Late, Refused, answered
from atelier._protocol import Core, Flow, Open, Pause, Probe, Read, Step, batches
from atelier._types import DEFAULT_TIMEOUT_S, IN_FLIGHT, NOT_GIVEN, Model, NotGiven
from atelier.classification import Classification, Method, Pictures, images
from atelier.errors import AtelierError, Cancelled, InvalidInput
from atelier.latents import Latents, check
from atelier.painting import CONTENT, STYLE, AsyncPainting, Commission, Ending, Knobs, Layers, Optimizer, Start, Stroke
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
        return await anext(self._pictures)


class AsyncClient:
    """`Client` for asyncio: same methods, options, errors. It stays in the event loop that first uses it.

    In another one its calls raise InvalidInput.
    """

    def __init__(
        self,
        url: str = _address.DEFAULT_URL,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        patient: bool = False,
    ) -> None:
        self._address = _address.parse(url)
        self._core = Core(self._address, timeout_s=timeout_s, patient=patient)
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._address)!r})"

    async def close(self) -> None:
        """Ends the connection; calls under way raise Cancelled. Closing again does nothing."""
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
        """What the server holds, by name; of one that keeps its index to itself, what this SDK speaks to."""
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
        parts = batches(GENERATE, {"latent": vectors}, model)
        return AsyncFrames(vectors, self._results(GENERATE, parts, model, version, self._core.seconds(timeout_s)))

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
        """A walk through keyframes (N, 100): `steps` frames from each to the next, as `paths.walk` says."""
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
        parts = batches(CLASSIFY, {"image": prepared}, model)
        results = self._results(CLASSIFY, parts, model, version, self._core.seconds(timeout_s))
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
        take = partial(styling.Work.of, size=size, strength=strength, keep_color=keep_color)
        work = await asyncio.to_thread(take, pictures, style, STYLIZE.contract(model))
        if not work.originals:
            return []
        names = await self.styles(model, timeout_s=timeout_s)
        parts = await asyncio.to_thread(work.parts, names)
        results = self._results(STYLIZE, parts, model, version, self._core.seconds(timeout_s))
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
        parts = await asyncio.to_thread(mosaic.parts)
        async for tile in self._results(UPSCALE, parts, model, version, self._core.seconds(timeout_s)):
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
        take = partial(colorizing.Work.of, stage=stage, saturation=saturation, size=size)
        work = await asyncio.to_thread(take, pictures, COLORIZE.contract(model))
        parts = await asyncio.to_thread(work.parts)
        results = self._results(COLORIZE, parts, model, version, self._core.seconds(timeout_s))
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

        What is wrong with a picture is raised at the first stroke.
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
        end = Ending()
        return AsyncPainting(self._strokes(prepare, model, version, self._core.seconds(timeout_s), end), end)

    async def _strokes(
        self, prepare: Callable[[], Commission], model: str, version: int | None, timeout_s: float, end: Ending
    ) -> AsyncGenerator[Stroke, None]:
        wanted = await asyncio.to_thread(prepare)
        tensors = await asyncio.to_thread(wanted.tensors)
        begun = self._core.stream(PAINT, tensors, model, version, timeout_s)
        stream, stroke = await self._run(begun)
        end.of(stream)
        try:
            while stroke is not None:
                following = self._core.following(PAINT, stream, model, timeout_s)
                if done := stroke.iteration == stroke.total:
                    # Its end comes at once. Triton 2.51 can't unload a model whose stream was cancelled as it ended.
                    await self._run(following)
                if wanted.wants(stroke):
                    yield await asyncio.to_thread(wanted.finished, stroke)
                stroke = None if done else await self._run(following)
        finally:
            stream.cancel()

    async def _results(
        self, task: Task[T], parts: list[Tensors], model: str, version: int | None, timeout_s: float
    ) -> AsyncIterator[T]:
        waiting = deque(parts)
        if version is None and len(waiting) > 1:
            version = await self._run(self._core.newest(model, timeout_s))
        under_way: deque[asyncio.Task[list[T]]] = deque()
        try:
            while waiting or under_way:
                while waiting and len(under_way) < IN_FLIGHT:
                    flow = self._core.infer(task, waiting.popleft(), model, version, timeout_s)
                    under_way.append(asyncio.create_task(self._run(flow)))
                for result in await under_way.popleft():
                    yield result
        finally:
            for waits in under_way:
                waits.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    reply = await self._do(step)
                except (grpc.RpcError, AtelierError) as exc:
                    step = flow.throw(exc)
                else:
                    step = flow.send(reply)
        except StopIteration as done:
            result: T = done.value
            return result

    async def _do(self, step: Step) -> Any:
        if self._closed:
            raise self._ended()
        if self._loop is not asyncio.get_running_loop():
            raise InvalidInput(f"{self._address}: this client belongs to another event loop; make one in each")
        match step:
            case Pause(seconds):
                return await asyncio.sleep(seconds)
            case Probe(host, port, timeout_s):
                return await _accepts(host, port, timeout_s)
            case Read(stream, timeout_s):
                return await self._awaited(stream.read(timeout_s))
            case Open(method, request):
                return _Stream(getattr(self._stub, method)(), request)
        return await self._awaited(getattr(self._stub, step.method)(step.request, timeout=step.timeout_s))

    async def _awaited(self, call: Awaitable[Any]) -> Any:
        try:
            return await call
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task and task.cancelling():  # the caller's task, and not by close()
                raise
            raise self._ended() from exc

    def _ended(self) -> Cancelled:
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
    """Answers under way to one request; see the other client's."""

    def __init__(self, call: Any, request: Any) -> None:
        self._call, self._request = call, request
        self._unsent = [request]
        self.cancel = call.cancel

    async def read(self, timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                while self._unsent:
                    await self._call.write(self._unsent.pop())
                found = await self._call.read()
                reply = answered(None if found is grpc.aio.EOF else found, self._request)
                if reply is not None and _wire.is_final(reply.infer_response):
                    await self._call.done_writing()
                    await self._call.read()
                return reply
        except TimeoutError as exc:
            raise Late from exc
        except Refused:
            self.cancel()
            raise


async def _accepts(host: str, port: int, timeout_s: float) -> bool:
    with contextlib.suppress(OSError, UnicodeError):
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), timeout_s)
        writer.close()
        return True
    return False
