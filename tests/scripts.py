"""Running the scripts in clients/ as people do, and what is left when they have ended."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

ROOT = Path(__file__).parents[1]
CLIENTS = ROOT / "clients"

Done = subprocess.CompletedProcess[str]


def run(script: Path, *arguments: object, cwd: Path, **environment: str) -> Done:
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def worked(done: Done) -> Done:
    assert (done.returncode, done.stderr) == (0, ""), done
    return done


def refused(done: Done, *says: str) -> None:
    """Exit status 2, nothing on stdout, and one line on stderr that has all of `says` after the script's name."""
    assert (done.returncode, done.stdout) == (2, ""), done
    assert re.match(r"[a-z]+\.py: ", done.stderr)
    assert done.stderr.count("\n") == 1
    assert all(words in done.stderr for words in says), done.stderr


@contextlib.contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Within, no file in it is written, changed or removed."""
    before = contents(folder)
    yield
    assert contents(folder) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def frames(path: Path) -> npt.NDArray[np.int64]:
    """Every frame of a picture or an animation: (frames, H, W, 3)."""
    with Image.open(path) as picture:
        found = []
        for index in range(getattr(picture, "n_frames", 1)):
            picture.seek(index)
            found.append(np.asarray(picture.convert("RGB"), dtype=np.int64))
    return np.stack(found)


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        return picture


def noise(width: int, height: int, seed: int = 9) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def free_port() -> int:
    """A port of 127.0.0.1 where nobody answers, kept until these tests end from all who ask for any free one.

    A server that is given its number can listen there: Python's, Go's, Triton's and torch's all set SO_REUSEADDR.
    """
    held = socket.socket()
    atexit.register(held.close)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return int(held.getsockname()[1])


def copied(script: Path, checkout: Path, repository: Path | None) -> Path:
    """A script in a checkout of its own, with this one's code and the models of a repository."""
    shutil.copytree(ROOT / "serving", checkout / "serving", ignore=shutil.ignore_patterns("model_repository"))
    if repository:
        shutil.copytree(repository, checkout / "serving" / "model_repository")
    (checkout / "clients").mkdir()
    return Path(shutil.copy(script, checkout / "clients"))


def processes_of(folder: Path) -> list[str]:
    """Command lines of processes that name a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found
