"""Which pictures a script was given, and where what is made of each goes: files and folders in, the same out.

jobs = folders.plan(["photo.jpg"], out=None, tag="scream")    # out/photo-scream.png
jobs = folders.plan(["frames"], out="painted", tag="scream")  # painted/0001.png for frames/0001.png
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from PIL import ExifTags, Image

from atelier.errors import InvalidInput
from atelier.files import check_name, check_writable, is_dir, replacing, resolved
from atelier.pictures import FORMATS, as_rgb, header

OUT: Final = Path("out")
"""Where results go if nobody says."""
MARK: Final = "Made with Atelier"
"""The beginning of the EXIF description of what `write` has written."""
_JPEG: Final = {"quality": 95, "subsampling": 0}
_TIFF: Final = {"compression": "tiff_lzw"}
_SAVE_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    ".png": {},
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": {"quality": 95},
    ".tif": _TIFF,
    ".tiff": _TIFF,
}
"""Endings that a result can have, and Pillow's options for them."""
_MAX_SIDE: Final = {".jpg": 65500, ".jpeg": 65500, ".webp": 16383}
"""Pixels of a side that these can have."""


@dataclass(frozen=True)
class Job:
    """A picture, and the file that is to hold what is made of it."""

    source: Path
    target: Path
    refused: str = ""
    """Why nothing is to be made of it, if so: a folder that gives no pictures, or a name that no result can have."""


def plan(given: Sequence[str | Path], *, out: str | Path | None, tag: str) -> list[Job]:
    """Files and folders, which are searched with what is in them, to jobs in order; nothing is made yet.

    A file's target is <out>/<name>-<tag>.png, or `out` itself if that is the name of a picture. A folder's are the
    same names in `out`, or in out/<folder>-<tag>. Raises InvalidInput for a target that is in the way, or cannot be
    written, or comes twice. What gives no picture is refused in its job, and raises if nothing else was given.
    """
    paths = list(dict.fromkeys(map(Path, given)))
    if out is not None and _is_picture(out):
        jobs = [_single(paths, Path(out))]
        _check_apart(jobs)
    else:
        jobs = [job for path in paths for job in _jobs(path, Path(out) if out else None, tag, len(paths) > 1)]
        wanted = [job for job in jobs if not job.refused]
        if not wanted and len(paths) == 1:
            raise InvalidInput(jobs[0].refused)
        _check_apart(wanted)
        for job in wanted:
            check_free(job.target)
    for target in {job.target.parent: job.target for job in jobs if not job.refused}.values():
        check_writable(target)
    return jobs


def pictures_in(folder: Path, *, but: Path | None = None) -> tuple[list[Path], dict[Path, str]]:
    """The pictures in a folder and those below it, by name, without what is hidden and what was made here before.

    That is `but`, or what is in it if it is a folder below, and what is ours in the folder OUT below. Also returns why
    a folder gave none, by its path: one that cannot be read, or this one if it is empty.
    """
    refused: dict[Path, str] = {}
    found = list(_pictures(folder, but, refused))
    if not found and not refused:
        refused[folder] = f"{folder}: holds no pictures (looked for {' '.join(_SAVE_OPTIONS)} and others)"
    return found, refused


def check_holds(target: Path, sides: tuple[int, int]) -> None:
    """Raises InvalidInput if a file of that ending cannot hold a picture of so many pixels."""
    ending = target.suffix.lower()
    if ending in _MAX_SIDE and max(sides) > _MAX_SIDE[ending]:
        most = f"{ending} can have {_MAX_SIDE[ending]:,} pixels a side, and this would have {sides[0]} x {sides[1]}"
        raise InvalidInput(f"{target}: {most}; do it by itself, with an --out that ends in .png")


def check_free(target: Path, *, other: str = "another --out") -> None:
    """Raises InvalidInput for what is there already, unless `write` has written it. It says to choose the `other`."""
    if os.path.lexists(target) and not _is_ours(target):
        raise InvalidInput(f"{target}: is there already, without a mark of Atelier's; remove it, or choose {other}")


def write(target: Path, picture: Image.Image, *, about: str) -> None:
    """Writes a picture by its file's ending, at once or not at all. JPEG gets it over white if it is transparent.

    Raises InvalidInput.
    """
    check_holds(target, picture.size)
    options = _SAVE_OPTIONS[target.suffix.lower()]
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = f"{MARK}: {about}"
    shown = as_rgb(picture) if options is _JPEG else picture
    with replacing(target) as beside:
        if options is _TIFF:  # libtiff, which would write by itself, does not say why it could not
            buffer = io.BytesIO()
            shown.save(buffer, format="TIFF", exif=exif, **options)
            beside.write_bytes(buffer.getbuffer())
        else:
            shown.save(beside, exif=exif, **options)


# --- where a result goes


def _is_picture(out: str | Path) -> bool:
    """Whether results are to go into this one file, and not into a folder."""
    ending = Path(out).suffix.lower()
    if not ending or str(out).endswith(("/", os.sep)) or is_dir(Path(out)):
        return False
    if ending not in _SAVE_OPTIONS:
        known = " ".join(_SAVE_OPTIONS)
        raise InvalidInput(f"--out: {out}: unknown format {ending}; use {known}, or no ending for a folder")
    return True


def _single(paths: Sequence[Path], out: Path) -> Job:
    if len(paths) > 1 or is_dir(paths[0]):
        raise InvalidInput(f"--out: {out} is one picture, and more are to be made; name a folder")
    return Job(paths[0], out)


def _jobs(path: Path, out: Path | None, tag: str, several: bool) -> Iterator[Job]:
    try:
        folder = is_dir(path)
    except InvalidInput as exc:
        yield Job(path, out or OUT, str(exc))
        return
    if not folder:
        yield _with_name(Job(path, (out or OUT) / f"{path.stem}-{tag}.png"))
        return
    name = resolved(path).name
    target = OUT / f"{name}-{tag}" if out is None else out / name if several else out
    found, refused = pictures_in(path, but=target)
    for source in found:
        same = target / source.relative_to(path)
        yield _with_name(Job(source, same if same.suffix.lower() in _SAVE_OPTIONS else same.with_suffix(".png")))
    yield from (Job(below, target, why) for below, why in refused.items())


def _with_name(job: Job) -> Job:
    """The job itself, refused if only the name of its result is too long. Raises InvalidInput for other targets."""
    try:
        check_name(job.target)
    except InvalidInput as exc:
        if getattr(exc.__cause__, "errno", None) == errno.ENAMETOOLONG and _can_be(job.target.parent):
            return replace(job, refused=f"{exc}; rename {job.source}, or do it by itself, with an --out that is a file")
        raise
    return job


def _can_be(folder: Path) -> bool:
    with contextlib.suppress(InvalidInput):
        check_name(folder)
        return True
    return False


def _pictures(folder: Path, but: Path | None, refused: dict[Path, str]) -> Iterator[Path]:
    endings = {ending for ending, form in Image.registered_extensions().items() if form in FORMATS}
    above = resolved(folder)
    made, out = (resolved(each) if each and above in resolved(each).parents else None for each in (but, OUT))
    for path in sorted(_files(folder, refused)):
        if path.suffix.lower() in endings and _may_be_file(path):
            here = resolved(path)
            within = (here, *here.parents)
            if made not in within and not (out in within and _is_ours(path)):
                yield path


def _files(folder: Path, refused: dict[Path, str]) -> Iterator[Path]:
    """What is in a folder and those below it, but for what is hidden. Folders that cannot be searched are `refused`."""

    def refuse(exc: OSError) -> None:
        refused[Path(exc.filename)] = f"{exc.filename}: cannot be searched: {exc.strerror}"

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in files if not name.startswith("."))


def _may_be_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # in a folder that may be listed but not entered: whoever opens it says so
        return True


def _check_apart(jobs: Sequence[Job]) -> None:
    """No result in the place of another, or of a picture that was given."""
    given = {resolved(job.source) for job in jobs}
    sources: dict[Path, list[str]] = {}
    for job in jobs:
        sources.setdefault(resolved(job.target), []).append(str(job.source))
    for job in jobs:
        target = resolved(job.target)
        if target in given:
            raise InvalidInput(f"{job.target}: would replace a picture that was given; choose another --out")
        if len(sources[target]) > 1:
            several = f"more than one picture ({', '.join(sources[target])})"
            apart = "do them one by one, each with an --out of its own"
            raise InvalidInput(f"{job.target}: would come of {several}; {apart}")


def _is_ours(path: Path) -> bool:
    try:
        with header(path) as picture:
            exif = Image.Image.getexif(picture)
            return str(exif.get(ExifTags.Base.ImageDescription, "")).startswith(MARK)
    except Exception:  # what decoders raise on another's bytes shares no narrower type
        return False
