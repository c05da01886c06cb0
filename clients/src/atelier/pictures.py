"""Decodes pictures as users have them: upright 8-bit RGB, or a one-line error that says why not.

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
"""The smallest side, in pixels; below it there is nothing to see."""
FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "PPM")
"""What cameras, phones and the web produce. Not all of Pillow's formats: it reads some with external programs."""
_READABLE: Final = "PNG, JPEG, WebP, GIF, TIFF, BMP and AVIF are"
_GRAY_MODES: Final = ("1", "L", "LA")
_HEIC: Final = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1")
_WHITE_16: Final = 65535
_SRGB_LEVELS: Final = 3
"""Levels by which sRGB profiles differ from each other, because their tables are rounded differently."""


class _Quiet:
    """Suppresses warnings while any thread is inside.

    Python's own context manager changes process-wide state: if two threads overlap, the last to leave would restore the
    filters that the other had set, and warnings would stay suppressed for good.
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
    """Decodes the picture in a file as `as_rgb` does; takes the first of several, as in an animation, and tells `say`.

    `file` is its path or, for an upload, its bytes or a file object. Raises InvalidInput, one line that begins with the
    path, or "picture", if it is missing, a folder, not a picture, damaged, too large or too small.
    """
    name = str(file) if isinstance(file, str | Path) else "picture"
    with _readable(file) as content, _undamaged(name), _opened(content, name) as picture:
        if getattr(picture, "is_animated", False) and picture.format != "MPO":  # a camera's JPEG, followed by a preview
            say(f"{name}: holds more than one picture; the first is taken")
        return as_rgb(picture, alpha=alpha, least=least, name=name)


def as_rgb(
    picture: Image.Image, *, alpha: bool = False, least: int = SMALLEST_SEEN, name: str = "picture"
) -> Image.Image:
    """Converts a picture to 8-bit sRGB: EXIF orientation applied, transparency over white, 16-bit gray scaled.

    An ICC profile, as phones embed for a wider gamut and printers for ink, is applied and dropped.
    `alpha` keeps transparency if there is any: RGBA. Gray of more bits, or of floats, has no fixed white: its darkest
    pixel becomes black and its brightest white.
    Raises InvalidInput, beginning with `name`, if it cannot be decoded or has a side below SMALLEST_SEEN; that error
    asks for sides of `least`, because the picture's use may need more.
    """
    if min(picture.size) < SMALLEST_SEEN:
        size, larger = " x ".join(map(str, picture.size)), f"{least} x {least}"
        raise InvalidInput(f"{name}: has {size} pixels, too few to see anything; give a picture of {larger} or more")
    with _undamaged(name):
        picture.load()
        return _flattened(_upright(picture), alpha)


@contextlib.contextmanager
def header(path: Path) -> Iterator[Image.Image]:
    """Opens a picture and reads only its header, so it may have more pixels than Image.open allows.

    The format is detected from the file's bytes. Get its EXIF by Image.Image.getexif, because PNG's own getexif decodes
    the whole picture if it has none. For a WebP, the EXIF is all that is read. Raises UnidentifiedImageError if it is
    in none of FORMATS, and whatever decoders raise on damaged bytes.
    """
    Image.init()
    with QUIET, path.open("rb") as file:
        start = file.read(16)
        for form in FORMATS:
            decoder, accepts = Image.OPEN[form]
            if accepts and accepts(start) is True:  # a str says why this build of Pillow can't
                file.seek(0)
                with _bare_webp(file) if form == "WEBP" else decoder(file, str(path)) as picture:
                    yield picture
                return
    raise UnidentifiedImageError(f"{path}: none of {', '.join(FORMATS)}")


def opaque(picture: Image.Image) -> Image.Image:
    """RGBA as RGB, transparent pixels filled with the nearest visible colours, so that a network sees no edge.

    This is pull-push on an image pyramid (Gortler et al. 1996).
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
    """One pixel with the EXIF of a WebP, whose own decoder allocates all pixels at once, or refuses to."""
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
    """Turns Pillow's exceptions into InvalidInput with `name`, and suppresses its warnings."""
    try:
        with QUIET:
            yield
    except InvalidInput:
        raise
    except Image.DecompressionBombError as exc:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise InvalidInput(f"{name}: has more than {most} million pixels; make it smaller") from exc
    except Exception as exc:  # decoders' errors on damaged bytes share no narrower type
        why = " ".join(str(exc).split()) or type(exc).__name__
        raise InvalidInput(f"{name}: cannot be decoded ({why}); get it again, or save it anew as PNG") from exc


# --- pixels


def _upright(picture: Image.Image) -> Image.Image:
    with contextlib.suppress(Exception):  # unreadable EXIF is ignored
        if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # avoids a copy
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
    """Converts RGB or RGBA from the picture's colour profile to sRGB, and drops the profile.

    `gray` says that it was gray before its conversion to RGB.
    """
    made, mode = picture, "RGBA" if picture.mode == "RGBA" else "RGB"
    with contextlib.suppress(Exception):  # a profile that is unreadable, or for another mode, is ignored
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
    """Converts RGB or RGBA that was gray, via L: a gray profile applies to no other mode."""
    made = ImageCms.profileToProfile(picture.convert("L"), profile, srgb, outputMode="RGB") or picture
    if picture.mode == "RGBA":
        made.putalpha(picture.getchannel("A"))
    return made


def _is_srgb(profile: ImageCms.ImageCmsProfile, srgb: ImageCms.ImageCmsProfile) -> bool:
    """Judges by the name and by the effect on grays, because linear profiles are named sRGB, too."""
    if "sRGB" not in ImageCms.getProfileDescription(profile):
        return False
    grays = Image.linear_gradient("L").convert("RGB")
    seen = ImageCms.profileToProfile(grays, profile, srgb) or grays
    return int(np.asarray(ImageChops.difference(seen, grays)).max()) <= _SRGB_LEVELS


def _halved(picture: Image.Image) -> Image.Image:
    """Halves RGBA, averaging the visible colours; one opaque pixel of four is enough to make the result opaque."""
    width, height = ((side + 1) // 2 for side in picture.size)
    small = picture.resize((width, height), Image.Resampling.BOX)
    small.putalpha(small.getchannel("A").point(lambda level: 255 if level >= 64 else level))
    return small


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Scales gray to 8 bits: 16 bits over their whole range; more, or floats, from darkest pixel to brightest.

    Keeps the profile, and the one transparent level of a PNG, in which case the result is RGBA.
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
