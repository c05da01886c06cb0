"""The errors that training/ reports to a user or a Job in one line, and their exit statuses."""

from __future__ import annotations

import signal

UNREACHABLE, BAD_INPUT, REFUSED, STOPPED = 1, 2, 3, 143
"""Exit statuses of training.run: a corpus that can't be fetched now (a Job's next pod retries), bad options or data,
refused by the gate, SIGTERM or Ctrl-C."""


def stopping_signals() -> list[signal.Signals]:
    """SIGTERM and SIGINT, except those that the process ignores: what a shell script starts with `&` ignores Ctrl-C."""
    return [each for each in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(each) is not signal.SIG_IGN]


class BadInput(ValueError):
    """An option, a file or a corpus can't be used. The message names it, says why, and what to do next."""


class Unreachable(BadInput):
    """Something that has to be fetched is unavailable now. A later retry may succeed."""


class Refused(Exception):
    """The gate keeps a candidate from being published. The message gives every reason."""
