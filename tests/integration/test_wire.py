"""What plain clients see: tritonclient over gRPC, HTTP without a client, and the metrics."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import counts
import numpy as np
import pytest
import stand_in
import tritonclient.grpc as triton
from conftest import need_tritonserver
from tritonclient.utils import InferenceServerException

from serving.embedded import Embedded
from serving.spec import Batching
from training.models.wgan.spec import SPEC

SECOND_US = 1_000_000


@pytest.fixture(scope="module")
def client(server: Embedded) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc) as client:
        yield client


def latents(count: int, seed: int = 0) -> stand_in.Latents:
    return np.random.default_rng(seed).standard_normal((count, 100)).astype(np.float32)


def tensor(array: np.ndarray[Any, Any], name: str = "latent", dtype: str = "FP32") -> triton.InferInput:
    tensor = triton.InferInput(name, array.shape, dtype)
    tensor.set_data_from_numpy(array)
    return tensor


def generate(
    client: triton.InferenceServerClient, given: stand_in.Latents, version: str = "", **options: Any
) -> stand_in.Images:
    images = client.infer("wgan", [tensor(given)], version, client_timeout=60, **options).as_numpy("image")
    assert images is not None
    return images


def assert_close(images: stand_in.Images, expected: stand_in.Images) -> None:
    """Equal but for the rounding of single levels."""
    assert (images.shape, images.dtype) == (expected.shape, expected.dtype)
    assert np.abs(images.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("count", [1, 5, 32])
def test_grpc(client: triton.InferenceServerClient, count: int) -> None:
    """A batch of latents comes back as that many pictures, in order, from the newest version."""
    given = latents(count)
    assert_close(generate(client, given), stand_in.images(given, version=2))


@pytest.mark.parametrize("version", [1, 2])
def test_version(client: triton.InferenceServerClient, version: int) -> None:
    """A client that asks for a version gets that one; the one before the newest answers, too."""
    given = latents(3)
    assert_close(generate(client, given, str(version)), stand_in.images(given, version))


def request(address: str, path: str, body: object = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("POST" if body else "GET", path, json.dumps(body) if body else None)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_http_json(server: Embedded) -> None:
    """Without any client library: JSON in, JSON out."""
    given = latents(1)
    body = {"inputs": [{"name": "latent", "shape": [1, 100], "datatype": "FP32", "data": given.tolist()}]}
    status, answer = request(server.http, "/v2/models/wgan/versions/1/infer", body)
    assert status == 200
    (image,) = json.loads(answer)["outputs"]
    assert (image["name"], image["datatype"], image["shape"]) == ("image", "UINT8", [1, 128, 128, 3])
    pixels = np.array(image["data"], np.uint8).reshape(image["shape"])
    assert_close(pixels, stand_in.images(given, 1))


def test_metadata(client: triton.InferenceServerClient) -> None:
    """The server describes the model as the spec does."""
    metadata = client.get_model_metadata("wgan")
    assert list(metadata.versions) == ["1", "2"]
    (latent,), (image,) = metadata.inputs, metadata.outputs
    assert (latent.name, latent.datatype, list(latent.shape)) == ("latent", "FP32", [-1, 100])
    assert (image.name, image.datatype, list(image.shape)) == ("image", "UINT8", [-1, 128, 128, 3])


def test_metrics(server: Embedded, client: triton.InferenceServerClient) -> None:
    """Prometheus can count the pictures of each version and their time in the queue."""

    def page() -> str:
        return request(server.metrics, "/metrics")[1].decode()

    def counted() -> int:
        found = re.search(r'nv_inference_count{model="wgan",version="1"} (\d+)', page())
        assert found
        return int(found[1])

    before = counted()
    generate(client, latents(7), "1")
    assert counts.reached(counted, before + 7) == before + 7
    assert 'nv_inference_queue_duration_us{model="wgan",version="1"}' in page()


ONE = np.zeros((1, 100), np.float32)


@pytest.mark.parametrize(
    ("ask", "status", "says"),
    [
        pytest.param({"inputs": [tensor(ONE[:, :99])]}, "INVALID_ARGUMENT", "unexpected shape", id="width"),
        pytest.param({"inputs": [tensor(ONE[0])]}, "INVALID_ARGUMENT", "batch-size", id="no batch dimension"),
        pytest.param(
            {"inputs": [tensor(np.zeros((33, 100), np.float32))]},
            "INVALID_ARGUMENT",
            "batch-size must be <= 32",
            id="batch too large",
        ),
        pytest.param({"inputs": [tensor(ONE[:0])]}, "INVALID_ARGUMENT", "got 0", id="batch of none"),
        pytest.param({"inputs": [tensor(ONE.astype(np.float64), dtype="FP64")]}, "INVALID_ARGUMENT", "FP64", id="type"),
        pytest.param({"inputs": [tensor(ONE, "z")]}, "INVALID_ARGUMENT", "input 'z'", id="unknown input"),
        pytest.param({"inputs": []}, "INVALID_ARGUMENT", "latent", id="no input"),
        pytest.param(
            {"outputs": [triton.InferRequestedOutput("picture")]},
            "INVALID_ARGUMENT",
            "output 'picture'",
            id="unknown output",
        ),
        pytest.param({"model_name": "other"}, "NOT_FOUND", "unknown model: 'other'", id="unknown model"),
        pytest.param({"model_version": "9"}, "NOT_FOUND", "version 9 is not found", id="unknown version"),
        pytest.param({"model_version": "new"}, "INVALID_ARGUMENT", "'new'", id="version not a number"),
    ],
)
def test_bad_request(client: triton.InferenceServerClient, ask: dict[str, Any], status: str, says: str) -> None:
    """A request that cannot be served is told so by status and name, and the next one is answered."""
    with pytest.raises(InferenceServerException, match=re.escape(says)) as error:
        client.infer(**{"model_name": "wgan", "inputs": [tensor(ONE)], "client_timeout": 60} | ask)
    assert error.value.status() == f"StatusCode.{status}"
    assert_close(generate(client, ONE), stand_in.images(ONE, 2))


def test_requests_at_once_share_a_batch(tmp_path: Path) -> None:
    """Requests that come together run together, and each gets its own answer."""
    need_tritonserver()
    patient = replace(SPEC, batching=Batching(max_batch=8, queue_delay_us=20 * SECOND_US))
    given = latents(8)
    with (
        Embedded(stand_in.repository(tmp_path / "repository", versions=(1,), spec=patient)) as server,
        triton.InferenceServerClient(server.grpc) as client,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        answered, run = counts.inferences(client, "wgan"), counts.executions(client, "wgan")
        answers = pool.map(lambda z: generate(client, z[None], "1"), given)
        assert_close(np.concatenate(list(answers)), stand_in.images(given, 1))
        counts.reached(lambda: counts.inferences(client, "wgan"), answered + len(given))
        assert counts.executions(client, "wgan") == run + 1


# --- the classifier: labels come with the answers ---


@pytest.fixture(scope="module")
def sorter(classifier_server: Embedded) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(classifier_server.grpc) as client:
        yield client


def pictures(count: int, seed: int = 0) -> stand_in.Images:
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28, 1), np.uint8)


def picture_tensor(array: np.ndarray[Any, Any]) -> triton.InferInput:
    return tensor(array, "image", "UINT8")


def ranked(given: stand_in.Images, top: int, version: int) -> list[list[str]]:
    """What Triton should say of each picture: its likeliest classes, best first."""
    rows = stand_in.probabilities(given, version)
    best = np.argsort(-rows, axis=1)[:, :top]
    return [[f"{index}:{stand_in.CLASSIFIER.labels[index]}" for index in row] for row in best]


def assert_ranked(answers: np.ndarray[Any, Any], given: stand_in.Images, top: int, version: int) -> None:
    """Each answer is PROBABILITY:INDEX:LABEL."""
    split = [[answer.partition(":") for answer in row] for row in answers.tolist()]
    assert [[named for _, _, named in row] for row in split] == ranked(given, top, version)
    said = np.array([[float(probability) for probability, _, _ in row] for row in split])
    truth = -np.sort(-stand_in.probabilities(given, version), axis=1)[:, :top]
    np.testing.assert_allclose(said, truth, atol=1e-5)


@pytest.mark.parametrize("count", [1, 5, 64])
def test_probabilities(sorter: triton.InferenceServerClient, count: int) -> None:
    """Asked plainly, the classifier answers each picture of a batch with ten probabilities, in order."""
    given = pictures(count)
    answer = sorter.infer("classifier", [picture_tensor(given)], client_timeout=60).as_numpy("probabilities")
    assert answer is not None
    assert (answer.shape, answer.dtype) == ((count, 10), np.float32)
    np.testing.assert_allclose(answer, stand_in.probabilities(given, version=2), atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "top"), [(1, 1), (3, 3), (10, 10), (99, 10)], ids=["best", "three", "all", "more than there are"]
)
def test_classification_grpc(sorter: triton.InferenceServerClient, asked: int, top: int) -> None:
    """Triton's classification extension over gRPC: the likeliest classes by name, best first, for each picture."""
    given = pictures(5)
    wanted = triton.InferRequestedOutput("probabilities", class_count=asked)
    answer = sorter.infer("classifier", [picture_tensor(given)], outputs=[wanted], client_timeout=60)
    named = answer.as_numpy("probabilities")
    assert named is not None
    assert_ranked(named.astype(str), given, top, version=2)


@pytest.mark.parametrize("version", [1, 2])
def test_classification_http_json(classifier_server: Embedded, version: int) -> None:
    """The same without any client library, as curl would: JSON in, JSON out, of either version."""
    given = pictures(2, seed=1)
    image = {"name": "image", "shape": [2, 28, 28, 1], "datatype": "UINT8", "data": given.tolist()}
    body = {"inputs": [image], "outputs": [{"name": "probabilities", "parameters": {"classification": 3}}]}
    status, answer = request(classifier_server.http, f"/v2/models/classifier/versions/{version}/infer", body)
    assert status == 200
    (named,) = json.loads(answer)["outputs"]
    assert (named["name"], named["datatype"], named["shape"]) == ("probabilities", "BYTES", [2, 3])
    assert_ranked(np.reshape(named["data"], named["shape"]), given, 3, version)


def test_classification_of_requests_at_once(sorter: triton.InferenceServerClient) -> None:
    """Requests that ask for labels and requests that don't may share a batch: each is answered as it asked."""

    def ask(seed: int) -> None:
        given, top = pictures(1, seed), seed % 3
        wanted = triton.InferRequestedOutput("probabilities", class_count=top)
        answer = sorter.infer("classifier", [picture_tensor(given)], outputs=[wanted], client_timeout=60)
        made = answer.as_numpy("probabilities")
        assert made is not None
        if top:
            assert_ranked(made.astype(str), given, top, version=2)
        else:
            np.testing.assert_allclose(made, stand_in.probabilities(given, version=2), atol=1e-5)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(48)))


@pytest.mark.parametrize(
    ("shape", "dtype", "says"),
    [
        pytest.param((28, 28, 1), "UINT8", "Expected [-1,28,28,1], got [28,28,1]", id="no batch dimension"),
        pytest.param((1, 28, 28), "UINT8", "Expected [-1,28,28,1], got [1,28,28]", id="no channel"),
        pytest.param((1, 28, 28, 3), "UINT8", "Expected [-1,28,28,1], got [1,28,28,3]", id="in colour"),
        pytest.param((1, 32, 32, 1), "UINT8", "Expected [-1,28,28,1], got [1,32,32,1]", id="too large"),
        pytest.param((65, 28, 28, 1), "UINT8", "batch-size must be <= 64", id="batch too large"),
        pytest.param((0, 28, 28, 1), "UINT8", "got 0", id="batch of none"),
        pytest.param((1, 28, 28, 1), "FP32", "expects 'UINT8'", id="type"),
    ],
)
def test_bad_picture(sorter: triton.InferenceServerClient, shape: tuple[int, ...], dtype: str, says: str) -> None:
    """A picture of another shape or type is refused with what was expected and what came; the next is answered."""
    given = tensor(np.zeros(shape, {"UINT8": np.uint8, "FP32": np.float32}[dtype]), "image", dtype)
    with pytest.raises(InferenceServerException, match=re.escape(says)) as error:
        sorter.infer("classifier", [given], client_timeout=60)
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert sorter.infer("classifier", [picture_tensor(pictures(1))], client_timeout=60).as_numpy("probabilities").any()


# --- overload, and a server that goes away ---


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[triton.InferenceServerClient]:
    """A server whose queue holds two requests and, with a batch that never fills, keeps them until they are late."""
    need_tritonserver()
    batching = Batching(max_batch=32, queue_delay_us=60 * SECOND_US, queue_size=2, queue_timeout_us=3 * SECOND_US)
    root = stand_in.repository(tmp_path_factory.mktemp("narrow") / "repository", (1,), replace(SPEC, batching=batching))
    with Embedded(root) as server, triton.InferenceServerClient(server.grpc) as client:
        yield client


def refusal(client: triton.InferenceServerClient, **options: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as error:
        generate(client, ONE, **options)
    return error.value.status(), error.value.message()


def test_full_queue(narrow: triton.InferenceServerClient) -> None:
    """A request that finds the queue full is refused at once as UNAVAILABLE, by a text that tells it from `down`;
    those in the queue are refused when they are late, by another."""
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        refused = [pool.submit(refusal, narrow) for _ in range(3)]
        said = [future.result() for future in concurrent.futures.as_completed(refused)]
    assert {status for status, _ in said} == {"StatusCode.UNAVAILABLE"}
    assert "Exceeds maximum queue size" in said[0][1]
    assert [text for _, text in said[1:]] == ["Request timeout expired"] * 2


def test_impatient_request(narrow: triton.InferenceServerClient) -> None:
    """A request may be more impatient than the queue: its own timeout, in microseconds, is respected."""
    assert refusal(narrow, timeout=1000) == ("StatusCode.UNAVAILABLE", "Request timeout expired")


def test_server_gone(tmp_path: Path) -> None:
    """Where nobody listens any more, a client is told UNAVAILABLE as well, but nothing of a queue."""
    need_tritonserver()
    server = Embedded(stand_in.repository(tmp_path / "repository", versions=(1,)))
    server.start()
    with triton.InferenceServerClient(server.grpc) as client:
        generate(client, ONE)
        server.stop()
        status, text = refusal(client)
    assert status == "StatusCode.UNAVAILABLE"
    assert "queue" not in text
    assert "timeout" not in text


def test_many_clients(client: triton.InferenceServerClient) -> None:
    """Clients that never stop asking each get the answers to their own requests."""

    def ask(seed: int) -> None:
        for turn in range(10):
            given = latents(1 + (seed + turn) % 4, seed * 100 + turn)
            assert_close(generate(client, given, "1"), stand_in.images(given, 1))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
