"""What the scripts in clients/ do with what they have to say."""

from __future__ import annotations

import os
import signal
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


AWAY = """
import sys
from atelier import cli, errors

def away(options):
    raise errors.ServerUnreachable("nobody is there")

sys.argv[0] = "some.py"
parser = cli.Parser("some.py", about="", examples="")
parser.add_model("wgan")
parser.run(away)
"""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--url", "here:1"], "--url: nobody is there"), ([], "nobody is there")],
    ids=["given", "not-given"],
)
def test_an_address_that_was_not_given_is_not_blamed(arguments, says):
    """The server may be the default one, or one that was started for the occasion."""
    done = subprocess.run([sys.executable, "-c", AWAY, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"some.py: {says}\n")


def test_notices_stand_above_a_progress_bar(tmp_path):
    """Each on a line of its own, and the bar below all of them."""
    *said, bar = shown([sys.executable, "-c", TOLD.format("return cli.Outcome('')")], tmp_path)
    assert said == ["some.py: one", "some.py: two"]
    assert "2/2" in bar


WRITING = """
import sys
import time
from pathlib import Path
from atelier import cli, files

def act(options):
    with files.replacing(Path("made.png")) as beside:
        beside.touch()
        print("writing", flush=True)
        sys.stdin.read()
    return cli.Outcome("done")

cli.Parser("some.py", about="", examples="").run(act)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_that_ends_it_leaves_nothing_half_written(name, tmp_path):
    """A line, and the status that a shell has for it; a second one of `timeout` changes nothing."""
    number = getattr(signal, name)
    command = [sys.executable, "-c", WRITING]
    with subprocess.Popen(command, cwd=tmp_path, stdin=-1, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        for _ in range(1 + (name != "SIGINT")):
            process.send_signal(number)
        said = process.communicate(timeout=60)
    assert (process.returncode, *said) == (128 + number, "", "some.py: stopped; nothing was saved\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["TERM", "HUP"])
def test_a_signal_that_is_ignored_still_is(name, tmp_path):
    """As under `nohup`."""
    command = ["sh", "-c", f'trap "" {name}; exec "$@"', "sh", sys.executable, "-c", WRITING]
    with subprocess.Popen(command, cwd=tmp_path, stdin=-1, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(getattr(signal, f"SIG{name}"))
        said = process.communicate(timeout=60)
    assert (process.returncode, *said) == (0, "done\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["made.png"]


PARSED = """
import sys
from atelier import cli

def interrupted(text):
    raise KeyboardInterrupt

sys.argv = ["some.py", "--number", "1"]
parser = cli.Parser("some.py", about="", examples="")
parser.add_argument("--number", type=interrupted)
parser.run(lambda _: cli.Outcome(""))
"""
PRINTED = """
import builtins
from atelier import cli

def interrupted(text, file=None, **options):
    if file is None:
        raise KeyboardInterrupt
    file.write(text)

builtins.print = interrupted
cli.Parser("some.py", about="", examples="").run(lambda _: cli.Outcome("a line"))
"""


@pytest.mark.parametrize(
    ("program", "says"),
    [(PARSED, "nothing was saved"), (PRINTED, "all was done, but not all of it is printed")],
    ids=["before", "after"],
)
def test_ctrl_c_at_the_begin_and_at_the_end(program, says):
    """While the command line is parsed, and while the answer is printed: one line."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"some.py: stopped; {says}\n")


@pytest.mark.parametrize(("done", "says"), [(1, "1 of 4 is done"), (2, "2 of 4 are done")])
def test_what_is_done_is_counted_in_words_that_fit(done, says):
    """Of an error, and of Ctrl-C."""
    with pytest.raises(errors.ServerError, match=f"^no; {says}$"), cli.counting([None] * done, 4):
        raise errors.ServerError("no")
    with pytest.raises(KeyboardInterrupt, match=f"^{says}$"), cli.counting([None] * done, 4):
        raise KeyboardInterrupt
