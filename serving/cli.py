"""What the commands of serving share: a mistake is one line on stderr and exit status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from serving.errors import ServingError

BAD_INPUT = 2


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message} (--help tells more)\n")


def run(command: Callable[[argparse.Namespace], str], options: argparse.Namespace) -> int:
    """Prints what `command` returns; returns the exit status."""
    try:
        print(command(options))
    except ServingError as exc:
        print(exc, file=sys.stderr)
        return BAD_INPUT
    return 0
