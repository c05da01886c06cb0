"""TensorRT plans for a model repository, built on the GPU that will serve them.

Run: python -m serving.tensorrt --repository /models     (an init container of Triton's pod, on that GPU)

For the versions in service, it builds each plan that is missing or was built for another GPU, TensorRT or graph; then
Triton, with --model-config-name=tensorrt, serves the plans. If one of a model's plans can't be built, its ONNX graphs
are served: the log says why, and the exit status is 0, as there is something to serve. Replicas already running keep
serving what they have loaded. Without a GPU or TensorRT nothing changes, and the exit status is 2.

A plan computes in half precision, so its pictures differ from the graph's by a few levels; `gpu_atol` in config.pbtxt
is the difference that serving.verify allows. A plan accepts pictures whose sides are at most 1.4 times the square root
of max_pixels; Triton rejects longer ones, which the graph accepts.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tritonclient.grpc import model_config_pb2 as pb

from serving import cli, files, plans, verify
from serving import repository as repo
from serving.errors import PlanError, RepositoryError
from serving.plans import Target
from serving.repository import REPOSITORY

if TYPE_CHECKING:
    import onnx

TIMING_CACHE = ".tensorrt-timings"
"""At the repository's root: TensorRT's timing cache, with which the next build need not time the same kernels again."""
LIMIT_S = 900.0
TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
"""Its path in NVIDIA's images, tried after the PATH."""
MIN_SIDE, OPT_SIDE, MAX_SIDE = 16, 512, 2048
"""Sides of a picture of variable size, in pixels. MAX_SIDE is for models without max_pixels, else derived from that."""
MAX_ASPECT_RATIO = 2
"""Largest aspect ratio of a picture of max_pixels pixels."""
ERRORS_SHOWN = 5

ShapeRange = tuple[list[int], list[int], list[int]]
"""An input's minimum, optimum and maximum in an optimization profile; kernels are chosen for the optimum."""

log = logging.getLogger("atelier.tensorrt")


# --- the builder and its GPU

BuildCommand = Callable[[Path, Path, Path, dict[str, ShapeRange]], list[str]]
"""Makes a build's command line from the paths of graph, plan and timing cache, and the optimization profile."""


@dataclass(frozen=True)
class Builder:
    """The TensorRT installed here, and the GPU it builds for."""

    target: Target
    command: BuildCommand


def builder() -> Builder:
    """TensorRT's API, or else trtexec. Raises PlanError if there is neither, no GPU, or no onnx or onnxruntime."""
    try:
        import tensorrt_bindings
    except ImportError:  # not installed, or without TensorRT's libraries
        command, version = _trtexec()
    else:
        command, version = _api_command, str(tensorrt_bindings.__version__)
    target = Target(gpu(), version)
    for package in ("onnx", "onnxruntime"):  # imported by half()
        if importlib.util.find_spec(package) is None:
            raise PlanError(f"{package} is not installed: pip install '.[gpu]'")
    return Builder(target, command)


def _trtexec() -> tuple[BuildCommand, str]:
    found = shutil.which("trtexec") or shutil.which(TRTEXEC)
    version = os.environ.get("TRT_VERSION", "").partition("+")[0]  # set in NVIDIA's images
    if not found or not version:
        lacking = "$TRT_VERSION" if found else "tensorrt_bindings or trtexec"
        raise PlanError(f"no TensorRT here (no {lacking}); the image serving-gpu of deploy/images has it")
    return partial(_trtexec_command, found), version


def _api_command(graph: Path, plan: Path, timing_cache: Path, shapes: dict[str, ShapeRange]) -> list[str]:
    from serving.planner import Order

    order = graph.with_suffix(".json")
    Order(str(graph), str(plan), str(timing_cache), shapes).write(order)
    return [sys.executable, "-m", "serving.planner", str(order)]


def _trtexec_command(
    trtexec: str, graph: Path, plan: Path, timing_cache: Path, shapes: dict[str, ShapeRange]
) -> list[str]:
    def listed(which: int) -> str:
        return ",".join(f"{name}:{'x'.join(map(str, limits[which]))}" for name, limits in shapes.items())

    paths = [f"--onnx={graph}", f"--saveEngine={plan}", f"--timingCacheFile={timing_cache}"]
    profile = [f"--minShapes={listed(0)}", f"--optShapes={listed(1)}", f"--maxShapes={listed(2)}"]
    return [trtexec, *paths, *profile, "--stronglyTyped", "--skipInference"]


def gpu() -> str:
    """Name and compute capability of this machine's GPU. Raises PlanError if there is none, or if they are of several
    kinds."""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except OSError as exc:
        raise PlanError(f"no NVIDIA GPU here (nvidia-smi: {exc.strerror})") from exc
    except subprocess.CalledProcessError as exc:
        raise PlanError(f"no NVIDIA GPU here (nvidia-smi: {' '.join((exc.stdout + exc.stderr).split())})") from exc
    kinds = sorted({line.strip() for line in said.splitlines() if line.strip()})
    if len(kinds) != 1:
        raise PlanError(f"GPUs of one kind are needed, and there are {' and '.join(kinds) or 'none'}")
    return kinds[0].replace(", ", ", compute capability ")


# --- a plan


def build(version: Path, config: pb.ModelConfig, by: Builder, timing_cache: Path, limit_s: float = LIMIT_S) -> None:
    """Writes a plan, and a record of what it was built for, beside the graph. If it can't, raises PlanError and leaves
    neither."""
    built = version / f".{plans.PLAN}-{uuid.uuid4().hex}"
    try:
        _clear(version)
        with tempfile.TemporaryDirectory(prefix="atelier-plan-") as scratch:
            graph = Path(scratch) / repo.MODEL
            graph.write_bytes(half(version / repo.MODEL))
            shapes = profile(config, version / repo.GOLDEN)
            copy = Path(scratch) / TIMING_CACHE  # so that no other builder reads it half written
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(timing_cache, copy)
            _run(by.command(graph, built, copy, shapes), built, limit_s)
            if copy.is_file():  # without it the next build only takes longer
                files.write_atomically(timing_cache, copy.read_bytes())
        with built.open("rb") as file:
            os.fsync(file.fileno())
        built.replace(version / plans.PLAN)
        plans.write_record(version, by.target, config)
    except OSError as exc:
        with contextlib.suppress(OSError):
            plans.remove(version)
        raise PlanError(f"{exc.strerror} ({exc.filename})") from exc
    finally:
        built.unlink(missing_ok=True)


def _clear(version: Path) -> None:
    """Removes a plan that is no longer valid, and what a killed builder left behind."""
    plans.remove(version)
    for path in version.glob(f".{plans.PLAN}-*"):
        path.unlink(missing_ok=True)


def _run(command: list[str], plan: Path, limit_s: float) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as exc:
        raise PlanError(f"not built in {limit_s:g} s; --limit-s allows more") from exc
    if done.returncode or not plan.is_file() or not plan.stat().st_size:
        raise PlanError(_reasons(done))


def _reasons(done: subprocess.CompletedProcess[str]) -> str:
    """TensorRT's errors, one per line; if it reports none, the last lines of its output."""
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    errors = [line.partition("[E]")[2].strip().removeprefix("[TRT] ") for line in lines if "[E]" in line]
    ended = f"it ended with status {done.returncode}"
    return "\n".join((errors or lines[-ERRORS_SHOWN:] or [ended])[:ERRORS_SHOWN])


def half(graph: Path) -> bytes:
    """Converts the graph to half precision and removes 8-bit quantization; its inputs and outputs keep their types.

    TensorRT computes in a graph's own types: since version 11 no option lets it choose others.
    """
    import onnx

    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about weights too small for 16 bits
            # No operator is excluded: TensorRT computes all in half precision, unlike ONNX Runtime on a CPU.
            model = for_gpus(onnx.load(graph))
            made = OnnxModel(convert_float_to_float16(model, keep_io_types=True, op_block_list=[]))
        made.topological_sort()
        return bytes(made.model.SerializeToString())
    except Exception as exc:  # onnx and the converter have no base class for their errors
        raise PlanError(f"{graph.name} can't be read ({' '.join(str(exc).split())})") from exc


def for_gpus(model: onnx.ModelProto) -> onnx.ModelProto:
    """Removes what the graph has for CPUs only: the QuantizeLinear and DequantizeLinear nodes of training.quantize, and
    the selection of the pictures for which a cascade runs its other nets, which here run for all.

    Changes `model` in place and returns it. TensorRT accepts such nodes only with signed integers and a zero point of
    0, with which ONNX Runtime is slow, and data-dependent sizes only if it knows an upper bound.
    """
    from onnx.numpy_helper import from_array, to_array

    graph, kept = model.graph, []
    stored = {weights.name: to_array(weights) for weights in graph.initializer}
    same: dict[str, str] = {}  # a removed node's output -> what replaces it: what was quantized or selected from
    chosen: set[str] = set()  # the selected pictures' indices, and what is computed from them
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        source = node.input[0] if node.input else ""
        if node.op_type == "NonZero" or source in chosen:
            chosen.update(node.output)
        elif chosen.intersection(node.input):  # Gather and Reshape, and ScatterND, which puts results back in place
            same[node.output[0]] = node.input[2] if node.op_type == "ScatterND" else source
        elif node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            kept.append(node)
        elif source in stored and stored[source].dtype == np.int32:  # biases, which are stored quantized
            floats = stored[source].astype(np.float32) * stored[node.input[1]]
            graph.initializer.append(from_array(floats, node.output[0]))
        else:
            same[node.output[0]] = source
    needed = {value.name for value in graph.output}
    for node in reversed(kept[:]):
        if needed.intersection(node.output):
            needed.update(node.input)
        else:
            kept.remove(node)
    weights = [each for each in graph.initializer if each.name in needed]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(weights)
    return model


def profile(config: pb.ModelConfig, golden: Path) -> dict[str, ShapeRange]:
    """The optimization profile: each input's shapes, from config.pbtxt; vectors of variable length have `golden`'s."""
    most = config.max_batch_size
    batch = ([1], [most], [most]) if most else ([], [], [])
    shapes: dict[str, ShapeRange] = {}
    for tensor in config.input:
        sizes = [_sizes(tensor, axis, config, golden) for axis in range(len(tensor.dims))]
        minimum, optimum, maximum = (batch[k] + [each[k] for each in sizes] for k in range(3))
        shapes[tensor.name] = (minimum, optimum, maximum)
    return shapes


def _sizes(tensor: pb.ModelInput, axis: int, config: pb.ModelConfig, golden: Path) -> tuple[int, int, int]:
    if tensor.dims[axis] > 0:
        return (tensor.dims[axis],) * 3
    if len(tensor.dims) == 1:
        return (_length(tensor.name, golden),) * 3
    pixels = plans.max_pixels(config)
    most = math.isqrt(MAX_ASPECT_RATIO * pixels) if pixels else MAX_SIDE
    return MIN_SIDE, min(OPT_SIDE, most), most


def _length(name: str, golden: Path) -> int:
    try:
        return int(verify.read(golden)[name].shape[-1])
    except (RepositoryError, KeyError, IndexError) as exc:
        raise PlanError(f"{golden.name}: no length of {name} in it ({exc})") from exc


# --- a repository


def build_missing(repository: Path, models: Sequence[str], limit_s: float = LIMIT_S) -> dict[str, bool]:
    """Builds the plans that `models` lack, and has Triton serve the plans of each model that has all of them.

    Returns, for each model, whether it does; the log says why not. Plans built for another GPU are no longer served,
    whichever model they belong to. Raises PlanError if no plan can be built at all, and RepositoryError.
    """
    by = builder()
    with _writing(repository):
        if plans.target(repository) != by.target:
            (repository / TIMING_CACHE).unlink(missing_ok=True)
            plans.set_target(repository, by.target)
    for model in plannable(repository):
        with repo.locked(repository, model), _writing(repository):
            plans.reconcile(repository / model)
    return {model: _build_missing(repository, model, by, limit_s) for model in models}


def _build_missing(repository: Path, model: str, by: Builder, limit_s: float) -> bool:
    folder, config = repository / model, repo.config(repository, model)
    for version in plans.in_service(folder, config):
        _ensure(version, config, by, repository / TIMING_CACHE, limit_s)
    with repo.locked(repository, model), _writing(repository):
        for version in plans.in_service(folder, config, more=sys.maxsize):
            if not plans.is_good(version, by.target, config):
                plans.remove(version)
        return plans.reconcile(folder)


def _ensure(version: Path, config: pb.ModelConfig, by: Builder, timing_cache: Path, limit_s: float) -> None:
    """Builds the version's plan unless it has a valid one. Other replicas starting meanwhile wait here for it."""
    model = version.parent.name
    try:
        with repo.locked(version.parent, version.name):
            if plans.is_good(version, by.target, config):
                return
            began = time.monotonic()
            repo.check(version, model)
            build(version, config, by, timing_cache, limit_s)
            log.info("%s %s: plan for %s, %.0f s", model, version.name, by.target, time.monotonic() - began)
    except (PlanError, RepositoryError) as exc:
        reasons = str(exc).splitlines() if version.is_dir() else ["withdrawn meanwhile"]
        for reason in reasons:
            log.error("%s %s: no plan: %s", model, version.name, reason)


def plannable(repository: Path, names: Sequence[str] = ()) -> list[str]:
    """The named models, or all that can have plans. Raises RepositoryError if one does not exist, or can't have any."""
    known = repo.models(repository)
    for name in names:
        if name not in known:
            raise RepositoryError(f"--model {name}: not in {repository}, which has {', '.join(known)}")
        if not plans.takes_plans(repo.config(repository, name)):
            raise RepositoryError(f"--model {name}: Triton does not run its graph itself, so it has no plan")
    return list(names) or [name for name in known if plans.takes_plans(repo.config(repository, name))]


@contextlib.contextmanager
def _writing(repository: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise RepositoryError(f"--repository {repository}: {exc.strerror} ({exc.filename})") from exc


# --- command line


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    return cli.run(_plan, _parser().parse_args(arguments))


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m serving.tensorrt", description="TensorRT plans, for the GPU of this machine.")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="model repository; default %(default)s")
    parser.add_argument("--model", action="append", default=[], help="for this one (again for more); default all")
    parser.add_argument("--limit-s", type=cli.seconds, default=LIMIT_S, help="for each plan; default %(default)g")
    return parser


def _plan(options: argparse.Namespace) -> str:
    models = plannable(options.repository, options.model)
    served = build_missing(options.repository, models, options.limit_s)
    return "\n".join(f"{model}: {'plans' if good else 'ONNX'} will be served" for model, good in served.items())


if __name__ == "__main__":
    sys.exit(main())
