"""Prepares pictures for networks that take any size: upright, within limits, batched by size, alpha kept separate.

photo = sizing.sized(pictures.open_picture("photo.jpg", alpha=True), size=1024, done="stylised")
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, Final

from PIL import Image

from atelier._contract import Contract
from atelier._types import as_int, batch_size, is_several
from atelier.errors import InvalidInput, ServerError
from atelier.pictures import as_rgb, opaque

SMALLEST_SENT: Final = 16
"""The smallest side, in pixels, that such a network accepts."""

Photos = Image.Image | Iterable[Image.Image]
Groups = Sequence[Sequence[int]]
"""For each batch, the indices of its pictures."""


def sized(
    picture: Image.Image,
    *,
    size: int | None = None,
    most: int = 0,
    name: str = "picture",
    done: str | None,
    flag: str = "",
) -> Image.Image:
    """Prepares a picture for sending: upright 8-bit RGB or RGBA, its long side `size` pixels (None: unchanged).

    `done` says what it is sent for, in an error that suggests a size; None if the user does not choose the size. `flag`
    is the option that sets `size` on the command line. Raises InvalidInput, beginning with `name`, if it is not a
    picture, has a side below SMALLEST_SENT, or has more than `most` pixels in all.
    """
    side = as_int(size)
    if size is not None and (side is None or side < SMALLEST_SENT):
        raise InvalidInput(f"size {size!r}: must be a whole number, {SMALLEST_SENT} or more, or None")
    given = upright(picture, name=name)
    width, height = sides = given.size if side is None else scaled(given.size, side)
    if min(sides) < SMALLEST_SENT:
        if done is None:
            raise InvalidInput(f"{name}: has {width} x {height} pixels; give one of {SMALLEST_SENT} or more a side")
        least = math.ceil(SMALLEST_SENT * max(given.size) / min(given.size))
        need = f"both sides must have {SMALLEST_SENT} or more; {_advice(least, 'more', flag)}"
        raise InvalidInput(f"{name}: would be {done} at {width} x {height} pixels, and {need}")
    if most and width * height > most:
        best = longest(sides, most)
        limit = f"more than the limit of {most:,}; {_advice(best, 'less', flag)}"
        raise InvalidInput(f"{name}: would be {done} at {width} x {height} pixels, {limit}")
    return given if given.size == sides else given.resize(sides, Image.Resampling.LANCZOS)


# --- what is sent


def named(pictures: Any) -> list[tuple[str, Any]]:
    """Pairs one picture, or each of several, with its name for errors. Raises InvalidInput for anything else."""
    if isinstance(pictures, Image.Image):
        return [("picture", pictures)]
    if not is_several(pictures):
        raise _no_picture("pictures", pictures)
    return [(f"picture {number}", each) for number, each in enumerate(pictures, 1)]


def upright(picture: Any, *, name: str) -> Image.Image:
    """Converts to upright 8-bit RGB or RGBA. Raises InvalidInput, beginning with `name`, if it is not a picture."""
    if not isinstance(picture, Image.Image):
        raise _no_picture(name, picture)
    return as_rgb(picture, alpha=True, least=SMALLEST_SENT, name=name)


def scaled(sides: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height scaled so that the longer is `size`, at the same aspect ratio."""
    width, height = (max(1, round(Fraction(side * size, max(sides)))) for side in sides)
    return width, height


def longest(sides: tuple[int, int], most: int) -> int:
    """The long side of the largest picture of this aspect ratio that has at most `most` pixels."""
    long, short = max(sides), min(sides)
    return math.isqrt(most * short // long) * long // short


def groups(sizes: Sequence[tuple[int, int]], contract: Contract) -> Iterator[tuple[int, ...]]:
    """Batches pictures of one size, as indices: at most max_batch pictures, and max_pixels in total, per batch."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        by_size.setdefault(size, []).append(index)
    for (width, height), indices in by_size.items():
        most = max(1, contract.max_pixels // (width * height)) if contract.max_pixels else contract.max_batch
        members = batch_size(len(indices), min(contract.max_batch, most))
        yield from (tuple(indices[start : start + members]) for start in range(0, len(indices), members))


def colours(picture: Image.Image) -> Image.Image:
    """The RGB of a picture from `sized`, transparent pixels filled in."""
    return opaque(picture) if picture.mode == "RGBA" else picture


# --- what comes back


def check_answer(made: Image.Image, sent: tuple[int, int], *, scale: int = 1) -> None:
    """Raises ServerError if a picture is not `scale` times as wide and as high as the one that was sent."""
    width, height = sent
    if made.size != (scale * width, scale * height):
        raise ServerError(f"{made.info['model']}: a picture of {made.size} came back for one of {sent}")


def finished(
    answers: Iterable[Image.Image], batches: Groups, finish: Callable[[int, Image.Image], Image.Image]
) -> list[Image.Image]:
    """Applies `finish` to each picture's index and answer; from batch order to the pictures' order."""
    order = [index for batch in batches for index in batch]
    made = {index: finish(index, answer) for index, answer in zip(order, answers, strict=True)}
    return [made[index] for index in range(len(made))]


def with_alpha(made: Image.Image, original: Image.Image) -> Image.Image:
    """Adds the alpha of `original`, resized, to an RGB picture; returns it as it is if `original` has none."""
    if original.mode == "RGBA":
        alpha = original.getchannel("A")
        made.putalpha(alpha if alpha.size == made.size else alpha.resize(made.size, Image.Resampling.LANCZOS))
    return made


def _advice(size: int, beyond: str, flag: str) -> str:
    return f"give a size of {size} or {beyond}" + (f" ({flag} {size})" if flag else "")


def _no_picture(name: str, given: object) -> InvalidInput:
    shown = " ".join(f"{given!r:.60}".split())  # an array's repr spans several lines
    return InvalidInput(f"{name}: {shown} is not one; atelier.pictures.open_picture reads a file")
