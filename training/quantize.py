"""Static 8-bit quantization of convolutions, which a CPU then computes two to three times as fast as in floats.

The graph stays in floats (QDQ format): each quantized tensor passes through a QuantizeLinear and a DequantizeLinear,
which ONNX Runtime fuses into integer operators. TensorRT is given the graph without them (serving.tensorrt.for_gpus).
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
    """How to quantize a recipe's graph. `inputs` are the calibration inputs by name: any number of them and, where
    dimensions are dynamic, of any size."""

    inputs: Mapping[str, Sequence[np.ndarray]]
    operators: tuple[str, ...] = ("Conv",)
    floats: tuple[str, ...] = ()
    """prefixes of the names of nodes that stay in floats; a node is named after its module, as in /net/last/Conv"""
    averaged: bool = False
    """ranges run from the mean of the inputs' minima to the mean of their maxima, not between the extremes: where
    normalization leaves a few activations far out, finer steps for the others are worth more"""


class Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Feeds the calibration inputs to ONNX Runtime one at a time."""

    def __init__(self, inputs: Mapping[str, Sequence[np.ndarray]]) -> None:
        self.feeds = self._feeds(inputs)

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        return next(self.feeds, None)

    @staticmethod
    def _feeds(inputs: Mapping[str, Sequence[np.ndarray]]) -> Iterator[Mapping[str, np.ndarray]]:
        for each in zip(*inputs.values(), strict=True):
            yield {name: array[None] for name, array in zip(inputs, each, strict=True)}


def spread(count: int, most: int = 32) -> list[int]:
    """At most `most` indices, evenly spaced over `count` pictures, because a corpus may be sorted by content."""
    return [int(k) for k in np.linspace(0, count - 1, min(most, count))]


def quantize(graph: Path, how: Quantization) -> None:
    """Quantizes `graph` in place: activations to uint8, static ranges calibrated on `how.inputs`, weights to 7 bits.

    With 8-bit weights, the sum of two products would overflow 16 bits on CPUs without VNNI. Where a graph decides by a
    threshold what to compute further, as a cascade does, all inputs take every branch during calibration.
    """
    quant_pre_process(graph, graph, skip_optimization=True, skip_symbolic_shape=True)  # infers tensor shapes
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
        # Keep float weights, and activation functions that rounding makes redundant: for_gpus() restores the graph.
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
    """The constants that decide what a graph computes further (`x < threshold`), by name.

    A net is unsure of few of its training pictures, and of none if it has memorized them. Calibrated on those alone,
    the later ranges would be too narrow, or missing, and everything would be rounded to whole numbers.
    """
    nodes = model.graph.node
    chosen_by = {node.input[0] for node in nodes if node.op_type == "NonZero"}
    names = {node.input[1] for node in nodes if node.op_type == "Less" and node.output[0] in chosen_by}
    return {name: node.attribute[0].t for node in nodes for name in names.intersection(node.output)}


def answered_by(graph: Path, spec: ModelSpec, net: nn.Module) -> nn.Module:
    """A copy of `net`, with all attributes that a recipe uses, whose forward pass runs `graph` in ONNX Runtime. It
    takes and returns the tensors of `spec` in order."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    inputs, outputs = ([t.name for t in tensors] for tensors in (spec.core.inputs, spec.core.outputs))

    def forward(*given: torch.Tensor) -> torch.Tensor:
        (answer,) = session.run(outputs, dict(zip(inputs, (each.numpy() for each in given), strict=True)))
        return torch.from_numpy(answer)

    answering = copy.copy(net)
    answering.forward = forward  # an instance's forward takes precedence over its class's
    return answering
