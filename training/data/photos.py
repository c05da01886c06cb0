"""A corpus from the user's own pictures. Run: python -m training.data.photos --corpus DIR_OR_ZIP --out DIR

What a network will see of them: every picture decoded, upright, in colour, square. Zips aren't unpacked to disk.
"""

from __future__ import annotations

import argparse
import os
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from training.data import files
from training.errors import BadInput

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
FITS = ("crop", "pad")


def find(source: Path, *, flag: str = "--corpus") -> list[str]:
    """Names of the pictures in a folder and its subfolders, or in a zip, relative to it and sorted.

    Raises BadInput, whose message begins with `flag`, if `source` is missing, is neither, can't be read or has no
    pictures.
    """
    try:
        if source.is_dir():
            names = [file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file()]
        elif zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                names = [info.filename for info in archive.infolist() if not info.is_dir()]
        elif source.exists():
            raise BadInput(f"{flag}: {source} is neither a folder nor a zip; name one with pictures in it")
        else:
            raise BadInput(f"{flag}: {source} is not there; name a folder or a zip of pictures")
    except (OSError, zipfile.BadZipFile) as error:
        raise BadInput(f"{flag}: can't read {source} ({error}); name a folder or a zip of pictures") from error
    # Dot files are the system's: with each cat.jpg, macOS zips a ._cat.jpg, which isn't a picture.
    pictures = sorted(n for n in names if n.lower().endswith(SUFFIXES) and not n.split("/")[-1].startswith("."))
    if not pictures:
        raise BadInput(f"{flag}: no pictures in {source} (looked for {' '.join(SUFFIXES)})")
    return pictures


def to_rgb(picture: Image.Image, ground: tuple[int, int, int]) -> Image.Image:
    """Any Pillow mode to RGB: 16-bit gray by its upper byte, transparency on `ground`. Raises OSError for 32 bits."""
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        # Pillow would clip these at 255, and nothing in the file says where white is.
        raise OSError("32 bits a channel, save it with 8 or 16")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, (*ground, 255)), picture).convert("RGB")
    return picture.convert("RGB")


def decode(
    stream: IO[bytes], *, size: int, fit: str = "crop", ground: tuple[int, int, int] = (255, 255, 255)
) -> np.ndarray:
    """One picture as uint8 (size, size, 3): the largest centred square ("crop"), or all of it on `ground` ("pad").

    For an animation, the first frame. Raises whatever Pillow raises if the file is broken.
    """
    with Image.open(stream) as picture:
        if picture.mode in ("RGB", "L"):
            picture.draft(None, (2 * size, 2 * size))  # JPEG decodes at 1/2, 1/4, 1/8: 6 times as fast
        upright = to_rgb(ImageOps.exif_transpose(picture), ground)
    if fit == "crop":
        return np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS))
    return np.asarray(ImageOps.pad(upright, (size, size), Image.Resampling.LANCZOS, color=ground))


def decode_whole(stream: IO[bytes], *, side: int) -> np.ndarray:
    """One picture as uint8 (H, W, 3), its longer side reduced to `side` if it is larger; otherwise like `decode`."""
    with Image.open(stream) as picture:
        upright = to_rgb(ImageOps.exif_transpose(picture), (255, 255, 255))
    if max(upright.size) > side:
        upright = ImageOps.contain(upright, (side, side), Image.Resampling.LANCZOS)
    return np.asarray(upright)


def load(
    source: Path,
    *,
    count: int | None = None,
    seed: int = 0,
    size: int = 128,
    fit: str = "crop",
    ground: tuple[int, int, int] = (255, 255, 255),
    skip_broken: bool | None = None,
    flag: str = "--corpus",
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Pictures uint8 (N, size, size, 3) in order of their names, and the names left out as broken.

    If there are more than `count`, chooses at random, seeded by `seed`. Raises BadInput as `find` does and, unless
    skip_broken, for the first broken picture, which it names.
    """
    names = find(source, flag=flag)
    if count is not None and count < len(names):
        chosen = np.random.default_rng(seed).choice(len(names), count, replace=False)
        names = [names[k] for k in np.sort(chosen)]
    return read(source, names, size=size, fit=fit, ground=ground, skip_broken=skip_broken, flag=flag)


def read(
    source: Path,
    names: list[str],
    *,
    size: int,
    fit: str = "crop",
    ground: tuple[int, int, int] = (255, 255, 255),
    skip_broken: bool | None = None,
    flag: str = "--corpus",
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Like `load`, for `names`, a selection of what `find` returns, in their order."""
    assert fit in FITS, fit
    square = partial(decode, size=size, fit=fit, ground=ground)
    pictures = decoded(source, names, square, skip_broken=skip_broken, flag=flag)
    skipped = tuple(name for name, picture in zip(names, pictures, strict=True) if picture is None)
    if len(skipped) == len(names):
        raise BadInput(f"{flag}: none of the {len(names)} pictures in {source} can be decoded; name another")
    return np.stack([picture for picture in pictures if picture is not None]), skipped


def read_whole(source: Path, names: list[str], *, side: int, flag: str = "--corpus") -> list[np.ndarray]:
    """The pictures of `names`, a selection of what `find` returns, in order: uint8 (H, W, 3), no side above `side`."""
    pictures = decoded(source, names, partial(decode_whole, side=side), skip_broken=None, flag=flag)
    return [picture for picture in pictures if picture is not None]


def decoded(
    source: Path, names: list[str], decode: Callable[[IO[bytes]], np.ndarray], *, skip_broken: bool | None, flag: str
) -> list[np.ndarray | None]:
    """What `decode` returns for each file, in order; None for a broken one if skip_broken. Otherwise raises BadInput
    for it, which mentions --skip-broken unless skip_broken is None: then there is no such flag."""
    archive = None if source.is_dir() else zipfile.ZipFile(source)
    opener = (lambda name: (source / name).open("rb")) if archive is None else archive.open

    def one(name: str) -> np.ndarray | None:
        try:
            with opener(name) as stream:
                return decode(stream)
        # Pillow's decoders and zlib may raise anything for a damaged file: struct.error, SyntaxError, IndexError and
        # more have been seen. The message says what it was.
        except Exception as error:
            if skip_broken:
                return None
            why = str(error).split("<")[0].strip() if isinstance(error, UnidentifiedImageError) else error
            leave_out = "" if skip_broken is None else ", or leave such pictures out with --skip-broken"
            raise BadInput(
                f"{flag}: {source / name} can't be decoded ({why or type(error).__name__}); "
                f"repair or remove it{leave_out}"
            ) from error

    try:
        # Camera pictures above 89 megapixels are fine; Pillow still refuses twice that as a decompression bomb. Set
        # here for all threads, because warning filters are process-wide.
        quiet = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
        # Decoding releases the GIL, so threads are enough; map keeps the order of the names.
        with quiet, ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(one, names))
    finally:
        if archive is not None:
            archive.close()


def color(text: str) -> tuple[int, int, int]:
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"no colour {text!r}; give a name or #rrggbb") from error


def main() -> None:
    parser = files.parser(__doc__)
    parser.add_argument("--corpus", type=Path, required=True, metavar="DIR_OR_ZIP", help="your pictures")
    parser.add_argument("--size", type=files.at_least(16), default=128, metavar="PIXELS", help="(default 128)")
    parser.add_argument("--fit", choices=FITS, default="crop", help="to a square (default crop)")
    parser.add_argument("--ground", type=color, default="white", help="under transparency and borders")
    parser.add_argument("--skip-broken", action="store_true", help="leave out what can't be decoded")
    args = parser.parse_args()
    images, skipped = load(
        args.corpus,
        count=args.count,
        seed=args.seed,
        size=args.size,
        fit=args.fit,
        ground=args.ground,
        skip_broken=args.skip_broken,
    )
    files.save(images, args.out, name="photo")
    if skipped:
        print(f"left out as broken: {' '.join(skipped)}")


if __name__ == "__main__":
    files.run(main)
