"""Pictures enlarged through the SDK's clients against a real Triton: tiles, sizes, order, versions, errors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import truth
from noise import picture as photo
from PIL import Image
from ways import WAYS, reach

from atelier import Client, errors

SIZES = [(40, 30), (16, 16), (300, 20), (33, 57), (40, 30), (16, 16), (257, 280), (40, 30), (40, 30), (41, 30)]


@pytest.fixture(scope="module", params=WAYS)
def client(request, upscaler_server) -> Iterator[Client]:
    with reach(request.param, upscaler_server) as made:
        yield made


PHOTOS = [photo(*size, seed=index) for index, size in enumerate(SIZES)]


def assert_right(made: Image.Image, picture: Image.Image, version: int = 2) -> None:
    np.testing.assert_array_equal(made, truth.upscaled(picture, version))
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
