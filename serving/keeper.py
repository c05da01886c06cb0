"""Supervises one server: whichever of parent, keeper and server ends first, nothing of it is left behind.

Run by serving.local: python -I -S serving/keeper.py SHM_PREFIX FOLDER COMMAND...   (ends the server when
standard input closes; then removes its process group, /dev/shm/SHM_PREFIX* and FOLDER)

If keeper and server are killed together, for example by the kernel's OOM killer, shared memory, folder and log stay.
The next keeper removes them: a pod's /dev/shm and /tmp outlive its containers, and would fill up.
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
from typing import TextIO

GRACE_S = 20
SHM = Path("/dev/shm")
LOCK = ".lock"
"""Suffix of a file that a keeper locks for as long as it lives; it contains the name of the run's folder."""
PR_SET_PDEATHSIG = 1
_told = threading.Lock()
"""Held once the server has been told to end."""


def main(prefix: str, folder: str, *command: str) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until there is something to end
    _remove_abandoned()
    with _locked(SHM / f"{prefix}{LOCK}") as lock:
        lock.write(folder)
        lock.flush()
        return _supervise(prefix, folder, command)


def _locked(path: Path) -> TextIO:
    """Creates a file and locks it. Tries again if another keeper found it unlocked and removed it as abandoned."""
    while True:
        lock = path.open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
        lock.close()


def _supervise(prefix: str, folder: str, command: Sequence[str]) -> int:
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_before_exec)
    signal.signal(signal.SIGTERM, lambda *_: _in_thread(_terminate, server.pid))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _in_thread(_terminate_at_eof, server.pid)
    os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)  # not reaped yet, so its PID is not reused
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    _remove(prefix)
    shutil.rmtree(folder, ignore_errors=True)
    status = server.wait()
    return status if status >= 0 else 128 - status


def _remove_abandoned() -> None:
    for path in SHM.glob(f"atelier-*{LOCK}"):
        with contextlib.suppress(OSError), path.open() as lock:  # its keeper is alive, or it can't be read
            if os.fstat(lock.fileno()).st_uid != os.getuid():
                continue
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder := lock.read():
                shutil.rmtree(folder, ignore_errors=True)
                Path(folder).with_suffix(".log").unlink(missing_ok=True)
            _remove(path.name.removesuffix(LOCK))


def _remove(prefix: str) -> None:
    for region in SHM.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def _before_exec() -> None:
    """Runs in the server's process: has the kernel send it SIGTERM if the keeper itself is killed.

    Under SCHED_BATCH a woken thread does not preempt the one that woke it. Triton's batcher is woken just before an
    instance is free: if it ran at once it would find none, and sleep until the next request, or for 500 ms.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _terminate_at_eof(pid: int) -> None:
    while os.read(0, 1):
        pass
    _terminate(pid)


def _terminate(pid: int) -> None:
    if not _told.acquire(blocking=False):  # end of input and SIGTERM come together
        return
    os.kill(pid, signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(pid, signal.SIGKILL)


def _in_thread(function: Callable[[int], None], pid: int) -> None:
    threading.Thread(target=function, args=(pid,), daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
