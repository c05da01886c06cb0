""".ci/run: a kubectl that tests can use, or one line that says it is missing."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SYSTEM = ("bash", "dirname", "echo", "mktemp", "rm", "sed")


def ci(folder: Path, **stubs: str) -> subprocess.CompletedProcess[str]:
    """A copy of it where only these commands are, and little of the system."""
    commands, script = folder / "commands", folder / "checkout" / ".ci" / "run"
    for made in (commands, script.parent):
        made.mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", script)
    for name in SYSTEM:
        (commands / name).symlink_to(shutil.which(name))
    for name, lines in {"apt-get": "", "make": 'echo "make $1"', **stubs}.items():
        (commands / name).write_text(f"#!/bin/sh\n{lines}\n")
        (commands / name).chmod(0o755)
    environment = {"PATH": str(commands), "TMPDIR": str(folder)}
    return subprocess.run(["bash", script], env=environment, capture_output=True, text=True, timeout=60)


def test_the_system_has_what_the_image_of_the_embedded_triton_needs() -> None:
    """Its models' processes are linked against Python's shared library, which Debian's python3 does not bring."""
    image = (ROOT / "deploy" / "images" / "cpu.Dockerfile").read_text()
    (library,) = set(re.findall(r"libpython3\.\d+", image.partition("AS triton\n")[2].partition("USER")[0]))
    assert f" {library} " in (ROOT / ".ci" / "run").read_text()


def test_a_kubectl_that_is_new_enough_is_used(tmp_path: Path) -> None:
    done = ci(tmp_path, kubectl="echo Client Version: v1.32.4-dispatcher")
    assert (done.returncode, done.stdout, done.stderr) == (0, "make test\n", "")


@pytest.mark.parametrize("stubs", [{}, {"kubectl": "echo Client Version: v1.20.2"}], ids=["none", "old"])
def test_no_kubectl_that_is_new_enough_and_no_pip_is_said_before_any_test(
    stubs: dict[str, str], tmp_path: Path
) -> None:
    pip = 'mkdir -p "$3/bin" && ln -s /bin/false "$3/bin/pip"'
    done = ci(tmp_path, python3=f"PATH=/usr/bin:/bin; {pip}", **stubs)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(".ci/run: no kubectl 1.32 or newer on the PATH")
    assert done.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"checkout", "commands"}, "nothing half-fetched is left"
