"""Pictures for networks that take any size: upright, within limits, those of one size together, alpha kept aside.

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
"""Pixels that such a network needs."""

Photos = Image.Image | Iterable[Image.Image]
Groups = Sequence[Sequence[int]]
"""Indices of pictures that go in one batch."""


def sized(
    picture: Image.Image,
    *,
    size: int | None = None,
    most: int = 0,
    name: str = "picture",
    done: str | None,
    flag: str = "",
) -> Image.Image:
    """A picture as it is sent: upright RGB or RGBA of 8 bits, its long side `size` pixels (None: as it is).

    `done` is what it is sent for, in an error that says which size would do; None for one whose size nobody chooses.
    `flag` is what gives `size` to a script. Raises InvalidInput, beginning with `name`: no picture, a side below
    SMALLEST_SENT, or above `most` pixels in all.
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
    """One picture or several, each with what it is called in an error. Raises InvalidInput for anything else."""
    if isinstance(pictures, Image.Image):
        return [("picture", pictures)]
    if not is_several(pictures):
        raise _no_picture("pictures", pictures)
    return [(f"picture {number}", each) for number, each in enumerate(pictures, 1)]


def upright(picture: Any, *, name: str) -> Image.Image:
    """RGB or RGBA of 8 bits. Raises InvalidInput, beginning with `name`, for what is no picture."""
    if not isinstance(picture, Image.Image):
        raise _no_picture(name, picture)
    return as_rgb(picture, alpha=True, least=SMALLEST_SENT, name=name)


def scaled(sides: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height of the same shape whose longer is `size`."""
    width, height = (max(1, round(Fraction(side * size, max(sides)))) for side in sides)
    return width, height


def longest(sides: tuple[int, int], most: int) -> int:
    """The long side of the largest picture of this shape that has at most so many pixels."""
    long, short = max(sides), min(sides)
    return math.isqrt(most * short // long) * long // short


def groups(sizes: Sequence[tuple[int, int]], contract: Contract) -> Iterator[tuple[int, ...]]:
    """Indices of pictures of one size that go in one batch: max_batch at most, and max_pixels in all of it."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        by_size.setdefault(size, []).append(index)
    for (width, height), indices in by_size.items():
        most = max(1, contract.max_pixels // (width * height)) if contract.max_pixels else contract.max_batch
        members = batch_size(len(indices), min(contract.max_batch, most))
        yield from (tuple(indices[start : start + members]) for start in range(0, len(indices), members))


def colours(picture: Image.Image) -> Image.Image:
    """RGB of what `sized` gives."""
    return opaque(picture) if picture.mode == "RGBA" else picture


# --- what comes back


def check_answer(made: Image.Image, sent: tuple[int, int], *, scale: int = 1) -> None:
    """Raises ServerError for a picture that is not `scale` times as wide and as high as the one that was sent."""
    width, height = sent
    if made.size != (scale * width, scale * height):
        raise ServerError(f"{made.info['model']}: a picture of {made.size} came back for one of {sent}")


def finished(
    answers: Iterable[Image.Image], batches: Groups, finish: Callable[[int, Image.Image], Image.Image]
) -> list[Image.Image]:
    """What `finish` makes of each picture's index and answer, in the pictures' order; answers are in the batches'."""
    order = [index for batch in batches for index in batch]
    made = {index: finish(index, answer) for index, answer in zip(order, answers, strict=True)}
    return [made[index] for index in range(len(made))]


def with_alpha(made: Image.Image, original: Image.Image) -> Image.Image:
    """RGB with the alpha of another picture, resized to it; as it is if that has none."""
    if original.mode == "RGBA":
        alpha = original.getchannel("A")
        made.putalpha(alpha if alpha.size == made.size else alpha.resize(made.size, Image.Resampling.LANCZOS))
    return made


def _advice(size: int, beyond: str, flag: str) -> str:
    return f"give a size of {size} or {beyond}" + (f" ({flag} {size})" if flag else "")


def _no_picture(name: str, given: object) -> InvalidInput:
    shown = " ".join(f"{given!r:.60}".split())  # an array's takes several lines
    return InvalidInput(f"{name}: {shown} is not one; atelier.pictures.open_picture reads a file")
