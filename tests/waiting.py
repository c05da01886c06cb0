"""Waits for what another process or thread is about to do, up to a deadline that fails the test."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE_S = 60.0

T = TypeVar("T")


def until(found: Callable[[], T], why: Callable[[], str], *, seconds: float = PATIENCE_S, pause_s: float = 0.02) -> T:
    """What `found` returns, once it is true; fails the test if it never is, with what `why` says of that."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {why()}"
        time.sleep(pause_s)
    return value
