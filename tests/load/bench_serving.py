"""What serving costs over running the model: through Triton and the SDK, against ONNX Runtime alone.

Run: make bench      (last line of stdout: one JSON object)

    python -m tests.load.bench_serving                        wgan: 20 frames of a walk, and a ratio
    python -m tests.load.bench_serving --model classifier     one picture at a time, and a difference
    python -m tests.load.bench_serving --model style          pictures a second, beside Johnson's network
    python -m tests.load.bench_serving --model upscaler       pictures a second; so for colorizer

All sides run the same inputs in the same run, in turn, with the same threads; figures are medians. wgan gets one call
at a time, in process with the threads that its instances have together, the classifier one request, the others two.
In process is ONNX Runtime at its best: its threads spin while they wait. A pause before each turn of wgan lets them
sleep, or they would take their cores away from the server; the others run on the callers' own threads.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from PIL import Image

import atelier
from serving import cli
from serving.embedded import Embedded
from serving.repository import MODEL, REPOSITORY, newest
from serving.spec import ModelSpec
from tests.load import benches, tables
from tests.load.benches import seconds
from tests.load.measure import CORES, STAGES
from tests.load.questions import LAST_STAGE, SIDES, batch, folder, open_session, random_inputs
from training.catalog import spec

PERCENTILES = (50, 95, 99)


def in_process(repository: Path, model: ModelSpec) -> Callable[..., np.ndarray]:
    """The same graph, called with the model's inputs in order."""
    return ordered(folder(repository, model.name) / MODEL, model)


def ordered(path: Path, model: ModelSpec) -> Callable[..., np.ndarray]:
    session, names = open_session(path, model), [tensor.name for tensor in model.inputs]
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]


def show(name: str, values: list[float]) -> None:
    shown = ", ".join(f"p{p} {1000 * np.percentile(values, p):6.2f} ms" for p in PERCENTILES)
    print(f"{name:28} {shown}")


# --- wgan: many pictures in one call ---


def bench_wgan(repository: Path, frames: int, rounds: int) -> dict[str, Any]:
    wgan = spec("wgan")
    threads = wgan.instances * wgan.threads
    run = in_process(repository, replace(wgan, threads=threads))
    latents = np.random.default_rng(0).standard_normal((frames, 100)).astype(np.float32)
    alone: list[float] = []
    served: list[float] = []
    with Embedded(repository, models=["wgan"]) as server, atelier.Client(server.grpc) as client:
        for _ in range(3):  # warm-up: the first runs allocate
            run(latents)
            client.generate(latents)
        for _ in range(rounds):
            time.sleep(0.1)
            alone.append(seconds(lambda: run(latents)))
            time.sleep(0.1)
            served.append(seconds(lambda: client.generate(latents)))

    ratio = statistics.median(s / a for s, a in zip(served, alone, strict=True))
    print(f"{frames} frames, {rounds} rounds in turn, {threads} threads, {CORES} cores")
    show("ONNX Runtime in process", alone)
    show("Triton through the SDK", served)
    print(f"served / in process: {ratio:.2f} (median of the rounds' ratios)")
    return {
        "frames": frames,
        "rounds": rounds,
        "threads": threads,
        "ratio": round(ratio, 3),
        "in_process_s": statistics.median(alone),
        "served_s": statistics.median(served),
    }


# --- classifier: one picture in each call ---


def bench_classifier(repository: Path, requests: int) -> dict[str, Any]:
    classifier = spec("classifier")
    run = in_process(repository, classifier)
    pictures = batch(repository, classifier, requests)["image"][:, None]
    with (
        Embedded(repository, models=["classifier"]) as server,
        triton.InferenceServerClient(server.grpc) as plain,
        atelier.Client(server.grpc) as client,
    ):
        ways: dict[str, Callable[[np.ndarray], object]] = {
            "ONNX Runtime in process": run,
            "Triton through tritonclient": lambda picture: infer(plain, classifier, picture),
            "Triton through the SDK": lambda picture: client.classify(picture[..., 0]),
        }
        for picture in pictures[:50]:  # warm-up
            for ask in ways.values():
                ask(picture)
        times: dict[str, list[float]] = {name: [] for name in ways}
        before = stages_us(plain)
        for k, picture in enumerate(pictures):
            turn = k % len(ways)  # each begins as often: what ran before leaves its mark on the caches
            for name in [*ways, *ways][turn : turn + len(ways)]:
                times[name].append(seconds(partial(ways[name], picture)))
        inside = (stages_us(plain) - before) / (2 * requests)

    alone, through, served = (1000 * statistics.median(values) for values in times.values())
    print(f"{requests} pictures one by one, in turn, {classifier.threads} thread, {CORES} cores")
    for name, values in times.items():
        show(name, values)
    print(f"served - in process: {served - alone:.2f} ms ({through - alone:.2f} ms without the SDK), between medians")
    print(f"SDK / tritonclient: {served / through:.2f}")
    print("within the server, mean: " + ", ".join(f"{n} {us:.0f} us" for n, us in zip(STAGES, inside, strict=True)))
    return {
        "requests": requests,
        "over_ms": round(served - alone, 3),
        "over_without_sdk_ms": round(through - alone, 3),
        "sdk_to_tritonclient": round(served / through, 3),
        "in_process_ms": round(alone, 3),
        "served_ms": round(served, 3),
        "server_mean_us": dict(zip(STAGES, inside.round(1).tolist(), strict=True)),
    }


def infer(client: triton.InferenceServerClient, model: ModelSpec, *arrays: np.ndarray) -> np.ndarray | None:
    """One batch of the model's inputs, in order."""
    given = []
    for tensor, array in zip(model.inputs, arrays, strict=True):
        given.append(triton.InferInput(tensor.name, array.shape, tensor.dtype))
        given[-1].set_data_from_numpy(array)
    return client.infer(model.name, given, client_timeout=60).as_numpy(model.outputs[0].name)


def stages_us(client: triton.InferenceServerClient) -> np.ndarray:
    """The time that the server has spent on requests so far, by stage, in microseconds."""
    (stats,) = client.get_inference_statistics("classifier").model_stats
    return np.array([getattr(stats.inference_stats, stage).ns / 1000 for stage in STAGES])


# --- style, upscaler, colorizer: as many pictures at once as there are cores for ---

LEAST_SIDE = 16
BATCH = 4


def bench_pictures(repository: Path, name: str, pictures: int, rounds: int, side: int) -> dict[str, Any]:
    """Each way makes as many pictures with two callers, in every round; of style the last is the paper's network."""
    model = spec(name)
    inputs = random_inputs(model, pictures, side)
    run = in_process(repository, model)

    def rows(k: int, count: int = 1) -> list[np.ndarray]:
        return [array[k * count : (k + 1) * count] for array in inputs]

    with (
        tempfile.TemporaryDirectory() as scratch,
        Embedded(repository, models=[name]) as server,
        atelier.Client(server.grpc) as client,
        triton.InferenceServerClient(server.grpc) as bare,
    ):
        ask = through_sdk(client, name, inputs[0])
        ways: dict[str, Callable[[], object]] = {
            "ONNX Runtime in process": lambda: by_two_callers(lambda k: run(*rows(k)), pictures),
            "Triton through tritonclient": lambda: by_two_callers(lambda k: infer(bare, model, *rows(k)), pictures),
            f"Triton, batches of {BATCH}": lambda: by_two_callers(
                lambda k: infer(bare, model, *rows(k, BATCH)), pictures // BATCH
            ),
            "Triton through the SDK": lambda: by_two_callers(ask, pictures),
        }
        if name == "style":
            plain = ordered(johnson(Path(scratch) / MODEL, len(model.inputs[1].members)), model)
            ways["Johnson's network, plain"] = lambda: by_two_callers(lambda k: plain(*rows(k)), pictures)
        times: dict[str, list[float]] = {way: [] for way in ways}
        for measured in range(-1, rounds):  # one round of warm-up
            for way, make in ways.items():
                took = seconds(make) / pictures
                if measured >= 0:
                    times[way].append(took)

    print(f"{pictures} pictures of {side} x {side} in each of {rounds} rounds, 2 callers, {CORES} cores")
    for way, values in times.items():
        print(f"{way:28} {1000 * statistics.median(values):6.1f} ms a picture")
    alone, through, batched, served, *johnsons = times.values()
    ratios = {
        "triton_to_in_process": ratio(alone, through),
        f"batches_of_{BATCH}_to_single": ratio(through, batched),
        "sdk_to_in_process": ratio(alone, served),
        "sdk_to_tritonclient": ratio(through, served),
    }
    if johnsons:
        ratios["ours_to_johnsons"] = ratio(*johnsons, alone)
    print("throughput: " + ", ".join(f"{which.replace('_', ' ')} {value:.2f}" for which, value in ratios.items()))
    return {"pictures": pictures, "rounds": rounds, "side": side, **{k: round(v, 3) for k, v in ratios.items()}}


def through_sdk(client: atelier.Client, name: str, pictures: np.ndarray) -> Callable[[int], object]:
    """What asks for the same of picture k."""
    shown = [Image.fromarray(picture.squeeze()) for picture in pictures]  # a gray one has no channels in Pillow
    if name == "style":
        first = client.styles()[0]
        return lambda k: client.stylize(shown[k], first)
    if name == "colorizer":
        return lambda k: client.colorize(shown[k], stage=LAST_STAGE)
    return lambda k: client.upscale(shown[k])


def johnson(path: Path, styles: int) -> Path:
    """The paper's network, untrained, as training.export writes any."""
    from training.export import write_onnx
    from training.models.style.net import Served, StyleNet
    from training.models.style.train import JOHNSON

    net = Served(StyleNet(styles, JOHNSON["widths"], outer=JOHNSON["outer"]), (), {}).eval()
    content, weights = np.zeros((1, 32, 32, 3), np.uint8), np.ones((1, styles), np.float32)
    write_onnx(net, spec("style"), {"content": content, "style_weights": weights}, path)
    return path


def by_two_callers(paint: Callable[[int], object], count: int) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(paint, range(count)))


def ratio(slow: list[float], fast: list[float]) -> float:
    """How many times as many pictures the second way makes: the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def main() -> int:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("wgan", "classifier", *SIDES), default="wgan")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="default %(default)s")
    parser.add_argument("--frames", type=tables.positive(int), default=20, help="of wgan, in each call")
    parser.add_argument("--rounds", type=tables.positive(int), default=30, help="of all but the classifier")
    parser.add_argument(
        "--pictures", type=tables.positive(int), default=8, help=f"of {', '.join(SIDES)}, in each round"
    )
    sides = ", ".join(f"{name} {side}" for name, side in SIDES.items())
    parser.add_argument("--side", type=tables.positive(int), help=f"of their pictures, in pixels; left out: {sides}")
    parser.add_argument("--requests", type=tables.positive(int), default=2000, help="to the classifier")
    args = parser.parse_args()
    if args.pictures < BATCH or args.pictures % BATCH:
        parser.error(f"--pictures: {args.pictures} do not make batches of {BATCH}; give a multiple of {BATCH}")
    if args.side and args.side < LEAST_SIDE:
        parser.error(f"--side: {args.side} is too few pixels for a picture; give {LEAST_SIDE} or more")
    largest = spec(args.model).max_pixels
    if args.side and args.side**2 > largest > 0:
        parser.error(f"--side: {args.side} is more than {args.model} takes; give {math.isqrt(largest)} or less")
    return benches.run(report, args)


def report(args: argparse.Namespace) -> dict[str, Any]:
    version = newest(args.repository, args.model)
    if args.model == "wgan":
        measured = bench_wgan(args.repository, args.frames, args.rounds)
    elif args.model == "classifier":
        measured = bench_classifier(args.repository, args.requests)
    else:
        side = args.side or SIDES[args.model]
        measured = bench_pictures(args.repository, args.model, args.pictures, args.rounds, side)
    about = {"bench": "serving", "model": args.model, "version": version, "threads": spec(args.model).threads}
    return about | measured


if __name__ == "__main__":
    sys.exit(main())
