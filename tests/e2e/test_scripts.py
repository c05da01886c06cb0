"""What all scripts in clients/ do alike where they cannot begin, each as people run it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from PIL import Image
from scripts import CLIENTS, free_port, refused, run, unchanged

ARGUMENTS = {
    "walk.py": [],
    "classify.py": ["boot.png"],
    "stylize.py": ["boot.png", "--all"],
    "paint.py": ["boot.png", "boot.png"],
    "colorize.py": ["boot.png"],
    "upscale.py": ["boot.png"],
}
EACH = pytest.mark.parametrize("script", ARGUMENTS)


@pytest.fixture(autouse=True)
def photo(tmp_path) -> None:
    """A photo of something, boot.png, in the folder that the script runs in."""
    picture = Image.new("RGB", (90, 120), "white")
    picture.paste((40, 30, 60), (20, 10, 70, 100))
    picture.save(tmp_path / "boot.png")


@pytest.fixture
def plaintext() -> Iterator[int]:
    """The port of a gRPC server without TLS."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


def test_every_script_is_here():
    assert {path.name for path in CLIENTS.glob("*.py")} == set(ARGUMENTS)


@EACH
def test_tls_to_a_port_without_it_is_one_line(script, plaintext, tmp_path, monkeypatch):
    """Nothing of gRPC's own log stands beside it."""
    monkeypatch.delenv("GRPC_VERBOSITY", raising=False)
    done = run(CLIENTS / script, *ARGUMENTS[script], "--url", f"grpcs://127.0.0.1:{plaintext}", cwd=tmp_path)
    refused(done, f"{script}: --url: 127.0.0.1:{plaintext}: something answers there")


@EACH
@pytest.mark.parametrize("lacking", ["cli", "sheet"], ids=["another-distribution", "an-older-version"])
def test_another_package_of_that_name_is_one_line(script, lacking, tmp_path):
    """PyPI has one; and of this one there are older versions. The line says what is missing, and what helps."""
    package = tmp_path / "site" / "atelier"
    package.mkdir(parents=True)
    for name in {"__init__", "cli"} - {lacking}:
        (package / f"{name}.py").touch()
    done = run(CLIENTS / script, *ARGUMENTS[script], cwd=tmp_path, PYTHONPATH=str(package.parent))
    says = f"{script}: Atelier's SDK is not installed, or is another version ("
    refused(done, says, "atelier", "): pip install ./clients")


@EACH
def test_ctrl_c_while_it_is_being_loaded(script, tmp_path):
    """No traceback."""
    package = tmp_path / "site" / "atelier"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise KeyboardInterrupt")
    done = run(CLIENTS / script, *ARGUMENTS[script], cwd=tmp_path, PYTHONPATH=str(package.parent))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@EACH
def test_without_the_sdk_it_says_how_to_install_it(script, tmp_path):
    """A Python that has no packages at all: one line, no traceback."""
    command = [sys.executable, "-I", "-S", CLIENTS / script, *ARGUMENTS[script]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    refused(done, "pip install ./clients")


@EACH
def test_an_address_with_nothing_there(script, tmp_path):
    """--url says what it tried, and how to start a server; nothing is written."""
    url = f"127.0.0.1:{free_port()}"
    with unchanged(tmp_path):
        refused(run(CLIENTS / script, *ARGUMENTS[script], "--url", url, cwd=tmp_path), "--url", url, "make serve")
