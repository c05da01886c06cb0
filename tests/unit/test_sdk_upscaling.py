"""Tiles: that they cover a picture once, overlap as far as a network sees, and are joined without a seam."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import stand_in
from hypothesis import given, settings
from hypothesis import strategies as st
from noise import picture as photo
from PIL import Image

from atelier import pictures, upscaling
from atelier._contract import Contract, Tensor
from atelier.errors import InvalidInput, ServerError
from atelier.upscaling import OVERLAP, SCALE, TILE, Mosaic, spans

SMALL = 80
"""The longest side of a tile where so many pixels are the limit; for pictures of many tiles that are quickly made."""


def contract(tile: int = SMALL) -> Contract:
    return Contract(
        summary="stand-in",
        inputs=(Tensor("low_res", "UINT8", (-1, -1, 3)),),
        outputs=(Tensor("image", "UINT8", (-1, -1, 3)),),
        max_batch=8,
        max_pixels=tile * tile,
    )


def whole(picture: Image.Image) -> np.ndarray:
    """What the stand-in, which sees 16 pixels far, makes of all of a picture."""
    return stand_in.upscaled(np.asarray(picture)[None], 1)[0]


def answers(mosaic: Mosaic) -> Iterable[Image.Image]:
    for batch in mosaic.batches():
        for pixels in stand_in.upscaled(batch["low_res"], 1):
            made = Image.fromarray(pixels)
            made.info.update(model="upscaler", version=3)
            yield made


def enlarged(given: Image.Image | list[Image.Image], tile: int = SMALL) -> list[Image.Image]:
    mosaic = Mosaic(given, contract(tile))
    for made in answers(mosaic):
        mosaic.add(made)
    return mosaic.finished()


# --- tiles


@settings(deadline=None)
@given(st.integers(16, 20_000), st.integers(2 * OVERLAP + 1, 600))
def test_a_side_is_covered_once_by_tiles_that_overlap(side, most):
    """All are of one length; none ends nearer than OVERLAP to what is kept of it, but where the side itself ends."""
    tiles = spans(side, most)
    assert [tile.first for tile in tiles] == [0, *(tile.last for tile in tiles[:-1])]
    assert tiles[-1].last == side
    (length,) = {tile.stop - tile.start for tile in tiles}
    assert length <= most
    for tile in tiles:
        assert 0 <= tile.start <= tile.first < tile.last <= tile.stop <= side
        assert tile.first - tile.start >= OVERLAP or tile.start == 0
        assert tile.stop - tile.last >= OVERLAP or tile.stop == side


@settings(deadline=None)
@given(st.integers(16, 20_000), st.integers(2 * OVERLAP + 1, 600))
def test_there_are_no_more_tiles_than_there_must_be(side, most):
    """One less would not reach, and none is more than a pixel longer than so many have to be."""
    tiles = spans(side, most)
    count, length = len(tiles), tiles[0].stop
    assert count == 1 or side > most + (count - 2) * (most - 2 * OVERLAP)
    assert count == 1 or count * (length - 1) < side + (count - 1) * 2 * OVERLAP
    assert count > 1 or length == side


@settings(deadline=None)
@given(st.integers(16, 300), st.integers(16, 300), st.integers(0, 9))
def test_tiles_are_joined_as_if_there_had_been_none(width, height, seed):
    """Bit for bit what a network that sees OVERLAP pixels far makes of the whole picture, borders and all."""
    given = photo(width, height, seed=seed)
    (made,) = enlarged(given)
    np.testing.assert_array_equal(made, whole(given))


@pytest.mark.parametrize("size", [(TILE, TILE), (TILE + 1, TILE), (700, 30), (600, 500)], ids=str)
def test_the_upscaler_s_own_tiles(size):
    """A picture of 256 x 256 goes whole, one pixel more in two, which are not longer than they need be."""
    given, limit = photo(*size), contract(724)
    sent = [pixels for batch in Mosaic(given, limit).batches() for pixels in batch["low_res"]]
    assert len(sent) == {(TILE, TILE): 1, (TILE + 1, TILE): 2, (700, 30): 3, (600, 500): 9}[size]
    assert {pixels.shape for pixels in sent} == {(30, 255, 3) if size == (700, 30) else sent[0].shape}
    (made,) = enlarged(given, 724)
    np.testing.assert_array_equal(made, whole(given))


def test_tiles_of_one_size_go_together_and_each_finds_its_picture():
    """In batches of at most eight, and of the pixels of one large picture; results are in the pictures' order."""
    sizes = [(40, 30), (200, 150), (16, 16), (200, 150), (150, 200), (40, 30)]
    given = [photo(*size, seed=index) for index, size in enumerate(sizes)]
    batches = [batch["low_res"] for batch in Mosaic(given, contract()).batches()]
    for batch in batches:
        count, height, width, channels = batch.shape
        assert 1 <= count <= 8
        assert count == 1 or count * height * width <= SMALL * SMALL
        assert channels == 3
    shapes = [batch.shape[1:3] for batch in batches]
    assert all(shapes.index(shape) + shapes.count(shape) > place for place, shape in enumerate(shapes))
    for made, picture in zip(enlarged(given), given, strict=True):
        np.testing.assert_array_equal(made, whole(picture))


def test_none_are_none():
    """Nothing is sent, and nothing comes of it."""
    assert Mosaic([], contract()).batches() == []
    assert enlarged([]) == []


# --- pictures


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1", "I;16", "F"])
def test_pictures_of_any_mode_are_seen_as_rgb(mode):
    """Gray, printed, indexed, of 16 bits: as `as_rgb` makes them."""
    picture = Image.fromarray(np.asarray(photo(mode="L"), np.uint16) * 257) if mode == "I;16" else photo(mode=mode)
    assert picture.mode == mode
    (made,) = enlarged(picture)
    assert made.mode == "RGB"
    np.testing.assert_array_equal(made, whole(pictures.as_rgb(picture)))


def test_a_picture_is_enlarged_as_its_exif_turns_it():
    """And comes back upright."""
    turned = photo(40, 30)
    turned.getexif()[0x0112] = 6
    assert enlarged(turned)[0].size == (SCALE * 30, SCALE * 40)


def test_transparency_is_enlarged_too():
    """Smoothly, beside the colours; a palette's one clear colour stays clear."""
    given = photo()
    given.putalpha(Image.linear_gradient("L").resize(given.size))
    (made,) = enlarged(given)
    assert made.mode == "RGBA"
    np.testing.assert_allclose(
        np.asarray(made.getchannel("A").reduce(SCALE), int), np.asarray(given.getchannel("A"), int), atol=2
    )
    indexed = Image.new("P", (40, 30), 1)
    indexed.putpalette([200, 40, 60, 0, 255, 0])
    indexed.paste(0, (8, 8, 24, 24))
    indexed.info["transparency"] = 1
    (made,) = enlarged(indexed)
    alpha = made.getchannel("A")
    assert (alpha.getpixel((SCALE * 16, SCALE * 16)), alpha.getpixel((SCALE * 2, SCALE * 2))) == (255, 0)
    np.testing.assert_array_equal(made.convert("RGB"), whole(pictures.opaque(indexed.convert("RGBA"))))


def test_the_network_sees_no_edge_where_a_picture_ends():
    """What is transparent has the colours beside it, in every tile: neither white, nor what its hidden pixels hold."""
    pixels = np.zeros((150, 200, 4), np.uint8)
    pixels[..., 1] = 255  # hidden green
    pixels[20:40, 30:50] = (200, 40, 60, 255)
    for batch in Mosaic(Image.fromarray(pixels), contract()).batches():
        np.testing.assert_allclose(batch["low_res"], np.broadcast_to([200, 40, 60], batch["low_res"].shape), atol=2)


def test_a_result_says_what_made_it():
    """Model and version; nothing of the photo's own."""
    given = photo(100, 90)
    given.info["icc_profile"] = b"of another colour space"
    assert enlarged(given)[0].info == {"model": "upscaler", "version": 3}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        pytest.param(photo(90, 12), "picture: has 90 x 12 pixels, and both sides must have 16 or more", id="thin"),
        pytest.param(photo(15, 15), "picture: has 15 x 15 pixels, and both sides must", id="small"),
        pytest.param(
            Image.new("RGB", (1, 1)),
            "picture: has 1 x 1 pixels, too few to see anything; give a picture of 16 x",
            id="a-dot",
        ),
        pytest.param([photo(), photo(90, 12)], "picture 2: has 90 x 12", id="one-of-several"),
        pytest.param(Image.new("RGB", (4000, 3000)), "picture: would come to 16000 x 12000 pixels", id="large"),
        pytest.param("a.jpg", "pictures: 'a.jpg' is not one; atelier.pictures.open_picture", id="a-path"),
        pytest.param([photo(), None], "picture 2: None is not one", id="nothing-among-pictures"),
        pytest.param(7, "pictures: 7 is not one", id="a-number"),
    ],
)
def test_what_cannot_be_enlarged_is_refused(given, says):
    """InvalidInput names the picture, in one line."""
    with pytest.raises(InvalidInput) as caught:
        Mosaic(given, contract())
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(st.integers(16, 400), st.integers(16, 400))
def test_the_size_that_an_error_names_is_one_that_fits(width, height):
    """Of the same shape to half a pixel, and with nine tenths of the pixels that there may be, or more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upscaling, "MOST", SCALE**2 * 10_000)
        if width * height <= 10_000:
            assert upscaling.checked(photo(width, height)).size == (width, height)
            return
        with pytest.raises(InvalidInput, match=r"more than the limit of 160,000") as caught:
            upscaling.checked(photo(width, height))
    best = [int(word) for word in str(caught.value).rpartition("reduce it to ")[2].split() if word.isdigit()]
    assert 9_000 <= best[0] * best[1] <= 10_000
    assert np.subtract(best, np.array([width, height]) * max(best) / max(width, height)) == pytest.approx(0, abs=0.5)


def test_an_answer_of_another_size_is_the_server_s_error():
    """Not the caller's."""
    mosaic = Mosaic(photo(), contract())
    made = photo(160, 121)
    made.info.update(model="upscaler", version=3)
    with pytest.raises(ServerError, match=r"upscaler: a picture of \(160, 121\) came back for one of \(40, 30\)"):
        mosaic.add(made)
