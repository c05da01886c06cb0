"""Stages of load on one target: callers that wait for answers, then rates until the latency gives way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from tests.load.generator import Generator
from tests.load.plan import Closed, Open, Plan
from tests.load.result import Result

CALLERS = (1, 8, 32)
SHARES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0)
"""of the highest throughput that callers reached"""
SLOWER = 5.0
"""How much more than the median latency of the fewest callers the 99th percentile may be, where no limit is given."""
KEPT_UP = 0.95

Show = Callable[[Result], None]


def stages(
    generator: Generator, plan: Plan, callers: Sequence[int], rates: Sequence[float] | None, show: Show
) -> list[Result]:
    """All of them, in order. `rates` None: as the callers' throughput suggests."""
    results = list(_run(generator, plan, map(Closed, callers), show))
    if rates is None:
        most = max(result.per_s for result in results)
        rates = [share * most for share in SHARES] if most else []
    return results + list(_run(generator, plan, map(Open, rates), show))


def _run(generator: Generator, plan: Plan, loads: Iterator[Closed | Open], show: Show) -> Iterator[Result]:
    for load in loads:
        result = generator.run(replace(plan, load=load))
        show(result)
        yield result


def limit_ms(results: Sequence[Result]) -> float | None:
    """For the 99th percentile, from the fewest callers; None without any."""
    closed = [result for result in results if isinstance(result.plan.load, Closed) and result.total.right]
    return SLOWER * min(closed, key=lambda result: result.plan.load.callers).percentile_ms(50) if closed else None


def knee(results: Sequence[Result], limit_ms: float) -> Result | None:
    """The highest rate up to which all were answered, rightly and in time."""
    found = None
    for result in by_rate(results):
        if not _kept_up(result, limit_ms):
            break
        found = result
    return found


def by_rate(results: Sequence[Result]) -> list[Result]:
    """Those of open loop, the lowest rate first."""
    opened = [result for result in results if isinstance(result.plan.load, Open)]
    return sorted(opened, key=lambda result: result.plan.load.per_s)


def _kept_up(result: Result, limit_ms: float) -> bool:
    total = result.total
    return result.percentile_ms(99) <= limit_ms and not result.failures and total.done >= KEPT_UP * total.asked - 1
