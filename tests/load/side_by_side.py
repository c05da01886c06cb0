"""Compares all ways to serve a model, in one run on one machine: `python -m tests.load --report`.

Each round goes through the ways in turn, and a figure is the median of its rounds, so that other load on the machine
affects all of them. A way's capacity is its highest throughput in closed loop; in open loop it gets shares of that.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from serving.errors import ServingError
from tests.load.generator import Generator
from tests.load.plan import ClosedLoop, OpenLoop, Plan, mixed
from tests.load.result import Result
from tests.load.servers import WAYS
from tests.load.targets import Target

COMPARED = ("in-process", "triton", "unbatched", "torchserve")
CALLERS = (1, 2, 8, 32)
"""2 is the number of instances of a server. In process, more callers than that only wait for each other."""
SHARES = (0.5, 0.9)
JIT_WARMUP_S = {"torchserve": 15.0}
"""Warm-up of a way before its first window, for a just-in-time compiler: with the classifier, TorchServe's first ten
thousand requests take up to 1.6 times the CPU of later ones."""

Say = Callable[[str], None]


@dataclass
class Row:
    """One way to serve one model: its results by load, which is a number of callers or a share of the capacity."""

    model: str
    way: str
    results: dict[float, list[Result]] = field(default_factory=dict)

    def median(self, load: float, figure: Callable[[Result], float]) -> float:
        return statistics.median(map(figure, self.results[load]))

    def per_s(self, load: float) -> float:
        return self.median(load, lambda result: result.per_s)

    def percentile_ms(self, load: float, percentile: float) -> float:
        """Milliseconds; infinite where nothing was answered."""
        return self.median(load, lambda result: result.percentile_ms(percentile))

    @property
    def capacity(self) -> float:
        return max(self.per_s(callers) for callers in CALLERS)

    @property
    def failed(self) -> int:
        return sum(result.failures for results in self.results.values() for result in results)

    @property
    def memory_mib(self) -> float | None:
        sizes = [
            result.usage.data()["memory_most_mib"]
            for results in self.results.values()
            for result in results
            if result.usage
        ]
        return max(sizes) if sizes else None


@dataclass(frozen=True)
class Times:
    """The length of a window, in closed and in open loop, and the number of rounds; `jit_warmup` is the fraction of
    JIT_WARMUP_S to spend. Open loop takes longer, as slow models give some 15 answers a second at half of their
    capacity."""

    rounds: int = 3
    duration_s: float = 2.0
    open_s: float = 6.0
    warmup_s: float = 0.5
    jit_warmup: float = 1.0


QUICK = Times(rounds=1, duration_s=0.5, open_s=0.5, warmup_s=0.1, jit_warmup=0.0)


def compare(repository: Path, models: Sequence[str], times: Times, say: Say) -> list[Row]:
    """The rows of all ways for each model. A way that can't start is left out, with a line that says why."""
    with Generator() as generator:
        return [row for model in models for row in _compared(generator, repository, model, times, say)]


def _compared(generator: Generator, repository: Path, model: str, times: Times, say: Say) -> list[Row]:
    mix = mixed({model: 1}, repository)
    with contextlib.ExitStack() as stack:
        plans = {}
        for way in COMPARED:
            try:
                target: Target = stack.enter_context(WAYS[way](repository, [model]))
            except ServingError as exc:
                say(f"{model}: left out {way}: {exc}")
                continue
            plans[way] = Plan(target=target, load=ClosedLoop(1), mix=mix, duration_s=times.duration_s,
                              warmup_s=times.warmup_s)  # fmt: skip
            if jit_warmup_s := times.jit_warmup * JIT_WARMUP_S.get(way, 0.0):
                generator.run(replace(plans[way], load=ClosedLoop(max(CALLERS)), duration_s=jit_warmup_s))
        rows = {way: Row(model, way) for way in plans}
        for turn in range(times.rounds):
            for callers in CALLERS:
                for way in rotated(plans, turn):
                    _add(rows[way], callers, generator.run(replace(plans[way], load=ClosedLoop(callers), seed=turn)))
        for turn in range(times.rounds):
            for share in SHARES:
                for way in rotated(plans, turn):
                    if rate := share * rows[way].capacity:
                        arriving = replace(plans[way], load=OpenLoop(rate), duration_s=times.open_s, seed=turn)
                        _add(rows[way], share, generator.run(arriving))
    for row in rows.values():
        say(f"{model}: {row.way} {row.capacity:.4g}/s" + (f", {row.failed} failed" if row.failed else ""))
    return list(rows.values())


def rotated(ways: Any, turn: int) -> list[str]:
    """Rotates the order, so that each goes first equally often, as what ran before affects the caches."""
    names = list(ways)
    first = turn % len(names)
    return names[first:] + names[:first]


def _add(row: Row, load: float, result: Result) -> None:
    row.results.setdefault(load, []).append(result)
