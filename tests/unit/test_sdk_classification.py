"""What goes into a classifier, and what comes out: the answer, its order, its languages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from atelier import garments
from atelier._models import MODELS
from atelier.classification import Classification, images
from atelier.errors import InvalidInput
from atelier.pictures import as_rgb

LABELS = MODELS["classifier"].labels
SEEN = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
SHARES = dict(zip(LABELS, [0.1, 0.05, 0.0, 0.6, 0.02, 0.1, 0.03, 0.04, 0.05, 0.01], strict=True))
ANSWER = Classification(probabilities=SHARES, model="classifier", version=3)


def photo(seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A dark garment with sleeves on paper."""
    picture = Image.new("RGB", (120, 90), "white")
    picture.paste((40, 30 + seed, 60), (20, 10, 100, 30))
    picture.paste((40, 30 + seed, 60), (40, 10, 80, 80))
    return picture.convert(mode)


# --- answers


def test_the_answer_is_its_most_probable_class():
    """Label and probability, and all classes best first; equals stay in the order of the labels."""
    assert (ANSWER.label, ANSWER.probability) == ("Dress", 0.6)
    assert ANSWER.top(3) == [("Dress", 0.6), ("T-shirt/top", 0.1), ("Sandal", 0.1)]
    assert ANSWER.top() == ANSWER.top(99)
    assert sorted(ANSWER.top()) == sorted(SHARES.items())


@given(st.lists(st.floats(0, 1), min_size=10, max_size=10), st.integers(1, 12))
def test_top_is_a_ranking(shares, count):
    """Whatever the numbers: `count` classes or all, falling, none that is left out above one that is in."""
    answer = Classification(probabilities=dict(zip(LABELS, shares, strict=True)), model="m", version=1)
    found = answer.top(count)
    values = [p for _, p in found]
    assert values == sorted(shares, reverse=True)[:count]
    assert len({label for label, _ in found}) == len(found) == min(count, 10)


def test_an_answer_in_french_is_the_same_answer():
    """The source program's names, in the place of the English ones, which a way back leads to."""
    french = ANSWER.translated("fr")
    assert french.label == "robe"
    assert list(french.probabilities) == list(garments.NAMES["fr"])
    assert list(french.probabilities.values()) == list(SHARES.values())
    assert (french.model, french.version) == ("classifier", 3)
    assert french.translated("en") == ANSWER
    assert french.translated("fr") == french
    assert ANSWER.translated("en") == ANSWER


def test_every_language_names_every_label():
    """With a name of its own for each."""
    assert all(len(set(names)) == len(LABELS) for names in garments.NAMES.values())


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        pytest.param(lambda: ANSWER.top(0), "top 0: must be a whole number, 1 or more", id="top"),
        pytest.param(lambda: ANSWER.top("3"), "top '3': must be a whole number", id="top-as-text"),
        pytest.param(lambda: ANSWER.top(2.5), r"top 2\.5: must be a whole number", id="top-between"),
        pytest.param(lambda: ANSWER.translated("de"), "language 'de': must be one of en, fr", id="language"),
    ],
)
def test_what_an_answer_cannot_say_is_refused(ask, says):
    """InvalidInput names the argument."""
    with pytest.raises(InvalidInput, match=says):
        ask()


# --- pictures


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [
        pytest.param(SEEN[0], SEEN[:1], id="one"),
        pytest.param(SEEN[0][..., None], SEEN[:1], id="one-with-a-channel"),
        pytest.param(SEEN, SEEN, id="many"),
        pytest.param(SEEN[..., None], SEEN, id="many-with-a-channel"),
        pytest.param(list(SEEN), SEEN, id="a-list"),
        pytest.param(iter([SEEN[:2], SEEN[2]]), SEEN, id="parts"),
        pytest.param(SEEN[:0], SEEN[:0], id="none"),
        pytest.param([], SEEN[:0], id="an-empty-list"),
        pytest.param(np.zeros((28, 28, 28), np.uint8), np.zeros((28, 28, 28), np.uint8), id="28"),
        pytest.param(SEEN[:, ::-1, ::-1], SEEN[:, ::-1, ::-1], id="a-view"),
    ],
)
def test_arrays_stay_as_they_are(pictures, expected):
    """Every form of them becomes uint8 (N, 28, 28, 1), in order."""
    found = images(pictures)
    assert (found.dtype, found.shape) == (np.uint8, (len(expected), 28, 28, 1))
    np.testing.assert_array_equal(found[..., 0], expected)


@pytest.mark.parametrize("method", ["find", "source"])
def test_photos_are_prepared(method):
    """One, several, or among arrays: what `preprocess_garment` makes of each, in its place."""
    first, second = (garments.preprocess_garment(photo(seed), method=method) for seed in (0, 90))
    np.testing.assert_array_equal(images(photo(0), method=method)[..., 0], [first])
    np.testing.assert_array_equal(images([photo(0), photo(90)], method=method)[..., 0], [first, second])
    np.testing.assert_array_equal(images([SEEN[0], photo(90)], method=method)[..., 0], [SEEN[0], second])


def test_a_picture_of_fashion_mnist_stays_as_it_is():
    """Method raw: its pixels, if it has 28 x 28 of them; a photo is refused."""
    np.testing.assert_array_equal(images(Image.fromarray(SEEN[0]), method="raw")[..., 0], SEEN[:1])
    with pytest.raises(InvalidInput, match="raw takes a picture of 28 x 28, and this is 120 x 90"):
        images(photo(), method="raw")


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "P", "L", "I;16"])
def test_a_photo_of_any_mode_is_seen_as_its_rgb_is(mode):
    """What people see of it decides, not how its file holds it."""
    picture = photo(0, mode) if mode != "I;16" else Image.fromarray(np.asarray(photo(0, "L"), np.uint16) * 257)
    assert picture.mode == mode
    np.testing.assert_array_equal(images(picture), images(as_rgb(picture)))


@pytest.mark.parametrize(
    ("pictures", "says"),
    [
        pytest.param(SEEN / 255, "float64 (3, 28, 28) must be uint8", id="floats"),
        pytest.param(SEEN.astype(int), "int64 (3, 28, 28) must be uint8", id="integers"),
        pytest.param(np.zeros((3, 32, 32), np.uint8), "uint8 (3, 32, 32) must be uint8 (N, 28, 28)", id="size"),
        pytest.param(np.zeros((28, 28, 3), np.uint8), "(28, 28, 3)", id="colour"),
        pytest.param(np.zeros(784, np.uint8), "(784,)", id="flat"),
        pytest.param(np.zeros((), np.uint8), "uint8 ()", id="a-number"),
        pytest.param("boot.jpg", "'boot.jpg' is not one; atelier.pictures.open_picture", id="a-path"),
        pytest.param(["boot.jpg"], "'boot.jpg' is not one; atelier.pictures.open_picture", id="a-list-of-paths"),
        pytest.param(None, "None is not one", id="nothing"),
        pytest.param(Image.new("RGB", (1, 1)), "picture: has 1 x 1 pixels", id="a-pixel"),
    ],
)
def test_what_is_no_picture_of_a_garment_is_refused(pictures, says):
    """InvalidInput says what was given and what must be."""
    with pytest.raises(InvalidInput) as caught:
        images(pictures)
    assert says in str(caught.value)


@pytest.mark.parametrize("given", [photo(), SEEN], ids=["photo", "array"])
def test_a_method_that_is_none_is_refused(given):
    """It names those there are, even where nothing is to be prepared."""
    with pytest.raises(InvalidInput, match="method 'guess': must be one of find, source, raw"):
        images(given, method="guess")
