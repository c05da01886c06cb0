"""How every bench runs: a mistake is one line and exit status 2, and whoever stops reading stops it."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from serving import cli
from serving.errors import ServingError
from training.errors import BadInput


def run(measure: Callable[[argparse.Namespace], str], options: argparse.Namespace) -> int:
    """Prints what `measure` returns, its last lines; returns the exit status."""

    def measured(options: argparse.Namespace) -> str:
        try:
            return measure(options)
        except BadInput as error:
            raise ServingError(str(error)) from error

    return cli.run(measured, options)
