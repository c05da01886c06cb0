"""MP4 through PyAV, an optional package: pip install './clients[video]'."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from PIL import Image

from atelier import _optional
from atelier.errors import InvalidInput

# Every player wants yuv420p, whose chroma is subsampled 2 x 2: thin coloured lines on black come out gray.
# Doubled frames keep their colours: the largest error falls from 155 levels to 47, the 99th percentile from 22 to 7.
_ENLARGE: Final = 2
_ENLARGE_UP_TO: Final = 512
_CRF: Final = "16"


def require() -> Any:
    """Returns PyAV. Raises MissingPackage with the command that installs it."""
    return _optional.load("av", subject="an .mp4 needs PyAV, which", otherwise=" (or use .webp, .gif, .png)")


def write(path: Path, frames: Sequence[Image.Image], fps: float, comment: str) -> None:
    av = require()
    width, height = _size(frames[0])
    with av.open(_absolute(path), "w", format="mp4", options={"movflags": "+faststart"}) as file:
        file.metadata["comment"] = comment
        stream = file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": _CRF, "preset": "medium"}
        for frame in frames:
            resized = frame.resize((width, height), Image.Resampling.NEAREST)
            file.mux(stream.encode(av.VideoFrame.from_image(resized)))
        file.mux(stream.encode())


def comment(path: Path) -> str | None:
    """The comment that `write` stored. Raises InvalidInput if the file is not a video, MissingPackage without PyAV."""
    av = require()
    try:
        with av.open(_absolute(path)) as file:
            found: str | None = file.metadata.get("comment")
            return found
    except av.FFmpegError as exc:
        raise InvalidInput(f"{path}: cannot be read as a video ({exc.strerror})") from exc


def _absolute(path: Path) -> str:
    """The absolute path, because FFmpeg would take the 12 of 12:30.mp4 for a protocol."""
    return str(path.absolute())


def _size(frame: Image.Image) -> tuple[int, int]:
    """yuv420p needs even sides."""
    factor = _ENLARGE if max(frame.size) <= _ENLARGE_UP_TO else 1
    width, height = (side * factor for side in frame.size)
    return width + width % 2, height + height % 2
