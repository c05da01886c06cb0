"""The SDK's clients against a real Triton: pictures, versions, errors, overload, and servers that come and go."""

from __future__ import annotations

import asyncio
import functools
import socket
import socketserver
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import holding
import numpy as np
import numpy.typing as npt
import pytest
import scripts
import stand_in
import tritonclient.grpc
from PIL import Image
from ways import WAYS, Awaited, reach

from atelier import AsyncClient, Client, _protocol, errors, latents, paths
from atelier.inprocess import InProcessClient
from serving import repository as model_repository
from serving.embedded import Embedded, Ports
from training.models.wgan.spec import SPEC

MANY = latents.draw(100, seed=5)  # four batches
HELD = holding.held(SPEC)
PATIENCE_S = 60.0


def pixels(pictures: list[Image.Image]) -> npt.NDArray[np.int64]:
    return np.stack([np.asarray(picture) for picture in pictures]).astype(np.int64)


@functools.cache
def truth(vectors: bytes, version: int) -> npt.NDArray[np.uint8]:
    return stand_in.images(np.frombuffer(vectors, np.float32).reshape(-1, 100), version)


def assert_right(pictures: list[Image.Image], vectors: latents.Latents, version: int = 2) -> None:
    """Each picture is that of its own vector, to a level of rounding."""
    assert np.abs(pixels(pictures) - truth(vectors.tobytes(), version)).max() <= 1
    assert all(picture.info == {"model": "wgan", "version": version} for picture in pictures)


BOTH = pytest.mark.parametrize("connect", [Client, Awaited], ids=["sync", "async"])


@pytest.fixture(scope="module", params=WAYS)
def client(request, server) -> Iterator[Client]:
    with reach(request.param, server) as made:
        yield made


@pytest.fixture(scope="module")
def holding_server(tmp_path_factory) -> Iterator[Embedded]:
    """A server that has room for one request in its queue, and keeps it there."""
    folder = stand_in.repository(tmp_path_factory.mktemp("holding") / "repository", spec=HELD)
    with Embedded(holding.with_urgent(folder, HELD)) as server:
        yield server


@pytest.fixture
def hoarder(holding_server) -> Iterator[Embedded]:
    """The same, with nothing left in its queue after the test: a request whose caller has gone stays there."""
    yield holding_server
    let_go(holding_server)


def let_go(server: Embedded) -> None:
    holding.let_go(server, HELD, MANY[:1])


# --- what comes back


def test_any_number_of_latents_comes_back_in_order(client):
    """100 latents, more than a batch, give 100 pictures, each that of its own vector."""
    assert_right(client.generate(MANY), MANY)


def test_one_and_none(client):
    """One vector without a batch dimension is one picture; none are none."""
    assert_right(client.generate(MANY[0]), MANY[:1])
    assert client.generate(MANY[:0]) == client.generate([]) == []


def test_an_older_version_can_be_asked_for(client):
    """Version 1 answers as version 1, and no version is the newest."""
    assert_right(client.generate(MANY[:2], version=1), MANY[:2], version=1)
    assert_right(client.generate(MANY[:2], version=None), MANY[:2], version=2)


def test_a_walk_is_the_pictures_of_its_path(client):
    """`walk` draws what `paths.walk` says, the keyframes among them."""
    pictures = list(client.walk(MANY[:3], steps=4, path="slerp", loop=True))
    assert_right(pictures, paths.walk(MANY[:3], steps=4, path="slerp", loop=True))
    assert len(pictures) == 12


def test_models_and_readiness(client):
    """What is there is ready; what is not there is not, without an error."""
    assert client.ready() is True
    assert client.ready("wgan", version=1) is True
    assert client.ready("wgan", version=9) is False
    assert client.ready("nope") is False
    (model,) = client.models()
    assert (model.name, model.versions, model.state) == ("wgan", (1, 2), "READY")


def test_models_of_a_guarded_server(repository):
    """A server that keeps its index to itself says of each known model what it serves, and so do its errors."""
    with Embedded(repository, control_key="secret") as guarded, Client(guarded.grpc) as client:
        (model,) = client.models()
        assert (model.name, model.versions, model.state) == ("wgan", (1, 2), "READY")
        with pytest.raises(errors.UnknownVersion, match=r"wgan has no version 9 \(served: wgan 1, 2\)"):
            client.generate(MANY[:1], version=9)


def test_an_unknown_version_says_which_there_are(client):
    """UnknownVersion, for one batch and for many."""
    for vectors in (MANY[:1], MANY):
        with pytest.raises(errors.UnknownVersion, match=r"wgan has no version 9 \(served: wgan 1, 2\)"):
            client.generate(vectors, version=9)


@pytest.mark.parametrize(
    ("vectors", "options", "error"),
    [
        pytest.param(MANY[:, :99], {}, errors.InvalidInput, id="width"),
        pytest.param(np.full((1, 100), np.nan), {}, errors.InvalidInput, id="nan"),
        pytest.param(MANY, {"model": "nope"}, errors.UnknownModel, id="model"),
        pytest.param(MANY, {"version": 0}, errors.InvalidInput, id="version"),
        pytest.param(MANY, {"version": 2**63}, errors.InvalidInput, id="version-of-65-bits"),
        pytest.param(MANY, {"timeout_s": 0}, errors.InvalidInput, id="timeout"),
    ],
)
def test_bad_input_never_leaves_the_client(client, vectors, options, error):
    """The same errors whichever client it is."""
    with pytest.raises(error):
        client.generate(vectors, **options)


def test_in_process_pictures_are_triton_s(server):
    """The same vectors give the same pixels with and without a server."""
    with Client(server.grpc) as far, InProcessClient(server.repository) as near:
        assert np.abs(pixels(far.generate(MANY)) - pixels(near.generate(MANY))).max() <= 1


def test_a_walk_stays_on_one_version(tmp_path):
    """A version published while a walk is under way does not mix into it; the next walk has it."""
    folder = stand_in.repository(tmp_path / "repository", versions=(1,))
    with Embedded(folder) as server, Client(server.grpc) as client:
        frames = client.stream(latents.draw(200, seed=1))
        first = next(frames)
        model_repository.publish(stand_in.candidate(tmp_path / "new", 2), folder, "wgan")
        with tritonclient.grpc.InferenceServerClient(server.grpc) as control:
            control.load_model("wgan")
        assert client.models()[0].versions == (1, 2)
        assert {picture.info["version"] for picture in [first, *frames]} == {1}
        assert client.generate(MANY[:1])[0].info["version"] == 2


# --- streams


def test_a_stream_knows_its_length_from_the_start(server):
    """So that a progress bar has a total; the latents of its frames are there, too."""
    with Client(server.grpc) as client:
        frames = client.stream(MANY)
        assert len(frames) == 100
        np.testing.assert_array_equal(frames.latents, MANY)
        assert_right(list(frames), MANY)


def test_a_stream_can_be_left_in_the_middle(server):
    """The client answers other calls meanwhile and afterwards."""
    with Client(server.grpc) as client:
        frames = client.stream(MANY)
        next(frames)
        assert_right(client.generate(MANY[:2]), MANY[:2])
        del frames
        assert_right(client.generate(MANY[:2]), MANY[:2])


def test_threads_share_a_client(server):
    """Sixteen threads at once get each its own pictures."""
    with Client(server.grpc, patient=True) as client, ThreadPoolExecutor(16) as pool:
        for vectors, pictures in pool.map(lambda v: (v, client.generate(v)), np.split(MANY[:96], 16)):
            assert_right(pictures, vectors)


async def test_tasks_share_an_async_client(server):
    """And so do sixteen tasks."""
    async with AsyncClient(server.grpc, patient=True) as client:
        parts = np.split(MANY[:96], 16)
        for vectors, pictures in zip(parts, await asyncio.gather(*map(client.generate, parts)), strict=True):
            assert_right(pictures, vectors)


# --- deadlines, overload, closing


@BOTH
def test_a_deadline_is_kept(hoarder, connect):
    """A server that takes longer than `timeout_s` is DeadlineExceeded; the error names the time."""
    with connect(hoarder.grpc) as client, pytest.raises(errors.DeadlineExceeded, match=r"within 0\.2 s"):
        client.generate(MANY[:1], timeout_s=0.2)


@BOTH
def test_a_full_queue_is_overload_and_not_an_outage(hoarder, connect, monkeypatch):
    """The hurried client is told at once and when to come back; the patient one gets its picture."""
    put_off = threading.Event()

    def sleep(seconds: float) -> _protocol.Sleep:
        put_off.set()
        return sleeps(seconds)

    sleeps = _protocol.Sleep
    monkeypatch.setattr(_protocol, "Sleep", sleep)
    with Client(hoarder.grpc) as other, connect(hoarder.grpc, patient=True) as patient, ThreadPoolExecutor(2) as pool:
        waits = pool.submit(other.generate, MANY[:1])
        holding.wait_for_queue(hoarder, HELD)
        with connect(hoarder.grpc) as client, pytest.raises(errors.Overloaded) as caught:
            client.generate(MANY[1:2])
        assert caught.value.retry_after_s > 0
        comes_again = pool.submit(patient.generate, MANY[1:2])
        assert put_off.wait(PATIENCE_S)
        let_go(hoarder)
        assert_right(waits.result(), MANY[:1])
        holding.wait_for_queue(hoarder, HELD)
        let_go(hoarder)
        assert_right(comes_again.result(), MANY[1:2])


def test_closing_ends_a_call_that_waits(hoarder):
    """Another thread's call raises Cancelled, and so does every later one."""
    client = Client(hoarder.grpc)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(client.generate, MANY[:1])
        holding.wait_for_queue(hoarder, HELD)
        client.close()
        with pytest.raises(errors.Cancelled, match=f"^{hoarder.grpc}: this client is closed; make another one$"):
            waits.result()
    with pytest.raises(errors.Cancelled, match="closed"):
        client.models()
    client.close()


async def test_closing_ends_an_async_call_that_waits(hoarder):
    """The task gets Cancelled, an error of the SDK, and not asyncio's own cancellation."""
    client = AsyncClient(hoarder.grpc)
    waits = asyncio.create_task(client.generate(MANY[:1]))
    await asyncio.to_thread(holding.wait_for_queue, hoarder, HELD)
    await client.close()
    with pytest.raises(errors.Cancelled, match=f"^{hoarder.grpc}: this client is closed; make another one$"):
        await waits
    with pytest.raises(errors.Cancelled, match="closed"):
        await client.models()
    await client.close()


async def test_a_cancelled_task_is_cancelled(hoarder):
    """asyncio's cancellation goes through, and the client works on."""
    async with AsyncClient(hoarder.grpc) as client:
        waits = asyncio.create_task(client.generate(MANY[:1]))
        await asyncio.to_thread(holding.wait_for_queue, hoarder, HELD)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        assert await client.ready()


# --- servers that are not there, or something else


@BOTH
@pytest.mark.parametrize("port", ["http", "metrics"])
def test_triton_s_other_ports_are_told_apart_from_none(server, connect, port):
    """NotATritonServer says which port it should be."""
    with connect(getattr(server, port)) as client, pytest.raises(errors.NotATritonServer, match="8001"):
        client.models()


@BOTH
def test_another_grpc_server_is_no_triton(connect):
    """It answers "unimplemented"."""
    other = grpc.server(ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    try:
        with connect(f"127.0.0.1:{port}") as client, pytest.raises(errors.NotATritonServer):
            client.models()
    finally:
        other.stop(None).wait()


@BOTH
def test_a_forwarded_port_without_a_server_behind_it_is_no_stranger(connect):
    """As `kubectl port-forward` to a pod that does not listen yet: taken, and closed."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as forwarded:
        threading.Thread(target=forwarded.serve_forever, daemon=True).start()
        url = f"127.0.0.1:{forwarded.server_address[1]}"
        with connect(url) as client, pytest.raises(errors.ServerUnreachable, match="no server answers"):
            client.models()
        forwarded.shutdown()


@BOTH
def test_a_port_that_never_says_a_word_runs_into_the_deadline(connect):
    """A connection alone is not taken for an answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        with connect(url) as client, pytest.raises(errors.DeadlineExceeded):
            client.models(timeout_s=0.5)


@BOTH
def test_nothing_there_is_unreachable(connect):
    """Nobody listens, or the name does not exist, or can't; `ready` is just False."""
    for url in (f"127.0.0.1:{scripts.free_port()}", "no-such-host.invalid:8001", "no..such.host:8001"):
        with connect(url) as client:
            assert client.ready() is False
            with pytest.raises(errors.ServerUnreachable, match="make serve"):
                client.models()


def test_a_client_outlives_its_server(tmp_path):
    """While the server is down calls fail as unreachable; once it is back on its port the same client works."""
    folder = stand_in.repository(tmp_path / "repository")
    ports = Ports(*(scripts.free_port() for _ in range(3)))
    with Embedded(folder, ports=ports) as first:
        client = Client(first.grpc)
        assert_right(client.generate(MANY[:2]), MANY[:2])
    with client:
        assert client.ready() is False
        with pytest.raises(errors.ServerUnreachable):
            client.generate(MANY[:2])
        with Embedded(folder, ports=ports):
            assert_right(client.generate(MANY[:2]), MANY[:2])


# --- in process


def test_a_broken_model_is_the_server_s_error(tmp_path):
    """ONNX Runtime's complaint comes as ServerError, on one line, with the file."""
    broken = tmp_path / "wgan" / "1" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a model")
    with InProcessClient(tmp_path) as client, pytest.raises(errors.ServerError) as caught:
        client.generate(MANY[:1])
    assert str(broken) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_the_model_is_an_unknown_model(tmp_path):
    """And a folder that is not there is bad input."""
    with InProcessClient(tmp_path) as client:
        assert client.models() == []
        with pytest.raises(errors.UnknownModel, match=r"served: nothing"):
            client.generate(MANY[:1])
    with pytest.raises(errors.InvalidInput, match="no such folder"):
        InProcessClient(tmp_path / "missing")


def test_leaving_threads_behind_is_no_part_of_the_sdk(server):
    """After a stream has ended no thread of the SDK is left."""
    with Client(server.grpc) as client:
        client.generate(MANY)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("atelier")]
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)


def test_the_repository_s_path_may_be_text_or_path(server):
    """Both name the same models."""
    for path in (str(server.repository), Path(server.repository)):
        with InProcessClient(path) as client:
            assert client.ready("wgan")
