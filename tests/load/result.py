"""What a run of the load generator found: percentiles, throughput, errors, and whether to believe them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.load.loop import Tally, WorkerResult
from tests.load.measure import STAGES, Counts, Usage
from tests.load.plan import OpenLoop, Plan
from tests.load.targets import InProcess

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
MAX_UTILISATION = 0.85
"""of the core that a process's event loop runs on: above this there is no room for bursts"""
MAX_LATE = 0.01
"""share of the requests"""
MAX_WAKEUP_DELAY = 0.1
"""as a share of the median latency, to which the generator adds it"""


@dataclass(frozen=True)
class Result:
    """`workers` are the results of the generator's processes, `counts` what Triton counted by model, `usage` what the
    server used."""

    plan: Plan
    workers: Sequence[WorkerResult]
    window_s: float
    counts: Mapping[str, Counts]
    usage: Usage | None

    @cached_property
    def models(self) -> dict[str, Tally]:
        return {share.model: _sum(worker.tallies[share.model] for worker in self.workers) for share in self.plan.mix}

    @cached_property
    def total(self) -> Tally:
        return _sum(self.models.values())

    @property
    def per_s(self) -> float:
        """Throughput: correct answers per second, over all models."""
        return self.throughput(self.total)

    def throughput(self, tally: Tally) -> float:
        """Correct answers per second: those that arrived within the window, or, if the plan has a number of requests,
        those to these."""
        return (tally.correct if self.plan.requests else tally.completed) / self.window_s

    def percentile_ms(self, percentile: float) -> float:
        return percentile_ms(self.total, percentile)

    @property
    def failures(self) -> int:
        return self.total.failures.total()

    def doubts(self) -> list[str]:
        """Why the generator, rather than the server, may be what was measured."""
        found, late = [], self.total.late / max(1, self.total.requests)
        utilisation = max(worker.utilisation for worker in self.workers)
        delay_ms = max(worker.wakeup_delay_us for worker in self.workers) / 1000
        if not isinstance(self.plan.target, InProcess) and utilisation > MAX_UTILISATION:
            found.append(f"a process of it is busy for {utilisation:.2f} of a core; use more --processes")
        if isinstance(self.plan.load, OpenLoop) and late > MAX_LATE:
            found.append(f"{late:.1%} of the requests were sent more than 1 ms after they were due")
        if delay_ms > MAX_WAKEUP_DELAY * self.percentile_ms(50):
            found.append(
                f"it wakes up {delay_ms:.1f} ms late (median), which is part of every latency that it measures"
            )
        return found

    def data(self) -> dict[str, Any]:
        """All of it as JSON."""
        load = self.plan.load
        return {
            "target": self.plan.target.name,
            "loop": "open" if isinstance(load, OpenLoop) else "closed",
            "load": load.per_s if isinstance(load, OpenLoop) else load.callers,
            "window_s": _rounded(self.window_s),
            "total": self._outcome(self.total),
            "models": {model: self._outcome(tally) for model, tally in self.models.items()},
            "server": _rounded({model: counts.data() for model, counts in self.counts.items()}),
            "usage": _rounded(self.usage.data()) if self.usage else None,
            "generator": {
                "processes": [
                    _rounded({"busy": worker.utilisation, "delay_p50_ms": worker.wakeup_delay_us / 1000})
                    for worker in self.workers
                ],
                "doubts": self.doubts(),
            },
        }

    def _outcome(self, tally: Tally) -> dict[str, Any]:
        return {
            "requests": tally.requests,
            "per_s": _rounded(self.throughput(tally)),
            "latency_ms": _rounded(latencies(tally)),
            "late": tally.late,
            "errors": dict(tally.failures),
            "examples": tally.examples,
        }


def latencies(tally: Tally) -> dict[str, float]:
    """Latencies of the correct answers in milliseconds, by percentile; empty if there are none."""
    if not tally.correct:
        return {}
    found = {f"p{percentile:g}": percentile_ms(tally, percentile) for percentile in PERCENTILES}
    return found | {"max": tally.latency.get_max_value() / 1000, "mean": tally.latency.get_mean_value() / 1000}


def percentile_ms(tally: Tally, percentile: float) -> float:
    """Latency of the correct answers; infinite if there are none, as the histogram's own 0 would be the best of all."""
    if not tally.correct:
        return math.inf
    # The nearest rank: at least `percentile` % are no slower. The library's own may round to the rank below as well.
    rank = math.ceil(round(percentile * tally.correct / 100, 9))
    return float(tally.latency.get_value_at_percentile(100 * rank / tally.correct)) / 1000


def _sum(tallies: Iterable[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        total.add(tally)
    return total


def _rounded(value: Any) -> Any:
    """Rounds floats to four significant digits, in nested dicts as well."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


# --- for people


HEAD = ("target", "load", "model", "requests", "per s", *(f"p{p:g}" for p in PERCENTILES), "max ms", "errors")


def rows(result: Result) -> list[tuple[str, ...]]:
    """One row per model, and one for all if there are several."""
    lines = list(result.models.items())
    if len(lines) > 1:
        lines.append(("all", result.total))
    return [_row(result, model, tally) for model, tally in lines]


def _row(result: Result, model: str, tally: Tally) -> tuple[str, ...]:
    errors = ", ".join(f"{count} {kind}" for kind, count in tally.failures.items()) or "-"
    found = latencies(tally)
    times = (f"{found[name]:.4g}" if found else "-" for name in (*(f"p{p:g}" for p in PERCENTILES), "max"))
    return (
        result.plan.target.name,
        str(result.plan.load),
        model,
        str(tally.requests),
        f"{result.throughput(tally):.4g}",
        *times,
        errors,
    )


def server_lines(result: Result) -> list[str]:
    """Lines that say what Triton counted meanwhile, and what the server and the generator used."""
    lines = []
    for model, counts in result.counts.items():
        if counts.answered:
            data = counts.data()
            times = ", ".join(f"{stage} {data[f'{stage}_ms']:.3g}" for stage in STAGES)
            lines.append(f"{model} in Triton: {times} ms a request, {data['mean_batch']:.3g} a batch")
    if result.usage:
        memory_mib = result.usage.data()["memory_most_mib"]
        lines.append(f"server: {result.usage.cores:.2f} cores, {memory_mib:.0f} MiB at most")
    busy = ", ".join(f"{worker.utilisation:.2f}" for worker in result.workers)
    lines.append(f"generator: {busy} cores" + "".join(f"; DOUBTFUL: {doubt}" for doubt in result.doubts()))
    lines += [f"{kind}: {text}" for kind, text in result.total.examples.items()]
    return lines
