"""Photographs whole, of any shape: of a folder or zip, their longer side reduced to so many pixels. Torch-free."""

from __future__ import annotations

import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from training.data import photos
from training.errors import BadInput


def read(source: Path, names: list[str], *, side: int, flag: str = "--corpus") -> list[np.ndarray]:
    """Those of photos.find's names, in their order: uint8 (H, W, 3), upright, in colour, no side above `side`.

    Raises BadInput naming the first that can't be decoded.
    """
    archive = None if source.is_dir() else zipfile.ZipFile(source)

    def decoded(name: str) -> np.ndarray:
        try:
            with (source / name).open("rb") if archive is None else archive.open(name) as stream:
                return decode(stream, side=side)
        except Exception as error:  # what a damaged file makes Pillow's decoders raise is open-ended
            why = f"{source / name} can't be decoded ({type(error).__name__})"
            raise BadInput(f"{flag}: {why}; repair or remove it") from error

    try:
        # Decoding runs outside Python's lock, so threads are enough; map keeps the order of the names.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(decoded, names))
    finally:
        if archive is not None:
            archive.close()


def decode(stream: IO[bytes], *, side: int) -> np.ndarray:
    """One picture; of an animation the first frame. Raises what Pillow raises when the file is broken."""
    with Image.open(stream) as picture:
        upright = photos.to_rgb(ImageOps.exif_transpose(picture), (255, 255, 255))
    if max(upright.size) > side:
        upright = ImageOps.contain(upright, (side, side), Image.Resampling.LANCZOS)
    return np.asarray(upright)
