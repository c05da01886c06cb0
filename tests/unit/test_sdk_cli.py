"""What the scripts in clients/ do with what they have to say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = """
from atelier import cli
cli.Parser("some.py", about="", examples="").run(lambda _: cli.Outcome("a line\\n" * 10_000, partial=True))
"""


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe whose reader has gone, as `| head -1` has after a line."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.fixture
def full() -> Iterator[int]:
    with Path("/dev/full").open("w") as file:
        yield file.fileno()


@pytest.mark.parametrize(
    ("where", "status", "says"),
    [
        pytest.param("unread", 1, "", id="nobody-reads-on"),
        pytest.param("full", 2, "some.py: standard output: cannot be written: No space left on device\n", id="full"),
    ],
)
def test_an_answer_that_cannot_be_written(where, status, says, request):
    """A reader that has had enough changes nothing; a full disk is a line, and never a traceback."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], stdout=request.getfixturevalue(where), stderr=subprocess.PIPE, text=True
    )
    assert (done.returncode, done.stderr) == (status, says)
