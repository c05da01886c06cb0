"""training.run with a gate that asks for no quality, which a run of seconds has none of; all its other checks hold.

The environment can make something happen at a moment at which the run opens, makes, renames or removes a file:
KILL_AT=N FOLDER   it is killed at the Nth such moment in that folder
FILL_AT=FILE       the small filesystem that the file is on, the mount of a test, is full from then on
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from training import catalog, run

KILL_AT, _, KILL_IN = os.environ.get("KILL_AT", "").partition(" ")
FILL_AT = os.environ.get("FILL_AT", "")
WRITING = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
BALLAST, LARGEST = "ballast", 64 << 20
moments = 0


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    global moments
    if event not in WRITING or (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
        return
    path = str(arguments[0])
    if KILL_AT and path.startswith(KILL_IN):
        moments += 1
        if moments == int(KILL_AT):
            os.kill(os.getpid(), signal.SIGKILL)
    if path == FILL_AT:
        fill(next(folder for folder in Path(path).parents if folder.is_mount()))


def fill(volume: Path) -> None:
    """Raises AssertionError for what is not a test's: the machine's own disk must not be filled by a mistake."""
    size = shutil.disk_usage(volume).total
    assert size <= LARGEST, f"{volume} is of {size} bytes, more than {LARGEST}"
    if not (volume / BALLAST).exists():
        with contextlib.suppress(OSError), (volume / BALLAST).open("wb", buffering=0) as file:
            while file.tell() < LARGEST:
                file.write(bytes(4096))


if __name__ == "__main__":
    spec = catalog.spec
    catalog.spec = lambda name: dataclasses.replace(spec(name), thresholds=())
    if KILL_AT or FILL_AT:
        sys.addaudithook(watch)
    raise SystemExit(run.main(sys.argv[1:]))
