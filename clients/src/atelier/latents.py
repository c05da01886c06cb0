"""Latent vectors: drawn from a seed, and kept in text files that people can read and edit.

    latents.save("mine.txt", latents.draw(5, seed=7), note="seed 7")
    keyframes = latents.load("mine.txt")

One vector to a line, as numpy.savetxt writes them; `#` starts a comment. The same float32 comes back.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from atelier._types import as_int, as_reals
from atelier.errors import InvalidInput
from atelier.files import replacing
from atelier.words import counted

WIDTH = 100
"""Numbers in one latent vector of `wgan`."""

Latents = npt.NDArray[np.float32]


def draw(count: int, *, seed: int) -> Latents:
    """`count` vectors from N(0, I): float32 (count, 100). The same seed gives the same vectors, however many.

    Raises InvalidInput for a count below 1, a negative seed, or what is no whole number.
    """
    rows, start = as_int(count), as_int(seed)
    if rows is None or rows < 1:
        raise InvalidInput(f"count {count!r}: must be a whole number, 1 or more")
    if start is None or start < 0:
        raise InvalidInput(f"seed {seed!r}: must be a whole number, 0 or more")
    return np.random.default_rng(start).standard_normal((rows, WIDTH), dtype=np.float32)


def check(vectors: npt.ArrayLike, *, width: int = WIDTH) -> Latents:
    """`vectors` as float32 (N, width). One vector (width,) counts as N = 1, an empty list as N = 0.

    Raises InvalidInput for another shape, and for what is no number or not finite in float32.
    """
    found = _as_floats(vectors, width)
    if found.ndim == 1:
        found = found[None] if found.size else found.reshape(0, width)
    if found.ndim != 2 or found.shape[1] != width:
        raise InvalidInput(f"latents: shape {found.shape}, must be (N, {width})")
    with np.errstate(over="ignore"):
        narrow = found.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise InvalidInput("latents: every number must be finite, within the range of float32")
    return narrow


def save(path: str | Path, vectors: npt.ArrayLike, *, note: str = "") -> None:
    """Writes vectors (N, D) as text under a comment with `note`. Nine digits tell every float32 apart.

    What is there by that name is replaced. Raises InvalidInput for what `check` refuses, or cannot be written.
    """
    found = np.atleast_2d(_as_floats(vectors, "D"))
    rows = check(found, width=found.shape[-1])
    about = f"# {counted(len(rows), 'latent vector')} of {counted(rows.shape[1], 'number')}, one to a line"
    header = [about, *(f"# {line}" for line in note.splitlines())]
    lines = [" ".join(f"{value:.9g}" for value in row) for row in rows]
    with replacing(Path(path)) as beside:
        beside.write_text("\n".join([*header, *lines]) + "\n", encoding="utf-8")


def load(path: str | Path, *, width: int = WIDTH) -> Latents:
    """Reads vectors back: float32 (N, width). Blanks, tabs, commas or semicolons may part the numbers.

    Raises InvalidInput naming the file and the line: unreadable, not text, empty, a number too many or too
    few, not a number, or not finite in float32.
    """
    rows = [
        _row(f"{path}, line {number}", content, width)
        for number, line in enumerate(_text(Path(path)).splitlines(), start=1)
        if (content := line.partition("#")[0].strip())
    ]
    if not rows:
        raise InvalidInput(f"{path}: empty, holds no vectors; `walk.py --save-vectors` writes such a file")
    return np.stack(rows)


def _as_floats(vectors: npt.ArrayLike, width: int | str) -> npt.NDArray[np.float64]:
    try:
        return as_reals(vectors)
    except Exception as exc:  # what is like an array may raise anything, as PyTorch's tensors do
        raise InvalidInput(f"latents: must be an array of numbers, shape (N, {width})") from exc


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise InvalidInput(f"{path}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise InvalidInput(f"{path}: is not a text file (UTF-8), at byte {exc.start}") from exc
    except ValueError as exc:  # of a name that no file can have
        raise InvalidInput(f"{path}: cannot be read: {exc}") from exc
    if "\0" in text:
        raise InvalidInput(f"{path}: is not a text file, it has a NUL byte")
    return text


def _row(where: str, content: str, width: int) -> Latents:
    words = content.replace(",", " ").replace(";", " ").split()
    values = np.array([_number(where, word) for word in words], dtype=np.float32)
    if len(words) != width:
        raise InvalidInput(f"{where}: has {counted(len(words), 'number')}, a vector has {width}")
    return values


def _number(where: str, word: str) -> float:
    try:
        with np.errstate(over="ignore"):
            value = np.float32(float(word))  # first, as the largest float32 prints as a little more than itself
    except ValueError as exc:
        raise InvalidInput(f"{where}: {word[:40]!r} is not a number") from exc
    if not np.isfinite(value):
        raise InvalidInput(f"{where}: {word[:40]!r} is not a finite 32-bit number")
    return float(value)
