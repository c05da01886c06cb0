"""The painter in a real Triton: the stream, its end, its limits, paintings side by side, and clients that go away."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import counts
import failures
import fleet
import grpc
import numpy as np
import painter_stand_in
import pytest
import traces
import tritonclient.grpc
from conftest import need_tritonserver
from noise import picture
from PIL import Image
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from waiting import until

from atelier import AsyncClient, Client, Painting, Stroke, _wire, errors
from atelier.inprocess import InProcessClient
from serving.embedded import Embedded

PATIENCE_S = 60.0
STREAMS = 2
MAX_PIXELS = 300_000


SMALL, STYLE = picture(33, 40), picture(64, 20, seed=1)
LONG = {"iterations": 1000, "every": 1, "scales": 1}
"""With 400 x 400 pixels, minutes of work."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    need_tritonserver()
    root = tmp_path_factory.mktemp("painter") / "repository"
    with Embedded(painter_stand_in.repository(root, streams=STREAMS, max_pixels=MAX_PIXELS)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Embedded) -> Iterator[Client]:
    """One that waits while a painting that an earlier test has left still has its place."""
    with patient(server) as made:
        yield made


def patient(server: Embedded) -> Client:
    return Client(server.grpc, timeout_s=PATIENCE_S, patient=True)


def long_one(client: Client, seed: int = 0) -> Painting:
    """A painting that goes on for minutes, with its first canvas taken from it."""
    painting = client.paint(picture(400, 400, seed=seed), STYLE, **LONG)
    assert next(painting).iteration == 0
    return painting


def assert_room(server: Embedded, places: int = STREAMS) -> None:
    """So many paintings can be begun, within PATIENCE_S, which is less than those before would take."""
    with patient(server) as client:
        paintings = [client.paint(SMALL, STYLE, **LONG) for _ in range(places)]
        assert [next(painting).iteration for painting in paintings] == [0] * places


def refused(server: Embedded) -> int:
    """So many paintings, as one too many."""
    return failures.counted(server, "painter")["REJECTED"]


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image).astype(int)


# --- the stream


@pytest.mark.parametrize("optimizer", ["l-bfgs", "adam"])
@pytest.mark.parametrize("start", ["content", "noise"])
def test_strokes_come_in_order_and_get_better(client, optimizer, start):
    """The start, every fourth and the last, all of the content's size, each with its losses."""
    strokes = list(client.paint(SMALL, STYLE, iterations=10, every=4, optimizer=optimizer, start=start))
    assert [stroke.iteration for stroke in strokes] == [0, 4, 8, 10]
    assert {(stroke.total, stroke.image.size, stroke.image.mode) for stroke in strokes} == {(10, SMALL.size, "RGB")}
    assert all(stroke.image.info == {"model": "painter", "version": 1} for stroke in strokes)
    worth = [stroke.objective for stroke in strokes]
    assert worth == sorted(worth, reverse=True)
    for stroke in strokes:
        parts = stroke.content_loss + 5 * stroke.style_loss + 10 * stroke.total_variation
        assert stroke.objective == pytest.approx(parts, rel=1e-4)


def test_the_start_is_the_photo_itself(client):
    """No iterations: one canvas, the content to the pixel, with nothing lost of it."""
    (only,) = client.paint(SMALL, STYLE, iterations=0)
    np.testing.assert_array_equal(pixels(only.image), pixels(SMALL))
    assert (only.iteration, only.total) == (0, 0)
    assert only.content_loss == pytest.approx(0, abs=1e-6)
    assert only.style_loss > 0


async def test_strokes_that_nobody_asked_for_are_dropped(server, client, monkeypatch):
    """By either client: the painter gives more between those that are far apart."""
    monkeypatch.setattr("atelier.painting.PIXELS_APART", 1)
    ours = [stroke.iteration for stroke in client.paint(SMALL, STYLE, iterations=10, every=4)]
    async with AsyncClient(server.grpc, patient=True) as other:
        theirs = [stroke.iteration async for stroke in other.paint(SMALL, STYLE, iterations=10, every=4)]
    assert ours == theirs == [0, 4, 8, 10]


def test_a_seed_is_a_noise(client):
    """The same for the same, another for another."""
    first, again, other = (
        only.image for seed in (1, 1, 2) for only in client.paint(SMALL, STYLE, iterations=0, start="noise", seed=seed)
    )
    np.testing.assert_array_equal(pixels(first), pixels(again))
    assert (pixels(first) != pixels(other)).any()


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (64, 31), (400, 16)], ids=str)
def test_odd_sizes(client, size):
    """Whatever the pooling cuts off, the canvas is as large as the content; a style has a size of its own."""
    strokes = list(client.paint(picture(*size), picture(19, 47, seed=1), iterations=3))
    assert strokes[-1].image.size == size
    assert strokes[-1].objective < strokes[0].objective


@pytest.mark.parametrize(
    ("knob", "loss"), [("style_weight", "content_loss"), ("content_weight", "style_loss")], ids=["content", "style"]
)
def test_either_side_alone(client, knob, loss):
    """A weight of 0 leaves the objective to the other, whose loss falls from noise."""
    alone = {"content_weight": 1.0, "style_weight": 1.0, "tv_weight": 0.0, knob: 0.0}
    strokes = list(client.paint(SMALL, STYLE, iterations=20, start="noise", **alone))
    assert strokes[-1].objective == pytest.approx(getattr(strokes[-1], loss), rel=1e-4)
    assert getattr(strokes[-1], loss) < getattr(strokes[0], loss) / 2


def test_total_variation_smooths(client):
    """With much of it the last canvas has less than the first."""
    strokes = list(client.paint(SMALL, STYLE, iterations=10, tv_weight=1000))
    assert strokes[-1].total_variation < strokes[0].total_variation / 2


def test_layers_are_weighed(client):
    """Twice the weight of a layer is twice its loss; another layer has another."""

    def loss(**layers: Any) -> float:
        (only,) = client.paint(SMALL, STYLE, iterations=0, **layers)
        return only.style_loss

    deep, twice = (loss(style_layers={"conv5_1": weight}) for weight in (1, 2))
    assert twice == pytest.approx(2 * deep, rel=1e-4)
    assert loss(style_layers={"conv1_1": 1}) != pytest.approx(deep, rel=1e-2)


def test_coarse_to_fine(client):
    """Iterations are counted over all scales; coarse canvases are smaller, the last is not."""
    strokes = list(client.paint(picture(70, 64), STYLE, iterations=7, every=1, scales=2))
    assert [stroke.iteration for stroke in strokes] == list(range(8))
    assert {stroke.image.size for stroke in strokes} == {(35, 32), (70, 64)}
    assert strokes[-1].image.size == (70, 64)


def test_alpha_comes_back(client):
    """On canvases of every scale, and colours can be kept, too."""
    photo = picture(64, 64).convert("RGBA")
    photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    strokes = list(client.paint(photo, STYLE, iterations=4, every=1, scales=2, keep_color=True))
    for stroke in strokes:
        alpha = photo.getchannel("A").resize(stroke.image.size, Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(pixels(stroke.image.getchannel("A")), pixels(alpha))


async def test_the_async_client_paints_the_same(server, client):
    """The same strokes, to the pixel."""
    async with AsyncClient(server.grpc, patient=True) as other:
        theirs = [stroke async for stroke in other.paint(SMALL, STYLE, iterations=4, every=2)]
    ours = list(client.paint(SMALL, STYLE, iterations=4, every=2))
    assert [dataclasses.astuple(dataclasses.replace(stroke, image=None)) for stroke in theirs] == [
        dataclasses.astuple(dataclasses.replace(stroke, image=None)) for stroke in ours
    ]
    for one, another in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(pixels(one.image), pixels(another.image))


# --- without the SDK


@pytest.fixture
def ask(server: Embedded) -> Iterator[Callable[..., list[pb.ModelStreamInferResponse]]]:
    """Sends a request to the painter and returns all answers, as plain gRPC clients have them."""

    def answers(**tensors: np.ndarray[Any, Any]) -> list[pb.ModelStreamInferResponse]:
        request = pb.ModelInferRequest(model_name="painter")
        for name, array in tensors.items():
            _wire.put(request.inputs, request.raw_input_contents, name, array)
        return list(made.ModelStreamInfer(iter([request])))

    with grpc.insecure_channel(server.grpc) as channel:
        made: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        yield answers


CONTENT = np.zeros((16, 20, 3), np.uint8)


def test_pictures_alone_are_a_request(ask):
    """Every knob may be left out: 100 iterations, a canvas every tenth."""
    answers = ask(content=CONTENT + 90, style=np.asarray(STYLE))
    found = [_wire.tensors(a.infer_response.outputs, a.infer_response.raw_output_contents) for a in answers]
    assert [(tensors["iteration"].item(), tensors["total"].item()) for tensors in found] == [
        (iteration, 100) for iteration in range(0, 101, 10)
    ]
    assert all(tensors["image"].shape == CONTENT.shape and tensors["losses"].shape == (3,) for tensors in found)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        pytest.param({"iterations": np.array([1001], np.int32)}, "iterations: 1001 must be 0 to 1000", id="knob"),
        pytest.param({"style_weight": np.array([np.nan], np.float32)}, "style_weight: nan must be", id="nan"),
        pytest.param(
            {"content_weight": np.zeros(1, np.float32), "style_weight": np.zeros(1, np.float32)},
            "content_weight, style_weight: both are 0",
            id="nothing",
        ),
        pytest.param({"scales": np.array([2], np.int32)}, "scales: 2 are too many for this content", id="scales"),
        pytest.param({"content": CONTENT[:15]}, "content: has 20 x 15 pixels, and needs 16 or more", id="small"),
        pytest.param({"style": np.zeros((600, 600, 3), np.uint8)}, "style: has 600 x 600 pixels, more", id="large"),
        pytest.param({"content": CONTENT[..., :2]}, "content", id="two-channels"),
        pytest.param({"content": CONTENT.astype(np.float32)}, "content", id="floats"),
    ],
)  # fmt: skip
def test_a_bad_request_is_one_answer_of_one_line(ask, tensors, says):
    """It names the input; the server stays well, and no place is taken."""
    (answer,) = ask(**{"content": CONTENT, "style": CONTENT} | tensors)
    assert says in answer.error_message
    assert "\n" not in answer.error_message


# --- limits


def test_two_paintings_advance_side_by_side(client):
    """Read in turn, each gets on while the other is not done."""
    with long_one(client) as one, long_one(client, seed=1) as other:
        for count in range(1, 6):
            assert next(one).iteration == count
            assert next(other).iteration == count


def test_a_small_painting_is_done_while_a_large_one_goes_on(client):
    """Its turns are short, so it has many."""
    with long_one(client) as large:
        *_, last = client.paint(SMALL, STYLE, iterations=50)
        assert last.iteration == 50
        assert next(large).iteration < 1000


def test_one_too_many_is_overload(server, client):
    """It is refused at once with a hint when to come back; those under way are not disturbed."""
    with long_one(client) as one, long_one(client, seed=1) as other, Client(server.grpc) as hurried:
        with pytest.raises(errors.Overloaded, match="2 under way") as caught:
            next(hurried.paint(SMALL, STYLE))
        assert caught.value.retry_after_s > 0
        assert (next(one).iteration, next(other).iteration) == (1, 1)


def test_a_patient_client_waits_for_its_turn(server, client):
    """Refused at first, it begins when another painting has ended."""
    one, other = long_one(client), long_one(client, seed=1)
    with other, ThreadPoolExecutor(1) as threads:
        before = refused(server)
        waits = threads.submit(list, client.paint(SMALL, STYLE, iterations=1))
        counts.reached(lambda: refused(server), before + 1)
        one.close()
        assert [stroke.iteration for stroke in waits.result(PATIENCE_S)] == [0, 1]


def test_closing_a_painting_frees_its_place(server, client):
    """The server stops at the next evaluation; what else is painted goes on, and the server stays well."""
    one, other = long_one(client), long_one(client, seed=1)
    one.close()
    assert list(one) == []
    assert_room(server, places=1)
    assert next(other).iteration == 1
    other.close()
    assert client.ready("painter")


def test_closing_a_painting_ends_the_wait_of_another_thread(server, client):
    """A button that stops it, say: Cancelled, and its place is free."""
    painting = client.paint(picture(400, 400), STYLE, **{**LONG, "every": 1000})
    assert next(painting).iteration == 0
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(next, painting)

        def begun() -> bool:
            assert not waits.done()
            return painting._strokes.gi_running

        until(begun, lambda: f"the thread never asked for a stroke: {waits}")
        with pytest.raises(errors.InvalidInput, match="another thread or task is already waiting"):
            next(painting)
        painting.close()
        with pytest.raises(errors.Cancelled, match=f"^{server.grpc}: the painting was closed$"):
            waits.result(PATIENCE_S)
    assert_room(server)


async def test_closing_an_async_painting_ends_the_wait_of_another_task(server):
    """Cancelled, an error of the SDK, and not asyncio's own cancellation, which nobody asked for."""
    async with AsyncClient(server.grpc, timeout_s=PATIENCE_S, patient=True) as other:
        painting = other.paint(picture(400, 400), STYLE, **{**LONG, "every": 1000})
        assert (await anext(painting)).iteration == 0
        waits = asyncio.create_task(anext(painting))
        await asyncio.sleep(0)
        with pytest.raises(errors.InvalidInput, match="another thread or task is already waiting"):
            await anext(painting)
        await painting.close()
        with pytest.raises(errors.Cancelled, match="the painting was closed"):
            await waits
    await asyncio.to_thread(assert_room, server)


def test_leaving_a_painting_in_the_middle_frees_its_place(server, client):
    """By an error in the loop over it, say."""

    def look(painting: Painting) -> float:
        with painting:
            return next(painting).iteration / 0

    with pytest.raises(ZeroDivisionError):
        look(long_one(client))
    assert_room(server)


def test_a_client_that_is_gone_frees_its_place(server):
    """Its connection ends without a word; both of its paintings stop."""
    gone = patient(server)
    paintings = [long_one(gone, seed) for seed in range(STREAMS)]
    gone.close()
    for painting in paintings:
        with pytest.raises(errors.Cancelled):
            list(painting)
    assert_room(server)


async def test_an_async_painting_that_is_left_frees_its_place(server):
    """Whether it is closed, or its task is cancelled in the middle."""
    async with AsyncClient(server.grpc, timeout_s=PATIENCE_S, patient=True) as other:
        async with other.paint(picture(400, 400), STYLE, **LONG) as painting:
            assert (await anext(painting)).iteration == 0

        async def watch() -> None:
            async for stroke in other.paint(picture(400, 400), STYLE, **LONG):
                if not seen.done():
                    seen.set_result(stroke)

        seen: asyncio.Future[Stroke] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(watch())
        await seen
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.to_thread(assert_room, server)


@pytest.fixture
def idle(tmp_path):
    """A server of its own: paintings that other tests left may hold the places of the shared one for a moment."""
    need_tritonserver()
    root = tmp_path / "repository"
    with Embedded(painter_stand_in.repository(root, streams=STREAMS, max_pixels=MAX_PIXELS)) as server:
        yield server


def test_a_deadline_is_not_for_the_whole_painting(client):
    """It goes on for longer than the deadline, as no stroke takes as long."""
    deadline_s = 5.0
    end = time.monotonic() + 1.2 * deadline_s
    with client.paint(picture(400, 400), STYLE, **LONG, timeout_s=deadline_s) as strokes:
        seen = list(itertools.takewhile(lambda _: time.monotonic() < end, strokes))
    assert [stroke.iteration for stroke in seen] == list(range(len(seen)))
    assert seen[-1].iteration < seen[-1].total


def test_a_deadline_is_for_each_stroke(idle):
    """One that does not come in time after another is DeadlineExceeded, and ends the painting."""
    with patient(idle) as client:
        painting = client.paint(picture(400, 400), STYLE, **LONG, timeout_s=5)
        assert next(painting).iteration == 0
        with fleet.frozen(painter(idle)), pytest.raises(errors.DeadlineExceeded, match="within 5 s"):
            list(painting)
    assert_room(idle)


async def test_a_deadline_is_for_each_stroke_of_an_async_painting(idle):
    """As with the other client."""
    async with AsyncClient(idle.grpc, patient=True) as client:
        painting = client.paint(picture(400, 400), STYLE, **LONG, timeout_s=5)
        assert (await anext(painting)).iteration == 0
        with fleet.frozen(painter(idle)), pytest.raises(errors.DeadlineExceeded, match="within 5 s"):
            async for _ in painting:
                pass
    await asyncio.to_thread(assert_room, idle)


def test_a_server_whose_paintings_were_left_at_their_end_can_let_go_of_the_model(idle):
    """Leaving one at its last stroke cancels nothing, as Triton 2.51 can't unload a model after some cancellations."""
    with patient(idle) as client:
        for _ in range(5):
            next(client.paint(SMALL, STYLE, iterations=0))
    assert_room(idle)
    with tritonclient.grpc.InferenceServerClient(idle.grpc) as control:
        control.unload_model("painter")
        assert "successfully unloaded" in said(idle, "unloaded 'painter'")


def test_a_painting_outlasts_the_unloading_of_its_model(idle):
    """It goes on to its end, while nobody can begin another; then the model can be loaded again, and paints."""
    with patient(idle) as client, tritonclient.grpc.InferenceServerClient(idle.grpc) as control:
        painting = client.paint(picture(400, 400), STYLE, **LONG | {"iterations": 20})
        assert next(painting).iteration == 0
        control.unload_model("painter")
        with pytest.raises(errors.ModelNotReady):
            next(client.paint(SMALL, STYLE))
        assert client.ready()
        assert [stroke.iteration for stroke in painting] == list(range(1, 21))
        said(idle, "successfully unloaded 'painter'")
        control.load_model("painter")
        assert [stroke.iteration for stroke in client.paint(SMALL, STYLE, iterations=1)] == [0, 1]


def said(server: Embedded, words: str) -> str:
    """The line of the server's log that has these words, once it is there."""
    lines = until(
        lambda: [line for line in server.log.read_text().splitlines() if words in line],
        lambda: f"the server never said {words}",
    )
    return lines[0]


def painter(server: Embedded) -> int:
    """The number of its process."""
    (number,) = traces.processes(traces.server_id(server.http), "model")
    return number


def resident(server: Embedded) -> int:
    """Bytes of memory that the painter's process has."""
    pages = int(Path(f"/proc/{painter(server)}/statm").read_text().split()[1])
    return pages * 4096


def test_memory_is_returned(server, client):
    """After a painting of many pixels the process is as large as after one of few."""
    list(client.paint(SMALL, STYLE, iterations=2))
    before = resident(server)
    with client.paint(picture(540, 540), STYLE, iterations=1000, every=1, scales=1) as painting:
        for _ in range(4):
            next(painting)
        during = resident(server)
    assert_room(server)
    assert during > before + 60_000_000
    assert resident(server) < before + (during - before) / 4


# --- what is not there


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        pytest.param({"version": 3}, errors.UnknownVersion, "painter has no version 3", id="version"),
        pytest.param({"model": "nope"}, errors.UnknownModel, "nope", id="model"),
        pytest.param({"iterations": 1001}, errors.InvalidInput, "iterations 1001", id="knob"),
        pytest.param({"size": 8000}, errors.InvalidInput, "content: .*more than the limit", id="too-large"),
        pytest.param({"size": 17}, errors.InvalidInput, "content: .*16 or more", id="too-small"),
        pytest.param({"timeout_s": 0}, errors.InvalidInput, "timeout_s", id="timeout"),
        pytest.param({"scales": 6}, errors.InvalidInput, "scales: 6 are too many", id="scales"),
    ],
)
def test_bad_input_is_an_error_with_its_name(client, change, error, says):
    """What the SDK knows it refuses itself, the rest the server."""
    with pytest.raises(error, match=says):
        list(client.paint(SMALL, STYLE, **change))


def test_in_process_there_is_no_painter(server):
    """It says that painting needs a server, and lists no model that can't be asked."""
    with InProcessClient(server.repository) as near:
        assert near.models() == []
        assert near.ready("painter") is False
        with pytest.raises(errors.UnknownModel, match="needs a server"):
            next(near.paint(SMALL, STYLE))


def test_a_server_that_ends_in_the_middle_is_unreachable(tmp_path):
    """What was painted was painted; the next stroke says what happened."""
    need_tritonserver()
    with Embedded(painter_stand_in.repository(tmp_path / "repository")) as server, Client(server.grpc) as client:
        painting = long_one(client)
        for number in traces.processes(traces.server_id(server.http), "server"):
            os.kill(number, signal.SIGKILL)
        with pytest.raises((errors.ServerUnreachable, errors.ServerError)):
            list(painting)
