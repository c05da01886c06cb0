"""Gray pictures in colour: what a colorizer is asked, and what becomes of its answers.

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
"""After regression alone, and after the network's game with a critic, too; between them is a mixture."""
MOST_SATURATION: Final = 3.0
LUMINANCE: Final = (0.2126, 0.7152, 0.0722)
"""Shares of red, green and blue light (IEC 61966-2-1)."""
_STEPS: Final = (1 << 16) - 1
"""Of light, from black to white; the darkest two levels of sRGB are 20 apart."""


@dataclass(frozen=True, eq=False)
class Work:
    """Pictures and their grays, to be coloured in groups of one size."""

    originals: tuple[Image.Image, ...]
    grays: tuple[Image.Image, ...]
    stage: float
    saturation: float
    groups: Groups

    @classmethod
    def of(cls, pictures: Photos, contract: Contract, *, stage: float, saturation: float, size: int | None) -> Work:
        """What `Client.colorize` is given, checked and prepared. Raises InvalidInput."""
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
        """The results in the order of the pictures, from the network's answers in the order of the groups."""
        return sizing.finished(coloured, self.groups, self._finish)

    def _finish(self, index: int, coloured: Image.Image) -> Image.Image:
        gray, about = self.grays[index], coloured.info
        sizing.check_answer(coloured, gray.size)
        made = sizing.veiled(saturated(coloured, gray, self.saturation), self.originals[index])
        made.info = {**about, "stage": self.stage}
        return made


def grayed(picture: Image.Image) -> Image.Image:
    """RGB or RGBA in the gray levels of sRGB (L) with the same luminance, and so the same L* of CIE Lab.

    Unlike Pillow's own gray, which weighs levels rather than light and makes strong colours too dark. What is gray
    keeps its levels.
    """
    levels = np.asarray(sizing.colours(picture))
    light = sum(table[levels[..., channel]] for channel, table in enumerate(_LIGHT))
    return Image.fromarray(_LEVELS[np.rint(light).astype(np.uint16)])


def has_colour(picture: Image.Image) -> bool:
    """Whether any pixel that can be seen is other than gray."""
    levels = np.asarray(sizing.colours(picture))
    return bool((levels != levels[..., :1]).any())


def saturated(coloured: Image.Image, gray: Image.Image, factor: float) -> Image.Image:
    """RGB with so many times the difference to its gray (L): 0 is that, 1 the same picture, 2 twice as colourful."""
    if factor == 1:
        return coloured
    ground = np.asarray(gray, np.float32)[..., None]
    levels = ground + np.float32(factor) * (np.asarray(coloured) - ground)
    return Image.fromarray(np.rint(levels.clip(0, 255)).astype(np.uint8))


# --- light


def _light() -> npt.NDArray[np.float32]:
    """(3, 256): how many steps of light each level of red, green and blue adds."""
    levels = np.arange(256) / 255
    light = np.where(levels > 0.04045, ((levels + 0.055) / 1.055) ** 2.4, levels / 12.92)
    return np.outer(LUMINANCE, _STEPS * light).astype(np.float32)


def _levels() -> npt.NDArray[np.uint8]:
    """The level of sRGB for each step of light."""
    light = np.arange(_STEPS + 1) / _STEPS
    levels = np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)
    return np.asarray(np.rint(255 * levels), np.uint8)


_LIGHT: Final = _light()
_LEVELS: Final = _levels()
