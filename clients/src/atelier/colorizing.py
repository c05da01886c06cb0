"""Colorizes gray pictures: prepares a colorizer's inputs and finishes its outputs.

photo = pictures.open_picture("photo.jpg", alpha=True)
client.colorize(photo)[0].save("coloured.png")
client.colorize(photo, stage=1.5, saturation=0.8, size=1024)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from atelier import sizing
from atelier._contract import Contract, Tensors
from atelier._types import is_number
from atelier.errors import InvalidInput
from atelier.sizing import Groups, Photos, sized

STAGES: Final = (1.0, 2.0)
"""After regression alone, and after adversarial training as well; values in between mix the two."""
MOST_SATURATION: Final = 3.0
LUMINANCE: Final = (0.2126, 0.7152, 0.0722)
"""Weights of linear red, green and blue (IEC 61966-2-1)."""
_WHITE: Final = (1 << 16) - 1
"""White in integer steps of linear light; the darkest two levels of sRGB are 20 steps apart."""


@dataclass(frozen=True, eq=False)
class Work:
    """Pictures and their gray versions, to be colorized in batches of one size."""

    originals: tuple[Image.Image, ...]
    grays: tuple[Image.Image, ...]
    stage: float
    saturation: float
    groups: Groups

    @classmethod
    def of(cls, pictures: Photos, contract: Contract, *, stage: float, saturation: float, size: int | None) -> Work:
        """Checks and prepares the arguments of `Client.colorize`. Raises InvalidInput."""
        first, last = STAGES
        if not (is_number(stage) and first <= stage <= last):
            raise InvalidInput(f"stage {stage!r}: must be a number from {first:g}, the first alone, to {last:g}")
        if not (is_number(saturation) and 0 <= saturation <= MOST_SATURATION):
            raise InvalidInput(f"saturation {saturation!r}: must be a number from 0, gray, to {MOST_SATURATION:g}")
        most, given = contract.max_pixels, sizing.named(pictures)
        originals = [sized(each, size=size, most=most, name=name, done="coloured") for name, each in given]
        grays = [grayed(each) for each in originals]
        groups = sizing.groups([each.size for each in originals], contract)
        return cls(tuple(originals), tuple(grays), float(stage), float(saturation), tuple(groups))

    def batches(self) -> list[Tensors]:
        """A batch for each group."""
        return [
            {
                "gray": np.stack([np.asarray(self.grays[index])[..., None] for index in group]),
                "stage": np.full((len(group), 1), self.stage, np.float32),
            }
            for group in self.groups
        ]

    def finished(self, coloured: Iterable[Image.Image]) -> list[Image.Image]:
        """The results in the pictures' order, from the network's answers in the order of the groups."""
        return sizing.finished(coloured, self.groups, self._finish)

    def _finish(self, index: int, coloured: Image.Image) -> Image.Image:
        gray, info = self.grays[index], coloured.info
        sizing.check_answer(coloured, gray.size)
        made = sizing.with_alpha(saturated(coloured, gray, self.saturation), self.originals[index])
        made.info = {**info, "stage": self.stage}
        return made


def grayed(picture: Image.Image) -> Image.Image:
    """Converts RGB or RGBA to sRGB gray levels (L) of the same luminance, and so the same CIE Lab L*.

    Pillow's own gray is luma: it weights gamma-encoded levels rather than linear light, and makes saturated colours too
    dark. Grays keep their levels.
    """
    seen = sizing.colours(picture)
    if not has_colour(seen):
        return seen.getchannel("R")
    levels = np.asarray(seen)
    red, green, blue = (table[levels[..., channel]] for channel, table in enumerate(_TO_LUMINANCE))
    return Image.fromarray(_TO_SRGB[np.rint(red + green + blue).astype(np.uint16)])


def has_colour(picture: Image.Image) -> bool:
    """Whether any visible pixel is not gray."""
    red, green, blue = (channel.tobytes() for channel in sizing.colours(picture).split())
    return not red == green == blue


def saturated(coloured: Image.Image, gray: Image.Image, factor: float) -> Image.Image:
    """RGB with its difference from `gray` (L) scaled: 0 is the gray, 1 the picture itself, 2 twice as colourful."""
    if factor == 1:
        return coloured
    achromatic = np.asarray(gray, np.float32)[..., None]
    levels = achromatic + np.float32(factor) * (np.asarray(coloured) - achromatic)
    return Image.fromarray(np.rint(levels.clip(0, 255)).astype(np.uint8))


# --- look-up tables of sRGB's transfer function


def _to_luminance() -> npt.NDArray[np.float32]:
    """(3, 256): the luminance, in steps, that each level of red, green and blue adds."""
    levels = np.arange(256) / 255
    linear = np.where(levels > 0.04045, ((levels + 0.055) / 1.055) ** 2.4, levels / 12.92)
    return np.outer(LUMINANCE, _WHITE * linear).astype(np.float32)


def _to_srgb() -> npt.NDArray[np.uint8]:
    """(_WHITE + 1,): the level of sRGB for each step of linear light."""
    linear = np.arange(_WHITE + 1) / _WHITE
    levels = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    return np.asarray(np.rint(255 * levels), np.uint8)


_TO_LUMINANCE: Final = _to_luminance()
_TO_SRGB: Final = _to_srgb()
