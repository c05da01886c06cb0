"""What serving costs over running the model: 20 frames of a walk through Triton and the SDK against ONNX Runtime alone.

Run: make bench      (last line of stdout: one JSON object)

Both sides run the same 20 latents in the same run, in turn, with the same threads; figures are medians of the rounds.
In process is ONNX Runtime at its best: its threads spin while they wait. A pause before each turn lets them sleep, or
they would take their cores away from the server.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

import atelier
from serving.embedded import Embedded
from serving.repository import REPOSITORY, newest
from training.catalog import spec


def in_process(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """The same graph with as many threads as the server's, and ONNX Runtime's defaults otherwise."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda latents: session.run(["image"], {"latent": latents})[0]


def seconds(action: Callable[[], object]) -> float:
    time.sleep(0.1)
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def percentile(values: list[float], share: float) -> float:
    return float(np.percentile(values, 100 * share))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()

    wgan = spec("wgan")
    version = newest(REPOSITORY, "wgan")
    run = in_process(REPOSITORY / "wgan" / str(version) / "model.onnx", wgan.threads)
    latents = np.random.default_rng(0).standard_normal((args.frames, 100)).astype(np.float32)
    alone: list[float] = []
    served: list[float] = []
    with Embedded(REPOSITORY, models=["wgan"]) as server, atelier.Client(server.grpc) as client:
        for _ in range(3):  # warm-up: the first runs allocate
            run(latents)
            client.generate(latents)
        for _ in range(args.rounds):
            alone.append(seconds(lambda: run(latents)))
            served.append(seconds(lambda: client.generate(latents)))

    ratio = statistics.median(s / a for s, a in zip(served, alone, strict=True))
    print(f"{args.frames} frames, {args.rounds} rounds in turn, {wgan.threads} threads, {os.cpu_count()} cores")
    for name, values in (("ONNX Runtime in process", alone), ("Triton through the SDK", served)):
        shares = ", ".join(f"p{round(100 * p)} {1000 * percentile(values, p):6.1f} ms" for p in (0.5, 0.95, 0.99))
        print(f"{name:26} {shares}")
    print(f"served / in process: {ratio:.2f} (median of the rounds' ratios)")
    print(
        json.dumps(
            {
                "bench": "serving",
                "model": "wgan",
                "version": version,
                "frames": args.frames,
                "rounds": args.rounds,
                "ratio": round(ratio, 3),
                "in_process_s": statistics.median(alone),
                "served_s": statistics.median(served),
                "threads": wgan.threads,
                "cores": os.cpu_count(),
                "machine": platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
