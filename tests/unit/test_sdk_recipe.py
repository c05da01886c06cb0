"""Recipes: what decides a walk, and survives being saved."""

from __future__ import annotations

import base64
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from atelier import latents, paths
from atelier.errors import InvalidInput
from atelier.recipe import Recipe

KEYFRAMES = latents.draw(4, seed=1)
FLOATS = st.floats(-1e6, 1e6, width=32)
RECIPES = st.builds(
    Recipe,
    keyframes=st.sampled_from([2, 4, 6]).flatmap(lambda n: arrays(np.float32, (n, 5), elements=FLOATS)),
    version=st.none() | st.integers(1, 99),
    seed=st.none() | st.integers(0, 2**70),
    path=st.sampled_from(paths.PATHS),
    steps=st.integers(1, 5),
    loop=st.booleans(),
    pairs=st.booleans(),
    fps=st.floats(0.1, 100),
    latent=st.booleans(),
    latent_scale=st.sampled_from(["walk", "frame"]),
    strip=st.booleans(),
)


def plain(recipe: Recipe) -> dict[str, object]:
    found = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    return {**found, "keyframes": (recipe.keyframes.shape, recipe.keyframes.tobytes())}


@settings(max_examples=60, deadline=None)
@given(recipe=RECIPES)
def test_a_recipe_comes_back_from_its_json(recipe):
    """Every field and every bit of the keyframes; the text is one line of ASCII, as metadata fields want it."""
    text = recipe.to_json()
    assert text.isascii()
    assert "\n" not in text
    assert plain(Recipe.from_json(text, where="x")) == plain(recipe)


def test_what_numpy_counts_is_a_number():
    """It can be saved as any other, which a recipe is when all pictures of the walk are made."""
    counted = Recipe(keyframes=KEYFRAMES, steps=np.int64(5), seed=np.uint8(1), version=np.int32(3))
    assert plain(Recipe.from_json(counted.to_json(), where="x")) == plain(counted)
    assert (counted.steps, counted.seed, counted.version) == (5, 1, 3)


@pytest.mark.parametrize("kind", [np.ndarray.tolist, np.float64, np.asarray], ids=["lists", "float64", "float32"])
def test_keyframes_are_an_array_of_their_own(kind):
    """Of float32, whatever they were, so that the frames are those that come back."""
    given = kind(KEYFRAMES.copy())
    made = Recipe(keyframes=given)
    assert plain(Recipe.from_json(made.to_json(), where="x")) == plain(made) == plain(Recipe(keyframes=KEYFRAMES))
    given[0][0] = 9
    assert made.keyframes.tobytes() == KEYFRAMES.tobytes()


def test_numpy_s_rates_and_truths_are_made_plain():
    """As JSON wants them."""
    options = {"loop": True, "pairs": False, "latent": True, "strip": False}
    made = Recipe(keyframes=KEYFRAMES, fps=np.float32(12.5), **{name: np.bool_(on) for name, on in options.items()})
    assert made.to_json() == Recipe(keyframes=KEYFRAMES, fps=12.5, **options).to_json()


@pytest.mark.parametrize("fps", [0, -1, np.nan, np.inf, 10**400, None, "20", True], ids=lambda fps: repr(fps)[:9])
def test_what_is_no_rate_is_refused(fps):
    """InvalidInput, whatever it is."""
    with pytest.raises(InvalidInput, match=r"^fps .*: must be a number above 0, and finite$"):
        Recipe(keyframes=KEYFRAMES, fps=fps)


def test_the_json_tells_people_what_they_see():
    """Model, version, seed, path, steps, number of keyframes and frames are there by name."""
    found = json.loads(Recipe(keyframes=KEYFRAMES, version=3, seed=1, loop=True).to_json())
    told = {name: found[name] for name in ("model", "version", "seed", "path", "steps", "keyframes", "frames")}
    assert told == {
        "model": "wgan", "version": 3, "seed": 1, "path": "spline", "steps": 20, "keyframes": 4, "frames": 80,
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"atelier": 2}, id="other-format"),
        pytest.param({"steps": 0}, id="no-steps"),
        pytest.param({"steps": "20"}, id="steps-as-text"),
        pytest.param({"steps": True}, id="steps-as-truth"),
        pytest.param({"path": "zigzag"}, id="unknown-path"),
        pytest.param({"fps": 0}, id="no-fps"),
        pytest.param({"fps": None}, id="fps-none"),
        pytest.param({"fps": 10**400}, id="fps-beyond-float64"),
        pytest.param({"latent_scale": "x"}, id="unknown-scale"),
        pytest.param({"keyframes": 3}, id="fewer-keyframes"),
        pytest.param({"width": 0}, id="no-width"),
        pytest.param({"vectors_float32_base64": "!!!"}, id="vectors-not-base64"),
        pytest.param({"vectors_float32_base64": None}, id="vectors-none"),
        pytest.param({"model": 3}, id="model-not-a-name"),
        pytest.param({"atelier": 2}, id="of-another-version"),
    ],
)
def test_a_damaged_recipe_is_refused_by_the_name_of_its_file(change):
    """InvalidInput begins with the file, which it names once, and is one line."""
    text = json.dumps(json.loads(Recipe(keyframes=KEYFRAMES).to_json()) | change)
    with pytest.raises(InvalidInput, match=r"^walk\.gif: ") as caught:
        Recipe.from_json(text, where="walk.gif")
    assert str(caught.value).count("walk.gif") == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"atelier": 1}', "[" * 100_000], ids=lambda t: t[:9])
def test_what_is_no_recipe_is_refused(text):
    """Other people's comments in pictures are not taken for recipes."""
    with pytest.raises(InvalidInput, match=r"^a\.gif: "):
        Recipe.from_json(text, where="a.gif")


def test_nan_in_saved_keyframes_is_refused():
    """A tampered file does not become a request."""
    bad = base64.b64encode(np.full((4, 100), np.nan, "<f4").tobytes()).decode()
    text = json.dumps(json.loads(Recipe(keyframes=KEYFRAMES).to_json()) | {"vectors_float32_base64": bad})
    with pytest.raises(InvalidInput, match=r"a\.gif: .*finite"):
        Recipe.from_json(text, where="a.gif")


def test_upscaled_and_back():
    """Only the model changes, and the version, whose number would be another model's."""
    recipe = Recipe(keyframes=KEYFRAMES, version=3, seed=1, strip=True)
    larger = recipe.upscaled()
    assert plain(larger) == plain(recipe) | {"model": "wgan_x4", "version": None}
    assert plain(larger.upscaled(False, version=2)) == plain(recipe) | {"version": 2}


@pytest.mark.parametrize(("model", "wanted"), [("wgan", False), ("wgan_x4", True), ("style", False)])
def test_what_is_upscaled_already_stays(model, wanted):
    """And what is not to be: its version is still its own."""
    recipe = Recipe(keyframes=KEYFRAMES, model=model, version=3)
    assert recipe.upscaled(wanted) is recipe


def test_a_model_that_nothing_upscales():
    """InvalidInput that names it, and those that can be."""
    with pytest.raises(InvalidInput, match=r"upscales the pictures of 'style'; it can be done with wgan$"):
        Recipe(keyframes=KEYFRAMES, model="style").upscaled()


def test_pairs_are_walks_of_their_own():
    """The frames of each pair are those of a walk through the two."""
    recipe = Recipe(keyframes=KEYFRAMES, pairs=True, loop=False, steps=7)
    walks = [paths.walk(KEYFRAMES[i : i + 2], steps=7, path="spline") for i in (0, 2)]
    np.testing.assert_array_equal(recipe.latents(), np.concatenate(walks))


@pytest.mark.parametrize(("latent", "walks"), [(False, 0), (True, 1)], ids=["plain", "latent"])
@pytest.mark.parametrize("pairs", [False, True], ids=["one-walk", "pairs"])
def test_a_walk_is_computed_only_where_its_vectors_are_shown(pairs, latent, walks, monkeypatch):
    """All frames of a long one take a second; how many there are, nothing."""
    walked: list[int] = []
    walk = paths.walk
    frames = len(Recipe(keyframes=KEYFRAMES, steps=5, pairs=pairs).latents())
    monkeypatch.setattr(paths, "walk", lambda keyframes, **how: walked.append(1) or walk(keyframes, **how))
    recipe = Recipe(keyframes=KEYFRAMES, steps=5, pairs=pairs, latent=latent, strip=True)
    recipe.sides((32, 32))
    recipe.arranged([Image.new("RGB", (32, 32))] * frames)
    assert json.loads(recipe.to_json())["frames"] == frames
    assert len(walked) == walks * (2 if pairs else 1)


def test_an_odd_vector_out_is_refused():
    """Three vectors are no pairs."""
    with pytest.raises(InvalidInput, match="3 vectors do not make pairs"):
        Recipe(keyframes=KEYFRAMES[:3], pairs=True)


@pytest.mark.parametrize(
    ("keyframes", "says"),
    [
        pytest.param(np.empty((0, 100), np.float32), "2 keyframes or more, and there is 0", id="none"),
        pytest.param(KEYFRAMES[0], r"need the shape \(N, D\), have \(100,\)", id="one-vector"),
        pytest.param([[1.0], [1.0, 2.0]], "must be an array of numbers", id="ragged"),
        pytest.param(KEYFRAMES[:, :0], r"need the shape \(N, D\), have \(4, 0\)", id="of-no-numbers"),
    ],
)
@pytest.mark.parametrize("pairs", [False, True], ids=["one-walk", "pairs"])
def test_what_are_no_keyframes_is_refused(keyframes, says, pairs):
    """InvalidInput, in pairs or not."""
    with pytest.raises(InvalidInput, match=says):
        Recipe(keyframes=keyframes, pairs=pairs)


@pytest.mark.parametrize(
    ("options", "columns", "rows"),
    [
        pytest.param({"loop": True}, 5, 4, id="loop-a-row-for-each-leg"),
        pytest.param({"loop": False}, 5, 4, id="open-the-last-keyframe-alone"),
        pytest.param({"loop": False, "keyframes": KEYFRAMES[:2]}, 6, 1, id="one-leg-in-one-row"),
        pytest.param({"loop": False, "pairs": True}, 6, 2, id="a-row-for-each-pair"),
        pytest.param({"loop": True, "pairs": True}, 10, 2, id="a-row-for-each-pair-and-back"),
    ],
)
def test_rows_of_a_strip(options, columns, rows):
    """A strip's rows are the walk's legs or pairs."""
    recipe = Recipe(**{"keyframes": KEYFRAMES, "steps": 5, "strip": True, **options})
    frames = [Image.new("RGB", (32, 32)) for _ in recipe.latents()]
    (sheet,) = recipe.arranged(frames)
    assert (sheet.width // 33, sheet.height // 33) == (columns, rows)


@pytest.mark.parametrize("strip", [False, True], ids=["frames", "strip"])
@pytest.mark.parametrize("latent", [False, True], ids=["plain", "latent"])
def test_the_sides_of_what_comes_are_known_before_it_does(strip, latent):
    """For a file's format to be asked whether it can hold them."""
    recipe = Recipe(keyframes=KEYFRAMES, steps=5, strip=strip, latent=latent)
    shown = recipe.arranged([Image.new("RGB", (48, 64)) for _ in recipe.latents()])
    assert {each.size for each in shown} == {recipe.sides((48, 64))}


def test_a_walk_too_long_is_refused():
    """All pairs counted together, each of which would be short enough."""
    with pytest.raises(InvalidInput, match="120,002 frames is too long"):
        Recipe(keyframes=KEYFRAMES, pairs=True, steps=60_000)


def test_heat_maps_share_one_scale_unless_asked_otherwise():
    """With `walk` a frame's map depends on the other frames; with `frame` its largest number is full colour."""
    keyframes = np.concatenate([np.eye(1, 100), 4 * np.eye(1, 100)]).astype(np.float32)

    def first_square(scale: str) -> tuple[int, ...]:
        recipe = Recipe(keyframes=keyframes, steps=1, loop=False, latent=True, latent_scale=scale)
        shown = recipe.arranged([Image.new("RGB", (128, 128))] * 2)
        assert shown[0].size == (264, 128)
        return shown[0].getpixel((136 + 3 + 6, 3 + 6))

    assert first_square("frame") == (185, 33, 19)
    assert first_square("walk") != (185, 33, 19)
