"""Builds a TensorRT plan from an ONNX graph with TensorRT's own API. Run: python -m serving.planner ORDER.json

serving.tensorrt runs it as a separate process, so that a builder that crashes or takes all memory takes down nothing
else. Exit status 1 means no plan, with one line per reason on standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tensorrt_bindings as trt

Shape = Sequence[int]
ShapeRange = tuple[Shape, Shape, Shape]
"""An input's minimum, optimum and maximum in an optimization profile; kernels are chosen for the optimum."""


class BuildError(Exception):
    """No plan was built: TensorRT's reasons, one per line."""


@dataclass(frozen=True)
class Order:
    """What to build, and where to put it. `timing_cache` is a file of kernel timings, read and written back."""

    graph: str
    plan: str
    timing_cache: str
    shapes: Mapping[str, ShapeRange]

    @classmethod
    def read(cls, path: Path) -> Order:
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def build(order: Order) -> None:
    """Builds and writes the plan. Raises BuildError if it can't be built."""
    logger = trt.Logger(trt.Logger.ERROR)  # its errors go to standard error
    builder = _builder(logger)
    # TensorRT 10 has to be told to keep to the graph's types; TensorRT 11 always does.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt.OnnxParser(network, logger), order.graph)
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, order.shapes))
    _use_timing_cache(config, Path(order.timing_cache))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError("TensorRT built none")
    Path(order.plan).write_bytes(memoryview(plan))
    Path(order.timing_cache).write_bytes(memoryview(config.get_timing_cache().serialize()))


def _builder(logger: trt.Logger) -> trt.Builder:
    try:
        return trt.Builder(logger)
    except TypeError as exc:  # raised by the bindings when they get no builder
        raise BuildError("TensorRT does not start; is there a GPU, and a driver that is new enough?") from exc


def _parse(parser: trt.OnnxParser, graph: str) -> None:
    if not parser.parse_from_file(graph):
        errors = (parser.get_error(k) for k in range(parser.num_errors))
        raise BuildError("\n".join(f"{error.node_operator() or 'graph'}: {error.desc()}" for error in errors))


def _profile(builder: trt.Builder, shapes: Mapping[str, ShapeRange]) -> trt.IOptimizationProfile:
    profile = builder.create_optimization_profile()
    for name, (minimum, optimum, maximum) in shapes.items():
        profile.set_shape(name, trt.Dims(minimum), trt.Dims(optimum), trt.Dims(maximum))
    return profile


def _use_timing_cache(config: trt.IBuilderConfig, path: Path) -> None:
    """Loads the timing cache; if TensorRT rejects it, as from another GPU or version, it starts with an empty one."""
    known = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def main(arguments: Sequence[str]) -> int:
    try:
        build(Order.read(Path(arguments[0])))
    except (BuildError, OSError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
