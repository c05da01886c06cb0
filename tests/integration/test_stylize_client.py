"""Paintings through the SDK's clients against a real Triton: styles, blends, sizes, order, versions, errors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import stand_in
import truth
from noise import picture as photo
from PIL import Image
from truth import STYLES
from ways import WAYS, reach

from atelier import Client, errors
from atelier.inprocess import InProcessClient

SIZES = [(40, 30), (16, 16), (40, 30), (33, 57), (40, 30), (16, 16), (40, 30), (40, 30), (40, 30), (41, 30)]


@pytest.fixture(scope="module", params=WAYS)
def client(request, style_server) -> Iterator[Client]:
    with reach(request.param, style_server) as made:
        yield made


PHOTOS = [photo(*size, seed=index) for index, size in enumerate(SIZES)]


def assert_right(made: Image.Image, picture: Image.Image, style: str | dict[str, float], version: int = 2) -> None:
    np.testing.assert_allclose(np.asarray(made, int), truth.styled(picture, style, version).astype(int), atol=1)
    assert (made.info["model"], made.info["version"]) == ("style", version)


def test_the_styles_are_those_of_the_served_network(client):
    """In the order of its weights, from its config.pbtxt."""
    assert client.styles() == client.styles("style") == STYLES


@pytest.mark.parametrize("name", STYLES)
def test_a_photo_in_each_style(client, name):
    """One picture is a list of one, of its size, and says its style."""
    (made,) = client.stylize(PHOTOS[0], name.upper())
    assert_right(made, PHOTOS[0], name)
    assert made.info["style"] == name


def test_a_blend_lies_between_its_styles(client):
    """As its weights say, whatever their sum."""
    (made,) = client.stylize(PHOTOS[0], {"ink-red": 6, "negative": 2})
    assert_right(made, PHOTOS[0], {"ink-red": 0.75, "negative": 0.25})
    assert made.info["style"] == "negative=0.25,ink-red=0.75"


def test_pictures_of_many_sizes_come_back_in_order(client):
    """Each in its own style and size, though those of one size go together."""
    styles = [STYLES[index % 3] for index in range(len(PHOTOS))]
    made = client.stylize(PHOTOS, styles)
    for painted, picture, name in zip(made, PHOTOS, styles, strict=True):
        assert painted.size == picture.size
        assert_right(painted, picture, name)


def test_one_photo_in_all_styles(client):
    """As a contact sheet wants it."""
    for made, name in zip(client.stylize([PHOTOS[3]] * 3, STYLES), STYLES, strict=True):
        assert_right(made, PHOTOS[3], name)


def test_none_are_none(client):
    """And ask no server for anything."""
    assert client.stylize([], "ink-red") == []


def test_size_strength_and_colour(client):
    """Each as `styling` makes of it; transparency comes back."""
    small = photo().resize((24, 18), Image.Resampling.LANCZOS)
    assert_right(client.stylize(photo(), "faded", size=24)[0], small, "faded")
    np.testing.assert_array_equal(client.stylize(photo(), "faded", strength=0)[0], photo())
    (kept,) = client.stylize(photo(), "ink-red", keep_color=True)
    assert np.asarray(kept.convert("YCbCr").split()[1]).std() > 20  # ink-red alone has one colour
    clear = photo()
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    (made,) = client.stylize(clear, "ink-red")
    np.testing.assert_array_equal(made.getchannel("A"), clear.getchannel("A"))


def test_an_older_version_can_be_asked_for(client):
    """Version 1 paints as version 1; the error for one that is not there says which are."""
    assert_right(client.stylize(PHOTOS[0], "ink-red", version=1)[0], PHOTOS[0], "ink-red", version=1)
    with pytest.raises(errors.UnknownVersion, match=r"style has no version 9 \(served: style 1, 2\)"):
        client.stylize(PHOTOS[0], "ink-red", version=9)


def test_the_largest_picture_is_painted_and_one_pixel_more_is_not(client):
    """max_pixels of the model; the error says the size that would do."""
    largest = Image.new("RGB", (2048, 1024), (10, 20, 30))
    assert_right(client.stylize(largest, "negative")[0], largest, "negative")
    with pytest.raises(errors.InvalidInput, match=r"2049 x 1024 .* limit of 2,097,152; give a size of 2046 or less"):
        client.stylize(Image.new("RGB", (2049, 1024)), "negative")


@pytest.mark.parametrize(
    ("arguments", "options", "error", "says"),
    [
        pytest.param((photo(), "nope"), {}, errors.InvalidInput, "negative, ink-red, faded", id="style"),
        pytest.param((photo(), {"faded": -1}), {}, errors.InvalidInput, "weight of faded is -1", id="weight"),
        pytest.param((photo(9, 40), "faded"), {}, errors.InvalidInput, "9 x 40", id="small"),
        pytest.param(("a.jpg", "faded"), {}, errors.InvalidInput, "'a.jpg' is not one", id="a-path"),
        pytest.param((photo(), "faded"), {"strength": 2}, errors.InvalidInput, "strength 2", id="strength"),
        pytest.param((photo(), "faded"), {"size": 1}, errors.InvalidInput, "size 1", id="size"),
        pytest.param((photo(), "faded"), {"model": "nope"}, errors.UnknownModel, "'nope'", id="model"),
        pytest.param((photo(), "faded"), {"model": "wgan"}, errors.UnknownModel, "'wgan'", id="another-kind"),
        pytest.param((photo(), "faded"), {"version": 0}, errors.InvalidInput, "version 0", id="version"),
        pytest.param((photo(), "faded"), {"timeout_s": 0}, errors.InvalidInput, "timeout_s 0", id="timeout"),
    ],
)
def test_bad_input_is_the_same_error_whichever_client_it_is(client, arguments, options, error, says):
    """And the next picture is painted."""
    with pytest.raises(error, match=says):
        client.stylize(*arguments, **options)
    assert len(client.stylize(photo(), "faded")) == 1


def test_a_server_without_the_model_says_what_it_has(server):
    """Such as one that serves only wgan."""
    with Client(server.grpc) as client, pytest.raises(errors.UnknownModel, match=r"no model style \(served: wgan"):
        client.styles()


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        pytest.param(None, errors.ServerError, "config.pbtxt: cannot be read: No such file", id="missing"),
        pytest.param("nonsense", errors.ServerError, "config.pbtxt: cannot be read: ", id="damaged"),
        pytest.param('name: "style"', errors.UnknownModel, "no names for its style_weights", id="nameless"),
    ],
)
def test_a_network_whose_styles_have_no_names(tmp_path, config, error, says):
    """One line that says what is missing."""
    repository = stand_in.repository(tmp_path / "repository", spec=stand_in.STYLE)
    path = repository / "style" / "config.pbtxt"
    path.unlink() if config is None else path.write_text(config)
    with InProcessClient(repository) as client, pytest.raises(error, match=says) as caught:
        client.stylize(photo(), "faded")
    assert "\n" not in str(caught.value)
