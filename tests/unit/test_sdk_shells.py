"""What the two clients share, and what importing the SDK costs."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

import grpc
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

import atelier
from atelier import errors
from atelier.inprocess import InProcessClient

CALLS = [
    "ready", "models", "generate", "stream", "walk", "classify", "styles", "stylize", "upscale", "colorize", "paint",
]  # fmt: skip
OF_TWO = {"stylize", "paint"}
"""Calls about two things: a picture and a style."""


def public(client: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(member)
        for name, member in inspect.getmembers(client, inspect.isfunction)
        if not name.startswith("_") or name == "__init__"
    }


def test_both_clients_have_the_same_methods_and_options():
    """Names, order, kinds and defaults of every parameter agree."""
    plain, asynchronous = public(atelier.Client), public(atelier.AsyncClient)
    assert set(plain) == {"__init__", "close", *CALLS}
    assert {n: list(s.parameters.values()) for n, s in plain.items()} == {
        n: list(s.parameters.values()) for n, s in asynchronous.items()
    }


def test_both_clients_give_the_same_kinds_of_answers():
    """The annotations differ only where one is asynchronous."""
    differ = {
        name
        for name, signature in public(atelier.Client).items()
        if signature.return_annotation != public(atelier.AsyncClient)[name].return_annotation
    }
    assert differ == {"stream", "walk", "paint"}  # Frames and AsyncFrames, Painting and AsyncPainting
    for name in {"close", *CALLS} - differ:
        assert inspect.iscoroutinefunction(getattr(atelier.AsyncClient, name))


def test_the_client_in_process_is_a_client():
    """It overrides nothing that callers use."""
    assert issubclass(InProcessClient, atelier.Client)
    assert {n for n in vars(InProcessClient) if not n.startswith("_")} == set()


@pytest.mark.parametrize("client", [atelier.Client, atelier.AsyncClient])
@pytest.mark.parametrize("name", ["__init__", *CALLS])
def test_options_are_keyword_only_and_every_call_has_a_deadline(client, name):
    """At most what the call is about goes by position; `timeout_s` is there, and not None by default."""
    _self, *parameters = inspect.signature(getattr(client, name)).parameters.values()
    by_position = [p for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert len(by_position) <= 1 + (name in OF_TWO)
    default = next(p.default for p in parameters if p.name == "timeout_s")
    assert default is atelier.NOT_GIVEN or 0 < default < 3600


@pytest.mark.parametrize("client", [atelier.Client, atelier.AsyncClient])
@pytest.mark.parametrize("timeout_s", [sys.maxsize, 1e300, 1.1e9], ids=repr)
def test_a_deadline_beyond_what_grpc_counts_is_refused(client, timeout_s):
    """It would have passed at once; the line says how long one may be."""
    with pytest.raises(errors.InvalidInput, match=r"timeout_s .*: must be .* 1,000,000,000 at most"):
        client("localhost:1", timeout_s=timeout_s)
    assert client("localhost:1", timeout_s=1e9)


@pytest.mark.parametrize("client", [atelier.Client, atelier.AsyncClient])
def test_a_walk_through_vectors_of_no_numbers_is_refused(client):
    """As any that the model does not take."""
    with pytest.raises(errors.InvalidInput, match=r"keyframes: need the shape \(N, D\), have \(2, 0\)"):
        client("localhost:1").walk([[], []])


@pytest.mark.parametrize("way", ["sync", "async", "in-process"])
def test_an_empty_list_of_latents_is_no_picture(way, tmp_path):
    """As of pictures none are none; nobody is asked."""
    client = InProcessClient(tmp_path) if way == "in-process" else atelier.Client("localhost:1")
    made = asyncio.run(atelier.AsyncClient("localhost:1").generate([])) if way == "async" else client.generate([])
    assert made == []


@pytest.mark.parametrize("model", [3, [], "\udcff"], ids=["number", "list", "no-text"])
def test_what_cannot_be_the_name_of_a_model_is_refused(model):
    """Before anything is sent, and by whatever asks about one."""
    client = atelier.Client("localhost:1")
    asked = (client.ready, client.styles, lambda name: client.generate(atelier.latents.draw(1, seed=1), model=name))
    for ask in asked:
        with pytest.raises(errors.InvalidInput, match=r"^model .*: must be the name of one$"):
            ask(model)


class Useless(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A server whose painter's answers have nothing in them; says when its stream has ended."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ModelMetadataResponse:
        return pb.ModelMetadataResponse(name=request.name, versions=["1"])

    def ModelStreamInfer(
        self, requests: Iterator[pb.ModelInferRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ModelStreamInferResponse]:
        context.add_callback(self.ended.set)
        yield pb.ModelStreamInferResponse(infer_response=pb.ModelInferResponse(model_name="painter", model_version="1"))
        self.ended.wait()


@pytest.fixture
def useless() -> Iterator[tuple[Useless, str]]:
    """That server, and its address."""
    with serving(servicer := Useless()) as address:
        yield servicer, address


@contextlib.contextmanager
def serving(servicer: service_pb2_grpc.GRPCInferenceServiceServicer) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_painting_whose_first_answer_is_of_no_use_is_cancelled(useless):
    """On the server, too, while the client and the painting are still there."""
    servicer, address = useless
    with atelier.Client(address) as client:
        painting = client.paint(Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16)))
        with pytest.raises(errors.ServerError, match="its answer has no output"):
            next(painting)
        assert servicer.ended.wait(30)


async def test_an_async_painting_whose_first_answer_is_of_no_use_is_cancelled(useless):
    """As a synchronous one."""
    servicer, address = useless
    async with atelier.AsyncClient(address) as client:
        painting = client.paint(Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16)))
        with pytest.raises(errors.ServerError, match="its answer has no output"):
            await anext(painting)
        assert await asyncio.to_thread(servicer.ended.wait, 30)


class Waiting(Useless):
    """A server that answers nothing, once it has been asked for a painting or a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()

    def ModelInfer(self, request: pb.ModelInferRequest, context: grpc.ServicerContext) -> None:
        context.add_callback(self.ended.set)
        self.asked.set()
        self.ended.wait()

    def ModelStreamInfer(
        self, requests: Iterator[pb.ModelInferRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ModelStreamInferResponse]:
        context.add_callback(self.ended.set)
        self.asked.set()
        self.ended.wait()
        yield from ()


@pytest.fixture
def waiting() -> Iterator[tuple[Waiting, str]]:
    """That server, and its address."""
    with serving(servicer := Waiting()) as address:
        yield servicer, address


GRAY = Image.new("RGB", (16, 16))


@pytest.mark.parametrize(
    ("asked", "closed", "says"),
    [
        pytest.param("stream", "client", "this client is closed; make another one", id="a-call"),
        pytest.param("paint", "client", "this client is closed; make another one", id="the-client-of-a-painting"),
        pytest.param("paint", "asked", "the painting was closed", id="a-painting"),
    ],
)
def test_what_is_closed_during_a_call_says_so(asked, closed, says, waiting):
    """To the thread that waits, in the SDK's words; meanwhile no other may wait for the next of the same."""
    servicer, address = waiting
    client = atelier.Client(address)
    made = client.stream(atelier.latents.draw(1, seed=1)) if asked == "stream" else client.paint(GRAY, GRAY)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(next, made)
        assert servicer.asked.wait(30)
        with pytest.raises(errors.InvalidInput, match=r"^another thread or task is already waiting"):
            next(made)
        {"client": client, "asked": made}[closed].close()
        with pytest.raises(errors.Cancelled, match=f"^{address}: {says}$"):
            waits.result(30)
    client.close()


def test_every_error_is_in_the_one_tree():
    """To catch AtelierError is to catch everything in errors.py; each says in a docstring what it is."""
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(found) > 10
    assert all(issubclass(error, errors.AtelierError) and error.__doc__ for error in found)


@pytest.mark.parametrize("error", [errors.DeadlineExceeded("late"), errors.Overloaded("full", retry_after_s=1.5)])
def test_an_error_goes_from_process_to_process(error):
    """With all that it says."""
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))


def test_an_async_client_is_of_one_event_loop():
    """A second one, as a second `asyncio.run` makes, is told so in the SDK's words."""
    client = atelier.AsyncClient("localhost:1")
    assert asyncio.run(client.ready()) is False
    with pytest.raises(errors.InvalidInput, match="localhost:1: this client belongs to another event loop"):
        asyncio.run(client.ready())
    asyncio.run(client.close())


def test_importing_the_sdk_does_not_import_grpc():
    """gRPC and tritonclient wait until a client is asked for."""
    program = (
        "import sys, atelier; print([m for m in ('grpc', 'tritonclient', 'onnxruntime', 'av') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    """`__all__` holds no name that cannot be had, and a wrong one is an AttributeError."""
    assert all(getattr(atelier, name) is not None for name in atelier.__all__)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = atelier.nothing_of_the_kind


def test_type_checkers_are_told_that_the_sdk_is_typed():
    """py.typed is part of the package."""
    assert resources.files("atelier").joinpath("py.typed").is_file()


def test_the_package_brings_its_licence():
    """A build takes none from the folder above, and the licence asks that every copy has it."""
    root = Path(__file__).parents[2]
    assert (root / "clients" / "LICENSE").read_text() == (root / "LICENSE").read_text()


def test_a_type_checker_knows_every_name_and_no_other(tmp_path):
    """mypy, strict, of a caller's program: what is lazy has its type, and what is misspelt is no name."""
    program = tmp_path / "program.py"
    program.write_text("import atelier\n" + "".join(f"atelier.{name}\n" for name in [*atelier.__all__, "Clent"]))
    mypy = [sys.executable, "-m", "mypy", "--config-file=", "--strict", f"--cache-dir={tmp_path / 'cache'}"]
    there = {**os.environ, "MYPYPATH": str(Path(atelier.__file__).parents[1])}
    done = subprocess.run([*mypy, "--follow-imports=silent", program], env=there, capture_output=True, text=True)
    (found,) = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert f'{program}:{len(atelier.__all__) + 2}: error: Module has no attribute "Clent"' in found
