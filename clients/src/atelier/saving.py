"""Saving frames, with the recipe that made them, and reading the recipe back.

    saving.save("walk.gif", frames, fps=20, recipe=recipe)
    recipe = saving.read("walk.gif")

The format goes by the ending: .gif .webp .png (APNG) .mp4 .zip; no ending is a folder of frames.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from atelier import _gif, _video
from atelier._types import is_number, is_several
from atelier.errors import AtelierError, InvalidInput
from atelier.files import check_writable, exists, is_dir, map_os_errors, replacing, resolved
from atelier.pictures import header
from atelier.recipe import Recipe

WALK_JSON: Final = "walk.json"
FOLDER: Final = ""
SLOWEST_FPS: Final = 1 / 60
"""A frame a minute: a GIF can show one for eleven, and no other format for less."""
FASTEST_FPS: Final = 240.0
_FRAME: Final = re.compile(r"frame-\d{4,}\.png")
_EXIF_DESCRIPTION: Final = 0x010E
_LARGEST_SIDE: Final = {".gif": 65535, ".webp": 16383, ".mp4": 8192}
_ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)
"""The same frames make the same .zip."""


def format_of(path: str | Path) -> str:
    """The ending that says how `path` is to be written, "" for a folder. Raises InvalidInput."""
    suffix = "" if str(path).endswith(("/", os.sep)) else Path(path).suffix.lower()
    if suffix not in (*_WRITERS, FOLDER):
        known = " ".join(_WRITERS)
        raise InvalidInput(f"{path}: unknown format {suffix}; use {known}, or no ending for a folder of frames")
    return suffix


def check(path: str | Path, *, fps: float, still: bool = False, sides: tuple[int, int] = (0, 0)) -> None:
    """Raises what `save` would if it could not write there, before any work is done: InvalidInput, MissingPackage.

    sides: of a frame, in pixels, if they are known.
    """
    suffix, target = format_of(path), Path(path)
    check_fps(path, fps)
    if still and suffix not in (".png", ".webp", ".gif"):
        raise InvalidInput(f"{path}: a strip is one picture; use .png, .webp or .gif")
    _check_holds(path, sides)
    if suffix == ".mp4":
        _video.require()
    if suffix == FOLDER:
        _check_folder(target)
    elif is_dir(target):
        raise InvalidInput(f"{path}: is a folder; name a file, or end it with / to put frames in it")
    check_writable(target)


def check_fps(path: str | Path, fps: float) -> None:
    """Raises InvalidInput for a rate that the file's format cannot have."""
    gif = format_of(path) == ".gif"
    fastest = _gif.FASTEST_FPS if gif else FASTEST_FPS
    if not (is_number(fps) and SLOWEST_FPS <= fps <= fastest):
        other = "; .webp and .mp4 can show more" if gif and is_number(fps) and fastest < fps <= FASTEST_FPS else ""
        raise InvalidInput(f"{path}: fps {fps!r} must be at least 1 a minute, and at most {fastest:g}{other}")


def save(path: str | Path, frames: Iterable[Image.Image], *, fps: float = 20.0, recipe: Recipe | None = None) -> None:
    """Writes frames, all of one size, at once or not at all; what is there by that name is replaced.

    frames: a list, or what gives them one by one, as `Client.walk` does; all are in memory before any is written.
    fps: from SLOWEST_FPS to FASTEST_FPS frames a second, a .gif 50 at most. recipe: saved with them, for `read`. In a
    folder that is there only the frames of an earlier walk are replaced, one by one. Raises InvalidInput, and
    MissingPackage for .mp4.
    """
    check(path, fps=fps)  # before the frames are waited for
    shown = _checked(frames)
    _check_holds(path, shown[0].size)
    suffix = format_of(path)
    metadata = recipe.to_json() if recipe else ""
    if suffix == FOLDER:
        _write_folder(Path(path), shown, metadata)
    else:
        with replacing(Path(path)) as beside:
            try:
                _WRITERS[suffix](beside, shown, float(fps), metadata)
            except _gif.TooLong as exc:
                raise InvalidInput(f"{path}: shows one picture for {_gif.LONGEST_S} s or more; use .webp") from exc


def read(path: str | Path) -> Recipe:
    """The recipe in a file, folder or zip that `save` wrote. Raises InvalidInput if there is none."""
    file = Path(path)
    if not exists(file):
        raise InvalidInput(f"{path}: no such file")
    metadata = _metadata(file)
    if not metadata or '"atelier"' not in metadata:
        raise InvalidInput(f"{path}: holds no walk; it was not saved by walk.py")
    return Recipe.from_json(metadata, where=str(path))


def is_member(name: str) -> bool:
    """Whether `save` gives that name to a file in a folder of frames."""
    return name == WALK_JSON or _FRAME.fullmatch(name) is not None


def _check_holds(path: str | Path, sides: tuple[int, int]) -> None:
    suffix = format_of(path)
    if max(sides) > _LARGEST_SIDE.get(suffix, math.inf):
        raise InvalidInput(f"{path}: {sides[0]} x {sides[1]} is more pixels than {suffix} can hold; use .png")


def _checked(frames: Iterable[Image.Image]) -> list[Image.Image]:
    shown = list(frames) if is_several(frames) else []
    if not shown or not all(isinstance(each, Image.Image) and each.size == shown[0].size for each in shown):
        raise InvalidInput("frames: needs one or more pictures, all of one size")
    return shown


# --- writers


def _write_png(path: Path, frames: Sequence[Image.Image], fps: float, metadata: str) -> None:
    info = PngInfo()
    if metadata:
        info.add_text("atelier", metadata)
    _animation(path, "PNG", frames, fps, pnginfo=info)


def _write_webp(path: Path, frames: Sequence[Image.Image], fps: float, metadata: str) -> None:
    exif = Image.Exif()
    if metadata:
        exif[_EXIF_DESCRIPTION] = metadata
    # Lossless: flat colour keeps its edges, and costs little.
    _animation(path, "WEBP", frames, fps, lossless=True, quality=50, method=2, exif=exif)


def _animation(path: Path, form: str, frames: Sequence[Image.Image], fps: float, **options: object) -> None:
    if len(frames) > 1:
        durations = _gif.delays(len(frames), fps, per_second=1000)
        options |= {"save_all": True, "append_images": frames[1:], "duration": durations, "loop": 0}
    frames[0].save(path, format=form, **options)


def _write_zip(path: Path, frames: Sequence[Image.Image], fps: float, metadata: str) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, content in _members(frames, metadata):
            file.writestr(zipfile.ZipInfo(name, _ZIP_TIME), content)


_Writer = Callable[[Path, Sequence[Image.Image], float, str], None]
_WRITERS: Final[dict[str, _Writer]] = {
    ".gif": _gif.write,
    ".webp": _write_webp,
    ".png": _write_png,
    ".mp4": _video.write,
    ".zip": _write_zip,
}


def _members(frames: Sequence[Image.Image], metadata: str) -> list[tuple[str, bytes]]:
    """The files of a folder or zip, walk.json last."""
    digits = max(4, len(str(len(frames) - 1)))
    pictures = [(f"frame-{index:0{digits}}.png", _png(frame)) for index, frame in enumerate(frames)]
    listed = {**json.loads(metadata or "{}"), "files": [name for name, _ in pictures]}
    return [*pictures, (WALK_JSON, json.dumps(listed, indent=1).encode())]


def _png(frame: Image.Image) -> bytes:
    buffer = io.BytesIO()
    frame.save(buffer, format="PNG")
    return buffer.getvalue()


# --- folders


def _write_folder(target: Path, frames: Sequence[Image.Image], metadata: str) -> None:
    earlier = _check_folder(target)
    folder = target.absolute()
    members = _members(frames, metadata)
    with map_os_errors(target):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Inside a folder that exists: it may be the root of another filesystem, and nothing moves across.
        with tempfile.TemporaryDirectory(
            prefix=".atelier-", dir=folder if earlier is not None else folder.parent
        ) as scratch:
            made = Path(scratch, "made")
            made.mkdir()
            for name, content in members:
                (made / name).write_bytes(content)
            _move(made, folder, [name for name, _ in members], earlier)


def _move(made: Path, folder: Path, names: list[str], earlier: set[str] | None) -> None:
    if earlier is None:
        made.rename(folder)
        return
    # Whoever finds the folder after a kill in the middle can tell that a walk made all of it, and save there again.
    listed = made / "listed.json"
    listed.write_text(json.dumps({"files": sorted(earlier.union(names) - {WALK_JSON})}), encoding="utf-8")
    listed.replace(folder / WALK_JSON)
    for name in names:
        (made / name).replace(folder / name)
    for name in earlier - set(names):
        (folder / name).unlink(missing_ok=True)


def _check_folder(folder: Path) -> set[str] | None:
    """The frames of an earlier walk in `folder`, which may be replaced; None if there is no folder yet.

    Raises InvalidInput for frames that no walk made.
    """
    if not exists(folder):
        if folder.is_symlink():
            raise InvalidInput(f"{folder}: is a link to what is not there; choose another folder")
        return None
    if not is_dir(folder):
        raise InvalidInput(f"{folder}: is a file; name a folder, or give it an ending such as .gif")
    if resolved(folder).parent == resolved(folder):
        raise InvalidInput(f"{folder}: is the root of the file system; name a folder in it")
    ours = _listed(folder / WALK_JSON)
    for path in folder.glob("frame-*.png"):
        if path.name not in ours:
            raise InvalidInput(f"{path}: is there already, and no walk made it; choose another folder")
    return ours


def _listed(walk: Path) -> set[str]:
    try:
        names = json.loads(walk.read_text(encoding="utf-8"))["files"]
        if not (names and all(map(_FRAME.fullmatch, names))):
            raise ValueError("its files are no frames")
        return set(names)
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
        raise InvalidInput(f"{walk}: is there already, and no walk made it; choose another folder") from exc


# --- reading


def _metadata(path: Path) -> str | None:
    """The JSON of the recipe as it was saved, or what another program has put there."""
    try:
        if path.is_dir():
            return (path / WALK_JSON).read_text(encoding="utf-8") if (path / WALK_JSON).exists() else None
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                return file.read(WALK_JSON).decode() if WALK_JSON in file.namelist() else None
        if path.suffix.lower() == ".mp4":
            return _video.comment(path)
        return _picture_metadata(path)
    except AtelierError:
        raise
    except Exception as exc:  # what decoders raise on damaged bytes shares no narrower type
        why = " ".join(str(exc).split()) or type(exc).__name__
        raise InvalidInput(f"{path}: cannot be read ({why})") from exc


def _picture_metadata(path: Path) -> str | None:
    try:
        with header(path) as picture:
            found = picture.info.get("comment") or picture.info.get("atelier")
            found = found or Image.Image.getexif(picture).get(_EXIF_DESCRIPTION)
    except UnidentifiedImageError as exc:
        raise InvalidInput(f"{path}: is neither a picture, a video, a folder nor a zip of a walk") from exc
    if isinstance(found, bytes):
        return found.decode("ascii", "replace")
    return found if isinstance(found, str) else None  # another program's EXIF may have a number there
