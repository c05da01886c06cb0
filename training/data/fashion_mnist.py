"""Fashion-MNIST: small gray pictures of garments in ten classes. Run: python -m training.data.fashion_mnist --out DIR

60,000 pictures to train on and 10,000 to test with, white on black, 28 x 28 (Xiao, Rasul, Vollgraf 2017; MIT licence).
Reads either of its formats, whichever the folder holds: the four official IDX files, or Kaggle's two CSV files;
gzipped or not. If both are there, as in Kaggle's archive, reads the IDX files, since they are the official ones.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import math
import sys
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from training.data import files
from training.data.addresses import FASHION_MNIST as MIRRORS
from training.data.corpus import LEAST
from training.errors import BadInput
from training.models.classifier.spec import CLASSES, SIZE

# SHA-256 of each file as it is fetched, gzipped.
OFFICIAL = {
    "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
COUNTS = (60_000, 10_000)
KAGGLE = ("fashion-mnist_train.csv", "fashion-mnist_test.csv")

COLUMNS = 1 + SIZE * SIZE  # in a row: the label, then the pixels from the top left
VALUES = frozenset(str(value).encode() for value in range(256))


class Split(NamedTuple):
    """N garments, white on black."""

    images: np.ndarray  # uint8 (N, 28, 28)
    labels: np.ndarray  # uint8 (N,): index into the classifier's CLASSES


@dataclass(frozen=True)
class Garments:
    """Pictures to train on, to choose options and fit the temperature on, and to test on once, at the end."""

    name: str
    sha256: str  # of all three splits, in their order
    train: Split
    validation: Split
    test: Split


def load(
    folder: str | Path = "", *, pictures: int | None = None, validation: float = 0.2, part_anew: bool = False,
    seed: int = 13,
) -> Garments:  # fmt: skip
    """Loads the garments of a folder; for "", those under $ATELIER_DATA, fetched if they are missing.

    `validation` is the share of the training pictures to hold out, drawn at random over all classes. `pictures` is the
    maximum of train and validation together, and of test. The same pictures give the same bytes in either format;
    whatever `pictures` is, no held-out picture is ever trained on. `part_anew` merges both sets first and draws a new
    test set. Raises BadInput if a file can't be used.
    """
    if pictures is not None and pictures < LEAST:
        raise BadInput(f"--pictures: {pictures} pictures are too few to train on; at least {LEAST}")
    if not 0 < validation < 1:
        raise BadInput(f"--validation: {validation:g} is no share that leaves some on both sides; give 0.2, or so")
    where = Path(folder) if str(folder) else files.home() / "fashion-mnist"
    try:
        if not str(folder):
            fetch_missing(where)
        rows, test = read(where)
    except OSError as error:
        raise BadInput(
            f"--corpus: can't read {error.filename or where} ({error.strerror or error}); mend that, or name another"
        ) from error
    if len(test) > len(rows):
        raise BadInput(
            f"--corpus: {where} has {len(test):,} pictures to test on and {len(rows):,} to learn from, as if swapped; "
            "give each file its own name"
        )
    if (len(rows), len(test)) != COUNTS:  # a CSV file truncated at the end of a line looks like a smaller one
        print(
            f"{where}: {len(rows):,} and {len(test):,} pictures, not Fashion-MNIST's 60,000 and 10,000", file=sys.stderr
        )

    if part_anew:
        both = shuffled(np.concatenate([test, rows]), seed)
        test, rows = both[: len(test)], both[len(test) :]
    else:
        rows, test = (shuffled(part, seed) for part in (rows, test))

    # Hold out from all rows first, and only then cut each side separately, to `pictures` in all.
    count = min(pictures or len(rows), len(rows))
    first, held = (min(max(1, round(validation * n)), n - 1) for n in (len(rows), count))
    if count < 3:
        raise BadInput(f"--pictures: {count} are too few to hold some out and train on two; give 3 or more")
    if count - held < 2:  # a batch norm needs two
        raise BadInput(f"--validation: {validation:g} of {count} pictures leaves 1 to train on; give a smaller share")
    splits = rows[first : first + count - held], rows[:held], test[:pictures]

    digest = hashlib.sha256(str([len(split) for split in splits]).encode())
    for split in splits:
        digest.update(split.data)
    name = where.resolve().name + (", parted anew" if part_anew else "")
    return Garments(name, digest.hexdigest(), *map(as_split, splits))


def shuffled(rows: np.ndarray, seed: int) -> np.ndarray:
    """The rows sorted by their keyed hash: a random order, but the same for the same pictures in whatever order.

    Kaggle's files hold the 70,000 pictures in a different order, on which a shuffle by index would depend. Kaggle's
    split differs from the official one, too (five of the first eight of its test pictures are official training
    pictures), so accuracies on the two test sets are not comparable; `part_anew` draws a new split.
    """
    key = str(seed).encode()
    hashes = [hashlib.blake2b(row, digest_size=16, key=key).digest() for row in rows]
    return rows[sorted(range(len(rows)), key=hashes.__getitem__)]


def as_split(rows: np.ndarray) -> Split:
    return Split(rows[:, 1:].reshape(-1, SIZE, SIZE).copy(), rows[:, 0].copy())


# --- the files of a folder -----------------------------------------------------------------------------


def found(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """The paths of those files among `names` that exist, gzipped or not."""
    both = {name: (folder / f"{name}.gz", folder / name) for name in names}
    there = {name: [path for path in paths if path.is_file()] for name, paths in both.items()}
    return {name: paths[0] for name, paths in there.items() if paths}


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows, uint8 (N, 785) with the label first, from either format."""
    if not folder.is_dir():
        raise BadInput(f"--corpus: {folder} is {'not a folder' if folder.exists() else 'not there'}; name the folder")
    official, kaggle = found(folder, OFFICIAL), found(folder, KAGGLE)
    if len(official) == len(OFFICIAL):
        train_images, train_labels, test_images, test_labels = (official[name] for name in OFFICIAL)
        return from_idx(train_images, train_labels), from_idx(test_images, test_labels)
    if len(kaggle) == len(KAGGLE):
        train, test = (from_csv(kaggle[name]) for name in KAGGLE)
        return train, test

    gzipped = [f"{name}.gz" for name in OFFICIAL]
    if not official and not kaggle:
        raise BadInput(f"--corpus: no Fashion-MNIST in {folder} (looked for {', '.join(gzipped)}; {', '.join(KAGGLE)})")
    lacking = [f"{name}.gz" for name in OFFICIAL if name not in official]
    if not official:
        lacking = [name for name in KAGGLE if name not in kaggle]
    raise BadInput(f"--corpus: {folder} lacks {', '.join(lacking)}; put what is missing beside the others")


def fetch_missing(folder: Path) -> None:
    """Fetches the official files that the folder lacks, unless Kaggle's are there."""
    if len(found(folder, KAGGLE)) == len(KAGGLE):
        return
    missing = [name for name in OFFICIAL if not found(folder, [name])]
    for name in missing:
        archive = f"{name}.gz"
        print(f"fetching {archive} into {folder}", file=sys.stderr)
        try:
            files.fetch([mirror + archive for mirror in MIRRORS], folder / archive, sha256=OFFICIAL[name])
        except OSError as error:
            raise files.fault(error)(
                f"--corpus: can't fetch {archive} ({error}); put {', '.join(f'{name}.gz' for name in missing)} "
                f"into {folder} yourself, or name a folder that has them"
            ) from error


# --- the two formats -----------------------------------------------------------------------------------


def refusal(path: Path, why: str) -> BadInput:
    return BadInput(f"--corpus: {path} {why}; replace it with the original file")


def contents(path: Path) -> bytes:
    """A file's contents, decompressed if its first bytes say gzip: browsers decompress files and keep their names."""
    data = path.read_bytes()
    if not data:
        raise refusal(path, "is empty")
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise refusal(path, f"is cut short or damaged ({error})") from error


def checked(rows: np.ndarray, labels: Path) -> np.ndarray:
    if len(rows) < LEAST:
        raise refusal(labels, f"has {len(rows)} garments, too few to learn from or to evaluate on; at least {LEAST}")
    if (wrong := rows[:, 0] >= len(CLASSES)).any():
        k = int(wrong.argmax())
        raise refusal(labels, f"labels garment {k + 1} as {rows[k, 0]}; labels go from 0 to {len(CLASSES) - 1}")
    return rows


def from_idx(images: Path, labels: Path) -> np.ndarray:
    """Rows, uint8 (N, 785), from a file of pictures and a file of their labels."""
    pixels, names = idx(images, 3), idx(labels, 1)
    if len(pixels) != len(names):
        raise refusal(labels, f"has {len(names):,} labels for the {len(pixels):,} pictures of {images.name}")
    return checked(np.concatenate([names[:, None], pixels.reshape(-1, SIZE * SIZE)], axis=1), labels)


def idx(path: Path, dimensions: int) -> np.ndarray:
    """Reads an IDX file of bytes: 0, 0, 8 for uint8, the number of dimensions, their sizes (big-endian), the values."""
    data, head = contents(path), 4 + 4 * dimensions
    kinds = {bytes((0, 0, 8, 1)): "labels", bytes((0, 0, 8, 3)): "pictures"}
    wanted = kinds[bytes((0, 0, 8, dimensions))]
    if len(data) < head:
        raise refusal(path, f"is cut short within its header, after {len(data)} bytes")
    if (kind := kinds.get(data[:4])) is None:
        raise refusal(path, f"is no IDX file of {wanted} (it begins with the bytes {data[:4].hex(' ')})")
    if kind != wanted:
        raise refusal(path, f"holds {kind}, not {wanted}, as if swapped with another file")
    shape = np.frombuffer(data, ">u4", dimensions, 4).tolist()
    if dimensions == 3 and shape[1:] != [SIZE, SIZE]:
        raise refusal(path, f"holds pictures of {shape[2]} x {shape[1]} pixels, not {SIZE} x {SIZE}")
    if (values := len(data) - head) != (promised := math.prod(shape)):
        how = "is cut short" if values < promised else "is longer than it should be"
        raise refusal(path, f"{how}: {values:,} bytes of {wanted}, where its header says {promised:,}")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def from_csv(path: Path) -> np.ndarray:
    """Rows, uint8 (N, 785), from a CSV file with one garment per line; 60,000 take about a second.

    A header line, as in Kaggle's files, is optional.
    """
    data = contents(path).removeprefix(codecs.BOM_UTF8)
    first = data[:80].split(b",")[0].strip(b' "\r\n')
    titled = first.lower() == b"label"
    if not titled and not first.isdigit():
        raise refusal(path, f"does not begin with a column of labels (but with {first[:20].decode('latin1')!r})")
    body = data[data.find(b"\n") + 1 :] if titled else data
    try:
        with warnings.catch_warnings():
            # A warning means that numpy falls back to parsing floats, which would turn 256 into 0 and 1.5 into 1, or
            # that there is nothing to read.
            warnings.simplefilter("error")
            rows = np.loadtxt(io.BytesIO(body), np.uint8, delimiter=",", comments=None, ndmin=2)
    except UserWarning:
        rows = np.empty((0, COLUMNS), np.uint8)
    except ValueError as error:
        raise refusal(path, first_fault(body, 1 + titled)) from error
    if rows.shape[1] != COLUMNS:
        raise refusal(path, first_fault(body, 1 + titled))
    return checked(rows, path)


def first_fault(body: bytes, number: int) -> str:
    """Describes the first fault of a CSV that can't be read; `number` is the line number of its first line."""
    for line in body.splitlines():
        fields = [field.strip() for field in line.split(b",")]
        if line and len(fields) != COLUMNS:
            return f"has {len(fields)} columns in line {number}, not {COLUMNS}"
        for column, field in enumerate(fields if line else (), 1):
            if field not in VALUES:
                text = field[:20].decode("latin1")
                return f"has {text!r} in line {number}, column {column}, not a whole number from 0 to 255"
        number += 1
    return "is no table of whole numbers from 0 to 255"


# --- a contact sheet -----------------------------------------------------------------------------------


def in_turn(split: Split) -> np.ndarray:
    """The pictures reordered to cycle through the classes, so that each class is one column of a contact sheet."""
    within = np.empty(len(split.labels), int)
    for label in range(len(CLASSES)):
        of_it = split.labels == label
        within[of_it] = np.arange(of_it.sum())
    return split.images[np.lexsort((split.labels, within))]


def main() -> None:
    parser = files.parser(__doc__, seed=13)
    parser.add_argument("--corpus", default="", metavar="DIR", help="yours (default: fetched, under $ATELIER_DATA)")
    args = parser.parse_args()
    garments = load(args.corpus, seed=args.seed)
    files.save(in_turn(garments.train)[: args.count], args.out, name="garment")


if __name__ == "__main__":
    files.run(main)
