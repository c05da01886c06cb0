"""A server at twice its capacity: its goodput, its latency, what it sheds, and whether its memory grows.

Run: python -m tests.load.overload classifier --minutes 10 (last line of stdout: one JSON object)

First measures its capacity, in closed loop with enough callers to fill a batch on every instance; then runs open loop
at twice that rate. The server promises: no errors but `overloaded`; a goodput of at least 0.9 of the capacity; a 99th
percentile of at most the queue's timeout plus the 99th percentile at capacity; memory that grows by at most a tenth.
Writes tests/load/evidence/<model>-overload.md, on which the spec's queue settings are based.

Load on the classifier costs the generator a tenth of two cores, and twice as much in overload, which the server lacks.
With --apart, generator and server have half of the cores each, at capacity and in overload.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from serving import cli
from serving.errors import ServingError
from serving.repository import REPOSITORY
from serving.spec import ModelSpec
from tests.load.generator import Generator
from tests.load.measure import machine
from tests.load.plan import ClosedLoop, OpenLoop, Plan, mixed
from tests.load.result import Result
from tests.load.servers import triton
from tests.load.tables import folder, positive
from tests.load.tune import EVIDENCE, batched

OVERLOAD_FACTOR = 2.0
MIN_GOODPUT = 0.9
MAX_MEMORY_GROWTH = 1.1
MINUTE_S = 60.0
COALESCE_S = 5e-3
"""of arrivals: short compared with the wait in a full queue, and the generator leaves more CPU to the server"""
TIMEOUT_MARGIN_S = 30.0
"""beyond the queue's own timeout, so that the server gives up a request before the client does"""


def measured(
    spec: ModelSpec,
    repository: Path,
    *,
    seconds: float,
    minutes: float,
    apart: bool = False,
    say: Callable[[Result], None],
) -> tuple[Result, Result]:
    """The results at capacity and in overload, on a dedicated server. With `apart` it has the first half of the cores,
    and the generator the rest. Raises ServingError if there is one core for both."""
    assert spec.batching, f"{spec.name} is not batched"
    timeout_s = 1e-6 * spec.batching.queue_timeout_us + TIMEOUT_MARGIN_S
    servers_cores, generators_cores = _halves() if apart else (os.sched_getaffinity(0),) * 2
    with ExitStack() as stack:
        stack.enter_context(_on(servers_cores))
        target = replace(stack.enter_context(triton(repository, [spec.name])), timeout_s=timeout_s)
        stack.enter_context(_on(generators_cores))
        generator = stack.enter_context(Generator())
        full = ClosedLoop(spec.instances * spec.max_batch)
        plan = Plan(target=target, load=full, mix=mixed({spec.name: 1}, repository), warmup_s=2.0, duration_s=seconds)
        say(capacity := generator.run(plan))
        if not (capacity.per_s and capacity.total.correct):
            raise ServingError(f"{spec.name}: no right answer within {seconds:g} s; give more --seconds")
        arrivals = OpenLoop(OVERLOAD_FACTOR * capacity.per_s, coalesce_s=COALESCE_S)
        over = replace(plan, load=arrivals, duration_s=MINUTE_S * minutes)
        say(result := generator.run(over))
        return capacity, result


def _halves() -> tuple[Collection[int], Collection[int]]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ServingError("--apart: takes two cores, and there is one; leave it out")
    return cores[: len(cores) // 2], cores[len(cores) // 2 :]


@contextmanager
def _on(cores: Collection[int]) -> Iterator[None]:
    """Pins the processes started in the block to these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def report(spec: ModelSpec, capacity: Result, over: Result) -> dict[str, Any]:
    assert spec.batching
    assert over.usage, "memory was not watched"
    promised_ms = spec.batching.queue_timeout_us / 1000 + capacity.percentile_ms(99)
    early, late = _thirds(over.usage.memory)
    p99_ms = round(over.percentile_ms(99), 1) if over.total.correct else None
    found = {
        "capacity_per_s": round(capacity.per_s, 2),
        "offered_per_s": round(over.total.requests / over.window_s, 2),
        "goodput": round(over.per_s / capacity.per_s, 3),
        "p99_ms": p99_ms,
        "promised_ms": round(promised_ms, 1),
        "memory_mib": [round(early / 2**20), round(late / 2**20)],
        "refused": round(over.total.failures["overloaded"] / max(1, over.total.requests), 3),
    }
    kept = {
        "only_overloaded": set(over.total.failures) <= {"overloaded"},
        "goodput": over.per_s >= MIN_GOODPUT * capacity.per_s,
        "p99": p99_ms is not None and p99_ms <= promised_ms,
        "memory": late <= MAX_MEMORY_GROWTH * early,
    }
    return found | {"errors": dict(over.total.failures), "kept": kept, "doubts": over.doubts()}


def _thirds(memory: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Medians of the second and the last third; in the first the queue fills, and there is no steady state yet."""
    sizes = [size for _, size in memory]
    third = max(1, len(sizes) // 3)
    return statistics.median(sizes[third : 2 * third] or sizes), statistics.median(sizes[-third:])


def lines(found: dict[str, Any]) -> list[str]:
    kept = found["kept"]
    early, late = found["memory_mib"]
    p99_ms = "-" if found["p99_ms"] is None else f"{found['p99_ms']:.0f} ms"
    promises = {
        "only_overloaded": f"refused {found['refused']:.0%}; errors: {found['errors'] or 'none'}",
        "goodput": f"goodput {found['goodput']:.2f} of capacity, {found['capacity_per_s']:.4g}/s",
        "p99": f"p99 of answers {p99_ms}, promised {found['promised_ms']:.0f} ms",
        "memory": f"memory {early:.0f} MiB, then {late:.0f} MiB",
    }
    doubts = [f"DOUBTFUL: {doubt}" for doubt in found["doubts"]]
    return [f"{'kept  ' if kept[name] else 'MISSED'}  {text}" for name, text in promises.items()] + doubts


def page(spec: ModelSpec, found: dict[str, Any], about: dict[str, Any]) -> str:
    assert spec.batching
    options = f"{spec.name} --seconds {about['seconds']:g} --minutes {about['minutes']:g}"
    options += " --apart" if about["apart"] else ""
    beside = "of which the generator has one half" if about["apart"] else "the generator beside the server"
    head = (
        f"# {spec.name} at twice what it can\n\n"
        f"Written by `python -m tests.load.overload {options}` on {about['date']}: {about['machine']}, "
        f"{about['cores']} cores, {beside}. The queue takes {spec.batching.queue_size} "
        f"requests, for {spec.batching.queue_timeout_us / 1e6:g} s each."
    )
    return "\n".join([head, "", *(f"- {line}" for line in lines(found)), ""])


# --- command line


def main(arguments: Sequence[str] | None = None) -> int:
    return cli.run(_overloaded, _parser().parse_args(arguments))


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m tests.load.overload", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="one with a dynamic batcher")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="default %(default)s")
    parser.add_argument(
        "--seconds", type=positive(float), default=20.0, help="to find the capacity; default %(default)s"
    )
    parser.add_argument("--minutes", type=positive(float), default=10.0, help="of overload; default %(default)s")
    parser.add_argument("--apart", action="store_true", help="server and generator have half of the cores each")
    parser.add_argument("--out", type=folder, default=EVIDENCE, help="folder of the page; default %(default)s")
    return parser


def _overloaded(options: argparse.Namespace) -> str:
    spec = batched(options.model)
    given = {name: getattr(options, name) for name in ("seconds", "minutes", "apart")}
    capacity, over = measured(spec, options.repository, **given, say=partial(_say, sys.stderr.write))
    found = report(spec, capacity, over)
    about = {"bench": "overload", "model": spec.name, **machine(), **given}
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"{spec.name}-overload{'-apart' if options.apart else ''}.md"
    (options.out / name).write_text(page(spec, found, about))
    return "\n".join([*lines(found), json.dumps(about | found)])


def _say(write: Callable[[str], object], result: Result) -> None:
    write(f"{result.plan.load}: {result.per_s:.4g}/s answered\n")


if __name__ == "__main__":
    sys.exit(main())
