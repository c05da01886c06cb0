"""Shared by serving's commands: an error is one line on stderr and exit status 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from serving.errors import ServingError

BAD_INPUT = 2
LONGEST_S = 1e6
"""11 days. The system counts timeouts in milliseconds; 31 bits of them hold 24 days."""
INTERRUPTED, UNREAD = 130, 141
"""128 + SIGINT or SIGPIPE, as shells report a command ended by Ctrl-C, or one whose output nobody reads any more."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message} (--help tells more)\n")


def seconds(text: str) -> float:
    """argparse type: a duration that the system can wait."""
    return _number(text, LONGEST_S, f"from 0 to {LONGEST_S:g}")


def tolerance(text: str) -> float:
    """argparse type: a difference that may be allowed."""
    return _number(text, sys.float_info.max, "from 0 upwards")


def _number(text: str, most: float, which: str) -> float:
    try:
        if 0 <= (found := float(text)) <= most:
            return found
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} must be a number {which}")


def run(command: Callable[[argparse.Namespace], str], options: argparse.Namespace) -> int:
    """Prints what `command` returns; returns the exit status."""
    try:
        show(command(options))
    except BrokenPipeError:  # from its progress output, so it did not finish
        drop_output()
        return UNREAD
    except (ServingError, OSError) as exc:
        return report(exc)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def show(text: str) -> bool:
    """Prints it; returns whether anybody reads it: `head` exits once it has enough, and `tee` by the same Ctrl-C."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        drop_output()
        return False
    return True


def drop_output() -> None:
    """Call it once nobody reads standard output; otherwise Python tries to write the rest again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report(error: ServingError | OSError) -> int:
    """Prints it as one line, which names the files of an OSError; returns the exit status."""
    said = str(error)
    if isinstance(error, OSError) and error.strerror:
        files = " -> ".join(str(name) for name in (error.filename, error.filename2) if name)
        said = f"{files}: {error.strerror}" if files else error.strerror
    print(said, file=sys.stderr)
    return BAD_INPUT
