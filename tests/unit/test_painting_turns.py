"""Turns: one at a time, and as much time for each, however long its turns are."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.backends.painter.turns import Turns


class Clock:
    """Time passes only in turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def work(turns: Turns, clock: Clock, together: threading.Barrier, seconds: float, until: float) -> list[float]:
    """Takes turns of so many seconds until that time: when each began."""
    began: list[float] = []
    with turns.joined() as worker:
        together.wait()
        while clock.now < until:
            with turns.turn(worker):
                began.append(clock.now)
                clock.now += seconds
    return began


@pytest.mark.parametrize("seconds", [(1.0, 1.0), (10.0, 1.0), (30.0, 0.5, 2.0)], ids=str)
def test_each_has_as_much_time(seconds):
    """A large painting's turns are long and few, a small one's short and many: neither waits for the other's end."""
    clock = Clock()
    turns, together = Turns(clock), threading.Barrier(len(seconds))
    with ThreadPoolExecutor(len(seconds)) as pool:
        done = list(pool.map(lambda each: work(turns, clock, together, each, until=600.0), seconds))
    for length, began in zip(seconds, done, strict=True):
        # One turn of the longest may come before, and one after.
        assert abs(length * len(began) - 600 / len(seconds)) <= 2 * max(seconds)


def test_one_at_a_time():
    """Nobody comes in while somebody is in."""
    turns, inside, most = Turns(), [], []

    def each(_: int) -> None:
        with turns.joined() as worker:
            for _ in range(50):
                with turns.turn(worker):
                    inside.append(1)
                    time.sleep(0)  # lets others run, who would come in
                    most.append(len(inside))
                    inside.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(each, range(8)))
    assert Counter(most) == {1: 400}


def test_who_comes_later_owes_nothing():
    """And has no claim to the time before: old and new take turns at once."""
    clock = Clock()
    turns = Turns(clock)
    order: list[str] = []
    with turns.joined() as old:
        with turns.turn(old):
            clock.now += 1000
        with turns.joined() as new:
            for worker, name in ((new, "new"), (old, "old"), (new, "new"), (old, "old")):
                with turns.turn(worker):
                    order.append(name)
                    clock.now += 1
    assert order == ["new", "old", "new", "old"]


def test_who_leaves_is_not_waited_for():
    """Whether at the end or because of an error in a turn."""
    turns = Turns(Clock())
    with turns.joined() as other:
        with pytest.raises(ZeroDivisionError), turns.joined() as worker, turns.turn(worker):
            _ = 1 / 0
        with turns.turn(other):
            pass
