"""How every benchmark runs: it prints its figures as the last line of stdout, one JSON object that names the machine. A
user error is one line and exit status 2, and a closed pipe ends it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from serving import cli
from serving.errors import ServingError
from tests.load.measure import machine
from training.errors import BadInput


def run(measure: Callable[[argparse.Namespace], Mapping[str, Any]], options: argparse.Namespace) -> int:
    """Prints what `measure` returns, along with the machine; returns the exit status."""

    def measured(options: argparse.Namespace) -> str:
        try:
            return json.dumps({**measure(options), **machine()})
        except BadInput as error:
            raise ServingError(str(error)) from error

    return cli.run(measured, options)


def seconds(action: Callable[[], object]) -> float:
    """How long `action` takes."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun
