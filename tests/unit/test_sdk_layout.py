"""Heat maps and strips, looked at pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from atelier import layout
from atelier.errors import InvalidInput

BLUE, PAPER, RED = (54, 79, 179), (244, 241, 232), (185, 33, 19)


def square(picture: Image.Image, index: int, side: int = 10) -> tuple[int, ...]:
    """The colour in the middle of square `index` of a heat map."""
    row, column = divmod(index, side)
    pitch = (picture.height - 1) // side
    margin = (picture.height - side * pitch - 1) // 2
    return picture.getpixel((margin + column * pitch + pitch // 2, margin + row * pitch + pitch // 2))


@pytest.mark.parametrize("size", [64, 127, 128])
def test_a_heat_map_shows_number_i_in_square_i(size):
    """Row by row, ten to a row: -scale is blue, 0 is white, +scale and beyond is red."""
    latent = np.zeros(100)
    latent[[0, 9, 10, 99]] = -3, 3, 1.5, 30
    picture = layout.heat_map(latent, size=size, scale=3)
    assert picture.size == (size, size)
    assert [square(picture, i) for i in (0, 9, 99)] == [BLUE, RED, RED]
    assert all(square(picture, i) == PAPER for i in range(100) if latent[i] == 0)
    halfway = tuple(np.rint(np.mean([PAPER, RED], axis=0)).astype(int))
    assert square(picture, 10) == pytest.approx(halfway, abs=1)


def test_one_scale_makes_frames_comparable():
    """The same number has the same colour in every map of that scale, and another one in another scale."""
    one, other = np.full(100, 1.0), np.arange(100.0)
    other[5] = 1.0
    maps = [layout.heat_map(z, size=128, scale=4) for z in (one, other)]
    assert square(maps[0], 5) == square(maps[1], 5) != square(layout.heat_map(one, size=128, scale=2), 5)


def test_the_symmetric_scale_is_the_largest_number_either_way():
    """Negative numbers count; nothing but zeros has the scale 1."""
    assert layout.symmetric_scale(np.array([[1.0, -4.0], [2.0, 0.0]])) == 4
    assert layout.symmetric_scale(np.zeros((2, 3))) == 1


def test_other_widths_fit_the_smallest_square():
    """A vector of 10 takes 4 x 4 squares, of which 6 stay black."""
    picture = layout.heat_map(np.zeros(10), size=128, scale=1)
    assert [square(picture, i, side=4) for i in (0, 9, 10, 15)] == [PAPER, PAPER, (0, 0, 0), (0, 0, 0)]


@pytest.mark.parametrize(
    ("latent", "options"),
    [
        pytest.param(np.full(100, np.nan), {}, id="nan"),
        pytest.param(np.zeros(0), {}, id="empty"),
        pytest.param(np.zeros(100), {"scale": 0}, id="no-scale"),
        pytest.param(np.zeros(100), {"size": 10}, id="too-small"),
    ],
)
def test_what_cannot_be_drawn_is_refused(latent, options):
    """InvalidInput, before any pixel."""
    with pytest.raises(InvalidInput, match="heat map"):
        layout.heat_map(latent, **{"size": 128, "scale": 1.0, **options})


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 5, 1), (5, 5, 1), (6, 5, 2), (20, 5, 4)])
def test_a_strip_holds_every_frame_in_reading_order(count, columns, rows):
    """Frame i is whole and untouched at its place, a gap between any two."""
    frames = [Image.new("RGB", (32, 64), (i, 2 * i, 3 * i)) for i in range(count)]
    sheet = layout.strip(frames, columns=columns)
    gap = 2
    assert sheet.size == (min(count, columns) * (32 + gap) + gap, rows * (64 + gap) + gap)
    for i, frame in enumerate(frames):
        left, top = gap + (i % columns) * (32 + gap), gap + (i // columns) * (64 + gap)
        assert sheet.crop((left, top, left + 32, top + 64)).tobytes() == frame.tobytes()


def test_beside_keeps_both_pictures_whole():
    """The left one at the left edge, the right one at the right."""
    left, right = Image.new("RGB", (30, 64), RED), Image.new("RGB", (64, 64), BLUE)
    both = layout.beside(left, right)
    assert both.crop((0, 0, 30, 64)).tobytes() == left.tobytes()
    assert both.crop((both.width - 64, 0, both.width, 64)).tobytes() == right.tobytes()


def test_an_empty_strip_is_refused():
    """InvalidInput rather than a picture without pixels."""
    with pytest.raises(InvalidInput, match="strip"):
        layout.strip([], columns=3)
