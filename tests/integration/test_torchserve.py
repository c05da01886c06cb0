"""A real TorchServe answers as Triton does, forms batches, and tells each caller what is wrong with its own request."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import need_torchserve
from google.protobuf import text_format

from serving import verify
from serving.repository import CONFIG, GOLDEN, REPOSITORY, config
from serving.torchserve import client
from serving.torchserve.server import TorchServe
from tests.load.questions import mismatch, questions
from tests.load.targets import Failed, gathered
from tests.load.torchserve_target import TorchServe as Target

MODELS = ("classifier", "colorizer", "style", "upscaler", "wgan")
SHORT_QUEUE = 4
TIMEOUT_S = 60.0
BYTES = b"application/octet-stream"
INFERENCE, MANAGEMENT = "inference.InferenceAPIsService", "management.ManagementAPIsService"
WGAN = b"\x0a\x04wgan"
"""a message whose first field is a model's name"""
OPEN_TO_ALL = "inference_address=http://0.0.0.0:8080\nenable_model_api=true\ndisable_token_authorization=true\n"

Arrays = dict[str, Any]
Ask = Callable[..., tuple[Arrays, int]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """The models that ship, with one worker each, so that requests have to share one; wgan's queue is short. The
    environment is that of somebody who has a TorchServe, whose settings open it to all."""
    need_torchserve()
    folder = tmp_path_factory.mktemp("torchserve")
    open_to_all = folder / "theirs.properties"
    open_to_all.write_text(OPEN_TO_ALL)
    root = folder / "repository"
    shutil.copytree(REPOSITORY, root)
    for path in root.glob(f"*/{CONFIG}"):
        found = config(root, path.parent.name)
        for group in found.instance_group:
            group.count = 1
        if found.name == "wgan":
            found.dynamic_batching.default_queue_policy.max_queue_size = SHORT_QUEUE
        path.write_text(text_format.MessageToString(found))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TS_CONFIG_FILE", str(open_to_all))
        patched.setenv("TS_MODEL_SERVER_HOME", str(folder))
        patched.setenv("LOG_LOCATION", str(folder / "theirs"))
        with TorchServe(root) as server:
            yield server


@pytest.fixture(scope="module")
def ask(server: TorchServe) -> Ask:
    """Asks a model, and gives its outputs and how many requests shared their batch."""

    def asked(model: str, arrays: Arrays, token: str = server.token, kind: bytes = BYTES) -> tuple[Arrays, int]:
        path, headers, body = client.request(model, arrays, token)
        body = body.replace(BYTES, kind)
        status, reply = http_answer(server.http, "POST", path, headers, body)
        if status != HTTPStatus.OK:
            raise NotAnsweredError(status, json.loads(reply)["message"])
        return client.response(reply, config(server.repository, model).output)

    return asked


class NotAnsweredError(Exception):
    """TorchServe's own status, and its words."""


def http_answer(address: str, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def golden(model: str) -> tuple[Arrays, Arrays]:
    """Inputs, and what is right."""
    found = config(REPOSITORY, model)
    with np.load(REPOSITORY / model / "1" / GOLDEN) as arrays:
        inputs, outputs = ({each.name: arrays[each.name] for each in part} for part in (found.input, found.output))
    return inputs, outputs


def agrees(answer: Arrays, right: Arrays) -> None:
    for name, array in right.items():
        assert (answer[name].shape, answer[name].dtype) == (array.shape, array.dtype)
        atol = verify.INTEGER_ATOL if array.dtype.kind in "iu" else verify.FLOAT_ATOL
        assert np.abs(answer[name].astype(np.float64) - array).max() <= atol


@pytest.mark.parametrize("model", MODELS)
def test_golden_batch(ask: Ask, model: str) -> None:
    """Each model answers its golden batch within what serving.verify allows Triton."""
    inputs, right = golden(model)
    agrees(ask(model, inputs)[0], right)


def test_serves_what_answers_once(server: TorchServe) -> None:
    """All that answer a request with a response are served; the others are named, with the reason."""
    assert server.models == list(MODELS)
    assert server.left_out == {"painter": "answers with a stream", "wgan_x4": "an ensemble of others"}


def test_batches(ask: Ask) -> None:
    """Requests that wait together share a batch, and each gets its own answer."""
    inputs, right = golden("classifier")
    rows = range(len(inputs["image"]))

    def one(row: int) -> int:
        answer, batch = ask("classifier", {"image": inputs["image"][row : row + 1]})
        agrees(answer, {"probabilities": right["probabilities"][row : row + 1]})
        return batch

    with ThreadPoolExecutor(32) as pool:
        assert max(pool.map(one, [*rows] * 40)) > 1


def assert_refused(server: TorchServe, ask: Ask, model: str, arrays: Arrays, says: str, **options: Any) -> None:
    """In one line, while who shares its batch is answered and the worker lives."""
    inputs, right = golden(model)
    with ThreadPoolExecutor(2) as pool:
        good, bad = pool.submit(ask, model, inputs), pool.submit(ask, model, arrays, **options)
        with pytest.raises(client.Refused, match=says) as error:
            bad.result()
        agrees(good.result()[0], right)
    assert "\n" not in str(error.value)
    assert "died" not in server.log.read_text()


@pytest.mark.parametrize(
    ("model", "arrays", "says"),
    [
        pytest.param("classifier", {}, "no input 'image'", id="no input"),
        pytest.param("classifier", {"image": np.zeros((1, 27, 28, 1), np.uint8)}, r"shape \[27, 28, 1\]", id="shape"),
        pytest.param("classifier", {"image": np.zeros((1, 28, 28), np.uint8)}, "image: shape", id="rank"),
        pytest.param("classifier", {"image": np.zeros((0, 28, 28, 1), np.uint8)}, "a batch of 0", id="no batch"),
        pytest.param("classifier", {"image": np.zeros((65, 28, 28, 1), np.uint8)}, "batch of 65", id="large batch"),
        pytest.param("classifier", {"image": np.zeros((1, 28, 28, 1), np.float32)}, "bytes too many", id="wide dtype"),
        pytest.param("wgan", {"latent": np.zeros((1, 100), np.uint8)}, "too few for float32", id="narrow dtype"),
        pytest.param("upscaler", {"low_res": np.zeros((1, 1024, 1024, 3), np.uint8)}, "max_pixels", id="large picture"),
        pytest.param(
            "colorizer",
            {"gray": np.zeros((2, 32, 32, 1), np.uint8), "stage": np.zeros((1, 1), np.float32)},
            "batches of different sizes",
            id="batches differ",
        ),
    ],
)
def test_bad_tensor(server: TorchServe, ask: Ask, model: str, arrays: Arrays, says: str) -> None:
    """A bad tensor is refused by its name."""
    assert_refused(server, ask, model, arrays, says)


@pytest.mark.parametrize("kind", [b"application/json", b"text/plain"], ids=["JSON", "text"])
def test_part_that_is_decoded(server: TorchServe, ask: Ask, kind: bytes) -> None:
    """TorchServe itself makes a number or a text of such a part; it is refused like any other bad tensor."""
    five = np.array(b"5")  # no dimensions and one byte
    assert_refused(server, ask, "classifier", {"image": five}, "image: not bytes; send it as", kind=kind)


def test_target(server: TorchServe) -> None:
    """The load generator's target gives every model's answers, and tells a full queue from other faults."""
    target = Target(name="torchserve", url=server.http, token=server.token, repository=server.repository)

    async def ask() -> None:
        asked = [question for model in MODELS for question in questions(server.repository, model, 1)]
        async with target.opened(asked) as calls:
            for call, question in zip(calls, asked, strict=True):
                (answer,) = await gathered(call)
                assert mismatch(answer, question) is None
            answers = await gathered(calls[MODELS.index("wgan")], 40 * SHORT_QUEUE)
        kinds = {answer.kind for answer in answers if isinstance(answer, Failed)}
        assert kinds == {"overloaded"}
        assert any(not isinstance(answer, BaseException) for answer in answers)

    asyncio.run(ask())


def test_target_without_a_server() -> None:
    """Nobody there is "unavailable", as with Triton."""

    async def ask() -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            target = Target(name="torchserve", url=f"127.0.0.1:{nobody.getsockname()[1]}", token="")
            async with target.opened(questions(REPOSITORY, "classifier", 1)) as (call,):
                (answer,) = await gathered(call)
        assert isinstance(answer, Failed)
        assert answer.kind == "unavailable"

    asyncio.run(ask())


# --- safety


def managed(server: TorchServe, token: str, method: str = "GET", path: str = "/models") -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    status, answer = http_answer(server.management, method, path, headers)
    return status, answer.decode()


def test_inference_needs_its_token(server: TorchServe, ask: Ask) -> None:
    """No token, and that of management, are refused."""
    for token in ("", server.management_token):
        with pytest.raises(NotAnsweredError, match="Token Authorization failed"):
            ask("classifier", golden("classifier")[0], token)


def test_management_needs_its_token(server: TorchServe) -> None:
    """No token, and that of inference, are refused; its own is not."""
    for token in ("", server.token):
        status, text = managed(server, token)
        assert status == 400
        assert "Token Authorization failed" in text
    status, text = managed(server, server.management_token)
    assert status == 200
    assert {model["modelName"] for model in json.loads(text)["models"]} == set(MODELS)


def test_tokens_are_private(server: TorchServe) -> None:
    """Only the owner reads the file with the tokens."""
    assert server.keys.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param("POST", "/models?url=http://127.0.0.1:9/model.mar", id="by address"),
        pytest.param("POST", "/models?url=wgan.mar&model_name=other", id="from its folder"),
        pytest.param("DELETE", "/models/wgan/1", id="taken away"),
    ],
)
def test_no_model_comes_or_goes(server: TorchServe, method: str, path: str) -> None:
    """A model is code: even who holds the management token adds none, and takes none away."""
    assert managed(server, server.management_token, method, path)[0] == 405


def told_over_grpc(port: int, method: str, message: bytes, token: str) -> tuple[grpc.StatusCode, str]:
    """Why a call is refused, by protocol buffers that are written by hand."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(f"/org.pytorch.serve.grpc.{method}")
        with pytest.raises(grpc.RpcError) as error:
            call(message, metadata=[("authorization", f"Bearer {token}")] if token else [], timeout=TIMEOUT_S)
    return error.value.code(), error.value.details()


@pytest.mark.parametrize("method", [f"{INFERENCE}/Predictions", f"{MANAGEMENT}/ListModels"])
def test_grpc_needs_its_tokens(server: TorchServe, method: str) -> None:
    """As REST does: no token, and that of the other interface, are refused."""
    ports = server.running.ports
    port, other = (
        (ports.grpc, server.management_token) if INFERENCE in method else (ports.management_grpc, server.token)
    )
    for token in ("", other):
        code, why = told_over_grpc(port, method, WGAN, token)
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "Token Authorization failed" in why


@pytest.mark.parametrize("method", [f"{MANAGEMENT}/RegisterModel", f"{MANAGEMENT}/UnregisterModel"])
def test_no_model_comes_or_goes_over_grpc(server: TorchServe, method: str) -> None:
    """As over REST, not even with the management token."""
    code, why = told_over_grpc(server.running.ports.management_grpc, method, WGAN, server.management_token)
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert why.startswith("Model API disabled")


@pytest.mark.parametrize("name", ["http", "grpc", "metrics", "management", "management_grpc"])
def test_loopback_only(server: TorchServe, name: str) -> None:
    """Each port is open on 127.0.0.1 alone; one open to other machines would be on 127.0.0.2, too."""
    port = vars(server.running.ports)[name]
    with socket.create_connection(("127.0.0.1", port)):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port))
