"""Where tritonserver cannot run, the reason and the next step are one line; where it can, its parts are there."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import platform
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import need, need_tritonserver

from serving import wheel
from serving.errors import ServerError


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Windows", "AMD64"), ("Linux", "aarch64")])
def test_other_machines(monkeypatch: pytest.MonkeyPatch, system: str, machine: str) -> None:
    """The wheel is for Linux on x86_64; elsewhere the machine is named."""
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(ServerError, match=f"Linux x86_64.*{system} {machine}"):
        wheel.find()


def _on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel the command that installs it is named."""
    _on_linux(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServerError, match="make setup"):
        wheel.find()


def test_other_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python that the wheel has no stub for is told those that it has."""
    need_tritonserver()
    monkeypatch.setattr(sysconfig, "get_python_version", lambda: "3.99")
    with pytest.raises(ServerError, match=r"serves with Python .*3\.11.*only"):
        wheel.find()


def test_python_without_shared_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python that is one static program cannot be embedded; the library that is missing is named."""
    need_tritonserver()
    need(ctypes.util.find_library("python3.8") is None, "a Python whose shared library is not installed")
    monkeypatch.setattr(sysconfig, "get_python_version", lambda: "3.8")
    with pytest.raises(ServerError, match=r"libpython3\.8\.so.*apt install libpython3\.8"):
        wheel.find()


def test_parts(tmp_path: Path) -> None:
    """The backend folder holds all of the python backend as files of its own, and this project's backends."""
    need_tritonserver()
    found = wheel.find()
    assert os.access(found.binary, os.X_OK)
    folder = found.assemble(tmp_path / "backends")
    python = {path.name: path.is_symlink() for path in (folder / "python").iterdir()}
    names = ["libtriton_python.so", "triton_python_backend_stub", "triton_python_backend_utils.py"]
    assert python == dict.fromkeys(names, False)
    for backend in ("onnxruntime", "painter"):
        assert (folder / backend / "model.py").is_file()


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server finds its libraries first and the running Python first, and keeps what the user had set."""
    need_tritonserver()
    monkeypatch.setenv("LD_LIBRARY_PATH", "/of/the/user")
    monkeypatch.setenv("ATELIER_TEST", "kept")
    found = wheel.find()
    environment = found.environment()
    libraries = environment["LD_LIBRARY_PATH"].split(os.pathsep)
    assert libraries[0] == str(found.libraries)
    assert libraries[-1] == "/of/the/user"
    assert environment["PATH"].startswith(str(Path(sys.executable).parent))
    assert environment["ATELIER_TEST"] == "kept"
