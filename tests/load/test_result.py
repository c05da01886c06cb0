"""What is worked out of a run: percentiles, throughput, Triton's own counts, and when to doubt them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from serving.repository import REPOSITORY
from tests.load import __main__ as command
from tests.load import measure
from tests.load.loop import Tally
from tests.load.plan import ClosedLoop, OpenLoop
from tests.load.result import Result, percentile_ms, server_lines
from tests.load.stand_ins import Faulty, made, worker_result
from tests.load.targets import InProcess, Target


@pytest.mark.parametrize(
    ("of_worker", "says"),
    [
        ({}, None),
        ({"utilisation": 0.95}, "--processes"),
        ({"late": 5}, "5.0% of the requests"),
        ({"wakeup_delay_us": 5000}, "wakes up 5.0 ms late"),
    ],
    ids=["none", "busy", "late", "waiting"],
)
def test_it_says_when_it_is_itself_the_bottleneck(of_worker: dict[str, float], says: str | None) -> None:
    doubts = made(OpenLoop(20.0), **of_worker).doubts()
    assert len(doubts) == (says is not None)
    assert not says or says in doubts[0]


@pytest.mark.parametrize(
    ("target", "doubted"),
    [(Faulty(name="threads", answers=("1",)), True), (InProcess(name="in process", repository=REPOSITORY), False)],
    ids=["threads", "in process"],
)
def test_a_busy_process_is_no_bottleneck_where_the_model_computes_in_it(target: Target, doubted: bool) -> None:
    """Threads that ask a server share one interpreter, and are doubted as an event loop is."""
    busy = made(ClosedLoop(2), utilisation=0.95)
    busy = replace(busy, plan=replace(busy.plan, target=target))
    assert bool(busy.doubts()) == doubted
    assert command._doubted([busy]).endswith(f"measured at {ClosedLoop(2)}.") == doubted


def test_a_tally_of_two_processes_is_that_of_all_their_requests() -> None:
    result = Result(
        made(ClosedLoop(2)).plan, [worker_result(latency_us=1000), worker_result(latency_us=9000)], 5.0, {}, None
    )
    assert (result.total.requests, result.per_s) == (200, 40)
    assert result.percentile_ms(50) == pytest.approx(1, rel=0.01)
    assert result.percentile_ms(99) == pytest.approx(9, rel=0.01)
    assert json.dumps(result.data())


@pytest.mark.parametrize(("answers", "rank"), [(1, 1), (50, 50), (60, 60), (100, 99), (101, 100), (149, 148)])
def test_a_percentile_is_the_nearest_rank(answers: int, rank: int) -> None:
    """Of 60 answers no 59 are 99 in a hundred, so that p99 is the slowest."""
    tally = Tally()
    for number in range(1, answers + 1):
        tally.record(number / 1000, None)
    assert percentile_ms(tally, 99) == pytest.approx(rank, rel=0.001)


def test_a_servers_cores_are_those_of_the_time_that_it_was_watched_for() -> None:
    """Which is not the window."""
    watched = replace(made(ClosedLoop(1)), usage=measure.Usage(cpu_s=6.0, elapsed_s=4.0, memory=[(0.0, 2**20)]))
    assert "server: 1.50 cores, 1 MiB at most" in server_lines(watched)


@pytest.mark.parametrize(("requests", "per_s"), [(0, 20), (100, 25)], ids=["duration", "requests"])
def test_throughput_is_that_of_the_window_as_it_was(requests: int, per_s: float) -> None:
    """4 s, where 5 were planned. A fifth of 100 right answers came after it, and counts where 100 were asked for."""
    found = made(ClosedLoop(2), unfinished=20)
    found = replace(found, window_s=4.0, plan=replace(found.plan, duration_s=5.0, requests=requests))
    assert found.per_s == per_s


def test_what_triton_counted_in_a_window_is_what_it_counts_more_afterwards() -> None:
    """In each stage, too, of which a request's mean is told in milliseconds."""
    before = measure.Counts(10, 1, 30, 10, Counter(queue=10**9, compute_infer=5 * 10**8), Counter({1: 5, 4: 5}))
    after = measure.Counts(14, 3, 42, 14, Counter(queue=10**9 + 8 * 10**6, compute_infer=10**9), Counter({1: 5, 4: 9}))
    window = after.minus(before)
    assert window.data() == {
        "queue_ms": pytest.approx(2),
        "compute_input_ms": 0,
        "compute_infer_ms": pytest.approx(125),
        "compute_output_ms": 0,
        "answered": 4,
        "failed": 2,
        "mean_batch": 3,
        "batches": {"4": 4},
    }
