"""What training/ tells a user or a Job in one line, and the exit status that goes with it."""

from __future__ import annotations

import signal

UNREACHABLE, BAD_INPUT, REFUSED, STOPPED = 1, 2, 3, 143
"""Exit statuses of training.run: a corpus not to be had just now (a Job's next pod tries again), bad options or data,
refused by the gate, SIGTERM or Ctrl-C."""


def stopping_signals() -> list[signal.Signals]:
    """SIGTERM and Ctrl-C's, but what the process was begun to ignore: a shell's script has `&` ignore Ctrl-C."""
    return [each for each in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(each) is not signal.SIG_IGN]


class BadInput(ValueError):
    """An option, a file or a corpus can't be used. The message names it, says why, and what to do next."""


class Unreachable(BadInput):
    """What has to be fetched can't be had now. The same call may work later."""


class Refused(Exception):
    """The gate keeps a candidate from being published. The message gives every reason."""
