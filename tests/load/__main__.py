"""The load generator. Run: python -m tests.load --model classifier      (last line of stdout: one JSON object)

    … --model classifier=3 --model style=1     a mix: three requests to the classifier for each to style
    … --callers 8 --callers 32                 closed loop only
    … --rate 50 --rate 100 --p99-ms 200        open loop only; the rate up to which each keeps within the limit
    … --way sdk --url localhost:8001           through the SDK, to a server that runs already
    … --agree --way sdk --callers 64           beside NVIDIA's perf_analyzer
    … --report --write README.md               every way to serve, side by side

Without a load it takes 1, 8 and 32 callers, then rates up to what these reached. Table, pictures and an HTML page go
into out/load.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving import cli
from serving.errors import ServingError
from serving.repository import REPOSITORY, models
from tests.load import knee, page, perf_analyzer, plots, servers, side_by_side, tables
from tests.load.generator import Generator
from tests.load.measure import machine
from tests.load.plan import ClosedLoop, OpenLoop, Plan, mixed
from tests.load.result import HEAD, Result, rows, server_lines
from tests.load.targets import Target

OUT = Path("out/load")
WIDTHS = (16, 11, 10, 8, 7, *[7] * 5, 7, 1)
AGREE_CALLERS = {"classifier": 8}
AGREE_CALLERS_ELSE = 2
"""of slower models: perf_analyzer counts only requests that begin and end within a window, which must be long beside
their latency"""
COUNTERPARTS = ("triton", "grpc", "tritonclient", "sdk", "sdk-threads")
LEAST_AGREED, MOST_AGREED = 0.9, 1.1
LOAD, AGREE, REPORT = "a plain load", "--agree", "--report"
LOADS_ONLY = ("url", "rate", "p99_ms", "requests", "warmup_s", "processes", "seed")
PLANNED = ("warmup_s", "duration_s", "requests", "processes", "seed")
"""options that are a Plan's, which has their defaults"""
UNUSED = {LOAD: ("write", "quick"), AGREE: (*LOADS_ONLY, "write"), REPORT: (*LOADS_ONLY, "way", "callers")}
"""Options that each refuses, as it would go on without them and measure something else than was asked for."""


class BadOptions(ServingError):
    """Options that don't go together; the text names one and says what to give."""


def main(arguments: Sequence[str] | None = None) -> int:
    return cli.run(_run, _parser().parse_args(arguments))


def _parser() -> cli.Parser:
    lines = __doc__.splitlines()
    parser = cli.Parser(
        prog="python -m tests.load",
        description="\n".join(lines[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", action="append", default=[], type=_weighted, metavar="NAME[=WEIGHT]", help="again for a mix")
    add("--repository", type=Path, default=REPOSITORY, help="what is served, and what is right; default %(default)s")
    add("--way", choices=servers.WAYS, help="default triton, over HTTP to an embedded server; with --url grpc")
    add("--url", help="gRPC address of a Triton that runs already, without http://")
    add("--callers", action="append", type=tables.positive(int), metavar="N", help="closed loop (again for more)")
    add("--rate", action="append", type=tables.positive(float), metavar="PER_S", help="open loop (again for more)")
    add(
        "--p99-ms",
        type=tables.positive(float),
        help=f"for the knee; default {knee.LATENCY_FACTOR:g} times the fewest callers' median",
    )
    add(
        "--duration-s",
        type=tables.positive(float),
        help=f"of each window; default {Plan.duration_s:g}, of --report and --agree their own",
    )
    add("--requests", type=tables.positive(int), help="of each window, instead of a duration")
    add("--warmup-s", type=tables.positive(float), help=f"default {Plan.warmup_s:g}")
    add("--processes", type=tables.positive(int), help=f"of the generator; default {Plan.processes}")
    add("--seed", type=int, help=f"of the arrivals and the mix; default {Plan.seed}")
    add("--out", type=tables.folder, default=OUT, help="default %(default)s")
    add("--quick", action="store_true", help="with --report or --agree: short windows, one round")
    written = "with --report: put tables between their markers there (again for more files)"
    add("--write", type=Path, action="append", default=[], metavar="README.md", help=written)
    add("--dry-run", action="store_true", help="print the options and exit")
    commands = parser.add_mutually_exclusive_group()
    for flag, what in ((AGREE, "beside perf_analyzer"), (REPORT, "side by side")):
        commands.add_argument(flag, dest="command", action="store_const", const=flag, default=LOAD, help=what)
    return parser


def _weighted(text: str) -> tuple[str, float]:
    name, given, weight = text.partition("=")
    return name, tables.positive(float)(weight) if given else 1.0


def _run(options: argparse.Namespace) -> str:
    for name in UNUSED[options.command]:
        if getattr(options, name) != _parser().get_default(name):
            takers = " or ".join(command for command, unused in UNUSED.items() if name not in unused)
            raise BadOptions(f"--{name.replace('_', '-')}: goes with {takers}, not with {options.command}")
    options.way = options.way or ("triton" if options.url is None else "grpc")
    _check(options)
    if options.dry_run:
        return json.dumps(vars(options), default=str)
    return {LOAD: _loads, AGREE: _agree, REPORT: _report}[options.command](options)


def _check(options: argparse.Namespace) -> None:
    command, names = options.command, [name for name, _ in options.model]
    if again := next((name for name in names if names.count(name) > 1), None):
        raise BadOptions(f"--model {again}: given more than once; give it once, with its weight")
    if command != LOAD and any(weight != 1 for _, weight in options.model):
        raise BadOptions(f"--model NAME=WEIGHT: makes a mix, which {command} does not ask; leave the weight out")
    if command == AGREE and options.way not in COUNTERPARTS:
        raise BadOptions(f"--way {options.way}: perf_analyzer asks a Triton; give {', '.join(COUNTERPARTS)}")
    if command == AGREE and len(options.callers or ()) > 1:
        raise BadOptions("--callers: --agree takes one number; give it once")
    if options.url == "":
        raise BadOptions("--url: is empty; give the address of a Triton, such as localhost:8001, or leave it out")
    if options.url is not None and options.way not in servers.ELSEWHERE:
        raise BadOptions(f"--url: goes with --way {', '.join(servers.ELSEWHERE)}, not {options.way}")
    if "painter" in names and (command != LOAD or options.way in ("in-process", "tritonclient", "torchserve")):
        asker = f"--way {options.way}" if command == LOAD else command
        instead = "use a plain load with --way triton, grpc or sdk"
        raise BadOptions(f"--model painter: streams, which {asker} can't; {instead}")
    if options.requests and options.duration_s:
        raise BadOptions("--requests: instead of --duration-s; give one of them")
    fewest = options.callers and min(options.callers)
    if fewest and fewest < (options.processes or Plan.processes):
        raise BadOptions(f"--callers {fewest}: fewer than --processes {options.processes}; give one process each")
    tables.check_markers(options.write)


# --- loads on one target


def _loads(options: argparse.Namespace) -> str:
    weights = dict(options.model) or {"wgan": 1.0}
    mix = mixed(weights, options.repository)
    planned = {name: value for name in PLANNED if (value := getattr(options, name)) is not None}
    given = options.callers or options.rate
    callers = (options.callers or ()) if given else knee.STREAMS if "painter" in weights else knee.CALLERS
    rates = (options.rate or ()) if given else None
    with _target(options, list(weights)) as target:
        plan = Plan(target=target, load=ClosedLoop(1), mix=mix, **planned)
        with Generator(plan.processes) as generator:
            print(_line(HEAD), flush=True)
            results = knee.stages(generator, plan, callers, rates, _show)
    return _write_results(options, "+".join(weights), results)


def _target(options: argparse.Namespace, names: Sequence[str]) -> AbstractContextManager[Target]:
    if options.url is not None:
        return servers.elsewhere(options.way, options.url, names)
    return servers.WAYS[options.way](options.repository, names)


def _show(result: Result) -> None:
    for row in rows(result):
        print(_line(row), flush=True)
    for line in server_lines(result):
        print(f"    {line}", flush=True)


def _line(cells: Sequence[str]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def _write_results(options: argparse.Namespace, models: str, results: Sequence[Result]) -> str:
    """Writes plots, page and JSON; returns the JSON line."""
    folder = options.out / f"{models}-{options.way}"
    limit_ms = options.p99_ms or knee.limit_ms(results)
    found = knee.knee(results, limit_ms) if limit_ms else None
    verdict, about = _verdict(results, found, limit_ms) + _doubted(results), machine()
    print(verdict)
    report = {
        "models": models,
        "knee_per_s": found.data()["load"] if found else None,
        "limit_p99_ms": limit_ms,
        **about,
        "results": [result.data() for result in results],
    }
    pictures = plots.all_of(results, limit_ms, folder)
    beside = f"{results[0].plan.target.name}, {about['date']}, {tables.worded(about)}"
    page.write(folder / "report.html", f"{models} under load", beside, verdict, results, pictures)
    _write_json(folder / "results.json", report)
    print(f"{folder / 'report.html'}: the page; beside it {', '.join(path.name for path in pictures)}, results.json")
    return json.dumps(report)


def _verdict(results: Sequence[Result], found: Result | None, limit_ms: float | None) -> str:
    rates = knee.by_rate(results)
    if not any(isinstance(result.plan.load, OpenLoop) for result in results):
        return "No rate was tried, so there is no knee: give --rate, or leave out --callers."
    if not rates:
        return "No request arrived in any window, so there is no knee: give a longer --duration-s, or --requests."
    if limit_ms is None:
        return "No limit for the 99th percentile: give --p99-ms, or callers beside the rates."
    limit = f"The limit of p99 is {limit_ms:.4g} ms."
    broke = next((f"At {each.plan.load} {why}" for each in rates if (why := knee.shortfall(each, limit_ms))), "")
    if found is None:
        return f"No knee: the lowest rate at which requests came was not sustained. {broke}. {limit}"
    total = f"{found.plan.load} (p99 {found.percentile_ms(99):.4g} ms)"
    if not broke:
        return f"Knee: at least {total}; no requests came at a higher rate. {limit}"
    return f"Knee: {total} is the highest rate up to which every rate was sustained. {broke}. {limit}"


def _doubted(results: Sequence[Result]) -> str:
    loads = [str(result.plan.load) for result in results if result.doubts()]
    return f" The generator itself may be what was measured at {', '.join(loads)}." if loads else ""


def _write_json(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


# --- beside perf_analyzer, and side by side


def _agree(options: argparse.Namespace) -> str:
    perf_analyzer.find()
    found = []
    for model in [name for name, _ in options.model] or ["style", "classifier"]:
        (share,) = mixed({model: 1}, options.repository)
        with servers.WAYS[options.way](options.repository, [model]) as target:
            (callers,) = options.callers or [AGREE_CALLERS.get(model, AGREE_CALLERS_ELSE)]
            rounds, usual_s = (1, 3.0) if options.quick else (5, 12.0)
            window_s = options.duration_s or usual_s
            found.append(perf_analyzer.agree(target, share, callers, rounds=rounds, window_s=window_s).data())
        print(_agreement(options.way, found[-1]))
    report = {**machine(), "way": options.way, "agreement": found}
    _write_json(options.out / "agreement.json", report)
    return json.dumps(report)


def _agreement(way: str, found: dict[str, Any]) -> str:
    """Two measurements of one thing agree within a tenth; of the SDK it is asked to make so much of perf_analyzer's."""
    throughput, p50 = found["throughput_ratio"], found["p50_ratio"]
    if way in ("sdk", "sdk-threads"):
        kept, aim = throughput >= LEAST_AGREED, f"throughput {LEAST_AGREED} or more"
    else:
        kept = all(LEAST_AGREED <= ratio <= MOST_AGREED for ratio in (throughput, p50))
        aim = f"both from {LEAST_AGREED} to {MOST_AGREED}"
    verdict = "kept  " if kept else "MISSED"
    return f"{verdict}  {found['model']}: throughput {throughput}, p50 {p50} of perf_analyzer's; aim {aim}"


def _report(options: argparse.Namespace) -> str:
    names = [name for name, _ in options.model] or [n for n in models(options.repository) if n != "painter"]
    times = side_by_side.QUICK if options.quick else side_by_side.Times()
    if options.duration_s:
        times = replace(times, duration_s=options.duration_s, open_s=options.duration_s)
    compared = side_by_side.compare(options.repository, names, times, lambda line: print(line, flush=True))
    made = tables.table(compared, times)
    report = {**machine(), "rounds": times.rounds, "models": tables.data(compared)}
    windows = [
        {"model": row.model, "way": row.way, **result.data()}
        for row in compared
        for results in row.results.values()
        for result in results
    ]
    _write_json(options.out / "report.json", report | {"windows": windows})
    (options.out / "report.md").write_text(made + "\n", encoding="utf-8")
    tables.write(options.write, compared, times)
    print(made)
    return json.dumps(report)


if __name__ == "__main__":
    sys.exit(main())
