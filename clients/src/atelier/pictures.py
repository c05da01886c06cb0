"""Pictures as people have them, decoded: upright RGB of 8 bits, or one line that says why not.

picture = pictures.open_picture("boot.jpg")
"""

from __future__ import annotations

import contextlib
import io
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageCms, ImageOps, UnidentifiedImageError

from atelier._types import Say
from atelier.errors import InvalidInput

SMALLEST_SEEN: Final = 8
"""Pixels below which there is nothing to see."""
FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "PPM")
"""What cameras, phones and the web make. Not Pillow's whole list: some of it is read by other programs."""
_READABLE: Final = "PNG, JPEG, WebP, GIF, TIFF, BMP and AVIF are"
_GRAY_MODES: Final = ("1", "L", "LA")
_HEIC: Final = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1")
_WHITE_16: Final = 65535
_SRGB_LEVELS: Final = 3
"""By which profiles of sRGB differ from each other, in their tables' rounding."""


class _Quiet:
    """No warnings while any thread is inside.

    Python's own context manager is the whole process's: of two threads that overlap, the one that leaves last would
    leave the other's silence behind for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._caught = warnings.catch_warnings(action="ignore")
                self._caught.__enter__()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._caught.__exit__(None, None, None)


QUIET: Final = _Quiet()
"""Keeps Pillow's warnings from the user."""


def _say_nothing(line: str) -> None:
    pass


def open_picture(
    file: str | Path | bytes | IO[bytes],
    *,
    alpha: bool = False,
    least: int = SMALLEST_SEEN,
    say: Say = _say_nothing,
) -> Image.Image:
    """The picture in a file, as `as_rgb` makes it; of several, such as an animation's, the first, and `say` is told.

    `file` is its path or, as of an upload, its content or what that can be read from. Raises InvalidInput, one line
    that begins with the path, or "picture": missing, a folder, no picture, damaged, too large or too small.
    """
    name = str(file) if isinstance(file, str | Path) else "picture"
    with _readable(file) as content, _undamaged(name), _opened(content, name) as picture:
        if getattr(picture, "is_animated", False) and picture.format != "MPO":  # a camera's, with a preview behind it
            say(f"{name}: holds more than one picture; the first is taken")
        return as_rgb(picture, alpha=alpha, least=least, name=name)


def as_rgb(
    picture: Image.Image, *, alpha: bool = False, least: int = SMALLEST_SEEN, name: str = "picture"
) -> Image.Image:
    """Any picture as sRGB of 8 bits: turned as its EXIF says, transparency over white, 16-bit gray scaled.

    An ICC profile, as phones have for a wider gamut and printers for ink, is applied and dropped.
    `alpha` keeps transparency where there is any: RGBA. Gray of more bits, or of floats, has no fixed white: its
    darkest pixel becomes black and its brightest white.
    Raises InvalidInput, beginning with `name`, if it cannot be decoded or has a side below SMALLEST_SEEN; that error
    asks for sides of `least`, as what the picture is for may need more.
    """
    if min(picture.size) < SMALLEST_SEEN:
        size, larger = " x ".join(map(str, picture.size)), f"{least} x {least}"
        raise InvalidInput(f"{name}: has {size} pixels, too few to see anything; give a picture of {larger} or more")
    with _undamaged(name):
        picture.load()
        return _flattened(_upright(picture), alpha)


@contextlib.contextmanager
def header(path: Path) -> Iterator[Image.Image]:
    """A picture of which only the header is read, told by its bytes: it may have more pixels than Image.open allows.

    Take its EXIF by Image.Image.getexif, as PNG's own would decode all of one that has none. Of a WebP there is nothing
    else. Raises UnidentifiedImageError for what is in none of FORMATS, and what decoders raise on damaged bytes.
    """
    Image.init()
    with QUIET, path.open("rb") as file:
        start = file.read(16)
        for form in FORMATS:
            decoder, accepts = Image.OPEN[form]
            if accepts and accepts(start) is True:  # text is why Pillow, as it was built, cannot
                file.seek(0)
                with _bare_webp(file) if form == "WEBP" else decoder(file, str(path)) as picture:
                    yield picture
                return
    raise UnidentifiedImageError(f"{path}: none of {', '.join(FORMATS)}")


def opaque(picture: Image.Image) -> Image.Image:
    """RGBA as RGB, transparent pixels filled in with the colours of the nearest: no edge that a network would see.

    That is pull-push, on an image pyramid (Gortler et al. 1996).
    """
    pyramid = [picture]
    while max(pyramid[-1].size) > 1:
        pyramid.append(_halved(pyramid[-1]))
    filled = pyramid.pop()
    filled.putalpha(255)
    for level in reversed(pyramid):
        filled = Image.alpha_composite(filled.resize(level.size, Image.Resampling.BILINEAR), level)
    return filled.convert("RGB")


# --- files


@contextlib.contextmanager
def _readable(file: str | Path | bytes | IO[bytes]) -> Iterator[IO[bytes]]:
    if isinstance(file, str | Path):
        with _regular(Path(file)) as opened:
            yield opened
        return
    content = file.read() if hasattr(file, "read") else file
    if not isinstance(content, bytes):
        raise InvalidInput(f"picture: a {type(content).__name__} is none; give a file's path, or its bytes")
    if not content:
        raise InvalidInput("picture: is empty; get it again")
    yield io.BytesIO(content)


def _regular(path: Path) -> IO[bytes]:
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise InvalidInput(f"{path}: is a folder; name a picture in it")
        if not stat.S_ISREG(found.st_mode):
            raise InvalidInput(f"{path}: is not a file; save the picture to one first")
        if not found.st_size:
            raise InvalidInput(f"{path}: is empty; get the picture again")
        return path.open("rb")
    except FileNotFoundError as exc:
        raise InvalidInput(f"{path}: no such file; check its name") from exc
    except (OSError, ValueError) as exc:
        raise InvalidInput(f"{path}: cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc


def _opened(file: IO[bytes], name: str) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as exc:
        file.seek(0)
        if file.read(12)[4:] in _HEIC:
            raise InvalidInput(f"{name}: is HEIC, which cannot be read; save it as JPEG") from exc
        raise InvalidInput(f"{name}: is not a picture that can be read; {_READABLE}") from exc


def _bare_webp(file: IO[bytes]) -> Image.Image:
    """A pixel with the EXIF of a WebP, whose own decoder makes room for every pixel at once, or refuses so many."""
    picture = Image.new("L", (1, 1))
    (told,) = struct.unpack("<4xI", file.read(8))
    if file.seek(0, io.SEEK_END) < told + 8:
        raise OSError("it is cut short")
    file.seek(12)
    while len(head := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        if name == b"EXIF":
            picture.info["exif"] = file.read(size)
            break
        file.seek(size + size % 2, io.SEEK_CUR)
    return picture


@contextlib.contextmanager
def _undamaged(name: str) -> Iterator[None]:
    """Turns what Pillow raises into InvalidInput with `name`, and keeps its warnings from the user."""
    try:
        with QUIET:
            yield
    except InvalidInput:
        raise
    except Image.DecompressionBombError as exc:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise InvalidInput(f"{name}: has more than {most} million pixels; make it smaller") from exc
    except Exception as exc:  # what decoders raise on damaged bytes shares no narrower type
        why = " ".join(str(exc).split()) or type(exc).__name__
        raise InvalidInput(f"{name}: cannot be decoded ({why}); get it again, or save it anew as PNG") from exc


# --- pixels


def _upright(picture: Image.Image) -> Image.Image:
    with contextlib.suppress(Exception):  # EXIF that cannot be read turns nothing
        if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # or there would be a copy more
            return ImageOps.exif_transpose(picture)
    return picture


def _flattened(picture: Image.Image, alpha: bool) -> Image.Image:
    deep = picture.mode == "F" or picture.mode.startswith("I")
    gray = deep or picture.mode in _GRAY_MODES
    if deep:
        picture = _to_8_bits(picture)
    if picture.has_transparency_data:
        rgba = _in_srgb(picture.convert("RGBA"), gray=gray)
        if alpha:
            return rgba
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return _in_srgb(picture if picture.mode == "CMYK" else picture.convert("RGB"), gray=gray)


def _in_srgb(picture: Image.Image, *, gray: bool) -> Image.Image:
    """RGB or RGBA converted from the picture's colour profile to sRGB, without the profile.

    `gray` says that it had no colours before it was made RGB.
    """
    made, mode = picture, "RGBA" if picture.mode == "RGBA" else "RGB"
    with contextlib.suppress(Exception):  # a profile that cannot be read, or is of another mode, changes nothing
        if profile := picture.info.get("icc_profile"):
            source = ImageCms.getOpenProfile(io.BytesIO(profile))
            srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
            if gray and source.profile.xcolor_space.strip() == "GRAY":
                made = _gray_in_srgb(picture, source, srgb)
            elif not _is_srgb(source, srgb):
                made = ImageCms.profileToProfile(picture, source, srgb, outputMode=mode) or picture
    made = made if made.mode == mode else made.convert(mode)
    made.info.pop("icc_profile", None)
    return made


def _gray_in_srgb(
    picture: Image.Image, profile: ImageCms.ImageCmsProfile, srgb: ImageCms.ImageCmsProfile
) -> Image.Image:
    """RGB or RGBA that was gray, by way of L: to nothing else does a profile of grays apply."""
    made = ImageCms.profileToProfile(picture.convert("L"), profile, srgb, outputMode="RGB") or picture
    if picture.mode == "RGBA":
        made.putalpha(picture.getchannel("A"))
    return made


def _is_srgb(profile: ImageCms.ImageCmsProfile, srgb: ImageCms.ImageCmsProfile) -> bool:
    """By its name, and by what it makes of grays: linear ones are called sRGB, too."""
    if "sRGB" not in ImageCms.getProfileDescription(profile):
        return False
    grays = Image.linear_gradient("L").convert("RGB")
    seen = ImageCms.profileToProfile(grays, profile, srgb) or grays
    return int(np.asarray(ImageChops.difference(seen, grays)).max()) <= _SRGB_LEVELS


def _halved(picture: Image.Image) -> Image.Image:
    """RGBA of half the size, the mean colours of what is visible: one opaque pixel of four is enough to be opaque."""
    width, height = ((side + 1) // 2 for side in picture.size)
    small = picture.resize((width, height), Image.Resampling.BOX)
    small.putalpha(small.getchannel("A").point(lambda level: 255 if level >= 64 else level))
    return small


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Gray of 16 bits over its whole range; of more, or of floats, from its darkest pixel to its brightest.

    The profile is kept, and so is the one level of a PNG that is see-through: RGBA.
    """
    values = np.asarray(picture, dtype=np.float64)
    black, white = float(values.min()), float(values.max())
    if not np.isfinite([black, white]).all():
        raise ValueError("pixels that are no numbers")
    if picture.mode != "F" and black >= 0 and white <= _WHITE_16:
        black, white = 0, _WHITE_16
    levels = (values - black) * (255 / ((white - black) or 1))
    made = Image.fromarray(np.rint(levels).astype(np.uint8)).convert("RGB")
    made.info["icc_profile"] = picture.info.get("icc_profile")
    if isinstance(clear := picture.info.get("transparency"), int):
        made.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return made
