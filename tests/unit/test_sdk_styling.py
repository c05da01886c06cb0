"""What a style network is asked, and what becomes of its answers: styles, sizes, groups, colours, transparency."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from noise import picture as photo
from PIL import Image

from atelier import pictures, sizing, styling
from atelier._contract import Contract, Tensor
from atelier.errors import InvalidInput, ServerError
from atelier.styling import Work

NAMES = ("great-wave", "scream", "tableau")
CONTRACT = Contract(
    summary="stand-in",
    inputs=(Tensor("content", "UINT8", (-1, -1, 3)), Tensor("style_weights", "FP32", (-1,))),
    outputs=(Tensor("image", "UINT8", (-1, -1, 3)),),
    max_batch=4,
    max_pixels=10_000,
)


def work(given: object = None, style: object = "scream", **options: object) -> Work:
    plain = {"size": None, "strength": 1.0, "keep_color": False}
    return Work.of(photo() if given is None else given, style, CONTRACT, **{**plain, **options})


def rows(style: object, count: int = 1) -> np.ndarray:
    """The weights of every picture, in the pictures' order."""
    batches = work([photo(seed=seed) for seed in range(count)], style).batches(NAMES)
    return np.concatenate([batch["style_weights"] for batch in batches])


def answered(asked: Work, *painted: Image.Image) -> list[Image.Image]:
    for picture in painted:
        picture.info.update(model="style", version=3)
    return asked.finished(painted, NAMES)


# --- styles


@pytest.mark.parametrize("name", ["great-wave", "Great-Wave", "GREAT WAVE", " great_wave "])
def test_a_style_is_found_by_its_name(name):
    """Whatever its case, and with spaces or underscores for its hyphens."""
    np.testing.assert_array_equal(rows(name), [[1, 0, 0]])


@pytest.mark.parametrize(
    ("blend", "expected"),
    [
        pytest.param({"scream": 3}, [0, 1, 0], id="one"),
        pytest.param({"tableau": 0.7, "great-wave": 0.3}, [0.3, 0, 0.7], id="shares"),
        pytest.param({"tableau": 2, "scream": 6}, [0, 0.75, 0.25], id="any-sum"),
        pytest.param({"scream": 1, "SCREAM": 1, "tableau": 2}, [0, 0.5, 0.5], id="a-name-twice"),
        pytest.param({"scream": 0, "tableau": 1e-300}, [0, 0, 1], id="tiny"),
        pytest.param({"scream": 1e308, "tableau": 1e308}, [0, 0.5, 0.5], id="huge"),
        pytest.param({"scream": np.float32(1), "tableau": np.int64(1)}, [0, 0.5, 0.5], id="numpy"),
    ],
)
def test_the_weights_of_a_blend_add_up_to_one(blend, expected):
    """In the order of the network's styles."""
    np.testing.assert_allclose(rows(blend), [expected], rtol=1e-6)


@given(st.lists(st.floats(0, 1e6), min_size=3, max_size=3).filter(any))
def test_a_blend_read_back_is_the_same(weights):
    """The label of a blend is what `parsed` reads, to the three digits it has."""
    blend = dict(zip(NAMES, weights, strict=True))
    said = styling.label(blend, NAMES)
    read = {said: 1.0} if said in NAMES else styling.parsed(said)
    for name, weight in blend.items():
        assert read.get(name, 0) == pytest.approx(weight / sum(weights), rel=2e-2, abs=1e-9)


def test_one_style_for_all_pictures_or_one_for_each():
    """Names and blends may be mixed."""
    np.testing.assert_array_equal(rows("scream", 3), [[0, 1, 0]] * 3)
    np.testing.assert_array_equal(rows(["tableau", {"scream": 1}], 2), [[0, 0, 1], [0, 1, 0]])


@pytest.mark.parametrize(
    ("style", "says"),
    [
        pytest.param("nope", "no style 'nope'; there are great-wave, scream, tableau", id="unknown"),
        pytest.param({"scream": 1, "nope": 0}, "no style 'nope'", id="unknown-in-a-blend"),
        pytest.param({"scream": -1, "tableau": 2}, "weight of scream is -1;", id="negative"),
        pytest.param({"scream": math.nan}, "weight of scream is nan;", id="nan"),
        pytest.param({"scream": math.inf}, "weight of scream is inf;", id="infinite"),
        pytest.param({"scream": "much"}, "weight of scream is 'much';", id="a-word"),
        pytest.param({"scream": True}, "weight of scream is True;", id="a-truth"),
        pytest.param({"scream": 0, "tableau": 0.0}, "needs a weight above 0", id="all-zero"),
        pytest.param({}, "needs a weight above 0", id="empty-blend"),
        pytest.param({1: 1.0}, "{1: 1.0} is neither a name nor weights by name", id="numbered"),
        pytest.param(None, "None is neither", id="nothing"),
        pytest.param([None], "None is neither", id="nothing-in-a-list"),
        pytest.param(["scream", "tableau"], "2 for 1 picture; give one for all, or one for each", id="too-many"),
        pytest.param([], "0 for 1 picture;", id="too-few"),
        pytest.param(np.array(3), "array(3) is neither", id="an-array-without-dimensions"),
    ],
)
def test_what_is_no_style_is_refused(style, says):
    """InvalidInput says what was given and what there is."""
    with pytest.raises(InvalidInput) as caught:
        work([photo()], style).batches(NAMES)
    assert says in str(caught.value)


def test_a_style_that_a_blend_names_twice_has_both_weights():
    """As one in another case has."""
    assert styling.parsed("scream=1,Scream=3,tableau=1") == pytest.approx({"scream": 0.8, "tableau": 0.2})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("scream", "'scream' is no blend"),
        ("scream=-1,scream=3", "the weight of scream is -1.0"),
        ("scream=much", "'scream=much' is no blend"),
        ("", "'' is no blend"),
        ("scream=1,", "'scream=1,' is no blend"),
        ("scream=0", "needs a weight above 0"),
        ("scream=-1", "weight of scream is -1"),
    ],
)
def test_text_that_is_no_blend_is_refused(text, says):
    """One line that shows how to write one, or what is wrong with a weight."""
    with pytest.raises(InvalidInput, match=says):
        styling.parsed(text)


# --- pictures


@pytest.mark.parametrize(
    ("given", "size", "expected"),
    [
        pytest.param((40, 30), None, (40, 30), id="as-it-is"),
        pytest.param((40, 30), 80, (80, 60), id="enlarged"),
        pytest.param((300, 31), 160, (160, 17), id="reduced"),
        pytest.param((31, 300), 160, (17, 160), id="upright"),
        pytest.param((40, 30), 40, (40, 30), id="the-same"),
        pytest.param((40, 30), np.int64(80), (80, 60), id="numpy-s"),
    ],
)
def test_size_is_that_of_the_long_side(given, size, expected):
    """The shape stays; None leaves a picture as it is."""
    assert sizing.sized(photo(*given), size=size, done="stylised").size == expected


def test_a_picture_of_the_right_size_keeps_its_pixels():
    """Nothing is resampled that need not be."""
    np.testing.assert_array_equal(sizing.sized(photo(), size=40, done="stylised"), photo())


@given(st.integers(16, 400), st.integers(16, 400))
def test_the_size_that_an_error_names_is_one_that_fits(width, height):
    """A picture that is too large, or too thin, says a size: with that it is taken, or cannot be at all."""
    fitted = partial(sizing.sized, photo(width, height), most=10_000, done="stylised")
    for size in (None, 400):
        try:
            fitted(size=size, flag="--size")
        except InvalidInput as exc:
            best = int(str(exc).rpartition("--size ")[2].rstrip(")"))
            made = fitted(size=best)
            assert made.width * made.height <= 10_000


@pytest.mark.parametrize("given", [photo(101, 100), photo(90, 12)], ids=["large", "thin"])
def test_an_error_names_a_flag_only_to_a_script(given):
    """An application has none: to it the option is `size`."""
    says = r"give a size of (\d+) or (more|less)"
    with pytest.raises(InvalidInput, match=f"{says}$"):
        work(given)
    with pytest.raises(InvalidInput, match=rf"{says} \(--size \1\)$"):
        sizing.sized(given, most=10_000, done="stylised", flag="--size")


@pytest.mark.parametrize(
    ("given", "options", "says"),
    [
        pytest.param(photo(101, 100), {}, "101 x 100 pixels, more than the limit of 10,000", id="large"),
        pytest.param(photo(), {"size": 200}, "200 x 150 pixels, more than the limit", id="made-too-large"),
        pytest.param(photo(90, 12), {}, "90 x 12 pixels, and both sides must have 16 or more", id="thin"),
        pytest.param(photo(90, 30), {"size": 30}, "30 x 10 pixels, and both sides", id="made-too-thin"),
        pytest.param(photo(1000, 155), {"size": 30}, "give a size of 104 or more", id="by-its-own-proportions"),
        pytest.param(photo(4, 4), {}, "picture: has 4 x 4 pixels", id="a-dot"),
        pytest.param([photo(), photo(90, 12)], {}, "picture 2: would be stylised at 90 x 12", id="one-of-several"),
        pytest.param([photo(), "a.jpg"], {}, "picture 2: 'a.jpg' is not one", id="a-path-among-pictures"),
        pytest.param("a.jpg", {}, "pictures: 'a.jpg' is not one; atelier.pictures.open_picture", id="a-path"),
        pytest.param(7, {}, "pictures: 7 is not one", id="a-number"),
        pytest.param(np.ones((9, 9, 3)), {}, "picture 1: array([[1., 1., 1.], [1., 1., 1.], ", id="an-array"),
        pytest.param(np.array(3), {}, "pictures: array(3) is not one", id="an-array-without-dimensions"),
        pytest.param(photo(), {"size": 15}, "size 15: must be a whole number, 16 or more", id="size-15"),
        pytest.param(photo(), {"size": 10**400}, "more than the limit of 10,000", id="size-beyond-float64"),
        pytest.param(photo(), {"size": 99.5}, "size 99.5: must be a whole number", id="half-a-pixel"),
        pytest.param(photo(), {"strength": 1.1}, "strength 1.1: must be a number from 0", id="strength"),
        pytest.param(photo(), {"strength": math.nan}, "strength nan", id="strength-nan"),
        pytest.param(photo(), {"strength": "full"}, "strength 'full'", id="strength-a-word"),
    ],
)
def test_what_cannot_be_stylised_is_refused(given, options, says):
    """InvalidInput names the picture or the option, and what would do."""
    with pytest.raises(InvalidInput) as caught:
        work(given, **options)
    assert says in str(caught.value)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1", "I;16", "F"])
def test_pictures_of_any_mode_are_seen_as_rgb(mode):
    """Gray, printed, indexed, of 16 bits: as `as_rgb` makes them, and so they come back."""
    picture = Image.fromarray(np.asarray(photo(mode="L"), np.uint16) * 257) if mode == "I;16" else photo(mode=mode)
    assert picture.mode == mode
    asked = work(picture)
    seen = pictures.as_rgb(picture)
    np.testing.assert_array_equal(asked.batches(NAMES)[0]["content"], [np.asarray(seen)])
    assert answered(asked, seen.copy())[0].mode == "RGB"


def test_a_picture_is_stylised_as_its_exif_turns_it():
    """And comes back upright."""
    turned = photo(40, 30)
    turned.getexif()[0x0112] = 6
    asked = work(turned)
    assert asked.batches(NAMES)[0]["content"].shape == (1, 40, 30, 3)
    assert answered(asked, photo(30, 40))[0].size == (30, 40)


# --- groups


def test_pictures_of_one_size_go_together_and_results_keep_their_order():
    """Never more than a batch or than the pixels of one large picture; each result belongs to its picture."""
    sizes = [(20, 20), (90, 90), (20, 20), (60, 60), (90, 90), (60, 60), (60, 60), *[(20, 20)] * 9]
    given = [photo(*size, seed=index) for index, size in enumerate(sizes)]
    asked = work(given, ["scream", "tableau"] * 8)
    batches = asked.batches(NAMES)
    for batch in batches:
        count, height, width, _ = batch["content"].shape
        assert count == len(batch["style_weights"]) <= 4
        assert count == 1 or count * height * width <= 10_000
    assert len(batches) == 2 + 2 + 4  # two of 90, three of 60 two at most, eleven of 20 for two instances
    sent = [Image.fromarray(pixels) for batch in batches for pixels in batch["content"]]
    styles = [row.argmax() for batch in batches for row in batch["style_weights"]]
    for index, made in enumerate(answered(asked, *sent)):
        np.testing.assert_array_equal(made, given[index])
        assert made.info["style"] == ("scream", "tableau")[index % 2]
    assert sorted(styles) == [1] * 8 + [2] * 8


@pytest.mark.parametrize(("count", "groups"), [(1, [1]), (2, [1, 1]), (3, [2, 1]), (4, [2, 2]), (8, [4, 4])])
def test_a_few_pictures_are_spread_over_the_requests_in_flight(count, groups):
    """So that no instance of the model waits while another has them all."""
    batches = work([photo(seed=seed) for seed in range(count)]).batches(NAMES)
    assert [len(batch["content"]) for batch in batches] == groups


# --- what comes back


def test_a_result_says_what_made_it():
    """Model, version, and style by its own name, whatever it was asked by; nothing of the photo's own."""
    given = photo()
    given.info["icc_profile"] = b"of another colour space"
    (made,) = answered(work(given, {"SCREAM": 3, "Tableau": 1}), photo(seed=1))
    assert made.info == {"model": "style", "version": 3, "style": "scream=0.75,tableau=0.25"}
    assert made.mode == "RGB"
    np.testing.assert_array_equal(made, photo(seed=1))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("keep_color", [False, True])
def test_strength_0_is_the_original(mode, keep_color):
    """Bit for bit, with its transparency."""
    given = photo(mode=mode)
    (made,) = answered(work(given, strength=0, keep_color=keep_color), photo(seed=1))
    assert made.mode == mode
    np.testing.assert_array_equal(made, given)


def test_strength_is_how_much_of_the_painting_there_is():
    """Half is the mean of both, to a rounding."""
    (made,) = answered(work(strength=0.5), photo(seed=1))
    mean = (np.asarray(photo(), float) + np.asarray(photo(seed=1), float)) / 2
    np.testing.assert_allclose(np.asarray(made), mean, atol=1)


def test_keep_color_takes_only_the_brightness():
    """Of a gray painting: its brightness in the photo's colours; of a gray photo, a gray painting."""
    soft = Image.merge("RGB", [Image.new("L", (40, 30), level) for level in (150, 120, 110)])
    gray = photo(mode="L").point(lambda level: 100 + level // 5)
    (made,) = answered(work(soft, keep_color=True), gray.convert("RGB"))
    brightness, blue, red = (np.asarray(plane, int) for plane in made.convert("YCbCr").split())
    np.testing.assert_allclose(brightness, np.asarray(gray, int), atol=2)
    for found, plane in zip((blue, red), soft.convert("YCbCr").split()[1:], strict=True):
        np.testing.assert_allclose(found, np.asarray(plane, int), atol=2)
    (plain,) = answered(work(gray, keep_color=True), photo(seed=1))
    assert np.ptp(np.asarray(plain, int), axis=-1).max() <= 2


def test_transparency_comes_back():
    """The alpha of the photo on the colours of the painting, whether it has any pixel or is one colour of a palette."""
    given = photo(mode="RGBA")
    (made,) = answered(work(given), photo(seed=1))
    np.testing.assert_array_equal(made.getchannel("A"), given.getchannel("A"))
    np.testing.assert_array_equal(made.convert("RGB"), photo(seed=1))
    indexed = photo(mode="RGB").quantize(8)
    indexed.info["transparency"] = 3
    (made,) = answered(work(indexed), photo(seed=1))
    np.testing.assert_array_equal(np.asarray(made)[..., 3] == 0, np.asarray(indexed) == 3)


def test_the_network_sees_no_edge_where_a_picture_ends():
    """What is transparent has the colours beside it: neither white, nor what its hidden pixels hold."""
    pixels = np.zeros((60, 80, 4), np.uint8)
    pixels[..., 1] = 255  # hidden green
    pixels[20:40, 30:50] = (200, 40, 60, 255)
    (batch,) = work(Image.fromarray(pixels)).batches(NAMES)
    np.testing.assert_allclose(batch["content"][0], np.broadcast_to([200, 40, 60], (60, 80, 3)), atol=2)


def test_an_answer_of_another_size_is_the_server_s_error():
    """Not the caller's."""
    with pytest.raises(ServerError, match=r"style: a picture of \(41, 30\) came back for one of \(40, 30\)"):
        answered(work(), photo(41, 30))
