"""What the scripts in clients/ do with what they have to say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from screen import shown

from atelier import cli, errors

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


TOLD = """
import sys
from tqdm import tqdm
from atelier import cli, errors

sys.argv = ["some.py"]

def act(options):
    for word in tqdm(["one", "two"], disable=None):
        cli.say(word)
    {}

cli.Parser("some.py", about="", examples="").run(act)
"""
ENDS = {
    "return cli.Outcome('a line', partial=True)": (1, "a line\n"),
    "raise errors.InvalidInput('no')": (2, ""),
    "raise KeyboardInterrupt": (130, ""),
}


@pytest.mark.parametrize("end", ENDS, ids=["result", "error", "ctrl-c"])
@pytest.mark.parametrize("where", ["unread", "full", "closed"])
def test_notices_that_cannot_be_written(end, where, request):
    """They are lost, and neither the result, in which they don't turn up either, nor the exit status."""
    command = [sys.executable, "-c", TOLD.format(end)]
    if where == "closed":
        done = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *command], stdout=subprocess.PIPE, text=True)
    else:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=request.getfixturevalue(where), text=True)
    assert (done.returncode, done.stdout) == ENDS[end]


def test_a_reader_of_both_that_has_gone(unread):
    """As with `2>&1 | head -1`: what is under way goes on to its end."""
    command = [sys.executable, "-c", TOLD.format("return cli.Outcome('a line')")]
    assert subprocess.run(command, stdout=unread, stderr=unread).returncode == 0


def test_notices_stand_above_a_progress_bar(tmp_path):
    """Each on a line of its own, and the bar below all of them."""
    *said, bar = shown([sys.executable, "-c", TOLD.format("return cli.Outcome('')")], tmp_path)
    assert said == ["some.py: one", "some.py: two"]
    assert "2/2" in bar


@pytest.mark.parametrize(("done", "says"), [(1, "1 of 4 is done"), (2, "2 of 4 are done")])
def test_what_is_done_is_counted_in_words_that_fit(done, says):
    """Of an error, and of Ctrl-C."""
    with pytest.raises(errors.ServerError, match=f"^no; {says}$"), cli.counting([None] * done, 4):
        raise errors.ServerError("no")
    with pytest.raises(KeyboardInterrupt, match=f"^{says}$"), cli.counting([None] * done, 4):
        raise KeyboardInterrupt
