"""One process of the load generator: when it sends, what it asks, and what it records."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tests.load import loop
from tests.load.loop import Worker
from tests.load.plan import ClosedLoop, OpenLoop, Plan, Share
from tests.load.stand_ins import MIX, QUESTION, RIGHT, Faulty

NOBODY = Faulty(name="none", answers=())


@pytest.mark.parametrize(("load", "at_once"), [(ClosedLoop(2), True), (OpenLoop(50.0), False)], ids=["closed", "open"])
def test_utilisation_is_of_the_time_in_which_requests_are_sent(load: ClosedLoop | OpenLoop, at_once: bool) -> None:
    """Callers begin when they are told of the window; arrivals wait for the warm-up before it."""
    plan = Plan(target=NOBODY, load=load, mix=MIX, warmup_s=100.0)
    worker, (ours, theirs) = Worker(plan, 0), multiprocessing.Pipe()
    told = time.monotonic()
    theirs.send(told + 200)
    worker._await_start(ours)
    assert worker.window_start == told + 200
    assert worker.warmup_start == pytest.approx(told if at_once else told + 100, abs=50)


def test_arrivals_are_drawn_by_the_seed_and_shared_by_processes() -> None:
    """The same seed draws the same; two processes have other arrivals each, and the rate together."""

    def send_times(seed: int, index: int, processes: int = 2, coalesce_s: float = 0.0) -> list[float]:
        arrivals = OpenLoop(50.0, coalesce_s=coalesce_s)
        worker = Worker(Plan(target=NOBODY, load=arrivals, mix=MIX, processes=processes, seed=seed), index)
        worker.warmup_start, worker.window_start, worker.window_end = 0.0, 0.0, 100.0
        return list(worker._arrivals(arrivals))

    assert send_times(1, 0) == send_times(1, 0)
    assert send_times(1, 0) != send_times(2, 0)
    assert send_times(1, 0) != send_times(1, 1)
    assert len(send_times(1, 0)) + len(send_times(1, 1)) == pytest.approx(5000, abs=5 * 5000**0.5)
    gaps = np.diff(send_times(1, 0, processes=1))
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1), "as a Poisson process has it"
    together = np.array(send_times(1, 0, coalesce_s=0.25))
    waits = together - send_times(1, 0)
    assert set(together % 0.25) == {0.0}
    assert 0 <= waits.min() < waits.max() < 0.25


def test_arrivals_do_not_depend_on_when_models_are_drawn() -> None:
    """Threads draw both as it happens, and the same seed has to give the same arrivals."""
    mix = [Share(model, 1, [replace(QUESTION, model=model)]) for model in ("one", "other")]
    plan = Plan(target=NOBODY, load=OpenLoop(50.0), mix=mix, seed=1)

    def send_times(drawn_before: int) -> list[float]:
        worker = Worker(plan, 0)
        worker.warmup_start, worker.window_start, worker.window_end = 0.0, 0.0, 10.0
        for _ in range(drawn_before):
            next(worker._order)
        return list(worker._arrivals(plan.load))

    assert send_times(drawn_before=0) == send_times(drawn_before=7)


@pytest.mark.parametrize(
    ("due", "sent", "answered", "requests", "late", "completed", "latency_ms"),
    [
        pytest.param(11.0, 11.0005, 12.0, 1, 0, 1, 1000, id="on time"),
        pytest.param(11.0, 11.25, 12.0, 1, 1, 1, 1000, id="late"),
        pytest.param(14.0, 14.0, 16.0, 1, 0, 0, 2000, id="after the window"),
        pytest.param(9.0, 9.5, 10.0, 0, 0, 1, 0, id="of the warm-up"),
        pytest.param(8.0, 8.0, 9.0, 0, 0, 0, 0, id="within the warm-up"),
        pytest.param(15.0, 15.0, 15.0, 0, 0, 0, 0, id="due after the window"),
    ],
)
def test_a_request_counts_where_it_was_due_and_its_answer_where_it_came(
    due: float,
    sent: float,
    answered: float,
    requests: int,
    late: int,
    completed: int,
    latency_ms: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a window from 10 to 15. Latency counts from when it was due, whenever it was sent."""
    worker = Worker(Plan(target=NOBODY, load=OpenLoop(1.0), mix=MIX), 0)
    worker.window_start, worker.window_end = 10.0, 15.0
    monkeypatch.setattr(loop, "clock", lambda: answered)
    worker._record(0, due, sent, RIGHT)
    tally = worker.tallies["stand-in"]
    assert (tally.requests, tally.correct, tally.late, tally.completed) == (requests, requests, late, completed)
    assert tally.latency.get_max_value() / 1000 == pytest.approx(latency_ms, rel=1e-3)
    assert worker.last_answer == answered


def test_the_window_of_so_many_arrivals_ends_when_the_last_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them count, and so does an answer until then. One of the warm-up is none of them."""
    plan = Plan(target=NOBODY, load=OpenLoop(50.0), mix=MIX, requests=20, seed=1)
    worker = Worker(plan, 0)
    worker.warmup_start, worker.window_start = 9.0, 10.0
    due = list(worker._due(plan.load))
    counted = [at for at in due if at >= 10]
    assert (len(counted), worker.window_end) == (20, pytest.approx(counted[-1]))
    assert len(due) > len(counted)
    for at, answered in zip(counted, (*counted[1:], math.nextafter(worker.window_end, math.inf)), strict=True):
        monkeypatch.setattr(loop, "clock", lambda answered=answered: answered)
        worker._record(0, at, at, RIGHT)
    tally = worker.tallies["stand-in"]
    assert (tally.requests, tally.completed) == (20, 19)


def test_models_are_drawn_by_their_weights_and_asked_their_questions_in_turn() -> None:
    """Three times as many requests for one as for the other, which has two questions."""
    one, other, another = (replace(QUESTION, model=model) for model in ("one", "other", "other"))
    mix = [Share("one", 3, [one]), Share("other", 1, [other, another])]
    worker = Worker(Plan(target=NOBODY, load=ClosedLoop(1), mix=mix, seed=1), 0)
    drawn = Counter(itertools.islice(worker._order, 4000))
    assert drawn[0] == pytest.approx(3000, abs=5 * (4000 * 3 / 16) ** 0.5)
    assert 0 <= drawn[1] - drawn[2] <= 1
    assert drawn.total() == 4000
