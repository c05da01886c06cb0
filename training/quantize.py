"""Convolutions in 8-bit integers, which a CPU computes two to three times as fast as floats.

The graph keeps its floats: each tensor that is rounded passes a QuantizeLinear and a DequantizeLinear, from which ONNX
Runtime makes integer operators. TensorRT is given the graph without them, serving.tensorrt.for_gpus.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx.numpy_helper import from_array, to_array
from torch import nn

from serving.spec import ModelSpec

import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What a recipe says of its graph. `inputs` by name, in any number and, where sizes are free, of any, show between
    which bounds its tensors lie."""

    inputs: Mapping[str, Sequence[np.ndarray]]
    operators: tuple[str, ...] = ("Conv",)
    floats: tuple[str, ...] = ()
    """how the names of nodes begin that stay in floats; a node is called after its module, /net/last/Conv"""
    averaged: bool = False
    """bounds are the mean over the inputs of each one's own, not the farthest of all: where norms leave a few
    activations far out, finer steps for the others are worth more"""


class Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Inputs one by one, of whose tensors the ranges are taken."""

    def __init__(self, inputs: Mapping[str, Sequence[np.ndarray]]) -> None:
        self.feeds = self._feeds(inputs)

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        return next(self.feeds, None)

    @staticmethod
    def _feeds(inputs: Mapping[str, Sequence[np.ndarray]]) -> Iterator[Mapping[str, np.ndarray]]:
        for each in zip(*inputs.values(), strict=True):
            yield {name: array[None] for name, array in zip(inputs, each, strict=True)}


def spread(count: int, most: int = 32) -> list[int]:
    """Places of `most` pictures among `count`, from first to last: a corpus may be sorted by what its pictures show."""
    return [int(k) for k in np.linspace(0, count - 1, min(most, count))]


def quantize(graph: Path, how: Quantization) -> None:
    """Rewrite `graph`: what its operators take and give is rounded to 255 steps of the range that the inputs make.

    Weights have 7 bits: with 8, CPUs that lack VNNI would add up two products to more than 16 bits hold. Where a graph
    chooses by a threshold what it computes further, as a cascade does, all of the inputs show all of its bounds.
    """
    quant_pre_process(graph, graph, skip_optimization=True, skip_symbolic_shape=True)  # sizes of tensors
    model = onnx.load(graph)
    in_floats = [node.name for node in model.graph.node if node.name.startswith(how.floats)]
    thresholds = {name: to_array(value) for name, value in _thresholds(model).items()}
    for name, value in _thresholds(model).items():
        value.CopyFrom(from_array(np.full_like(thresholds[name], np.inf), name))
    onnx.save(model, graph)
    quantize_static(
        graph, graph, Calibration(how.inputs), quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=True, per_channel=True,
        op_types_to_quantize=list(how.operators), nodes_to_exclude=in_floats,
        # The floats stay, and so do activations that rounding alone would do: for_gpus() finds all as it was.
        extra_options={
            "AddQDQPairToWeight": True, "QDQKeepRemovableActivations": True, "CalibMovingAverage": how.averaged,
        },
    )  # fmt: skip
    model = onnx.load(graph)
    for name, value in _thresholds(model).items():
        value.CopyFrom(from_array(thresholds.pop(name), name))
    assert not thresholds, f"{', '.join(thresholds)}: no constants any more"
    onnx.save(model, graph)


def _thresholds(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The constants by which a graph chooses what it computes further, `x < threshold`, by name.

    A net is unsure of few pictures that it has learnt, of none where it knows them by heart. Of those alone the bounds
    of what comes after would be too narrow, or there would be none, and all rounded to whole numbers.
    """
    nodes = model.graph.node
    chosen_by = {node.input[0] for node in nodes if node.op_type == "NonZero"}
    names = {node.input[1] for node in nodes if node.op_type == "Less" and node.output[0] in chosen_by}
    return {name: node.attribute[0].t for node in nodes for name in names.intersection(node.output)}


def answered_by(graph: Path, spec: ModelSpec, net: nn.Module) -> nn.Module:
    """`net`, with all that a recipe knows of it, but ONNX Runtime computes its answers from a graph: the tensors of
    `spec` in, and out, in order."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    inputs, outputs = ([t.name for t in tensors] for tensors in (spec.core.inputs, spec.core.outputs))

    def forward(*given: torch.Tensor) -> torch.Tensor:
        (answer,) = session.run(outputs, dict(zip(inputs, (each.numpy() for each in given), strict=True)))
        return torch.from_numpy(answer)

    answering = copy.copy(net)
    answering.forward = forward  # which nn.Module asks before its class's
    return answering
