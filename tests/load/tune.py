"""Which batch limit, queue delay, instances and threads serve a model best: one thing changed at a time.

Run: make load-tune MODEL=classifier, or python -m tests.load.tune classifier (last line of stdout: one JSON object)

Each of several rounds serves and measures every setting in turn: with one caller, with two, whose requests a batcher
may join while an instance is idle, with many, and in open loop at nine tenths of the throughput that the spec's own
setting reached in that round. Ratios are relative to that throughput, too.
Writes tests/load/evidence/<model>.md, on which the numbers in its spec are based.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from serving import cli
from serving.errors import RepositoryError, ServingError
from serving.repository import REPOSITORY
from serving.spec import ModelSpec
from tests.load.generator import Generator
from tests.load.measure import CORES, machine
from tests.load.plan import ClosedLoop, OpenLoop, Plan, Share, mixed
from tests.load.questions import served
from tests.load.result import Result
from tests.load.servers import changed, in_process, preempting, triton, unbatched
from tests.load.tables import folder, positive
from tests.load.targets import Target

EVIDENCE = Path(__file__).with_name("evidence")
DELAYS_US = (0, 500, 2000)
SHAPES = ((1, 1), (1, CORES), (CORES, 1), (CORES, CORES), (CORES + 1, 1))
"""instances and threads"""
PREFERRED = ((1,), (2,), (4,), (8,), (1, 4))
ONE, TWO, MANY, BUSY = 1, 2, 32, 0.9
COLUMNS = {
    "p50_ms": "p50 of 1 caller, ms",
    "two_per_s": "pictures/s of 2",
    "per_s": "of 32",
    "to_own": "to the spec's",
    "batch": "a batch",
    "p99_ms": "p99, ms",
    "slowest_ms": "slowest, ms",
    "busy_p50_ms": "p50 at 0.9 of the spec's, ms",
    "busy_p99_ms": "p99 there, ms",
}
"""The page's column titles, by their keys in Row.data."""

Opened = Callable[[], AbstractContextManager[Target]]


@dataclass(frozen=True)
class Setting:
    instances: int
    threads: int
    max_batch: int
    delay_us: int
    preferred: tuple[int, ...] = ()

    def __str__(self) -> str:
        preferred = f", {' and '.join(map(str, self.preferred))} preferred" if self.preferred else ""
        batches = f"batches to {self.max_batch}{preferred}"
        return f"{self.instances} x {self.threads} threads, {batches}, delay {self.delay_us} us"

    def apply(self, name: str, model: pb.ModelConfig) -> None:
        """Puts this setting into the config.pbtxt of the model with this name; leaves other models unchanged."""
        if model.name != name:
            return
        model.max_batch_size = self.max_batch
        model.dynamic_batching.max_queue_delay_microseconds = self.delay_us
        model.dynamic_batching.preferred_batch_size[:] = self.preferred
        model.instance_group[0].count = self.instances
        model.parameters["intra_op_thread_count"].string_value = str(self.threads)
        for warmup in model.model_warmup:
            warmup.batch_size = min(warmup.batch_size, self.max_batch)


def own_setting(spec: ModelSpec) -> Setting:
    assert spec.batching, f"{spec.name} is not batched"
    batching = spec.batching
    return Setting(spec.instances, spec.threads, spec.max_batch, batching.queue_delay_us, batching.preferred)


def settings(own: Setting) -> list[Setting]:
    """The spec's own setting first, then each that differs from it in one respect."""
    shaped = [replace(own, instances=instances, threads=threads) for instances, threads in SHAPES]
    batched = [replace(own, max_batch=size) for size in (max(1, own.max_batch // 2), 2 * own.max_batch)]
    delayed = [replace(own, delay_us=delay) for delay in DELAYS_US]
    preferring = [replace(own, preferred=sizes) for sizes in ((), *PREFERRED) if max(sizes, default=1) <= own.max_batch]
    return list(dict.fromkeys([own, *shaped, *batched, *delayed, *preferring]))


def ways(spec: ModelSpec, repository: Path) -> dict[str, Opened]:
    """What is compared, by its name in the table; the spec's own setting first."""
    found: dict[str, Opened] = {
        str(setting): partial(_with_setting, repository, spec.name, setting) for setting in settings(own_setting(spec))
    }
    found["the spec's, threads preempt"] = partial(preempting, repository, [spec.name])
    found["no dynamic batching"] = partial(unbatched, repository, [spec.name])
    return found | {"ONNX Runtime in process": partial(in_process, repository, [spec.name])}


@contextmanager
def _with_setting(repository: Path, name: str, setting: Setting) -> Iterator[Target]:
    with changed(repository, partial(setting.apply, name)) as copy, triton(copy, [name]) as target:
        yield target


@dataclass(frozen=True)
class Row:
    """The results of one way, one per round: with one caller, two and many, and in open loop."""

    one: Sequence[Result]
    two: Sequence[Result]
    many: Sequence[Result]
    busy: Sequence[Result]

    def data(self, own: Row) -> dict[str, Any]:
        """Medians over the rounds, except the slowest answer of all; `to_own` is the median of the rounds' ratios."""
        everything = (*self.one, *self.two, *self.many, *self.busy)
        return {
            "p50_ms": _median(result.percentile_ms(50) for result in self.one),
            "two_per_s": _median(result.per_s for result in self.two),
            "per_s": _median(result.per_s for result in self.many),
            "to_own": _median(a.per_s / b.per_s for a, b in zip(self.many, own.many, strict=True)),
            "batch": _median(_mean_batch(result) for result in self.many),
            "p99_ms": _median(result.percentile_ms(99) for result in self.many),
            "slowest_ms": _finite(max(result.percentile_ms(100) for result in everything)),
            "busy_p50_ms": _median(result.percentile_ms(50) for result in self.busy),
            "busy_p99_ms": _median(result.percentile_ms(99) for result in self.busy),
            "errors": sum(result.failures for result in everything),
            "doubtful": sum(bool(result.doubts()) for result in everything),
        }


def _median(values: Iterator[float]) -> float | None:
    return _finite(float(f"{statistics.median(values):.4g}"))


def _finite(latency_ms: float) -> float | None:
    """None if there was no correct answer."""
    return None if math.isinf(latency_ms) else latency_ms


def _mean_batch(result: Result) -> float:
    return float(next((counts.data()["mean_batch"] for counts in result.counts.values()), 1.0))


def sweep(
    asked: dict[str, Opened], mix: Sequence[Share], *, rounds: int, seconds: float, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    found: dict[str, list[tuple[Result, ...]]] = {name: [] for name in asked}
    with Generator() as generator:
        for turn in range(rounds):
            rate = 0.0  # the first way's own
            for name, opened in asked.items():
                with opened() as target:
                    plan = Plan(target=target, load=ClosedLoop(ONE), mix=mix, duration_s=seconds, seed=turn)
                    closed = [generator.run(replace(plan, load=ClosedLoop(callers))) for callers in (ONE, TWO, MANY)]
                    many = closed[-1]
                    if not (rate := rate or BUSY * many.per_s):
                        raise ServingError(f"{name}: no right answer within {seconds:g} s; give more --seconds")
                    busy = generator.run(replace(plan, load=OpenLoop(rate)))
                found[name].append((*closed, busy))
                waited_ms = busy.percentile_ms(50)
                say(f"round {turn + 1}: {name}: {many.per_s:.4g}/s, p50 {waited_ms:.4g} ms at {rate:.4g}/s")
    rows = {name: Row(*zip(*results, strict=True)) for name, results in found.items()}
    own = next(iter(rows.values()))
    return {name: row.data(own) for name, row in rows.items()}


# --- what is written


def table(data: dict[str, dict[str, Any]]) -> list[str]:
    head = ("setting", *COLUMNS.values())
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, row in data.items():
        shown = ("-" if row[key] is None else f"{row[key]:.4g}" for key in COLUMNS)
        remarks = ", ".join(f"{row[what]} {what}" for what in ("errors", "doubtful") if row[what])
        lines.append(f"| {name}{f' ({remarks})' if remarks else ''} | {' | '.join(shown)} |")
    return lines


def page(model: str, data: dict[str, dict[str, Any]], about: dict[str, Any]) -> str:
    command = f"python -m tests.load.tune {model} --rounds {about['rounds']} --seconds {about['seconds']:g}"
    head = (
        f"# {model}: what batching, instances and threads give\n\n"
        f"Written by `{command}` on {about['date']}: {about['machine']}, {about['cores']} cores, the generator beside "
        f"the server, medians of the rounds. The first row is the spec's setting of then; each other changes one "
        f"thing. Doubtful are windows of which the generator says that it may itself be what was measured."
    )
    return "\n".join([head, "", *table(data), ""])


# --- command line


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return cli.run(_tuned, options)


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m tests.load.tune", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="one with a dynamic batcher")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="default %(default)s")
    parser.add_argument("--rounds", type=positive(int), default=3, help="default %(default)s")
    parser.add_argument("--seconds", type=positive(float), default=3.0, help="of each window; default %(default)s")
    parser.add_argument("--out", type=folder, default=EVIDENCE, help="folder of the page; default %(default)s")
    return parser


def _tuned(options: argparse.Namespace) -> str:
    spec = batched(options.model)
    say = partial(print, file=sys.stderr, flush=True)
    mix = mixed({spec.name: 1}, options.repository)
    asked = ways(spec, options.repository)
    data = sweep(asked, mix, rounds=options.rounds, seconds=options.seconds, say=say)
    about = machine() | {"rounds": options.rounds, "seconds": options.seconds}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{spec.name}.md").write_text(page(spec.name, data, about))
    return "\n".join([*table(data), json.dumps({"bench": "tune", "model": spec.name, **about, "settings": data})])


def batched(model: str) -> ModelSpec:
    """The model's spec. Raises RepositoryError if it has no batcher of its own."""
    spec = served(model)
    if not isinstance(spec, ModelSpec) or spec.batching is None:
        raise RepositoryError(f"MODEL {model}: has no dynamic batcher; name one that has, such as classifier")
    return spec


if __name__ == "__main__":
    sys.exit(main())
