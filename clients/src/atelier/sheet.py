"""Sheets of what was made of pictures. Of classified ones: each as given, as the network saw it, its answer as bars.

seen = garments.preprocess_garment(picture)
sheet.save(Path("sheet.png"), [sheet.Card("boot.jpg", picture, seen, answer)])
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

from atelier import folders
from atelier.classification import Classification
from atelier.errors import InvalidInput
from atelier.files import check_apart, check_file

SIDE: Final = 168
"""Pixels of the side of either picture: 6 for each of the network's 28."""
MOST: Final = 600
"""Cards on one sheet, which then has 88 million pixels."""
MOST_PIXELS: Final = 178_956_970
"""Of a contact sheet. Pillow opens no picture of more, unless it is told to."""

_GAP, _TITLE, _LINE, _LETTERS = 16, 24, 17, 14
_CAPTION: Final = 240
"""Pixels that a caption may take though its picture is smaller."""
_LARGE: Final = (1024, 512)
"""A picture's width and height, in pixels, from which the letters of its sheet grow with it."""
_NAMES, _BARS, _PERCENT = 112, 130, 52
_LEFT: Final = 3 * _GAP + 2 * SIDE
"""Of the answer; the two pictures come before it."""
_WIDTH: Final = _LEFT + _NAMES + _BARS + _PERCENT + _GAP
_HEIGHT: Final = _TITLE + 10 * _LINE + _GAP
_HEAD: Final = _GAP + _TITLE

_PAPER, _INK, _PALE = (244, 241, 232), (30, 30, 30), (226, 221, 206)
_BEST, _OTHER = (185, 33, 19), (54, 79, 179)


@dataclass(frozen=True, eq=False)
class Card:
    """A picture as it was given, of any size; uint8 (28, 28) as the network saw it; and the network's answer."""

    name: str
    picture: Image.Image
    seen: npt.NDArray[np.uint8]
    answer: Classification


def check(path: Path, cards: int, *, given: Iterable[str | Path] = ()) -> None:
    """Raises InvalidInput if no sheet of so many cards can be saved there, before any work is done.

    given: the files of the pictures on it. Neither one of those is replaced, nor any without Atelier's mark.
    """
    if path.suffix.lower() != ".png":
        raise InvalidInput(f"{path}: a sheet is a .png")
    if cards > MOST:
        raise InvalidInput(f"{path}: {cards} pictures are too many for one sheet; give at most {MOST}")
    check_file(path)
    check_apart(path, given)
    folders.check_free(path, other="another file")


def save(path: Path, cards: Sequence[Card], *, top: int | None = None) -> None:
    """Writes what `draw` makes, at once or not at all. Raises InvalidInput."""
    check(path, len(cards))
    answer = cards[0].answer
    folders.write(path, draw(cards, top=top), about=f"{answer.model} version {answer.version}")


def contact(pictures: Sequence[tuple[str, Image.Image]], *, title: str, columns: int | None = None) -> Image.Image:
    """Pictures with their names, as large as they are, in one RGB picture; by itself it is about as wide as high.

    Of large pictures the letters are larger, too; small ones leave room for a short sentence each. Raises InvalidInput
    for a sheet of more than MOST_PIXELS.
    """
    width, height = (max(sides) for sides in zip(*(picture.size for _, picture in pictures), strict=True))
    times = _times((width, height))
    gap, line, size = times * _GAP, times * _TITLE, times * _LETTERS
    longest = max(_font(size).getlength(_drawable(name)) for name, _ in pictures)
    grid = _grid((width, height), len(pictures), columns, caption=math.ceil(longest))
    sheet = Image.new("RGB", grid.sides, _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((gap, gap), _shortened(title, sheet.width - 2 * gap, size), fill=_OTHER, font=_font(size))
    for index, (name, picture) in enumerate(pictures):
        row, column = divmod(index, grid.columns)
        left, top = gap + column * grid.cell[0], gap + line + row * grid.cell[1]
        pen.text((left, top + 2 * times), _shortened(name, grid.cell[0] - gap, size), fill=_INK, font=_font(size))
        sheet.paste(picture, (left, top + line), picture if picture.mode == "RGBA" else None)
    return sheet


def check_contact(sides: tuple[int, int], pictures: int, *, columns: int | None = None) -> None:
    """Raises InvalidInput if `contact` might refuse so many pictures of that width and height."""
    _grid(sides, pictures, columns, caption=_times(sides) * _CAPTION)


def draw(cards: Sequence[Card], *, top: int | None = None) -> Image.Image:
    """One card or more in one RGB picture, row by row; of each answer the `top` classes, or all."""
    columns = _columns(len(cards))
    rows = math.ceil(len(cards) / columns)
    sheet = Image.new("RGB", (columns * _WIDTH, _HEAD + rows * _HEIGHT), _PAPER)
    for column in range(columns):
        sheet.paste(_head(cards[0].answer), (column * _WIDTH, 0))
    for index, card in enumerate(cards):
        row, column = divmod(index, columns)
        sheet.paste(_card(card, top), (column * _WIDTH, _HEAD + row * _HEIGHT))
    return sheet


@dataclass(frozen=True)
class _Grid:
    """A contact sheet's columns, and the width and height of its cells and of all of it, in pixels."""

    columns: int
    cell: tuple[int, int]
    sides: tuple[int, int]


def _grid(sides: tuple[int, int], pictures: int, columns: int | None, *, caption: int) -> _Grid:
    """Of so many pictures of that width and height. `caption`: the pixels that the longest of their names takes."""
    times = _times(sides)
    gap, line = times * _GAP, times * _TITLE
    cell = max(sides[0], min(caption, times * _CAPTION)) + gap, sides[1] + line + gap
    columns = columns or max(1, round(math.sqrt(pictures * cell[1] / cell[0])))
    whole = columns * cell[0] + gap, gap + line + math.ceil(pictures / columns) * cell[1]
    if math.prod(whole) > MOST_PIXELS:
        most = f"more than {MOST_PIXELS // 1_000_000} million pixels, which few programs open"
        raise InvalidInput(f"a sheet of it would have {whole[0]} x {whole[1]}, {most}; make it smaller")
    return _Grid(columns, cell, whole)


def _times(sides: tuple[int, int]) -> int:
    """How many times larger the letters and gaps are than a small picture's: by its shorter side, as of a panorama."""
    return max(1, min(side // large for side, large in zip(sides, _LARGE, strict=True)))


def _columns(cards: int) -> int:
    """As many as make the sheet about as wide as high, and no more than a screen shows."""
    return min(3, math.ceil(math.sqrt(cards * _HEIGHT / _WIDTH)))


def _head(answer: Classification) -> Image.Image:
    made, pen = _blank(_HEAD)
    said = ("as it was given", "as the network saw it", f"what {answer.model} version {answer.version} answers")
    for left, text in zip((_GAP, 2 * _GAP + SIDE, _LEFT), said, strict=True):
        pen.text((left, _GAP), text, fill=_OTHER, font=_font(12))
    return made


def _card(card: Card, top: int | None) -> Image.Image:
    made, pen = _blank(_HEIGHT)
    pen.text((_GAP, 2), _shortened(card.name, _LEFT - 2 * _GAP), fill=_INK, font=_font(14))
    pen.text((_LEFT, 2), _drawable(card.answer.label), fill=_BEST, font=_font(14))
    seen = Image.fromarray(card.seen).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    made.paste(_fitted(card.picture), (_GAP, _TITLE))
    made.paste(seen, (2 * _GAP + SIDE, _TITLE))
    for place, (label, probability) in enumerate(card.answer.top(top)):
        _bar(pen, _TITLE + place * _LINE, label, probability, _OTHER if place else _BEST)
    return made


def _blank(height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    made = Image.new("RGB", (_WIDTH, height), _PAPER)
    return made, ImageDraw.Draw(made)


def _fitted(picture: Image.Image) -> Image.Image:
    inside = ImageOps.contain(picture.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
    ground = Image.new("RGB", (SIDE, SIDE), _PALE)
    ground.paste(inside, ((SIDE - inside.width) // 2, (SIDE - inside.height) // 2))
    return ground


def _bar(pen: ImageDraw.ImageDraw, y: int, label: str, probability: float, colour: tuple[int, int, int]) -> None:
    middle, left = y + _LINE // 2, _LEFT + _NAMES
    top, bottom = y + 2, y + _LINE - 3
    pen.text((_LEFT, middle), _drawable(label), fill=_INK, font=_font(12), anchor="lm")
    pen.rectangle((left, top, left + _BARS - 1, bottom), fill=_PALE)
    if length := round(_BARS * probability):
        pen.rectangle((left, top, left + length - 1, bottom), fill=colour)
    pen.text((left + _BARS + _PERCENT, middle), f"{100 * probability:.1f} %", fill=_INK, font=_font(12), anchor="rm")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _shortened(name: str, width: int, size: int = _LETTERS) -> str:
    """What fits of a file's name: its end, which tells it from others."""
    text = shown = _drawable(name)
    while text and _font(size).getlength(shown) > width:
        text = text[1:]
        shown = f"...{text}"
    return shown


def _drawable(text: str) -> str:
    """In the letters of Pillow's own font, ASCII: accents are left out."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return plain.encode("ascii", "replace").decode()
