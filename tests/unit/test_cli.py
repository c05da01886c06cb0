"""What the commands of serving do alike when they can't do what they are told."""

from __future__ import annotations

import argparse
import errno
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from serving import cli
from serving.errors import ServingError

COMMANDS = (
    "repository {} list",
    "embedded {}",
    "torchserve {}",
    "tensorrt {}",
    "verify {} --model wgan",
    "reload {} --servers 127.0.0.1:1 wgan",
    "reload {} --servers 127.0.0.1:1 --watch",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_can_not_be_looked_into(command: str, tmp_path: Path) -> None:
    """A repository that the system keeps from being read is one line on stderr that names it, and status 2."""
    folder = tmp_path / ("a" * 300)  # root, too, is refused this one
    line = [sys.executable, "-m", *f"serving.{command}".format(f"--repository={folder}").split()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith(str(folder))
    assert done.stderr.endswith(": File name too long\n")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        pytest.param(ServingError("--flag 1: no"), "--flag 1: no", id="ours"),
        pytest.param(OSError(errno.EACCES, "Permission denied", "/a"), "/a: Permission denied", id="a file"),
        pytest.param(OSError(errno.ENOSPC, "Full", "/a", None, "/b"), "/a -> /b: Full", id="two files"),
        pytest.param(OSError(errno.ENOSPC, "Full"), "Full", id="no file"),
        pytest.param(TimeoutError("timed out"), "timed out", id="words alone"),
    ],
)
def test_a_reason_is_one_line(error: ServingError | OSError, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the system's number; with each file that it names."""

    def fail(_: argparse.Namespace) -> str:
        raise error

    assert cli.run(fail, argparse.Namespace()) == 2
    assert capsys.readouterr() == ("", f"{says}\n")


def test_nobody_reads(tmp_path: Path) -> None:
    """`| head` that has seen enough is no failure; a full disk is one, in one line."""
    program = "import argparse; from serving import cli; raise SystemExit(cli.run(lambda _: 'x', argparse.Namespace()))"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as gone:
        gone.wait()
        done = subprocess.run(command, stdout=gone.stdin, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "No space left on device\n")


def test_nobody_reads_on() -> None:
    """A command that tells on the way how far it is ends without a traceback, and not as one that has done its work."""
    program = """
        import argparse, sys
        from serving import cli

        def told(_: argparse.Namespace) -> str:
            print("first", flush=True)
            return "last"

        sys.exit(cli.run(told, argparse.Namespace()))
    """
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as gone:
        gone.wait()
        command = [sys.executable, "-c", textwrap.dedent(program)]
        done = subprocess.run(command, stdout=gone.stdin, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (141, "")


def test_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    """It ends a command without a traceback, and not as one that has done its work."""

    def interrupted(_: argparse.Namespace) -> str:
        raise KeyboardInterrupt

    assert cli.run(interrupted, argparse.Namespace()) == 130
    assert capsys.readouterr() == ("", "")
