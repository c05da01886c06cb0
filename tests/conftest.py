"""What all tests share: markers by folder, `need`, and a real server for those that want one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import stand_in

from serving import wheel
from serving.embedded import Embedded
from serving.errors import ServerError

TESTS = Path(__file__).parent

# Tests run beside each other, one to a core: more threads in each would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts what it puts in the background with Ctrl-C ignored, and children inherit that; tests that send one to
# a child would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
    try:
        wheel.find()
    except ServerError as exc:
        need(False, str(exc))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model repository of the test's own: the stand-in generator, versions 1 and 2."""
    return stand_in.repository(tmp_path / "repository")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """A real server that all tests of a run share; it serves the stand-in generator, versions 1 and 2."""
    need_tritonserver()
    with Embedded(stand_in.repository(tmp_path_factory.mktemp("shared") / "repository")) as server:
        yield server


@pytest.fixture(scope="session")
def style_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """A real server that all tests of a run share; it serves the stand-in style network, versions 1 and 2."""
    need_tritonserver()
    root = tmp_path_factory.mktemp("shared") / "repository"
    with Embedded(stand_in.repository(root, spec=stand_in.STYLE)) as server:
        yield server


@pytest.fixture(scope="session")
def classifier_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """A real server that all tests of a run share; it serves the stand-in classifier, versions 1 and 2."""
    need_tritonserver()
    root = tmp_path_factory.mktemp("shared") / "repository"
    with Embedded(stand_in.repository(root, spec=stand_in.CLASSIFIER)) as server:
        yield server


@pytest.fixture(scope="session")
def upscaler_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """A real server that all tests of a run share; it serves the stand-in upscaler, versions 1 and 2."""
    need_tritonserver()
    root = tmp_path_factory.mktemp("shared") / "repository"
    with Embedded(stand_in.repository(root, spec=stand_in.UPSCALER)) as server:
        yield server


@pytest.fixture(scope="session")
def colorizer_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """A real server that all tests of a run share; it serves the stand-in colorizer, versions 1 and 2."""
    need_tritonserver()
    root = tmp_path_factory.mktemp("shared") / "repository"
    with Embedded(stand_in.repository(root, spec=stand_in.COLORIZER)) as server:
        yield server


@pytest.fixture(scope="session")
def ensemble_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """A real server that all tests of a run share; it serves the ensemble of the stand-in generator and upscaler."""
    need_tritonserver()
    root = tmp_path_factory.mktemp("shared") / "repository"
    with Embedded(stand_in.repository(root, spec=stand_in.WGAN_X4)) as server:
        yield server
