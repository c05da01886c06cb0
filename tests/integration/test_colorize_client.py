"""Gray photos coloured through the SDK's clients against a real Triton: stages, sizes, order, versions, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import stand_in
from PIL import Image
from ways import WAYS, reach

from atelier import AsyncClient, Client, colorizing, errors
from atelier.inprocess import InProcessClient

SIZES = [(40, 30), (16, 16), (40, 30), (33, 57), (40, 30), (16, 16), (40, 30), (40, 30), (40, 30), (41, 30)]


@pytest.fixture(scope="module", params=WAYS)
def client(request, colorizer_server) -> Iterator[Client]:
    with reach(request.param, colorizer_server) as made:
        yield made


def photo(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


PHOTOS = [photo(*size, seed=index) for index, size in enumerate(SIZES)]


def truth(picture: Image.Image, stage: float = 2, version: int = 2) -> np.ndarray:
    gray = np.asarray(colorizing.grayed(picture.convert("RGB")))[None, ..., None]
    return stand_in.colored(gray, np.array([[stage]], np.float32), version)[0]


def assert_right(made: Image.Image, picture: Image.Image, stage: float = 2, version: int = 2) -> None:
    np.testing.assert_allclose(np.asarray(made, int), truth(picture, stage, version).astype(int), atol=1)
    assert made.info == {"model": "colorizer", "version": version, "stage": stage}


@pytest.mark.parametrize("stage", [1, 1.25, 2])
def test_a_photo_in_the_colours_of_each_stage(client, stage):
    """One picture is a list of one, of its size; between the stages is a mixture."""
    (made,) = client.colorize(photo(), stage=stage)
    assert_right(made, photo(), stage)


def test_gray_goes_as_it_is(client):
    """Whether it comes as L or as RGB."""
    gray = photo().convert("L")
    expected = stand_in.colored(np.asarray(gray)[None, ..., None], np.full((1, 1), 2, np.float32), 2)[0]
    for mode in ("L", "RGB"):
        np.testing.assert_allclose(np.asarray(client.colorize(gray.convert(mode))[0], int), expected, atol=1)


def test_pictures_of_many_sizes_come_back_in_order(client):
    """Though those of one size go together."""
    for made, picture in zip(client.colorize(PHOTOS), PHOTOS, strict=True):
        assert made.size == picture.size
        assert_right(made, picture)


def test_none_are_none(client):
    """And ask no server for anything."""
    assert client.colorize([]) == []


def test_size_saturation_and_transparency(client):
    """Each as `colorizing` makes of it."""
    small = photo().resize((24, 18), Image.Resampling.LANCZOS)
    assert_right(client.colorize(photo(), size=24)[0], small)
    gray = colorizing.grayed(photo()).convert("RGB")
    np.testing.assert_array_equal(client.colorize(photo(), saturation=0)[0], gray)
    clear = photo()
    clear.putalpha(Image.linear_gradient("L").resize(clear.size).point(lambda level: max(level, 1)))
    (made,) = client.colorize(clear)
    np.testing.assert_array_equal(made.getchannel("A"), clear.getchannel("A"))


def test_an_older_version_can_be_asked_for(client):
    """The error for one that is not there says which are."""
    assert_right(client.colorize(photo(), version=1)[0], photo(), version=1)
    with pytest.raises(errors.UnknownVersion, match=r"colorizer has no version 9 \(served: colorizer 1, 2\)"):
        client.colorize(photo(), version=9)


def test_the_largest_picture_is_coloured_and_one_pixel_more_is_not(client):
    """max_pixels of the model; the error says the size that would do."""
    largest = Image.new("RGB", (2048, 2048), (10, 20, 30))
    assert_right(client.colorize(largest)[0], largest)
    with pytest.raises(errors.InvalidInput, match=r"2049 x 2048 .* limit of 4,194,304; give a size of 2047 or less"):
        client.colorize(Image.new("RGB", (2049, 2048)))


@pytest.mark.parametrize(
    ("given", "options", "error", "says"),
    [
        pytest.param(photo(9, 40), {}, errors.InvalidInput, "9 x 40", id="small"),
        pytest.param("a.jpg", {}, errors.InvalidInput, "'a.jpg' is not one", id="a-path"),
        pytest.param(photo(), {"stage": 3}, errors.InvalidInput, "stage 3: ", id="stage"),
        pytest.param(photo(), {"saturation": -1}, errors.InvalidInput, "saturation -1: ", id="saturation"),
        pytest.param(photo(), {"size": 1}, errors.InvalidInput, "size 1: ", id="size"),
        pytest.param(photo(), {"model": "nope"}, errors.UnknownModel, "'nope'", id="model"),
        pytest.param(photo(), {"model": "upscaler"}, errors.UnknownModel, "'upscaler'", id="another-kind"),
        pytest.param(photo(), {"version": 0}, errors.InvalidInput, "version 0", id="version"),
        pytest.param(photo(), {"timeout_s": 0}, errors.InvalidInput, "timeout_s 0", id="timeout"),
    ],
)
def test_bad_input_is_the_same_error_whichever_client_it_is(client, given, options, error, says):
    """And the next picture is coloured."""
    with pytest.raises(error, match=says):
        client.colorize(given, **options)
    assert len(client.colorize(photo())) == 1


def test_a_server_without_the_model_says_what_it_has(server):
    """Such as one that serves only wgan."""
    with Client(server.grpc) as client, pytest.raises(errors.UnknownModel, match=r"no model colorizer \(served: wgan"):
        client.colorize(photo())


def test_in_process_pictures_are_triton_s(colorizer_server):
    """The same pixels with and without a server."""
    with Client(colorizer_server.grpc) as far, InProcessClient(colorizer_server.repository) as near:
        for one, other in zip(far.colorize(PHOTOS), near.colorize(PHOTOS), strict=True):
            np.testing.assert_array_equal(one, other)


def test_threads_share_a_client(colorizer_server):
    """Ten threads at once get each its own pictures."""
    with Client(colorizer_server.grpc, patient=True) as client, ThreadPoolExecutor(10) as pool:
        for picture, (made,) in pool.map(lambda each: (each, client.colorize(each)), PHOTOS):
            assert_right(made, picture)


async def test_tasks_share_an_async_client(colorizer_server):
    """And so do ten tasks."""
    async with AsyncClient(colorizer_server.grpc, patient=True) as client:
        found = await asyncio.gather(*(client.colorize(each) for each in PHOTOS))
        for (made,), picture in zip(found, PHOTOS, strict=True):
            assert_right(made, picture)
