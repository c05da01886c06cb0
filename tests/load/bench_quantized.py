"""What 8-bit integers are worth on this CPU: graphs as they are served, against the same in floats.

Run: PYTHONPATH=. python tests/load/bench_quantized.py --model style      (last line of stdout: one JSON object)

Without --model, all that are quantized. Both run in process on one thread, in turn, in the same run; figures are
medians. The floats are what TensorRT is given.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from serving import cli
from serving.repository import MODEL, REPOSITORY
from serving.spec import ModelSpec
from serving.tensorrt import dequantized
from tests.load import tables
from tests.load.questions import SIDES, folder, open_session, random_inputs
from training import catalog

QUANTIZED = [name for name in catalog.names() if getattr(catalog.served(name), "quantized", False)]


def main() -> None:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=QUANTIZED, action="append", help="again for more; default all")
    parser.add_argument("--rounds", type=tables.positive(int), default=20)
    parser.add_argument("--batch", type=tables.positive(int), nargs="+", default=[1, 8])
    asked = parser.parse_args()
    told: dict[str, object] = {"bench": "quantized", "cores": os.cpu_count()}
    for name in asked.model or QUANTIZED:
        model = catalog.spec(name)
        sessions = opened(model)
        for batch in asked.batch:
            integers, floats = medians(sessions, model, batch, asked.rounds)
            print(
                f"{name}, batch {batch}: {integers:.3g} ms a picture, {floats:.3g} in floats: {floats / integers:.2f}"
            )
            told[f"{name}_{batch}"] = {"integers_ms": round(integers, 3), "floats_ms": round(floats, 3)}
    print(json.dumps(told))


def opened(model: ModelSpec) -> list[onnxruntime.InferenceSession]:
    """Its newest version's graph, in integers and in floats."""
    served = folder(REPOSITORY, model.name) / MODEL
    with tempfile.TemporaryDirectory() as scratch:
        floats = Path(scratch) / MODEL
        floats.write_bytes(dequantized(onnx.load(served)).SerializeToString())
        return [open_session(path, model) for path in (served, floats)]


def medians(
    sessions: list[onnxruntime.InferenceSession], model: ModelSpec, batch: int, rounds: int
) -> tuple[float, ...]:
    """Of each session, the milliseconds that it takes for a picture of a batch."""
    arrays = random_inputs(model, batch, SIDES.get(model.name, model.inputs[0].shape[0]))
    feed = {tensor.name: array for tensor, array in zip(model.inputs, arrays, strict=True)}
    calls = max(1, 100 // batch) if np.prod(arrays[0].shape[1:]) < 1024 else 1  # a small one's are timed together
    took_ms: list[list[float]] = [[] for _ in sessions]
    for _ in range(rounds):
        for session, took in zip(sessions, took_ms, strict=True):
            begun = time.perf_counter()
            for _ in range(calls):
                session.run(None, feed)
            took.append(1000 * (time.perf_counter() - begun) / calls / batch)
    return tuple(map(statistics.median, took_ms))


if __name__ == "__main__":
    main()
