"""Painting in the SDK without a server: what is sent, what comes of a stream, and every way that it can end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from flows import FULL, REFUSED, Failed, core, drive
from PIL import Image
from tritonclient.grpc import service_pb2 as pb

from atelier import AsyncClient, errors, painting
from atelier._failures import ReadTimeout, Refused, raise_for_error
from atelier._models import MODELS
from atelier._protocol import MAX_TIMEOUT_S, Open, Read, Send, Sleep
from atelier._transport import _Stream
from atelier._types import NOT_GIVEN
from atelier.painting import CancelHandle, Commission, Knobs, Stroke
from atelier.tasks import PAINT

Code = grpc.StatusCode
THERE = pb.ModelMetadataResponse(name="painter", versions=["1"])


def photo(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    return Image.effect_noise((width, height), 90).convert(mode)


def commission(content: Image.Image, style: Image.Image, *, keep_color: bool = False, **knobs: object) -> Commission:
    return Commission.of(content, style, MODELS["painter"], knobs=Knobs(**knobs), size=None, keep_color=keep_color)


# --- what is sent


def test_pictures_and_knobs_fit_the_contract():
    """Every input of the model, the pictures as they are."""
    tensors = commission(photo(), photo(20, 50)).tensors()
    assert all(tensor.fits(tensors[tensor.name]) for tensor in MODELS["painter"].inputs)
    assert (tensors["content"].shape, tensors["style"].shape) == ((1, 30, 40, 3), (1, 50, 20, 3))


@pytest.mark.parametrize(
    ("size", "every", "apart"),
    [((40, 30), 1000, 1000), ((512, 384), 10, 10), ((512, 384), 1000, 20), ((1024, 1024), 10, 2), ((1024, 1024), 7, 1)],
    ids=str,
)
def test_of_a_large_picture_more_strokes_come_than_were_asked_for(size, every, apart):
    """So that the painter is never silent for long; those between are not wanted, the first and the last are."""
    wanted = commission(photo(*size), photo(), every=every, iterations=1000)
    assert wanted.tensors()["every"].item() == apart
    come = [*range(0, 1000, apart), 1000]
    kept = [count for count in come if wanted.wants(Stroke(photo(), count, 1000, 0, 0, 0, 0))]
    assert kept == [*range(0, 1000, every), 1000]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_a_picture_of_any_mode_is_sent_as_rgb(mode):
    """Whatever it is, the painter sees three channels of 8 bits."""
    picture = (
        photo(mode=mode) if mode != "I;16" else Image.fromarray(np.asarray(photo(mode="L")).astype(np.uint16) * 257)
    )
    assert commission(picture, picture).tensors()["content"].shape == (1, 30, 40, 3)


def test_a_style_is_sent_no_larger_than_the_content():
    """In pixels: the painter looks at no more. A smaller one stays as it is, and no side gets below 16."""
    large, small, narrow = (
        commission(photo(), style).tensors()["style"].shape[1:3]
        for style in (photo(4000, 3000), photo(20, 20), photo(3000, 20))
    )
    assert (large, small) == ((30, 40), (20, 20))
    assert narrow[0] == 16


@pytest.mark.parametrize(
    ("content", "style", "says"),
    [
        pytest.param(photo(15, 90), photo(), "content: .*16", id="content-small"),
        pytest.param(photo(), photo(15, 90), "style: .*16", id="style-small"),
        pytest.param(photo(1100, 1000), photo(), "content: .*limit of 1,048,576", id="content-large"),
        pytest.param("photo.jpg", photo(), "content: 'photo.jpg' is not one", id="content-a-path"),
        pytest.param(photo(), None, "style: None is not one", id="no-style"),
    ],
)
def test_a_bad_picture_is_refused_before_it_is_sent(content, style, says):
    """InvalidInput that says which of the two."""
    with pytest.raises(errors.InvalidInput, match=says):
        commission(content, style)


# --- what comes back


def test_alpha_and_colours_of_the_content():
    """A coarse canvas has both in its own size; what the model said of itself stays."""
    content = photo(mode="RGBA")
    content.putalpha(Image.linear_gradient("L").resize(content.size))
    canvas = photo(20, 15)
    canvas.info = {"model": "painter", "version": 1}
    made = commission(content, photo(), keep_color=True).finished(Stroke(canvas, 1, 2, 0.5, 0.25, 0.1, 0.75))
    assert (made.image.mode, made.image.size, made.image.info) == ("RGBA", (20, 15), canvas.info)
    assert (made.iteration, made.total, made.objective) == (1, 2, 0.75)
    assert made.image.getchannel("A").getextrema() != (255, 255)


async def test_an_async_painting_is_prepared_beside_the_event_loop(monkeypatch):
    """Pictures of any size are decoded and resized in another thread."""
    threads = []

    def of(*_: object, **__: object) -> Commission:
        threads.append(threading.current_thread())
        raise errors.InvalidInput("content: too large")

    monkeypatch.setattr(Commission, "of", of)
    async with AsyncClient("localhost:1") as client:
        with pytest.raises(errors.InvalidInput, match="too large"):
            await anext(client.paint(photo(), photo()))
    assert threads
    assert threading.current_thread() not in threads


def test_layers_as_people_type_them():
    """Names with weights; anything else is refused with the form."""
    assert painting.parsed("conv4_2=1, conv5_2=0.5") == {"conv4_2": 1, "conv5_2": 0.5}
    for text in ("", "conv4_2", "conv4_2=much", "conv4_2=1,,"):
        with pytest.raises(errors.InvalidInput, match="LAYER=WEIGHT"):
            painting.parsed(text)


# --- the stream, step by step


def reply(iteration: int, *, final: bool = False, error: str = "") -> pb.ModelStreamInferResponse:
    """An answer as the painter gives it, or its end."""
    made = pb.ModelStreamInferResponse(error_message=error)
    answer = made.infer_response
    answer.model_name, answer.model_version = "painter", "1"
    answer.parameters["triton_final_response"].bool_param = final
    if not final:
        numbers = {"iteration": np.int32([iteration]), "total": np.int32([2]), "objective": np.float32([0.75])}
        arrays = {"image": np.zeros((30, 40, 3), np.uint8), "losses": np.float32([0.5, 0.25, 0.1]), **numbers}
        for name, array in arrays.items():
            answer.outputs.add(
                name=name, datatype={"u": "UINT8", "i": "INT32", "f": "FP32"}[array.dtype.kind], shape=array.shape
            )
            answer.raw_output_contents.append(array.tobytes())
    return made


NAMES = [tensor.name for tensor in PAINT.contract("painter").inputs]


def begin(made, *replies):
    """Begins a painting of version 1 on these replies after the metadata: (its result or error, the steps)."""
    tensors = commission(photo(), photo()).tensors()
    return drive(made.open_stream(PAINT, tensors, "painter", 1, NOT_GIVEN, lambda _: None), *replies)


def test_a_painting_begins_with_one_request_and_its_first_stroke():
    """After a question whether the model is there; the request asks for an end that is said."""
    (stream, stroke), steps = begin(core(), THERE, "stream", reply(0))
    assert (stream, stroke.iteration, stroke.total, stroke.style_loss) == ("stream", 0, 2, 0.25)
    asked, opened, read = steps
    assert isinstance(asked, Send)
    assert (asked.method, asked.request.version) == ("ModelMetadata", "1")
    assert isinstance(opened, Open)
    assert opened.method == "ModelStreamInfer"
    assert opened.request.parameters["triton_enable_empty_final_response"].bool_param
    assert [list(tensor.shape) for tensor in opened.request.inputs[:3]] == [[30, 40, 3], [30, 40, 3], [1]]
    assert (read.stream, read.timeout_s) == ("stream", 10.0)


def test_strokes_follow_until_the_end_is_said():
    """Each with the whole timeout for itself; the empty final answer is no stroke."""
    made = core()
    for answer, expected in ((reply(1), 1), (reply(2), 2)):
        stroke, (step,) = drive(made.read_stream(PAINT, "stream", "painter", 3.0), answer)
        assert stroke.iteration == expected
        assert step == Read("stream", 3.0)
    assert drive(made.read_stream(PAINT, "stream", "painter", 3.0), reply(2, final=True))[0] is None


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        pytest.param(None, errors.ServerError, "broke off before its last answer", id="cut"),
        pytest.param(Refused("it went\nwrong", NAMES), errors.ServerError, "it went wrong", id="message"),
        pytest.param(Failed(Code.UNAVAILABLE, "Socket closed"), errors.ServerUnreachable, "no server", id="gone"),
        pytest.param(Failed(Code.INTERNAL, "no eyes"), errors.ServerError, "no eyes", id="failed"),
        pytest.param(Failed(Code.CANCELLED, ""), errors.Cancelled, "box:8001", id="cancelled"),
        pytest.param(ReadTimeout(), errors.DeadlineExceeded, r"within 3 s \(timeout_s\)", id="late"),
    ],
)  # fmt: skip
def test_a_stream_that_ends_otherwise_is_an_error(answer, error, says):
    """One line with the address; a painting that has begun is not begun again."""
    found, steps = drive(core().read_stream(PAINT, "stream", "painter", 3.0), answer)
    assert type(found) is error
    assert "box:8001" in str(found)
    with pytest.raises(error, match=says):
        raise found
    assert not [step for step in steps if isinstance(step, Open | Sleep)]


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("scales: 6 are too many", errors.InvalidInput),
        ("[request id: 7] content, style: both are black", errors.InvalidInput),
        ("painter: one more beside 2 under way exceeds maximum queue size", errors.Overloaded),
        (FULL, errors.Overloaded),
        ("painter: no eyes", errors.ServerError),
        ("no eyes", errors.ServerError),
    ],
    ids=["knob", "inputs", "painter-full", "queue-full", "graph", "words"],
)
def test_a_refused_painting_is_the_error_that_its_words_say(words, kind):
    """Before the first stroke. What begins with names of inputs is about them."""
    found, _ = begin(core(), THERE, "stream", Refused(words, NAMES))
    assert type(found) is kind


def test_a_streams_error_is_raised_and_any_other_reply_passes():
    """With the names that the request has; an end is no error."""
    request = pb.ModelInferRequest()
    request.inputs.add(name="scales")
    assert raise_for_error(None, request) is None
    assert raise_for_error(reply(1), request).infer_response.model_name == "painter"
    with pytest.raises(Refused) as refused:
        raise_for_error(reply(0, error="scales: 6 are too many"), request)
    assert refused.value.code() is Code.INVALID_ARGUMENT


def test_a_patient_client_begins_again_until_there_is_room():
    """Every time with a stream of its own."""
    full = Failed(Code.UNAVAILABLE, FULL)
    found, steps = begin(core(patient=True), THERE, "one", full, "two", full, "three", reply(0))
    assert found[0] == "three"
    assert len([step for step in steps if isinstance(step, Open)]) == 3


def test_a_connection_that_breaks_at_first_is_tried_again():
    """As any call is."""
    refused = Failed(Code.UNAVAILABLE, REFUSED)
    found, steps = begin(core(), THERE, "one", refused, "two", reply(0))
    assert found[0] == "two"
    assert len([step for step in steps if isinstance(step, Sleep)]) == 1


def test_a_version_that_is_not_there_is_named():
    """With those that are, as everywhere."""
    index = pb.RepositoryIndexResponse()
    index.models.add(name="painter", version="2", state="READY")
    gone = Failed(Code.NOT_FOUND, "Request for unknown model: 'painter' version 1 is not found")
    found, steps = begin(core(), gone, index)
    assert type(found) is errors.UnknownVersion
    assert str(found) == "box:8001: painter has no version 1 (served: painter 2)"
    assert not [step for step in steps if isinstance(step, Open)]


class Stream:
    cancelled = False

    def cancel(self):
        self.cancelled = True


def test_a_painting_can_be_cancelled_while_its_first_stroke_is_waited_for():
    """Its stream is known before anything is read from it."""
    handle, stream = CancelHandle("box:8001"), Stream()
    opening = core().open_stream(PAINT, commission(photo(), photo()).tensors(), "painter", 1, NOT_GIVEN, handle.attach)
    next(opening)
    assert isinstance(opening.send(THERE), Open)
    assert isinstance(opening.send(stream), Read)
    handle.cancel()
    assert stream.cancelled


def test_a_painting_that_is_cancelled_before_it_has_a_stream_ends_with_it():
    """Nothing is read from the stream, and none is tried after it, however patient the client."""
    handle, stream = CancelHandle("box:8001"), Stream()
    tensors = commission(photo(), photo()).tensors()
    opening = core(patient=True).open_stream(PAINT, tensors, "painter", 1, NOT_GIVEN, handle.attach)
    next(opening)
    assert isinstance(opening.send(THERE), Open)
    handle.cancel()
    with pytest.raises(errors.Cancelled, match="the painting was closed"):
        opening.send(stream)
    assert stream.cancelled


class Ended(Stream, Iterator[None]):
    """A call whose responses are at their end."""

    def __next__(self) -> None:
        raise StopIteration


def test_no_thread_is_to_wait_for_longer_than_it_can(monkeypatch):
    """On Windows that is 50 days, and a thread that was told to wait for longer would not wait at all."""
    waits: list[float] = []

    class Timer(threading.Timer):
        def start(self) -> None:
            waits.append(self.interval)
            super().start()

    monkeypatch.setattr(threading, "TIMEOUT_MAX", 4_294_967.0)
    monkeypatch.setattr(threading, "Timer", Timer)
    stream = _Stream(lambda requests: Ended(), pb.ModelInferRequest(), "box:8001")
    for timeout_s in (3.0, MAX_TIMEOUT_S):
        assert stream.read(timeout_s) is None
    assert waits == [3.0, 4_294_967.0]


def test_a_read_timeout_is_what_grpc_would_say():
    """So that it needs no way of its own."""
    assert isinstance(ReadTimeout(), grpc.RpcError)
    assert (ReadTimeout().code(), ReadTimeout().details()) == (Code.DEADLINE_EXCEEDED, "")
