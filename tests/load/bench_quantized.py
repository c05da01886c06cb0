"""What a graph as it is served wins on this CPU, over the same as TensorRT is given it: in floats, and all nets asked.

Run: python -m tests.load.bench_quantized --model style      (last line of stdout: one JSON object)

Without --model, all that are quantized. Both run in process on one thread, in turn, in the same run, on the same
pictures; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx

from serving import cli
from serving.repository import MODEL, REPOSITORY
from serving.spec import ModelSpec
from serving.tensorrt import for_gpus
from tests.load import benches, tables
from tests.load.questions import SIDES, batch, folder, open_session
from training import catalog

import onnxruntime

QUANTIZED = [name for name in catalog.names() if getattr(catalog.served(name), "quantized", False)]
GARMENTS = 64
"""pictures in a round, where they are small and one may take longer than another; else a batch"""


def main() -> int:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=QUANTIZED, action="append", help="again for more; default all")
    parser.add_argument("--rounds", type=tables.positive(int), default=20)
    parser.add_argument("--batch", type=tables.positive(int), nargs="+", default=[1, 8])
    return benches.run(report, parser.parse_args())


def report(asked: argparse.Namespace) -> dict[str, Any]:
    told: dict[str, Any] = {"bench": "quantized"}
    for name in asked.model or QUANTIZED:
        model = catalog.spec(name)
        sessions = opened(model)
        for size in asked.batch:
            served, plain = (medians := measured(sessions, model, size, asked.rounds))
            print(f"{name}, batch {size}: {served:.3g} ms a picture, {plain:.3g} as on GPUs: {plain / served:.2f}")
            told[f"{name}_{size}"] = dict(zip(("served_ms", "plain_ms"), medians, strict=True))
    return told


def opened(model: ModelSpec) -> list[onnxruntime.InferenceSession]:
    """Its newest version's graph, as it is served and as TensorRT is given it."""
    served = folder(REPOSITORY, model.name) / MODEL
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / MODEL
        plain.write_bytes(for_gpus(onnx.load(served)).SerializeToString())
        return [open_session(path, model) for path in (served, plain)]


def measured(sessions: list[onnxruntime.InferenceSession], model: ModelSpec, size: int, rounds: int) -> list[float]:
    """Of each session, the milliseconds that it takes for a picture in batches of `size`."""
    count = size if model.name in SIDES else max(GARMENTS // size, 1) * size
    pictures = batch(REPOSITORY, model, count)
    took_ms: list[list[float]] = [[] for _ in sessions]
    for _ in range(rounds):
        for session, took in zip(sessions, took_ms, strict=True):
            begun = time.perf_counter()
            for first in range(0, count, size):
                session.run(None, {name: array[first : first + size] for name, array in pictures.items()})
            took.append(1000 * (time.perf_counter() - begun) / count)
    return [round(statistics.median(took), 3) for took in took_ms]


if __name__ == "__main__":
    sys.exit(main())
