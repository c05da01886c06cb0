"""What 8-bit integers are worth on this CPU: the classifier's graph as it is served, against the same in floats.

Run: PYTHONPATH=. python tests/load/bench_quantized.py      (last line of stdout: one JSON object)

Both run in process on one thread, in turn, in the same run; figures are medians. The floats are what TensorRT is given.
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

from serving import cli
from serving.repository import MODEL, REPOSITORY
from serving.tensorrt import dequantized
from tests.load import tables
from tests.load.questions import folder, open_session
from training.catalog import spec


def main() -> None:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=tables.positive(int), default=20)
    parser.add_argument("--batch", type=tables.positive(int), nargs="+", default=[1, 8])
    asked = parser.parse_args()
    model, served = spec("classifier"), folder(REPOSITORY, "classifier") / MODEL
    told: dict[str, object] = {"bench": "quantized", "model": model.name, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as scratch:
        floats = Path(scratch) / MODEL
        floats.write_bytes(dequantized(onnx.load(served)).SerializeToString())
        sessions = {"integers": open_session(served, model), "floats": open_session(floats, model)}
    for batch in asked.batch:
        pictures = np.random.default_rng(0).integers(0, 256, (batch, 28, 28, 1), np.uint8)
        took_ms: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(asked.rounds):
            for name, session in sessions.items():
                begun = time.perf_counter()
                for _ in range(calls := max(1, 100 // batch)):
                    session.run(None, {"image": pictures})
                took_ms[name].append(1000 * (time.perf_counter() - begun) / calls / batch)
        integers, in_floats_ms = (statistics.median(took_ms[name]) for name in sessions)
        ratio = in_floats_ms / integers
        print(f"batch {batch}: {integers:.3f} ms a picture, {in_floats_ms:.3f} in floats: {ratio:.2f} times")
        told[f"batch_{batch}"] = {"integers_ms": round(integers, 3), "floats_ms": round(in_floats_ms, 3)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
