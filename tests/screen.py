"""What a terminal shows of what a program writes to standard error."""

from __future__ import annotations

import os
import pty
import subprocess
import termios
from collections.abc import Sequence
from pathlib import Path


def shown(command: Sequence[object], cwd: Path) -> list[str]:
    """The lines on the screen when a program has ended, a progress bar's as it was at last."""
    screen, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 120))
    with subprocess.Popen([*map(str, command)], cwd=cwd, stdout=subprocess.DEVNULL, stderr=side):
        os.close(side)
        written = b""
        while part := _read(screen):
            written += part
    os.close(screen)
    return [_overwritten(line) for line in written.decode().rstrip().split("\r\n")]


def _read(screen: int) -> bytes:
    try:
        return os.read(screen, 4096)
    except OSError:  # what a terminal says when the program has gone
        return b""


def _overwritten(line: str) -> str:
    """What is left of a line whose cursor went back to its start now and then."""
    row = ""
    for part in line.split("\r"):
        row = part + row[len(part) :]
    return row.rstrip()
