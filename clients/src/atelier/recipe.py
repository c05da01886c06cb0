"""What decides the frames of a walk, as one value that is saved with them and makes them again."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from atelier import latents, layout, paths
from atelier._models import MODELS
from atelier._types import as_int, is_number
from atelier.errors import InvalidInput
from atelier.latents import Latents

LatentScale = Literal["walk", "frame"]
LARGER = {known.steps[0]: name for name, known in MODELS.items() if known.steps[1:] == ("upscaler",)}
"""For each model the ensemble that upscales its pictures."""
_FORMAT = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """A walk through `keyframes` (N, 100) and how it is shown. Raises InvalidInput for what cannot be walked.

    model: what makes pictures of latents, "wgan" or "wgan_x4". version: None is the newest. seed: only tells where the
    keyframes came from. path: how the vectors go from each keyframe to the next, see `paths`. steps: frames on that
    way. pairs: walks from keyframe 0 to 1, from 2 to 3, and so on. fps: frames a second. latent: a heat map of the
    vector beside each frame, in colours of one scale for the walk or for each frame (latent_scale). strip: all frames
    in one picture.
    """

    keyframes: Latents
    model: str = "wgan"
    version: int | None = None
    seed: int | None = None
    path: paths.Path = "spline"
    steps: int = 20
    loop: bool = False
    pairs: bool = False
    fps: float = 20.0
    latent: bool = False
    latent_scale: LatentScale = "walk"
    strip: bool = False

    def __post_init__(self) -> None:
        if not (is_number(self.fps) and 0 < self.fps <= sys.float_info.max):
            raise InvalidInput(f"fps {self.fps!r}: must be a number above 0, and finite")
        if not isinstance(self.latent_scale, str) or self.latent_scale not in get_args(LatentScale):
            raise InvalidInput(f"latent scale {self.latent_scale!r}: must be walk or frame")
        for name in ("steps", "seed", "version"):
            value = getattr(self, name)
            number = as_int(value)
            if number is None and (value is not None or name == "steps"):
                raise InvalidInput(f"{name} {value!r}: must be a whole number")
            object.__setattr__(self, name, number)  # NumPy's are no JSON
        object.__setattr__(self, "fps", float(self.fps))
        for name in ("loop", "pairs", "latent", "strip"):
            object.__setattr__(self, name, bool(getattr(self, name)))
        keyframes = paths.check_keyframes(self.keyframes)  # before they are taken in pairs
        object.__setattr__(self, "keyframes", keyframes.astype(np.float32))
        if self.pairs and len(self.keyframes) % 2:
            raise InvalidInput(f"pairs: {len(self.keyframes)} vectors do not make pairs, one is left over")
        paths.check_legs(self.path, self.steps)
        paths.check_count(self._frames)

    def latents(self) -> Latents:
        """The vector of every frame: (frames, 100). For 90,000 frames it takes 0.6 s."""
        walks = self.keyframes.reshape(-1, 2, self.keyframes.shape[1]) if self.pairs else [self.keyframes]
        return np.concatenate([paths.walk(k, steps=self.steps, path=self.path, loop=self.loop) for k in walks])

    def arranged(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """The model's pictures as they are to be seen: with heat maps, or all in one, if the recipe says so."""
        shown = list(pictures)
        if self.latent:
            vectors = self.latents()
            scale = layout.symmetric_scale(vectors) if self.latent_scale == "walk" else None
            shown = [_with_heat_map(*pair, scale) for pair in zip(shown, vectors, strict=True)]
        return [layout.strip(shown, columns=self._columns)] if self.strip else shown

    def sides(self, picture: tuple[int, int]) -> tuple[int, int]:
        """Width and height of what `arranged` makes of pictures of that width and height."""
        shown = layout.beside_sides(picture, (picture[1], picture[1])) if self.latent else picture
        return layout.strip_sides(shown, self._frames, columns=self._columns) if self.strip else shown

    def upscaled(self, wanted: bool = True, *, version: int | None = None) -> Recipe:
        """The same walk in the larger pictures of the model's ensemble or, if not `wanted`, in the model's own.

        `version` is the other model's, whose numbers are its own. Raises InvalidInput if there is no such ensemble.
        """
        own = {larger: name for name, larger in LARGER.items()}.get(self.model, self.model)
        if wanted and own not in LARGER:
            raise InvalidInput(f"nothing upscales the pictures of {own!r}; it can be done with {', '.join(LARGER)}")
        model = LARGER[own] if wanted else own
        return self if model == self.model else replace(self, model=model, version=version)

    def to_json(self) -> str:
        """One line of ASCII. The keyframes are in it, so that no random generator need agree."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        vectors = plain.pop("keyframes").astype("<f4")
        counts = {"keyframes": len(vectors), "width": vectors.shape[1], "frames": self._frames}
        encoded = base64.b64encode(vectors.tobytes()).decode("ascii")
        return json.dumps({"atelier": _FORMAT, **plain, **counts, "vectors_float32_base64": encoded})

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Recipe:
        """Reads `to_json` back. Raises InvalidInput that begins with `where`."""
        try:
            found = json.loads(text)
            if found["atelier"] != _FORMAT:
                raise InvalidInput("was made by another version of atelier")
            options = {name: _checked(name, found[name]) for name in _TYPES}
            raw = base64.b64decode(found["vectors_float32_base64"], validate=True)
            vectors = np.frombuffer(raw, "<f4").reshape(found["keyframes"], found["width"])
            return cls(keyframes=latents.check(vectors, width=found["width"]), **options)
        except InvalidInput as exc:
            raise InvalidInput(f"{where}: {exc}") from exc
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise InvalidInput(f"{where}: its description of the walk is damaged ({exc})") from exc

    @property
    def _frames(self) -> int:
        walks, keyframes = (len(self.keyframes) // 2, 2) if self.pairs else (1, len(self.keyframes))
        return walks * paths.frame_count(keyframes, steps=self.steps, loop=self.loop)

    @property
    def _columns(self) -> int:
        """A row of a strip: one leg, or one pair, or all of an open walk with one leg."""
        legs = len(self.keyframes) - (not self.loop)
        return self._frames // (len(self.keyframes) // 2) if self.pairs else self.steps + (legs == 1)


def _with_heat_map(picture: Image.Image, latent: Latents, scale: float | None) -> Image.Image:
    scale = scale or layout.symmetric_scale(latent)
    return layout.beside(picture, layout.heat_map(latent, size=picture.height, scale=scale))


_TYPES: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "version": (int, type(None)),
    "seed": (int, type(None)),
    "path": (str,),
    "steps": (int,),
    "loop": (bool,),
    "pairs": (bool,),
    "fps": (float, int),
    "latent": (bool,),
    "latent_scale": (str,),
    "strip": (bool,),
}


def _checked(name: str, value: Any) -> Any:
    if not isinstance(value, _TYPES[name]) or (isinstance(value, bool) and bool not in _TYPES[name]):
        raise TypeError(f"{name} is {value!r}")
    return value
