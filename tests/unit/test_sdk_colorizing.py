"""What a colorizer is asked, and what becomes of its answers: grays, stages, saturation, sizes, transparency."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise import picture as photo
from PIL import Image
from skimage.color import rgb2lab

from atelier import colorizing, pictures
from atelier._contract import Contract, Tensor
from atelier.colorizing import Work
from atelier.errors import InvalidInput, ServerError

CONTRACT = Contract(
    summary="stand-in",
    inputs=(Tensor("gray", "UINT8", (-1, -1, 1)), Tensor("stage", "FP32", (1,))),
    outputs=(Tensor("image", "UINT8", (-1, -1, 3)),),
    max_batch=4,
    max_pixels=10_000,
)
LEVELS = np.arange(256, dtype=np.uint8)


def work(given: object = None, **options: object) -> Work:
    plain = {"stage": 2.0, "saturation": 1.0, "size": None}
    return Work.of(photo() if given is None else given, CONTRACT, **{**plain, **options})


def answered(asked: Work, *coloured: Image.Image) -> list[Image.Image]:
    for picture in coloured:
        picture.info.update(model="colorizer", version=3)
    return asked.finished(coloured)


def lightness(picture: Image.Image) -> np.ndarray:
    """L* of CIE Lab, by scikit-image."""
    return rgb2lab(np.asarray(picture.convert("RGB")))[..., 0]


# --- gray


def test_gray_keeps_lightness():
    """L* of strong colours and weak, dark and bright, to half a level of gray: no other would be nearer."""
    few = np.concatenate([LEVELS[::15], LEVELS[1:12]])
    colours = Image.fromarray(np.stack(np.meshgrid(few, few, few), -1).reshape(len(few), -1, 3))
    away = lightness(colorizing.grayed(colours)) - lightness(colours)
    half = np.diff(lightness(Image.fromarray(LEVELS[None]))).max() / 2
    assert np.abs(away).max() < 1.02 * half  # scikit-image rounds the weights of light otherwise


def test_what_is_gray_keeps_its_levels():
    """All 256 of them, whatever the mode they come in."""
    gray = Image.fromarray(np.stack([LEVELS] * 16))
    for mode in ("L", "RGB", "RGBA"):
        sent = work(gray.convert(mode)).batches()[0]["gray"]
        np.testing.assert_array_equal(sent[0, ..., 0], gray)


def test_what_is_gray_in_a_picture_with_colour_keeps_its_levels():
    """There every pixel's gray is computed."""
    levels = np.stack([LEVELS] * 16)
    partly = Image.fromarray(levels).convert("RGB")
    partly.putpixel((0, 0), (255, 0, 0))
    made = np.asarray(colorizing.grayed(partly))
    assert made[0, 0] > 0
    np.testing.assert_array_equal(made.ravel()[1:], levels.ravel()[1:])


def test_pillow_s_own_gray_would_not_do():
    """Of pure blue it is darker by 21 of L*'s 100, so that this test of lightness is one that can fail."""
    blue = Image.new("RGB", (16, 16), (0, 0, 255))
    assert lightness(blue)[0, 0] - lightness(blue.convert("L"))[0, 0] > 20
    assert lightness(colorizing.grayed(blue))[0, 0] == pytest.approx(lightness(blue)[0, 0], abs=0.25)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        pytest.param(photo(), True, id="colours"),
        pytest.param(photo(mode="L").convert("RGB"), False, id="gray"),
        pytest.param(photo(mode="L").convert("RGBA"), False, id="gray-with-alpha"),
        pytest.param(Image.new("RGBA", (40, 30), (0, 255, 0, 0)), False, id="hidden"),
        pytest.param(Image.new("RGB", (40, 30), (100, 100, 101)), True, id="nearly-gray"),
    ],
)
def test_whether_there_is_colour(picture, expected):
    """One pixel of it is enough, if it can be seen."""
    assert colorizing.has_colour(picture) is expected


# --- what is sent


@pytest.mark.parametrize("stage", [1, 2, 1.5, np.float32(1.25)])
def test_the_stage_goes_with_every_picture(stage):
    """As a number; each result says it."""
    asked = work([photo(), photo(seed=1)], stage=stage)
    np.testing.assert_array_equal(np.concatenate([batch["stage"] for batch in asked.batches()]), [[stage]] * 2)
    assert all(tensor.fits(asked.batches()[0][tensor.name]) for tensor in CONTRACT.inputs)
    assert answered(asked, photo(), photo())[1].info == {"model": "colorizer", "version": 3, "stage": stage}


def test_pictures_of_one_size_go_together_and_results_keep_their_order():
    """Never more than a batch or than the pixels of one large picture; each result belongs to its picture."""
    sizes = [(20, 20), (90, 90), (20, 20), (60, 60), (90, 90), (60, 60), (60, 60), *[(20, 20)] * 9]
    given = [photo(*size, mode="L", seed=index) for index, size in enumerate(sizes)]
    asked = work(given)
    for batch in asked.batches():
        count, height, width, channels = batch["gray"].shape
        assert (count, channels) == (len(batch["stage"]), 1)
        assert count <= 4
        assert count == 1 or count * height * width <= 10_000
    sent = [Image.fromarray(pixels.repeat(3, -1)) for batch in asked.batches() for pixels in batch["gray"]]
    for made, picture in zip(answered(asked, *sent), given, strict=True):
        np.testing.assert_array_equal(made, picture.convert("RGB"))


@pytest.mark.parametrize("mode", ["CMYK", "P", "1", "I;16", "F"])
def test_pictures_of_any_mode_are_grayed(mode):
    """Printed, indexed, of 16 bits: as `as_rgb` makes them."""
    picture = Image.fromarray(np.asarray(photo(mode="L"), np.uint16) * 257) if mode == "I;16" else photo(mode=mode)
    assert picture.mode == mode
    sent = work(picture).batches()[0]["gray"][0, ..., 0]
    np.testing.assert_array_equal(sent, colorizing.grayed(pictures.as_rgb(picture)))


def test_size_is_that_of_the_long_side():
    """The colours of a large picture are scaled before they are grayed."""
    (batch,) = work(photo(400, 300), size=80).batches()
    small = photo(400, 300).resize((80, 60), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(batch["gray"][0, ..., 0], colorizing.grayed(small))


def test_the_network_sees_no_edge_where_a_picture_ends():
    """What is transparent has the gray of what is beside it."""
    pixels = np.zeros((60, 80, 4), np.uint8)
    pixels[..., 1] = 255  # hidden green
    pixels[20:40, 30:50] = (120, 120, 120, 255)
    (batch,) = work(Image.fromarray(pixels)).batches()
    np.testing.assert_allclose(batch["gray"], 120, atol=1)


# --- what comes back


@settings(deadline=None)
@given(st.floats(0, 3), st.integers(0, 9))
def test_saturation_is_how_far_colours_are_from_gray(factor, seed):
    """So many times as far, pixel by pixel and channel by channel, within what a channel can hold."""
    coloured, gray = photo(seed=seed), photo(mode="L", seed=seed + 10)
    levels, ground = np.asarray(coloured, float), np.asarray(gray, float)[..., None]
    expected = np.clip(ground + factor * (levels - ground), 0, 255)
    np.testing.assert_allclose(np.asarray(colorizing.saturated(coloured, gray, factor)), expected, atol=0.51)


def test_saturation_1_is_the_answer_and_0_is_gray():
    """Bit for bit."""
    given, answer = photo(), photo(seed=1)
    np.testing.assert_array_equal(answered(work(given), answer.copy())[0], answer)
    (gray,) = answered(work(given, saturation=0), answer.copy())
    np.testing.assert_array_equal(gray, colorizing.grayed(given).convert("RGB"))


def test_saturation_keeps_lightness():
    """Nearly, of colours as photographs have them: less than 1.5 of L*'s 100, whichever way."""
    soft = Image.merge("RGB", [Image.new("L", (40, 30), level) for level in (150, 120, 110)])
    gray = colorizing.grayed(soft)
    for factor in (0, 0.5, 1.5, 2):
        (made,) = answered(work(gray, saturation=factor), soft.copy())
        assert np.abs(lightness(made) - lightness(gray)).max() < 1.5


def test_transparency_comes_back():
    """The alpha of the photo on the colours of the answer."""
    given = photo(mode="RGBA")
    (made,) = answered(work(given), photo(seed=1))
    np.testing.assert_array_equal(made.getchannel("A"), given.getchannel("A"))
    np.testing.assert_array_equal(made.convert("RGB"), photo(seed=1))


def test_an_answer_of_another_size_is_the_server_s_error():
    """Not the caller's."""
    with pytest.raises(ServerError, match=r"colorizer: a picture of \(41, 30\) came back for one of \(40, 30\)"):
        answered(work(), photo(41, 30))


@pytest.mark.parametrize(
    ("given", "options", "says"),
    [
        pytest.param(photo(101, 100), {}, "would be coloured at 101 x 100 pixels, more than the limit", id="large"),
        pytest.param(photo(), {"size": 200}, "200 x 150 pixels, more than the limit", id="made-too-large"),
        pytest.param(photo(90, 12), {}, "90 x 12 pixels, and both sides must have 16 or more", id="thin"),
        pytest.param(photo(4, 4), {}, "picture: has 4 x 4 pixels", id="a-dot"),
        pytest.param([photo(), photo(90, 12)], {}, "picture 2: would be coloured at 90 x 12", id="one-of-several"),
        pytest.param("a.jpg", {}, "pictures: 'a.jpg' is not one; atelier.pictures.open_picture", id="a-path"),
        pytest.param(photo(), {"size": 15}, "size 15: must be a whole number, 16 or more", id="size-15"),
        pytest.param(photo(), {"stage": 0.9}, "stage 0.9: must be a number from 1, ", id="stage-below"),
        pytest.param(photo(), {"stage": 3}, "stage 3: must be a number from 1, the first alone, to 2", id="stage-3"),
        pytest.param(photo(), {"stage": math.nan}, "stage nan", id="stage-nan"),
        pytest.param(photo(), {"stage": "gan"}, "stage 'gan'", id="stage-a-word"),
        pytest.param(photo(), {"stage": True}, "stage True", id="stage-a-truth"),
        pytest.param(photo(), {"saturation": -0.1}, "saturation -0.1: must be a number from 0, gray, to 3", id="less"),
        pytest.param(photo(), {"saturation": 3.1}, "saturation 3.1", id="more"),
        pytest.param(photo(), {"saturation": math.inf}, "saturation inf", id="infinite"),
        pytest.param(photo(), {"saturation": None}, "saturation None", id="none"),
    ],
)
def test_what_cannot_be_coloured_is_refused(given, options, says):
    """InvalidInput names the picture or the option, and what would do, in one line."""
    with pytest.raises(InvalidInput) as caught:
        work(given, **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
