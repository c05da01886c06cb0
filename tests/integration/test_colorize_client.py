"""Gray photos coloured through the SDK's clients against a real Triton: stages, sizes, order, versions, errors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import stand_in
import truth
from noise import picture as photo
from PIL import Image
from ways import WAYS, reach

from atelier import Client, colorizing, errors

SIZES = [(40, 30), (16, 16), (40, 30), (33, 57), (40, 30), (16, 16), (40, 30), (40, 30), (40, 30), (41, 30)]


@pytest.fixture(scope="module", params=WAYS)
def client(request, colorizer_server) -> Iterator[Client]:
    with reach(request.param, colorizer_server) as made:
        yield made


PHOTOS = [photo(*size, seed=index) for index, size in enumerate(SIZES)]


def assert_right(made: Image.Image, picture: Image.Image, stage: float = 2, version: int = 2) -> None:
    np.testing.assert_allclose(np.asarray(made, int), truth.colored(picture, stage, version).astype(int), atol=1)
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
