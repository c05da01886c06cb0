"""What the commands of serving share: a mistake is one line on stderr and exit status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from serving.errors import ServingError

BAD_INPUT = 2
INTERRUPTED = 130
"""As a shell has it of a command that Ctrl-C has ended."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message} (--help tells more)\n")


def run(command: Callable[[argparse.Namespace], str], options: argparse.Namespace) -> int:
    """Prints what `command` returns; returns the exit status."""
    try:
        print(command(options))
    except (ServingError, OSError) as exc:
        return failed(exc)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def failed(why: ServingError | OSError) -> int:
    """Says why in one line, which names the files that the system could not use; returns the exit status."""
    said = str(why)
    if isinstance(why, OSError) and why.strerror:
        files = " -> ".join(str(name) for name in (why.filename, why.filename2) if name)
        said = f"{files}: {why.strerror}" if files else why.strerror
    print(said, file=sys.stderr)
    return BAD_INPUT
