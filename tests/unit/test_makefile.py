"""What the Makefile does before there is anything to run, with a stand-in for Python."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"
DEBIAN = """\
#!/bin/sh
# Its venv makes an environment in any case, and puts pip there only where python3-venv is installed.
case "$*" in
  "-m venv .venv") echo made; mkdir -p .venv/bin; cp "$0" .venv/bin/python; test -e python3-venv && touch .venv/pip;;
  "-m pip "*) test -e .venv/pip;;
esac
"""


def make(folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["make", "-f", str(MAKEFILE), "PYTHON=./python", "VENV=.venv", ".venv/.serving"]
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(command, cwd=folder, env=outside, capture_output=True, text=True, timeout=60)


def test_an_environment_without_pip_is_made_whole(tmp_path: Path) -> None:
    """Debian's Python leaves one and says what to install: after that `make` works, and makes no other one."""
    for name in ("pyproject.toml", "clients/pyproject.toml", "deploy/constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "python").write_text(DEBIAN)
    (tmp_path / "python").chmod(0o755)
    assert make(tmp_path).returncode == 2
    (tmp_path / "python3-venv").touch()
    done = make(tmp_path)
    assert (done.returncode, "made" in done.stdout.split()) == (0, True), done
    os.utime(tmp_path / "pyproject.toml")
    (tmp_path / ".venv" / ".serving").unlink()
    done = make(tmp_path)
    assert (done.returncode, "made" in done.stdout.split()) == (0, False), done


@pytest.mark.parametrize("target", ["setup", "constraints"])
def test_of_torch_s_own_index_only_torch_is_asked(target: str, tmp_path: Path) -> None:
    """It has some versions of others, too: what torch asks for comes with all else, in those of the file."""
    command = ["make", "-n", target, f"VENV={tmp_path}", "TORCH_INDEX=https://torch.example"]
    done = subprocess.run(command, cwd=MAKEFILE.parent, capture_output=True, text=True, timeout=60, check=True)
    (line,) = [line for line in done.stdout.splitlines() if "https://torch.example" in line]
    assert "--no-deps" in line.split()
    assert "--index-url https://torch.example" in line
