"""Keeps one server: whichever of parent, keeper and server ends first, nothing of it stays behind.

Run by serving.local: python -I -S serving/keeper.py SHM_PREFIX FOLDER COMMAND...   (ends the server when
standard input closes; then removes its process group, /dev/shm/SHM_PREFIX* and FOLDER)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

GRACE_S = 20
PR_SET_PDEATHSIG = 1


def main(prefix: str, folder: str, *command: str) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until there is something to end
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_as_server)
    signal.signal(signal.SIGTERM, lambda *_: _in_background(_end, server.pid))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _in_background(_end_with_input, server.pid)
    os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)  # not reaped yet, so its number stays its own
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    for region in Path("/dev/shm").glob(f"{prefix}*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    status = server.wait()
    return status if status >= 0 else 128 - status


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
