"""What all tests share: markers by folder, `need`, and a real server for those that want one."""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib.util
import os
import platform
import signal
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import stand_in
from fleet import Fleet, fleet

from serving.embedded import Embedded
from serving.errors import ServerError
from serving.spec import Served
from serving.torchserve import server as torchserve

TESTS = Path(__file__).parent

# Tests run beside each other, one to a core: more threads in each would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts what it puts in the background with Ctrl-C ignored, nohup with SIGHUP, and children inherit that; tests
# that send one to a child would wait for ever.
for each, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(each) is signal.SIG_IGN:
        signal.signal(each, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(item.path.relative_to(TESTS).parts[0])


def need(condition: object, reason: str) -> None:
    """Skips the test where a machine lacks something; under CI, which installs everything, lacking it is a failure."""
    if condition:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"missing under CI: {reason}")
    pytest.skip(reason)


def need_tritonserver() -> None:
    """What a machine may lack is looked for here once more: where all is there, serving.wheel has to find it."""
    machine = f"{platform.system()} {platform.machine()}"
    need(machine == "Linux x86_64", f"tritonserver runs on Linux x86_64, and this is {machine}")
    need(importlib.util.find_spec("pytriton"), "nvidia-pytriton is not installed: `make setup`")
    version, folder = sysconfig.get_python_version(), Path(sysconfig.get_config_var("LIBDIR"))
    library = (folder / f"libpython{version}.so.1.0").exists() or ctypes.util.find_library(f"python{version}")
    need(library, f"tritonserver needs Python's shared library: `apt install libpython{version}`")


def need_torchserve() -> None:
    try:
        torchserve.find()
    except ServerError as exc:
        need(False, str(exc))


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A filesystem of its own there, in memory: `size=1m` for a small one, with `ro` for one that is not written to."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    need(done.returncode == 0, f"mounting a filesystem needs root: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model repository of the test's own: the stand-in generator, versions 1 and 2."""
    return stand_in.repository(tmp_path / "repository")


def served(of: Served) -> Callable[[pytest.TempPathFactory], Iterator[Embedded]]:
    """A fixture: a real server that all tests of a run share, for the stand-in of a model, versions 1 and 2."""

    @pytest.fixture(scope="session")
    def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
        need_tritonserver()
        with Embedded(stand_in.repository(tmp_path_factory.mktemp("shared") / "repository", spec=of)) as server:
            yield server

    return server


server = served(stand_in.SPEC)
style_server = served(stand_in.STYLE)
classifier_server = served(stand_in.CLASSIFIER)
upscaler_server = served(stand_in.UPSCALER)
colorizer_server = served(stand_in.COLORIZER)
ensemble_server = served(stand_in.WGAN_X4)


@pytest.fixture
def classifiers(tmp_path: Path) -> Path:
    """A model repository of the test's own: the stand-in classifier, versions 1 and 2."""
    need_tritonserver()
    return stand_in.repository(tmp_path / "repository", spec=stand_in.CLASSIFIER)


def replicas(count: int) -> Callable[[Path], Iterator[Fleet]]:
    """A fixture: so many real servers of that repository, of the test's own."""

    @pytest.fixture
    def several(classifiers: Path) -> Iterator[Fleet]:
        with fleet(classifiers, count) as servers:
            yield servers

    return several


two = replicas(2)
three = replicas(3)
