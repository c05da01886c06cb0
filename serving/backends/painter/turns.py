"""Who works next, where several want to and there is room for one: whoever has had the least time so far."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


class Turns:
    """Shares a processor between workers that join and leave. Turns are as long as they are; it counts their time.

    A worker that is between two of its turns is waited for, so one of short turns has as much time as one of long.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._had: dict[object, float] = {}
        self._busy = False

    @contextlib.contextmanager
    def joined(self) -> Iterator[object]:
        """A worker, for as long as the block runs. It owes nothing for the time before."""
        worker = object()
        with self._changed:
            self._had[worker] = min(self._had.values(), default=0.0)
        try:
            yield worker
        finally:
            with self._changed:
                del self._had[worker]
                self._changed.notify_all()

    @contextlib.contextmanager
    def turn(self, worker: object) -> Iterator[None]:
        """Waits until it is the worker's turn, which lasts as long as the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy and self._had[worker] == min(self._had.values()))
            self._busy = True
        began = self._clock()
        try:
            yield
        finally:
            with self._changed:
                self._had[worker] += self._clock() - began
                self._busy = False
                self._changed.notify_all()
