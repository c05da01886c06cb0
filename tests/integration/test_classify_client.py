"""Classification through the SDK's clients against a real Triton: answers, order, versions, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import stand_in
from PIL import Image
from ways import WAYS, reach

from atelier import AsyncClient, Classification, Client, errors, garments
from atelier.inprocess import InProcessClient

LABELS = stand_in.CLASSIFIER.labels
MANY = np.random.default_rng(5).integers(0, 256, (150, 28, 28), np.uint8)  # three batches


@pytest.fixture(scope="module", params=WAYS)
def client(request, classifier_server) -> Iterator[Client]:
    with reach(request.param, classifier_server) as made:
        yield made


def shares(answers: list[Classification]) -> np.ndarray:
    return np.array([list(answer.probabilities.values()) for answer in answers])


def assert_right(answers: list[Classification], seen: np.ndarray, version: int = 2) -> None:
    """Each answer is that to its own picture, every class under its name."""
    assert len(answers) == len(seen)
    assert all(tuple(answer.probabilities) == LABELS for answer in answers)
    np.testing.assert_allclose(shares(answers), stand_in.probabilities(seen[..., None], version), atol=1e-5)
    assert {(answer.model, answer.version) for answer in answers} == {("classifier", version)}


def photo(shade: int) -> Image.Image:
    picture = Image.new("RGB", (90, 120), "white")
    picture.paste((shade, 40, 60), (20, 10, 70, 100))
    return picture


def test_any_number_of_pictures_comes_back_in_order(client):
    """150 pictures, more than two batches, give 150 answers, each to its own picture, of one version."""
    assert_right(client.classify(MANY), MANY)


def test_one_and_none(client):
    """One picture, with or without its channel, is one answer; none are none."""
    assert_right(client.classify(MANY[0]), MANY[:1])
    assert_right(client.classify(MANY[0][..., None]), MANY[:1])
    assert client.classify(MANY[:0]) == client.classify([]) == []


@pytest.mark.parametrize("method", ["find", "source"])
def test_photos_are_prepared_on_the_way(client, method):
    """A photo, and a list of photos and of what is prepared already, in its order."""
    first, second = (garments.preprocess_garment(photo(shade), method=method) for shade in (30, 160))
    assert_right(client.classify(photo(30), method=method), first[None])
    assert_right(client.classify([photo(160), MANY[0], photo(30)], method=method), np.stack([second, MANY[0], first]))


def test_an_older_version_can_be_asked_for(client):
    """Version 1 answers as version 1; the error for one that is not there says which are."""
    assert_right(client.classify(MANY[:2], version=1), MANY[:2], version=1)
    with pytest.raises(errors.UnknownVersion, match=r"classifier has no version 9 \(served: classifier 1, 2\)"):
        client.classify(MANY, version=9)


@pytest.mark.parametrize(
    ("pictures", "options", "error"),
    [
        pytest.param(MANY[:, :27], {}, errors.InvalidInput, id="shape"),
        pytest.param(MANY / 255, {}, errors.InvalidInput, id="floats"),
        pytest.param("boot.jpg", {}, errors.InvalidInput, id="a-path"),
        pytest.param(photo(9), {"method": "guess"}, errors.InvalidInput, id="method"),
        pytest.param(MANY, {"model": "nope"}, errors.UnknownModel, id="model"),
        pytest.param(MANY, {"model": "wgan"}, errors.UnknownModel, id="another-kind-of-model"),
        pytest.param(MANY, {"version": 0}, errors.InvalidInput, id="version"),
        pytest.param(MANY, {"timeout_s": 0}, errors.InvalidInput, id="timeout"),
    ],
)
def test_bad_input_never_leaves_the_client(client, pictures, options, error):
    """The same errors whichever client it is."""
    with pytest.raises(error):
        client.classify(pictures, **options)


def test_a_server_without_the_model_says_what_it_has(server):
    """Such as one that serves only wgan."""
    with Client(server.grpc) as client, pytest.raises(errors.UnknownModel, match=r"no model classifier \(served: wgan"):
        client.classify(MANY[:1])


def test_in_process_answers_are_triton_s(classifier_server):
    """The same pictures give the same probabilities with and without a server."""
    with Client(classifier_server.grpc) as far, InProcessClient(classifier_server.repository) as near:
        np.testing.assert_allclose(shares(far.classify(MANY)), shares(near.classify(MANY)), atol=1e-6)


def test_threads_share_a_client(classifier_server):
    """Fifteen threads at once get each its own answers."""
    with Client(classifier_server.grpc, patient=True) as client, ThreadPoolExecutor(15) as pool:
        for seen, answers in pool.map(lambda part: (part, client.classify(part)), np.split(MANY, 15)):
            assert_right(answers, seen)


async def test_tasks_share_an_async_client(classifier_server):
    """And so do fifteen tasks."""
    async with AsyncClient(classifier_server.grpc, patient=True) as client:
        parts = np.split(MANY, 15)
        for seen, answers in zip(parts, await asyncio.gather(*map(client.classify, parts)), strict=True):
            assert_right(answers, seen)
