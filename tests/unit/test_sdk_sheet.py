"""Sheets of classified pictures, looked at pixel by pixel."""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from atelier import garments, sheet
from atelier.classification import Classification
from atelier.errors import InvalidInput

RED, BLUE, INK = (185, 33, 19), (54, 79, 179), (30, 30, 30)
PAPER = (244, 241, 232)
PALE = (226, 221, 206)
"""What a bar leaves of the longest there can be."""
BARS = (490, 62, 630, 260)
SEEN = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)


def card(best: float = 0.7, name: str = "boot.jpg", size: tuple[int, int] = (300, 200)) -> sheet.Card:
    shares = [best, *[(1 - best) / 9] * 9]
    answer = Classification(
        probabilities=dict(zip(garments.NAMES["en"], shares, strict=True)), model="classifier", version=3
    )
    return sheet.Card(name, Image.new("RGB", size, (0, 200, 0)), SEEN, answer)


def count(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(picture) == colour).all(axis=-1).sum())


def places(picture: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    return np.argwhere((np.asarray(picture) == colour).all(axis=-1))


def test_what_the_network_saw_is_there_pixel_by_pixel():
    """Each of the 28 x 28 as a square of 6, nothing smoothed."""
    drawn = np.asarray(sheet.draw([card()]))
    enlarged = SEEN.repeat(6, 0).repeat(6, 1)
    found = np.lib.stride_tricks.sliding_window_view(drawn[..., 0], enlarged.shape)
    assert any((window == enlarged).all() for row in found[55:75] for window in row[190:210])


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (5, 4), (2000, 9)], ids=str)
def test_the_picture_given_keeps_its_shape(size):
    """As large as fits into the square, whatever its size was."""
    rows, columns = places(sheet.draw([card(size=size)]), (0, 200, 0)).T
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert max(width, height) == sheet.SIDE
    assert min(width, height) == pytest.approx(sheet.SIDE * min(size) / max(size), abs=1)


@pytest.mark.parametrize("best", [1.0, 0.5, 0.2])
def test_the_bars_are_the_probabilities(best):
    """Each as long as its share of 130 pixels; the best in another colour."""
    drawn = sheet.draw([card(best)]).crop(BARS)
    rest = (1 - best) / 9
    for colour, share, bars in ((RED, best, 1), (BLUE, rest, 9 * (rest > 0))):
        lengths = np.bincount(places(drawn, colour)[:, 0], minlength=1)
        assert lengths.max() == pytest.approx(130 * share, abs=0.5)
        assert np.count_nonzero(np.diff(np.concatenate([[0], lengths > 0])) == 1) == bars


@pytest.mark.parametrize(("top", "bars"), [(1, 1), (3, 3), (None, 10)])
def test_top_is_how_many_bars_there_are(top, bars):
    """All ten without it."""
    rows = np.unique(places(sheet.draw([card()], top=top).crop(BARS), PALE)[:, 0])
    assert np.count_nonzero(np.diff(rows) > 1) + 1 == bars


@pytest.mark.parametrize("cards", [1, 2, 3, 7, 30])
def test_every_card_is_there(cards):
    """As many pictures as were given, in a sheet that is neither a strip nor a tower."""
    drawn = sheet.draw([card(size=(100, 100))] * cards)
    assert count(drawn, (0, 200, 0)) == cards * sheet.SIDE**2
    assert drawn.width / drawn.height > 0.3


@pytest.mark.parametrize(
    "name", ["chaussure-été-à-l'œil.jpg", "靴.jpg", "a" * 300 + ".jpg", "b\udcff.jpg", ""], ids=ascii
)
def test_any_name_can_be_written(name):
    """Accents, other scripts, no text at all, or too much: in ink, left of the answer, within its card."""
    drawn = sheet.draw([card(name=name)])
    columns = places(drawn.crop((0, 40, drawn.width, 62)), INK)[:, 1]
    assert columns.max(initial=0) < 368


def test_of_a_long_name_the_end_is_kept():
    """It tells files of one folder apart."""
    long = "folder/" * 60
    first, second, same = (
        sheet.draw([card(name=name)]).tobytes() for name in (f"{long}a.jpg", f"{long}b.jpg", f"other/{long}a.jpg")
    )
    assert first != second
    assert first == same


@pytest.mark.parametrize("count", [1, 2, 3, 9, 11])
@pytest.mark.parametrize("size", [(120, 80), (80, 120), (120, 20)], ids=str)
def test_a_contact_sheet_has_every_picture_as_it_is(count, size):
    """Pixel by pixel, in order, in rows of about the height of all; what is transparent shows the paper."""
    pictures = [Image.new("RGB", size, (10 * index, 200, 0)) for index in range(count)]
    drawn = sheet.contact([(f"picture {index}", each) for index, each in enumerate(pictures)], title="all of them")
    corners = [tuple(places(drawn, (10 * index, 200, 0)).min(0)) for index in range(count)]
    assert corners == sorted(corners)
    assert all(count_of == size[0] * size[1] for count_of in (count_all(drawn, each) for each in pictures))
    if count > 1:
        assert 0.4 < drawn.width / drawn.height < 2.5
    clear = sheet.contact([("", Image.new("RGBA", size))], title="")
    assert count_all(clear, Image.new("RGB", (1, 1), PAPER)) == clear.width * clear.height


def test_a_contact_sheet_has_as_many_columns_as_it_is_asked_for():
    """Side by side, though that is wider than high."""
    drawn = sheet.contact([(str(index), Image.new("RGB", (120, 80))) for index in range(3)], title="", columns=3)
    assert drawn.size == (3 * (120 + 16) + 16, 16 + 24 + (80 + 24 + 16))


def test_small_pictures_leave_room_for_a_sentence():
    """Not for any: of a longer one its end is there."""
    small = Image.new("RGB", (64, 64))
    short, long = (
        sheet.contact([(words, small)] * 2, title="", columns=2) for words in ("four times as wide", "x" * 99)
    )
    assert short.width > 2 * (64 + 16) + 100
    assert long.width == 2 * (240 + 16) + 16


def test_the_letters_of_large_pictures_can_be_read():
    """They grow with the pictures, as far as these are too large to be looked at one to one."""
    heights = []
    for sides in ((300, 90), (1024, 683), (2048, 1365), (4096, 2304), (4096, 90), (90, 4096)):
        drawn = sheet.contact([("H", Image.new("RGB", sides, RED))], title="")
        heights.append(np.ptp(places(drawn, INK)[:, 0]) + 1)
    np.testing.assert_allclose(heights, [heights[0] * times for times in (1, 1, 2, 4, 1, 1)], atol=2)


@pytest.mark.parametrize("sides", [(32_000, 2000), (80_000, 400), (240_000, 64)], ids=str)
def test_a_sheet_of_panoramas_is_mostly_panoramas(sides):
    """Letters and gaps are in proportion to the shorter side; without them it would be little smaller."""
    least = 2 * sides[0] * sides[1]
    assert least < math.prod(sheet._grid(sides, 2, 2, caption=240).sides) < least + 2 * sides[0] * max(81, sides[1] / 2)


def test_a_sheet_that_pillow_would_not_open_is_refused(monkeypatch):
    """Before it is made, by its pixels; the largest that it opens is made."""
    drawn = sheet.contact([("", Image.new("RGB", (300, 200)))] * 2, title="", columns=2)
    for most in (drawn.width * drawn.height, drawn.width * drawn.height - 1):
        monkeypatch.setattr(sheet, "MOST_PIXELS", most)
        refused = pytest.raises(InvalidInput, match=f"would have {drawn.width} x {drawn.height}, more than")
        with nullcontext() if most == drawn.width * drawn.height else refused:
            sheet.check_contact((300, 200), 2, columns=2)
            sheet.contact([("", Image.new("RGB", (300, 200)))] * 2, title="", columns=2)


def test_the_most_pixels_of_a_sheet_are_pillow_s():
    """Twice what it warns of."""
    assert sheet.MOST_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


def count_all(drawn: Image.Image, picture: Image.Image) -> int:
    return count(drawn, picture.getpixel((0, 0)))


@pytest.mark.parametrize(
    ("name", "cards", "says"),
    [
        ("a.gif", 1, "a.gif: a sheet is a .png"),
        ("a.png", sheet.MOST + 1, f"{sheet.MOST + 1} pictures are too many"),
        ("folder.png", 1, "folder.png: is a folder"),
        ("file/a.png", 1, "file/a.png: cannot be written"),
        ("x" * 300 + ".png", 1, "cannot be reached: File name too long"),
        ("x/../given.png", 1, "given.png: would replace a picture that was given"),
        (
            "theirs.png",
            1,
            "theirs.png: is there already, without a mark of Atelier's; remove it, or choose",
        ),
    ],
    ids=["ending", "too-many", "folder", "below-a-file", "too-long", "given", "another's"],
)
def test_what_cannot_be_saved_is_said_before_any_work(tmp_path, name, cards, says):
    """InvalidInput names the file; nothing is left behind."""
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    sheet.save(tmp_path / "given.png", [card()])
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png")
    with pytest.raises(InvalidInput, match=says):
        sheet.check(tmp_path / name, cards, given=[tmp_path / "given.png"])
    assert {path.name for path in tmp_path.rglob("*")} == {"folder.png", "file", "given.png", "theirs.png"}


def test_a_sheet_is_saved_whole(tmp_path):
    """In a folder that is made for it, and over an older one; it says what made it."""
    path = tmp_path / "new" / "sheet.png"
    for best in (0.4, 0.9):
        sheet.save(path, [card(best)])
    with Image.open(path) as found:
        assert found.tobytes() == sheet.draw([card(0.9)]).tobytes()
        assert found.getexif()[0x010E] == "Made with Atelier: classifier version 3"
    assert [each.name for each in path.parent.iterdir()] == ["sheet.png"]
