"""Convolutions in 8-bit integers, which a CPU computes two to three times as fast as floats.

The graph keeps its floats: each tensor that is rounded passes a QuantizeLinear and a DequantizeLinear, from which ONNX
Runtime makes integer operators. TensorRT is given the graph without them, serving.tensorrt.dequantized.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from serving.spec import ModelSpec

OPERATORS = ["Conv", "Relu", "Add", "MaxPool"]
BATCH = 256


class Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Inputs (N, ...) in batches, of whose tensors the ranges are taken."""

    def __init__(self, inputs: Mapping[str, np.ndarray]) -> None:
        self.feeds = self._batches(inputs)

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        return next(self.feeds, None)

    @staticmethod
    def _batches(inputs: Mapping[str, np.ndarray]) -> Iterator[Mapping[str, np.ndarray]]:
        for start in range(0, min(map(len, inputs.values())), BATCH):
            yield {name: array[start : start + BATCH] for name, array in inputs.items()}


def quantize(graph: Path, inputs: Mapping[str, np.ndarray]) -> None:
    """Rewrite `graph`: what its convolutions take and give is rounded to 255 steps of the range that `inputs` make.

    Weights have 7 bits: with 8, CPUs that lack VNNI would add up two products to more than 16 bits hold.
    """
    quant_pre_process(graph, graph, skip_optimization=True, skip_symbolic_shape=True)  # sizes of tensors
    quantize_static(
        graph, graph, Calibration(inputs), quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=True, per_channel=True,
        op_types_to_quantize=OPERATORS,
        # The floats stay, and so do activations that rounding alone would do: dequantized() finds all as it was.
        extra_options={"AddQDQPairToWeight": True, "QDQKeepRemovableActivations": True},
    )  # fmt: skip


class OnnxNet(torch.nn.Module):
    """A graph in ONNX Runtime as a net that a recipe can measure: the tensors of `spec` in, and out, in order."""

    def __init__(self, graph: Path, spec: ModelSpec) -> None:
        super().__init__()
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = ([t.name for t in tensors] for tensors in (spec.core.inputs, spec.core.outputs))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        feed = dict(zip(self.inputs, (each.numpy() for each in inputs), strict=True))
        (answer,) = self.session.run(self.outputs, feed)
        return torch.from_numpy(answer)
