"""Pictures enlarged through the SDK's clients against a real Triton: tiles, sizes, order, versions, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import stand_in
from PIL import Image
from ways import WAYS, reach

from atelier import AsyncClient, Client, errors
from atelier.inprocess import InProcessClient

SIZES = [(40, 30), (16, 16), (300, 20), (33, 57), (40, 30), (16, 16), (257, 280), (40, 30), (40, 30), (41, 30)]


@pytest.fixture(scope="module", params=WAYS)
def client(request, upscaler_server) -> Iterator[Client]:
    with reach(request.param, upscaler_server) as made:
        yield made


def photo(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


PHOTOS = [photo(*size, seed=index) for index, size in enumerate(SIZES)]


def assert_right(made: Image.Image, picture: Image.Image, version: int = 2) -> None:
    np.testing.assert_array_equal(made, stand_in.upscaled(np.asarray(picture)[None], version)[0])
    assert made.info == {"model": "upscaler", "version": version}


def test_a_picture_is_four_times_as_wide_and_as_high(client):
    """One picture is a list of one."""
    (made,) = client.upscale(photo())
    assert made.size == (160, 120)
    assert_right(made, photo())


def test_pictures_of_many_sizes_come_back_in_order(client):
    """Some in tiles, some of one size together."""
    for made, picture in zip(client.upscale(PHOTOS), PHOTOS, strict=True):
        assert_right(made, picture)


@pytest.mark.parametrize("size", [(900, 700), (2100, 17)], ids=str)
def test_tiled_is_as_the_whole(client, size):
    """The stand-in sees as far as the contract allows; no seam can be told from it, and no border."""
    assert_right(client.upscale(photo(*size))[0], photo(*size))


def test_none_are_none(client):
    """And ask no server for anything."""
    assert client.upscale([]) == []


def test_transparency_is_enlarged_too(client):
    """As smoothly as it was."""
    clear = photo()
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    (made,) = client.upscale(clear)
    assert (made.mode, made.size) == ("RGBA", (160, 120))
    alpha = np.asarray(made.getchannel("A").reduce(4), int)
    np.testing.assert_allclose(alpha, np.asarray(clear.getchannel("A"), int), atol=2)


def test_an_older_version_can_be_asked_for(client):
    """For every tile; the error for one that is not there says which are."""
    assert_right(client.upscale(photo(600, 20), version=1)[0], photo(600, 20), version=1)
    with pytest.raises(errors.UnknownVersion, match=r"upscaler has no version 9 \(served: upscaler 1, 2\)"):
        client.upscale(photo(600, 20), version=9)


@pytest.mark.parametrize(
    ("given", "options", "error", "says"),
    [
        pytest.param(photo(9, 40), {}, errors.InvalidInput, "9 x 40 pixels", id="small"),
        pytest.param(Image.new("RGB", (2049, 2048)), {}, errors.InvalidInput, "limit of 67,108,864", id="large"),
        pytest.param("a.jpg", {}, errors.InvalidInput, "'a.jpg' is not one", id="a-path"),
        pytest.param(photo(), {"model": "nope"}, errors.UnknownModel, "'nope'", id="model"),
        pytest.param(photo(), {"model": "wgan"}, errors.UnknownModel, "'wgan'", id="another-kind"),
        pytest.param(photo(), {"version": 0}, errors.InvalidInput, "version 0", id="version"),
        pytest.param(photo(), {"timeout_s": 0}, errors.InvalidInput, "timeout_s 0", id="timeout"),
    ],
)
def test_bad_input_is_the_same_error_whichever_client_it_is(client, given, options, error, says):
    """And the next picture is enlarged."""
    with pytest.raises(error, match=says):
        client.upscale(given, **options)
    assert len(client.upscale(photo())) == 1


def test_a_server_without_the_model_says_what_it_has(server):
    """Such as one that serves only wgan."""
    with Client(server.grpc) as client, pytest.raises(errors.UnknownModel, match=r"no model upscaler \(served: wgan"):
        client.upscale(photo())


def test_in_process_pictures_are_triton_s(upscaler_server):
    """The same pixels with and without a server."""
    with Client(upscaler_server.grpc) as far, InProcessClient(upscaler_server.repository) as near:
        for one, other in zip(far.upscale(PHOTOS), near.upscale(PHOTOS), strict=True):
            np.testing.assert_array_equal(one, other)


def test_threads_share_a_client(upscaler_server):
    """Ten threads at once get each its own pictures."""
    with Client(upscaler_server.grpc, patient=True) as client, ThreadPoolExecutor(10) as pool:
        for picture, (made,) in pool.map(lambda each: (each, client.upscale(each)), PHOTOS):
            assert_right(made, picture)


async def test_tasks_share_an_async_client(upscaler_server):
    """And so do ten tasks."""
    async with AsyncClient(upscaler_server.grpc, patient=True) as client:
        found = await asyncio.gather(*(client.upscale(each) for each in PHOTOS))
        for (made,), picture in zip(found, PHOTOS, strict=True):
            assert_right(made, picture)
