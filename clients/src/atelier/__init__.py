"""Atelier's image models in Python: latent vectors in, Pillow pictures out.

with atelier.Client() as client:
    keyframes = atelier.latents.draw(5, seed=7)
    frames = client.walk(keyframes, steps=20, loop=True)
    atelier.saving.save("walk.gif", list(frames), fps=20)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from atelier import errors, latents, paths, saving
from atelier._types import NOT_GIVEN, Model
from atelier.errors import AtelierError
from atelier.recipe import Recipe

if TYPE_CHECKING:
    from atelier._async_client import AsyncClient, AsyncFrames
    from atelier._client import Client, Frames

__all__ = [
    "NOT_GIVEN",
    "AsyncClient",
    "AsyncFrames",
    "AtelierError",
    "Client",
    "Frames",
    "Model",
    "Recipe",
    "errors",
    "latents",
    "paths",
    "saving",
]

# gRPC and tritonclient take longer to import than all the rest, so they wait until a client is asked for.
_LAZY = {
    "Client": "_client",
    "Frames": "_client",
    "AsyncClient": "_async_client",
    "AsyncFrames": "_async_client",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"atelier.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'atelier' has no attribute {name!r}")
