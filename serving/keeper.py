"""Keeps one server: whichever of parent, keeper and server ends first, nothing of it stays behind.

Run by serving.local: python -I -S serving/keeper.py SHM_PREFIX FOLDER COMMAND...   (ends the server when
standard input closes; then removes its process group, /dev/shm/SHM_PREFIX* and FOLDER)

What cannot be kept is where all are killed at once, as where memory runs out. The next keeper removes that shared
memory: a pod's outlives its containers, and would fill up.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

GRACE_S = 20
SHM = Path("/dev/shm")
LOCK = ".lock"
"""Of a prefix: held by its keeper as long as that lives."""
PR_SET_PDEATHSIG = 1


def main(prefix: str, folder: str, *command: str) -> int:
    _remove_abandoned()
    with (SHM / f"{prefix}{LOCK}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _keep(prefix, folder, command)


def _keep(prefix: str, folder: str, command: Sequence[str]) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until there is something to end
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_as_server)
    signal.signal(signal.SIGTERM, lambda *_: _in_background(_end, server.pid))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _in_background(_end_with_input, server.pid)
    os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)  # not reaped yet, so its number stays its own
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    _remove(prefix)
    shutil.rmtree(folder, ignore_errors=True)
    status = server.wait()
    return status if status >= 0 else 128 - status


def _remove_abandoned() -> None:
    for path in SHM.glob(f"atelier-*{LOCK}"):
        with contextlib.suppress(OSError), path.open() as lock:  # its keeper lives, or it is another user's
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path.name.removesuffix(LOCK))


def _remove(prefix: str) -> None:
    for region in SHM.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def _as_server() -> None:
    """In the server, before it starts: should the keeper itself be killed, the kernel ends the server.

    No thread of it preempts the one that wakes it. Triton's batcher is woken just before an instance is free: where it
    looks at once, it finds none, and sleeps on until the next request comes, or for 500 ms.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _end_with_input(pid: int) -> None:
    while os.read(0, 1):
        pass
    _end(pid)


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(pid, signal.SIGKILL)


def _in_background(function: Callable[[int], None], pid: int) -> None:
    threading.Thread(target=function, args=(pid,), daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
