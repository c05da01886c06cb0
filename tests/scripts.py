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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import noise
import numpy as np
import numpy.typing as npt
import pytest
import stand_in
from PIL import Image

from serving.spec import Served

ROOT = Path(__file__).parents[1]
CLIENTS = ROOT / "clients"

Done = subprocess.CompletedProcess[str]
Script = Callable[..., Done]


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


# --- fixtures: a script in a folder of pictures, and what it asks


def models(of: Served) -> Callable[[pytest.TempPathFactory], Path]:
    """A fixture: a model repository of the module's own, with the stand-in of a model, versions 1 and 2."""

    @pytest.fixture(scope="module")
    def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
        return stand_in.repository(tmp_path_factory.mktemp("models") / "repository", spec=of)

    return repository


def asking(script: Path, server: str) -> Callable[..., Script]:
    """A fixture: runs a script in the test's folder against a shared server, given by the name of its fixture."""

    @pytest.fixture
    def runs(request: pytest.FixtureRequest, tmp_path: Path) -> Script:
        url = request.getfixturevalue(server).grpc
        return lambda *arguments: run(script, "--url", url, *arguments, cwd=tmp_path)

    return runs


def in_process(script: Path) -> Callable[..., Script]:
    """A fixture: runs it there with the model in its own process, from the fixture `repository`."""

    @pytest.fixture
    def runs(repository: Path, tmp_path: Path) -> Script:
        return lambda *arguments: run(script, "--repository", repository, "--in-process", *arguments, cwd=tmp_path)

    return runs


def saved(sizes: Mapping[str, tuple[int, int]], gray: str = "") -> Callable[[Path], None]:
    """A fixture of every test: noise of these sizes under these names in its folder, the `gray` one without colours."""

    @pytest.fixture(autouse=True)
    def photos(tmp_path: Path) -> None:
        for seed, (name, size) in enumerate(sizes.items()):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            noise.picture(*size, "L" if name == gray else "RGB", seed).save(path)

    return photos
