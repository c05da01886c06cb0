"""Fair scheduling of one processor: the next turn goes to the worker that has run least so far, as in Linux's CFS."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


class Turns:
    """Shares a processor between workers that join and leave. A turn is not preempted, and its time is counted.

    The others wait for a worker that is between two of its turns, so that one with short turns gets as much time as one
    with long ones.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._runtime: dict[object, float] = {}
        self._busy = False

    @contextlib.contextmanager
    def joined(self) -> Iterator[object]:
        """Adds a worker for as long as the block runs. It starts level with the one that has run least."""
        worker = object()
        with self._changed:
            self._runtime[worker] = min(self._runtime.values(), default=0.0)
        try:
            yield worker
        finally:
            with self._changed:
                del self._runtime[worker]
                self._changed.notify_all()

    @contextlib.contextmanager
    def turn(self, worker: object) -> Iterator[None]:
        """Waits until it is the worker's turn, which lasts as long as the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy and self._runtime[worker] == min(self._runtime.values()))
            self._busy = True
        began = self._clock()
        try:
            yield
        finally:
            with self._changed:
                self._runtime[worker] += self._clock() - began
                self._busy = False
                self._changed.notify_all()
