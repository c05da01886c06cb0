"""A corpus in memory: `load("lines", count=10_000, seed=0)`, or any folder or zip of pictures. Torch-free."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from training.data import computer_art, lines, photos
from training.errors import BadInput

DRAWN: dict[str, Callable[..., np.ndarray]] = {
    "lines": lines.draw,
    "lines_uniform": partial(lines.draw, all_uniform=True),
    **computer_art.CORPORA,
}
THREE_LINES = ("lines", "lines_uniform")
# Twice as many as the measures use on each side of a comparison, so that they can average over several subsets.
HELD_OUT = 4096
# Offset of the held-out pictures' seed from --seed, or from 0: so large that nobody chooses such a seed.
HELD_OUT_SEED = 1 << 32
# Fewer pictures are too few to train on or to evaluate on.
LEAST = 16


@dataclass(frozen=True)
class Corpus:
    """Pictures to train on and pictures held out to evaluate on; both uint8 (N, H, W, 3)."""

    name: str
    images: np.ndarray
    held_out: np.ndarray
    sha256: str  # of `images`, see `checksum`
    three_lines: bool = False  # drawn by lines.py, so what a correct picture shows is known
    skipped: tuple[str, ...] = ()  # broken files left out, with skip_broken


def checksum(images: np.ndarray) -> str:
    """SHA-256 of the dtype, the shape and the bytes, so that a reshaped corpus counts as another one."""
    digest = hashlib.sha256(f"{images.dtype}{images.shape}".encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def checksum_of_all(pictures: Iterable[np.ndarray]) -> str:
    """The checksum of several arrays, in their order."""
    digests = "".join(checksum(each) for each in pictures)
    return checksum(np.frombuffer(digests.encode(), np.uint8))


def load(
    name: str | Path,
    *,
    count: int = 10_000,
    seed: int = 0,
    size: int = 128,
    fit: str = "crop",
    skip_broken: bool = False,
) -> Corpus:
    """Loads a drawn corpus by its name, or the pictures of a folder or zip; the same arguments give the same bytes.

    A drawn corpus has `count` pictures, and up to 4,096 others held out. Of a folder or zip, takes at most `count`
    pictures and holds out one in five of them; `fit` and `skip_broken` are photos.load's. Raises BadInput if there
    is no such corpus or it can't be used.
    """
    if count < LEAST:
        raise BadInput(f"--pictures: {count} pictures are too few to train on; at least {LEAST}")
    if str(name) in DRAWN:
        draw = DRAWN[str(name)]
        assert size == lines.SIZE, (name, size, lines.SIZE)
        images, held_out = draw(count, seed=seed), draw(min(count, HELD_OUT), seed=seed + HELD_OUT_SEED)
        return Corpus(str(name), images, held_out, checksum(images), three_lines=str(name) in THREE_LINES)

    source = Path(name)
    if not source.exists():
        raise BadInput(
            f"--corpus: {name} is neither a drawn corpus ({', '.join(DRAWN)}) nor a folder or zip that is there"
        )
    pictures, skipped = photos.load(source, count=count, seed=seed, size=size, fit=fit, skip_broken=skip_broken)
    if len(pictures) < LEAST:
        raise BadInput(f"--corpus: {len(pictures)} pictures in {name} are too few; at least {LEAST}")
    # Hold out a fifth of a shuffled order, because a folder may be sorted by date or subject.
    order = np.random.default_rng(seed).permutation(len(pictures))
    images, held_out = (
        pictures[np.sort(order[len(order) // 5 :])],
        pictures[np.sort(order[: len(order) // 5])],
    )
    return Corpus(source.stem, images, held_out, checksum(images), skipped=skipped)
