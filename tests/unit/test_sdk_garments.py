"""Photos of garments turned into pictures like Fashion-MNIST's, on drawn garments whose shape is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from atelier.errors import InvalidInput
from atelier.garments import NAMES, SIZE, preprocess_garment

GROUNDS = {"dark on light": ((40, 40, 90), (225, 220, 210)), "light on dark": ((235, 230, 225), (60, 40, 30))}


def shirt(garment: tuple[int, ...], ground: tuple[int, ...], *, at: tuple[int, int] = (60, 50), noise: float = 6):
    """A T-shirt of 100 x 130 pixels with one longer sleeve, on a ground with a texture, in a photo of 224 x 224."""
    photo = Image.new("RGB", (224, 224), ground)
    x, y = at
    outline = [(20, 0), (80, 0), (100, 40), (80, 40), (80, 130), (20, 130), (20, 60), (0, 60)]
    ImageDraw.Draw(photo).polygon([(x + dx, y + dy) for dx, dy in outline], fill=garment)
    texture = np.random.default_rng(0).normal(0, noise, (224, 224, 1))
    return Image.fromarray(np.clip(np.asarray(photo) + texture, 0, 255).astype(np.uint8))


def mask(seen: np.ndarray) -> np.ndarray:
    """What is garment: at least half as bright as most of it, for resizing leaves a faint fringe."""
    return seen > np.median(seen[seen > 8]) / 2


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks; 1 if they are the same, up to a column's shift in centring."""
    moved = (np.roll(other, shift, axis=1) for shift in (-1, 0, 1))
    return max((one & each).sum() / (one | each).sum() for each in moved)


def truth(width: int) -> np.ndarray:
    """Where the shirt is in a frame that it fills from top to bottom, `width` pixels wide."""
    alone = shirt((255, 255, 255), (0, 0, 0), noise=0).convert("L").crop((60, 50, 161, 181))
    frame = Image.new("L", (SIZE, SIZE))
    frame.paste(alone.resize((width, SIZE), Image.Resampling.LANCZOS), ((SIZE - width) // 2, 0))
    return np.asarray(frame) > 127


@pytest.mark.parametrize(("garment", "ground"), GROUNDS.values(), ids=GROUNDS)
@pytest.mark.parametrize("at", [(60, 50), (100, 80), (10, 12)], ids=["middle", "low right", "high left"])
def test_garment_is_found_and_fills_the_frame(garment, ground, at):
    """Wherever it lies and whichever is darker, the shape is the garment's, from top to bottom, and all else is 0."""
    seen = preprocess_garment(shirt(garment, ground, at=at))
    found = mask(seen)
    rows, columns = (np.flatnonzero(found.any(axis=axis)) for axis in (1, 0))
    assert (rows[0], rows[-1]) == (0, SIZE - 1)
    assert overlap(found, truth(columns[-1] + 1 - columns[0])) > 0.85
    assert not seen[:, [0, -1]].any()


def test_brightness_is_inverted():
    """As in Fashion-MNIST: a dark garment is bright, a light one dark, and neither is the ground's 0."""
    dark, light = (preprocess_garment(shirt(*colours)) for colours in GROUNDS.values())
    assert np.median(dark[dark > 0]) > 180
    assert 0 < np.median(light[light > 0]) < 60


def test_mirrored_photo_gives_the_mirrored_picture():
    """Left and right are treated alike, up to single pixels at the outline."""
    photo = shirt(*GROUNDS["dark on light"])
    mirrored = preprocess_garment(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT))[:, ::-1]
    assert overlap(mask(preprocess_garment(photo)), mask(mirrored)) > 0.9


def test_larger_photo_gives_the_same_picture():
    """Eight times as many pixels show nothing else."""
    photo = shirt(*GROUNDS["light on dark"], noise=0)
    assert overlap(*(mask(preprocess_garment(each)) for each in (photo, photo.resize((1792, 1792))))) > 0.9


def test_small_garment_keeps_its_shape():
    """A garment that is a sixteenth of a large photo is found, then looked at from near."""
    photo = shirt(*GROUNDS["dark on light"], noise=0)
    ground = Image.new("RGB", (2080, 2080), GROUNDS["dark on light"][1])
    ground.paste(photo, (1400, 300))
    assert overlap(*(mask(preprocess_garment(each)) for each in (photo, ground))) > 0.9


def test_picture_of_one_colour_shows_nothing():
    """Where nothing stands out all is ground: 0."""
    assert not preprocess_garment(Image.new("RGB", (224, 168), (200, 30, 30))).any()


@pytest.mark.parametrize("method", ["find", "source"])
@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 60), height=st.integers(1, 60), seed=st.integers(0, 9), flat=st.booleans())
def test_any_picture_gives_a_picture(method, width, height, seed, flat):
    """Whatever its size and content: uint8 (28, 28), no exception, and the same again."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (1, 1, 3) if flat else (height, width, 3))
    photo = Image.fromarray(np.broadcast_to(pixels, (height, width, 3)).astype(np.uint8))
    seen = preprocess_garment(photo, method=method)
    assert (seen.dtype, seen.shape) == (np.uint8, (SIZE, SIZE))
    assert np.array_equal(seen, preprocess_garment(photo, method=method))


@pytest.mark.parametrize("size", [(3000, 20), (20, 3000), (4000, 3000)], ids=["wide", "high", "large"])
def test_extreme_sizes_are_taken(size):
    """Strips and large photos are reduced first."""
    assert preprocess_garment(Image.new("RGB", size, (200, 30, 30))).shape == (SIZE, SIZE)


def test_a_garment_at_the_end_of_a_strip_is_found():
    """Whose small picture is one pixel wide, and so of other proportions."""
    photo = Image.new("RGB", (15, 3000), (128, 128, 128))
    photo.paste((200, 30, 30), (0, 2900, 15, 2980))
    assert preprocess_garment(photo).any()


def test_source_method_is_the_sources():
    """Longest side 20, Lanczos, sharpened, centred on white, inverted: a black bar becomes a white one on black."""
    seen = preprocess_garment(Image.new("RGB", (100, 40), "black"), method="source")
    assert (seen[10:18, 4:24] == 255).all()
    seen[10:18, 4:24] = 0
    assert not seen.any()


def test_a_method_that_is_none_is_refused():
    """It names those there are."""
    with pytest.raises(InvalidInput, match="method 'sorce': must be find or source"):
        preprocess_garment(Image.new("RGB", (100, 40)), method="sorce")


def test_source_method_keeps_the_ground():
    """It takes the ground for white paper: a gray one stays in the picture, and is seen as part of the garment."""
    photo = shirt((0, 0, 0), (128, 128, 128), noise=0)
    seen = preprocess_garment(photo, method="source")
    assert abs(int(seen[5, 5]) - 127) <= 3
    assert not preprocess_garment(photo)[:, 0].any()


def test_french_names_stand_in_the_order_of_the_labels():
    """Each beside its English one."""
    pairs = dict(zip(NAMES["en"], NAMES["fr"], strict=True))
    told = {"Trouser": "pantalon", "Dress": "robe", "Shirt": "chemise", "Sneaker": "baskets", "Bag": "sac"}
    assert {name: pairs[name] for name in told} == told
