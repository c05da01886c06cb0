"""Load stages on one target, to find its knee: closed loop with rising numbers of callers, then open loop with rising
rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from tests.load.generator import Generator
from tests.load.plan import ClosedLoop, OpenLoop, Plan
from tests.load.result import Result

CALLERS = (1, 8, 32)
STREAMS = (1, 2)
"""callers of the painter, which rejects a third concurrent painting"""
SHARES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0)
"""of the highest throughput reached in closed loop"""
LATENCY_FACTOR = 5.0
"""Default limit of the 99th percentile, as a multiple of the median latency with the fewest callers."""
MIN_COMPLETED = 0.95
"""share of the requests that must be answered within the window, else a backlog grows; one may still be in flight"""

Show = Callable[[Result], None]


def stages(
    generator: Generator, plan: Plan, callers: Sequence[int], rates: Sequence[float] | None, show: Show
) -> list[Result]:
    """Runs all stages, in order. With `rates` None, they are SHARES of the highest closed-loop throughput."""
    results = list(_run(generator, plan, map(ClosedLoop, callers), show))
    if rates is None:
        highest = max(result.per_s for result in results)
        rates = [share * highest for share in SHARES] if highest else []
    return results + list(_run(generator, plan, map(OpenLoop, rates), show))


def _run(generator: Generator, plan: Plan, loads: Iterator[ClosedLoop | OpenLoop], show: Show) -> Iterator[Result]:
    for load in loads:
        result = generator.run(replace(plan, load=load))
        show(result)
        yield result


def limit_ms(results: Sequence[Result]) -> float | None:
    """The limit of the 99th percentile, from the stage with the fewest callers; None if none had correct answers."""
    closed = [result for result in results if isinstance(result.plan.load, ClosedLoop) and result.total.correct]
    if not closed:
        return None
    return LATENCY_FACTOR * min(closed, key=lambda result: result.plan.load.callers).percentile_ms(50)


def knee(results: Sequence[Result], limit_ms: float) -> Result | None:
    """The highest rate up to which every rate was sustained: all answered correctly, in time, without a backlog."""
    found = None
    for result in by_rate(results):
        if shortfall(result, limit_ms):
            break
        found = result
    return found


def by_rate(results: Sequence[Result]) -> list[Result]:
    """The open-loop results in whose window a request arrived, lowest rate first."""
    asked = [result for result in results if isinstance(result.plan.load, OpenLoop) and result.total.requests]
    return sorted(asked, key=lambda result: result.plan.load.per_s)


def shortfall(result: Result, limit_ms: float) -> str:
    """Why a rate was not sustained: errors, a backlog, the 99th percentile. Empty if it was."""
    total, p99_ms, found = result.total, result.percentile_ms(99), []
    if result.failures:
        found.append(f"{result.failures} of {total.requests} requests failed")
    if total.completed + result.failures < MIN_COMPLETED * total.requests - 1:
        found.append(f"a backlog grew ({total.completed} right answers came while {total.requests} requests did)")
    if limit_ms < p99_ms < math.inf:
        found.append(f"p99 was {p99_ms:.4g} ms")
    return ", ".join(found)
