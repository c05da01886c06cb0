"""Photographs of things, each in the folder of its class. Run: python -m training.data.natural --out DIR

Imagenette (Howard 2019: ten classes of ImageNet, for research use), fetched once; or any folder of such folders.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving import repository
from training.data import files, photos
from training.data.addresses import IMAGENETTE as ADDRESS
from training.data.corpus import checksum
from training.errors import BadInput

SHA256 = "88daccb09b6fce93f45e6c09ddeb269cce705549e6bff322092a2a5a11489863"
NAME = "imagenette2-160"
LEAST = 10
"""The fewest pictures, of which one is held out."""


@dataclass(frozen=True)
class Natural:
    """Pictures uint8 (N, H, W, 3) of one size, their labels int64 (N,), and both for a held-out set."""

    name: str
    classes: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    held_out: np.ndarray
    held_out_labels: np.ndarray
    sha256: str  # of `images`


def load(folder: str = "", *, size: int = 128, pictures: int = 0, held_out: int = 1000, seed: int = 13) -> Natural:
    """The pictures of a folder of classes, as squares of `size`; "" is Imagenette, fetched into $ATELIER_DATA once.

    `pictures` is the most to take (0: all); `held_out` of them, at most one in ten, are kept from training, the same
    ones for the same seed. Raises BadInput for a folder with fewer than two classes or ten pictures, and if `pictures`
    leaves fewer than these, unless none are held out.
    """
    source = Path(folder) if folder else imagenette()
    names = photos.find(source)
    of_class = [Path(name).parent.name for name in names]
    if len(set(of_class)) < 2 or "" in of_class or len(names) < LEAST:
        raise BadInput(f"--corpus: {source} must hold folders of pictures, one for each class: two or more, with ten")
    taken = np.random.default_rng(seed).permutation(len(names))[: pictures or None]
    names, of_class = ([each[k] for k in taken] for each in (names, of_class))
    classes = tuple(sorted(set(of_class)))
    if held_out and (len(classes) < 2 or len(names) < LEAST):
        raise BadInput(f"--pictures: {pictures} are too few to tell classes apart by; give more, at least {LEAST}")
    labels = np.array([classes.index(one) for one in of_class])
    images, _ = photos.read(source, names, size=size)
    held = min(held_out, len(names) // 10)
    return Natural(
        source.name if folder else NAME, classes,
        images[held:], labels[held:], images[:held], labels[:held], checksum(images[held:]),
    )  # fmt: skip


def imagenette(*, flag: str = "--corpus") -> Path:
    """The folder of Imagenette's training pictures, fetched and unpacked if missing. Raises Unreachable, whose message
    begins with the flag for naming another folder."""
    folder = files.home() / NAME
    if not folder.is_dir():
        try:
            with files.alone(folder):
                if not folder.is_dir():  # another process may have fetched it meanwhile
                    unpack(folder)
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            raise files.fault(error)(f"{flag}: {error}; try again, or name a folder of your own") from error
    return folder / "train"


def unpack(folder: Path) -> None:
    """Unpacks all of it or nothing. The archive stays until then; one that a crash has damaged is fetched again."""
    archive = folder.with_suffix(".tgz")
    if not archive.is_file() or repository.sha256(archive) != SHA256:
        files.fetch((ADDRESS,), archive, sha256=SHA256)
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=f".{NAME}-") as beside:
        with tarfile.open(archive, "r:gz") as packed:
            packed.extractall(beside, filter="data")
        Path(beside, NAME).replace(folder)
    archive.unlink()


def main() -> None:
    parser = files.parser(__doc__)
    parser.add_argument("--corpus", default="", metavar="DIR", help="with one folder for each class (Imagenette)")
    parser.add_argument("--size", type=files.at_least(16), default=128, metavar="PIXELS", help="(default 128)")
    args = parser.parse_args()
    natural = load(args.corpus, size=args.size, pictures=args.count, held_out=0, seed=args.seed)
    files.save(natural.images, args.out, name="picture")
    print(f"{len(natural.classes)} classes: {', '.join(natural.classes)}", file=sys.stderr)


if __name__ == "__main__":
    files.run(main)
