"""Stages of load: which rates are tried, which of them were sustained, and what is said of that."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tests.load import __main__ as command
from tests.load import knee
from tests.load.plan import ClosedLoop, OpenLoop, Plan
from tests.load.result import Result
from tests.load.stand_ins import MIX, Stalling, made

LOW, HIGH, HIGHER = OpenLoop(10.0), OpenLoop(20.0), OpenLoop(30.0)


@dataclass
class Reached:
    """In place of a Generator: so many callers reach so many requests a second."""

    per_s: dict[int, int]
    asked: list[ClosedLoop | OpenLoop] = field(default_factory=list)

    def run(self, plan: Plan) -> Result:
        self.asked.append(plan.load)
        return made(plan.load, requests=5 * self.per_s[plan.load.callers] if isinstance(plan.load, ClosedLoop) else 5)


def stages(reached: Reached, rates: list[float] | None) -> list[Result]:
    plan = Plan(target=Stalling(name="none", stall_s=0), load=ClosedLoop(1), mix=MIX)
    return knee.stages(reached, plan, list(reached.per_s), rates, lambda result: None)


def test_rates_go_up_to_what_callers_reached() -> None:
    """At best, which need not be with the most of them. All results are there, in order."""
    reached = Reached({1: 40, 8: 100, 32: 90})
    results = stages(reached, None)
    assert reached.asked[:3] == [ClosedLoop(1), ClosedLoop(8), ClosedLoop(32)]
    assert [load.per_s for load in reached.asked[3:]] == pytest.approx([10, 30, 50, 70, 80, 90, 100])
    assert [result.plan.load for result in results] == reached.asked


def test_no_rate_follows_from_callers_who_reached_nothing() -> None:
    assert len(stages(Reached({1: 0, 8: 0}), None)) == 2


def test_rates_that_are_given_are_tried_as_they_are() -> None:
    assert [result.plan.load for result in stages(Reached({}), [20.0, 10.0])] == [HIGH, LOW]


def test_the_knee_is_the_highest_rate_below_the_first_that_is_too_slow() -> None:
    """A rate beyond one that failed does not count, however well it went."""
    latencies = {10: 20, 20: 40, 30: 200, 40: 50}
    results = [made(OpenLoop(rate), latency_us=1000 * ms) for rate, ms in latencies.items()]
    found = knee.knee(results, 100.0)
    assert found is results[1]
    assert knee.knee(results, 10.0) is None
    callers = [made(ClosedLoop(8), latency_us=90_000), made(ClosedLoop(1), latency_us=10_000)]
    assert knee.limit_ms(callers) == pytest.approx(50, rel=0.01), "five times the fewest callers', in any order"


@pytest.mark.parametrize(
    ("short", "why"),
    [
        pytest.param(made(HIGH, failed=1), "1 of 100 requests failed", id="errors"),
        pytest.param(
            made(HIGH, unfinished=7), "a backlog grew (93 right answers came while 100 requests did)", id="backlog"
        ),
        pytest.param(made(HIGH, latency_us=200_000), "p99 was 200.1 ms", id="p99"),
        pytest.param(
            made(HIGH, failed=90, latency_us=200_000),
            "90 of 100 requests failed, p99 was 200.1 ms",
            id="errors and p99",
        ),
        pytest.param(made(HIGH, failed=100), "100 of 100 requests failed", id="nothing right"),
    ],
)
def test_a_rate_is_sustained_without_errors_backlog_or_a_late_percentile(short: Result, why: str) -> None:
    """The verdict says what broke first, and no more than that: what failed is no backlog."""
    sustained, beyond = made(LOW, unfinished=6), made(HIGHER)
    assert knee.shortfall(sustained, 100.0) == ""
    results = [sustained, short, beyond]
    found = knee.knee(results, 100.0)
    assert found is sustained
    assert command._verdict(results, found, 100.0) == (
        "Knee: 10/s (p99 10.01 ms) is the highest rate up to which every rate was sustained. "
        f"At 20/s {why}. The limit of p99 is 100 ms."
    )


@pytest.mark.parametrize(
    ("rates", "limit_ms", "says"),
    [
        ({20: 40, 10: 20}, 100.0, "Knee: at least 20/s (p99 40.03 ms); no requests came at a higher rate."),
        (
            {10: 20, 20: 200, 30: 50, 40: 300},
            100.0,
            "Knee: 10/s (p99 20.02 ms) is the highest rate up to which every rate was sustained. At 20/s p99 was 200",
        ),
        (
            {10: 200, 20: 40},
            100.0,
            "No knee: the lowest rate at which requests came was not sustained. At 10/s p99 was 200.1 ms.",
        ),
        ({10: 20}, None, "No limit"),
        ({}, 100.0, "No rate was tried"),
    ],
    ids=["all", "up to one", "not the lowest", "no limit", "no rate"],
)
def test_the_verdict_says_what_was_seen_of_the_knee(rates: dict[float, int], limit_ms: float | None, says: str) -> None:
    """And nothing of rates beyond it, however well they went."""
    results = [made(ClosedLoop(1)), *(made(OpenLoop(rate), latency_us=1000 * ms) for rate, ms in rates.items())]
    found = knee.knee(results, limit_ms) if limit_ms else None
    assert command._verdict(results, found, limit_ms).startswith(says)


def test_a_window_without_a_request_tells_nothing() -> None:
    """Of a low rate; the next ones do."""
    empty = made(OpenLoop(0.3), requests=0)
    results = [empty, made(LOW), made(HIGH, failed=1)]
    assert knee.knee(results, 100.0) is results[1]
    assert command._verdict([empty], None, 100.0).startswith("No request arrived in any window")
