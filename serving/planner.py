"""An ONNX graph -> a TensorRT plan, through TensorRT's own API. Run: python -m serving.planner ORDER.json

A process of its own, which serving.tensorrt starts: a builder that crashes, or takes all memory, takes nothing else
along. Exit status 1: no plan, and a line for each reason on standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tensorrt_bindings as trt

Shape = Sequence[int]
Range = tuple[Shape, Shape, Shape]
"""The smallest shape of an input, the usual one that kernels are chosen for, and the largest."""


class NoPlan(Exception):
    """TensorRT's reasons, a line each."""


@dataclass(frozen=True)
class Order:
    """What to build, and where to put it. `timings` is a file of what kernels took, and spares measuring again."""

    graph: str
    plan: str
    timings: str
    shapes: Mapping[str, Range]

    @classmethod
    def read(cls, path: Path) -> Order:
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def build(order: Order) -> None:
    """Writes the plan. Raises NoPlan."""
    logger = trt.Logger(trt.Logger.ERROR)  # its errors go to standard error
    builder = _builder(logger)
    # TensorRT 10 has to be told that the graph's types are meant; TensorRT 11 knows nothing else.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt.OnnxParser(network, logger), order.graph)
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, order.shapes))
    _use_timings(config, Path(order.timings))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise NoPlan("TensorRT built none")
    Path(order.plan).write_bytes(memoryview(plan))
    Path(order.timings).write_bytes(memoryview(config.get_timing_cache().serialize()))


def _builder(logger: trt.Logger) -> trt.Builder:
    try:
        return trt.Builder(logger)
    except TypeError as exc:  # what the bindings make of no builder
        raise NoPlan("TensorRT does not start; is there a GPU, and a driver that is new enough?") from exc


def _parse(parser: trt.OnnxParser, graph: str) -> None:
    if not parser.parse_from_file(graph):
        errors = (parser.get_error(k) for k in range(parser.num_errors))
        raise NoPlan("\n".join(f"{error.node_operator() or 'graph'}: {error.desc()}" for error in errors))


def _profile(builder: trt.Builder, shapes: Mapping[str, Range]) -> trt.IOptimizationProfile:
    profile = builder.create_optimization_profile()
    for name, (smallest, usual, largest) in shapes.items():
        profile.set_shape(name, trt.Dims(smallest), trt.Dims(usual), trt.Dims(largest))
    return profile


def _use_timings(config: trt.IBuilderConfig, path: Path) -> None:
    """Those of another GPU or TensorRT it does not take; they are measured anew then."""
    known = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def main(arguments: Sequence[str]) -> int:
    try:
        build(Order.read(Path(arguments[0])))
    except (NoPlan, OSError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
