"""A comparison in human-readable form: Markdown tables, which are written into files between markers.

`<!-- load-report -->` and `<!-- /load-report -->` enclose every way to serve every model, `<!-- capacity -->` and
`<!-- /capacity -->` the capacity of a replica of Triton.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from serving.errors import RepositoryError
from serving.spec import Ensemble
from tests.load.measure import machine
from tests.load.questions import served
from tests.load.side_by_side import CALLERS, SHARES, Row, Times

Number = TypeVar("Number", int, float)

HEAD = (
    "model", "way", *(f"{callers} caller{'s' * (callers != 1)}, /s" for callers in CALLERS), "of in process",
    f"p99 at {CALLERS[-1]}, ms", *(f"p50, p99 at {share:.0%}, ms" for share in SHARES), "MiB", "failed",
)  # fmt: skip

HIGHEST_SHARE = max(SHARES)
TARGET_UTILISATION = 0.7
"""of a replica's capacity; deploy/README.md has the formula"""
TARGET_RATES = (10, 100, 1000)
CAPACITY_HEAD = (
    "model", "most requests/s of a replica", f"p50, p99 at {HIGHEST_SHARE:.0%} of that, ms",
    *(f"replicas for {target}/s" for target in TARGET_RATES),
)  # fmt: skip


def data(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        row.model: {
            each.way: {
                "per_s": {str(callers): _short(each.per_s(callers)) for callers in CALLERS},
                "of_in_process": _short(_ratio(each, rows)),
                "p99_ms": {str(load): _short(each.percentile_ms(load, 99)) for load in each.results},
                "failed": each.failed,
                "memory_mib": _short(each.memory_mib),
            }
            for each in rows
            if each.model == row.model
        }
        for row in rows
    }


def table(rows: Sequence[Row], times: Times) -> str:
    """The table of all ways, side by side."""
    windows = [result for row in rows for results in row.results.values() for result in results]
    doubtful = sum(bool(result.doubts()) for result in windows)
    how = f"medians of {times.rounds} rounds of {times.duration_s:g} s, in open loop of {times.open_s:g} s"
    head = _measured(how, rows)
    note = f"The generator doubts {doubtful} of its {len(windows)} windows." if doubtful else ""
    lines = [f"| {' | '.join(HEAD)} |", f"|---|---|{'---:|' * (len(HEAD) - 2)}"]
    lines += [f"| {' | '.join(_cells(row, rows))} |" for row in rows]
    return "\n".join([f"{head} {note}".rstrip(), "", *lines])


def capacity(rows: Sequence[Row], times: Times) -> str:
    """The table of one Triton's capacity with the whole machine, and the number of replicas that each target rate
    needs."""
    head = _measured(f"medians of {times.rounds} rounds", rows)
    lines = [f"| {' | '.join(CAPACITY_HEAD)} |", f"|---|{'---:|' * (len(CAPACITY_HEAD) - 1)}"]
    for row in rows:
        if row.way == "triton":
            rate = TARGET_UTILISATION * row.capacity  # of one replica
            needed = [str(math.ceil(target / rate) + 1) if rate else "-" for target in TARGET_RATES]
            cells = [row.model, _figure(row.capacity, 4), _p50_p99(row, HIGHEST_SHARE), *needed]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([head, "", *lines])


MARKED: dict[str, Callable[[Sequence[Row], Times], str]] = {"load-report": table, "capacity": capacity}


def _cells(row: Row, rows: Sequence[Row]) -> list[str]:
    ratio, memory = _ratio(row, rows), row.memory_mib
    return [
        row.model,
        row.way,
        *(_figure(row.per_s(callers), 4) for callers in CALLERS),
        "-" if ratio is None else f"{ratio:.2f}",
        _figure(row.percentile_ms(CALLERS[-1], 99)),
        *(_p50_p99(row, share) for share in SHARES),
        "-" if memory is None else f"{memory:.0f}",
        str(row.failed or "-"),
    ]


def _p50_p99(row: Row, share: float) -> str:
    if share not in row.results or math.isinf(row.percentile_ms(share, 50)):
        return "-"
    return f"{_figure(row.percentile_ms(share, 50))}, {_figure(row.percentile_ms(share, 99))}"


def _ratio(row: Row, rows: Sequence[Row]) -> float | None:
    """The row's capacity relative to that in process."""
    ceilings = [each.capacity for each in rows if (each.model, each.way) == (row.model, "in-process")]
    return row.capacity / ceilings[0] if ceilings and ceilings[0] else None


def _figure(value: float, digits: int = 3) -> str:
    """The number without an exponent; "-" for an infinite latency."""
    return "-" if math.isinf(value) else f"{float(f'{value:.{digits}g}'):g}"


def _short(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else float(f"{value:.4g}")


def _threads(rows: Sequence[Row]) -> str:
    """Instances and threads of each model; an ensemble has those of its steps."""
    models = [served(model) for model in dict.fromkeys(row.model for row in rows)]
    alone = [model for model in models if not isinstance(model, Ensemble)]
    return "instances x threads " + ", ".join(f"{m.name} {m.instances} x {m.threads}" for m in alone)


def _measured(how: str, rows: Sequence[Row]) -> str:
    about = machine()
    return f"Measured on {about['date']}, {how}: {worded(about)}; {_threads(rows)}."


def worded(about: dict[str, Any]) -> str:
    """`measure.machine()` in words, without the date."""
    return f"{about['cores']} cores of {about['machine']}, generator beside the server"


def check_markers(paths: Iterable[Path]) -> None:
    """Raises RepositoryError for a file that no table can be written into. Call it before measuring."""
    for path in paths:
        try:
            with path.open("r+", encoding="utf-8") as file:  # checks that it is writable, and leaves it unchanged
                text = file.read()
        except UnicodeDecodeError as exc:
            raise RepositoryError(f"--write {path}: is not UTF-8; name a text file with markers") from exc
        except OSError as exc:
            raise RepositoryError(f"--write {path}: {exc.strerror or exc}") from exc
        if not any(_is_marked(text, name) for name in MARKED):
            pairs = " or ".join(" and ".join(_markers(name)) for name in MARKED)
            raise RepositoryError(f"--write {path}: needs the lines {pairs}, once, in this order")


def positive(kind: type[Number]) -> Callable[[str], Number]:
    """For argparse: an int or a float above 0."""
    wanted = "a whole number, 1 or more" if kind is int else "a number above 0"

    def number(text: str) -> Number:
        with contextlib.suppress(ValueError):
            if 0 < (value := kind(text)) < math.inf:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} must be {wanted}")

    return number


def folder(text: str) -> Path:
    """For argparse: a folder that is writable or can be created. This is tried before measuring."""
    path = Path(text)
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return path
    except OSError as exc:
        said = f"{there}: {exc.strerror}; give a folder that can be written"
        raise argparse.ArgumentTypeError(said) from exc


def file(text: str) -> Path:
    """For argparse: a file in such a folder."""
    return folder(str(Path(text).parent)) / Path(text).name


def write(paths: Iterable[Path], rows: Sequence[Row], times: Times) -> None:
    """Writes each table between its markers, if a file has them. All texts are made before the first is written."""
    texts = {path: _written(path.read_text(encoding="utf-8"), rows, times) for path in paths}
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


def _written(text: str, rows: Sequence[Row], times: Times) -> str:
    for name, made in MARKED.items():
        if _is_marked(text, name):
            begin, end = _markers(name)
            before, _, rest = text.partition(begin)
            text = f"{before}{begin}\n\n{made(rows, times)}\n\n{end}{rest.partition(end)[2]}"
    return text


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name} -->", f"<!-- /{name} -->"


def _is_marked(text: str, name: str) -> bool:
    begin, end = _markers(name)
    return text.count(begin) == text.count(end) == 1 and text.index(begin) < text.index(end)
