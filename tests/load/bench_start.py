"""How soon the embedded server answers with all models loaded, and what memory it takes until it is asked anything.

Run: python -m tests.load.bench_start      (last line of stdout: one JSON object)

It starts in turn with all models and with each alone; figures are medians over the rounds. Ready is when every model
would answer, warmed up. Memory is the sum of the processes' proportional sizes (PSS).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from serving import cli
from serving.embedded import Embedded
from serving.repository import REPOSITORY, models
from tests import traces
from tests.load import benches, tables
from tests.load.measure import pss_bytes

ALL = "all"


def main() -> int:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="default %(default)s")
    parser.add_argument("--rounds", type=tables.positive(int), default=5, help="default %(default)s")
    return benches.run(report, parser.parse_args())


def report(asked: argparse.Namespace) -> dict[str, Any]:
    served = {ALL: [], **{name: [name] for name in models(asked.repository)}}
    rounds = [{name: started(asked.repository, these) for name, these in served.items()} for _ in range(asked.rounds)]
    told = {}
    for name in served:
        ready_s, idle_mib = (statistics.median(values) for values in zip(*(each[name] for each in rounds), strict=True))
        print(f"{name:12} ready in {ready_s:5.2f} s, {idle_mib:5.0f} MiB idle")
        told[name] = {"ready_s": round(ready_s, 3), "idle_mib": round(idle_mib)}
    return {"bench": "start", "rounds": asked.rounds, "models": told}


def started(repository: Path, names: list[str]) -> tuple[float, float]:
    """Seconds until it was ready, and the MiB that it then took."""
    begun = time.perf_counter()
    with Embedded(repository, models=names) as server:
        ready_s = time.perf_counter() - begun
        return ready_s, pss_bytes(traces.processes(traces.server_id(server.http))) / 2**20


if __name__ == "__main__":
    sys.exit(main())
