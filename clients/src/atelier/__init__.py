"""Atelier's image models in Python: art from latents, classified garments, stylised, colourised or upscaled photos.

with atelier.Client() as client:
    keyframes = atelier.latents.draw(5, seed=7)
    frames = client.walk(keyframes, steps=20, loop=True)
    atelier.saving.save("walk.gif", frames, fps=20)

    boot = atelier.pictures.open_picture("boot.jpg")
    client.classify(boot)[0].top(3)
    client.stylize(boot, "starry-night", size=512)[0].save("painted.png")
    client.colorize(boot)[0].save("coloured.png")
    client.upscale(boot)[0].save("large.png")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from atelier import errors, garments, latents, paths, pictures, saving
from atelier._types import NOT_GIVEN, Model
from atelier.classification import Classification
from atelier.errors import AtelierError
from atelier.garments import preprocess_garment
from atelier.painting import AsyncPainting, Painting, Stroke
from atelier.recipe import Recipe

if TYPE_CHECKING:
    from atelier._async_client import AsyncClient, AsyncFrames
    from atelier._client import Client, Frames

__all__ = [
    "NOT_GIVEN",
    "AsyncClient",
    "AsyncFrames",
    "AsyncPainting",
    "AtelierError",
    "Classification",
    "Client",
    "Frames",
    "Model",
    "Painting",
    "Recipe",
    "Stroke",
    "errors",
    "garments",
    "latents",
    "paths",
    "pictures",
    "preprocess_garment",
    "saving",
]

# gRPC and tritonclient take longer to import than all the rest, so they are imported only when a client is asked for.
_LAZY = {
    "Client": "_client",
    "Frames": "_client",
    "AsyncClient": "_async_client",
    "AsyncFrames": "_async_client",
}

if not TYPE_CHECKING:  # else a type checker would accept any name as an attribute

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            return getattr(import_module(f"atelier.{_LAZY[name]}"), name)
        raise AttributeError(f"module 'atelier' has no attribute {name!r}")
