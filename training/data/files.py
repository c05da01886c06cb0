"""Corpora as files: where they are kept, how they are fetched, what the commands `python -m training.data.… --out DIR`
share.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

from serving import cli, repository
from serving.files import fsync
from training.errors import BadInput, Unreachable

SHEET = "contact-sheet.png"
TIMEOUT_S = 30.0  # for a connection, and for each next piece of a file
TOO_LARGE = "too large for this machine's memory"
ALLOCATORS = (
    "DefaultCPUAllocator: can't allocate", "Storage size calculation overflowed", "Overflow when unpacking",  # PyTorch
    "Maximum allowed dimension exceeded", "array is too big",  # NumPy
)  # fmt: skip
"""What they say of sizes that no allocator is asked for, or that it has refused, without an error type of their own."""


def home() -> Path:
    """Where corpora are kept that are not drawn: $ATELIER_DATA, or ~/.cache/atelier."""
    folder = Path(os.environ.get("ATELIER_DATA") or "~/.cache/atelier")
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise BadInput(f"ATELIER_DATA: {folder.parts[0]} is nobody's home directory; give the whole path") from error


def fetch(urls: Sequence[str], to: Path, *, sha256: str) -> None:
    """Write `to` from the first of the URLs that gives the bytes with that checksum: all of it or nothing.

    sha256: in hexadecimal, or as much of its beginning as the publisher gives. Raises OSError with what was
    wrong with each URL, or with the folder of `to`, which is made if need be.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    faults = []
    for url in urls:
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}-") as beside:
            part = Path(beside, to.name)
            try:
                with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, part.open("wb") as file:
                    shutil.copyfileobj(answer, file)
            except (OSError, HTTPException) as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise  # of the folder, not of the URL
                faults.append(f"{url}: {str(error).removeprefix('<urlopen error ').removesuffix('>')}")
                continue
            if repository.sha256(part).startswith(sha256):
                fsync(part)  # a machine that goes down would else leave a file of that name without its bytes
                part.replace(to)
                return
            faults.append(f"{url}: what came has another checksum")
    raise OSError("; ".join(faults))


def fault(error: Exception) -> type[BadInput]:
    """What an error of `fetch` or of unpacking is to a Job: the network's, after which it tries again, or the folder's,
    which another try would find as it is."""
    return Unreachable if getattr(error, "errno", None) is None else BadInput


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time brings `folder`; the next then finds it there. The kernel lets go of the lock if its holder
    dies. On Windows there is none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("a") as lock:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return number


def parser(description: str | None, *, seed: int = 0) -> cli.Parser:
    made = cli.Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    made.add_argument("--count", type=at_least(1), default=100, metavar="N", help="how many (default 100)")
    made.add_argument(
        "--seed", type=at_least(0), default=seed, metavar="S", help="other seed, others (default %(default)s)"
    )
    return made


def contact_sheet(images: np.ndarray, *, columns: int = 10, rows: int = 10, gap: int = 6) -> Image.Image:
    """The first columns x rows pictures of uint8 (N, H, W, 3) side by side on gray."""
    height, width = images.shape[1] + gap, images.shape[2] + gap
    columns = min(columns, len(images))
    rows = min(rows, -(-len(images) // columns))
    sheet = Image.new("RGB", (columns * width + gap, rows * height + gap), (120, 120, 120))
    for k, image in enumerate(images[: columns * rows]):
        sheet.paste(Image.fromarray(image), (gap + k % columns * width, gap + k // columns * height))
    return sheet


def save(images: np.ndarray, out: Path, *, name: str) -> None:
    """Write `name-00000.png` … and a contact sheet as the folder `out`: all of it or nothing.

    Raises BadInput when `out` can't be written or holds something already.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise BadInput(f"--out: {out} is there already and not an empty folder; name a new one")
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            for k, image in enumerate(images):
                Image.fromarray(image).save(beside / f"{name}-{k:05d}.png", compress_level=1)
            contact_sheet(images).save(beside / SHEET)
            beside.chmod(0o755)  # mkdtemp makes it private
            beside.replace(out)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise BadInput(f"--out: can't write {out} ({error.strerror or error}); name another folder") from error
    print(f"{len(images)} pictures and {SHEET} in {out}")


def too_large(error: Exception) -> bool:
    """Whether the main memory can't hold what was asked for, as Python, NumPy or PyTorch says. A GPU's is not meant:
    there another try may do."""
    return isinstance(error, MemoryError | OverflowError) or any(words in str(error) for words in ALLOCATORS)


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command; what its user can mend is one line and exit status 2."""
    try:
        main()
    except BadInput as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except (MemoryError, OverflowError, ValueError) as error:
        if not too_large(error):
            raise
        print(f"{TOO_LARGE}: lower --count", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
