"""Which ONNX graphs TensorRT accepts, according to its parser's own table.

From docs/operators.md in onnx/onnx-tensorrt, at TensorRT 10.15 (opsets 9 to 24): the operators that networks like ours
are exported to, each with the types it computes in, and the restrictions that such networks could run into. ONNX
Runtime, too, has had all of them since 1.12. A graph that needs another is refused by the gate, which costs a minute,
and not on the cluster. Whether TensorRT can build it only shows on a GPU: the table covers what the parser knows.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto

OPSETS = range(9, 25)
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}
NUMBERS = FLOATS | {TensorProto.INT32, TensorProto.INT64}
ANYTHING = NUMBERS | {TensorProto.BOOL}
CONSTANTS = ANYTHING | {TensorProto.DOUBLE}  # which TensorRT converts to floats
TYPES = {
    **dict.fromkeys(
        """AveragePool BatchNormalization Clip Conv ConvTranspose Exp Gemm GlobalAveragePool InstanceNormalization
        LeakyRelu MatMul MaxPool PRelu Resize Round Sigmoid Softmax Sqrt Tanh""".split(),  # noqa: SIM905
        FLOATS,
    ),
    **dict.fromkeys(
        """Abs Add DepthToSpace Div Equal Greater Max Min Mul Pad Pow Range ReduceMax ReduceMean ReduceMin ReduceSum
        Relu Sub""".split(),  # noqa: SIM905
        NUMBERS,
    ),
    **dict.fromkeys(
        """Concat ConstantOfShape Expand Flatten Gather Identity Reshape Shape Slice Split Squeeze Tile
        Transpose Unsqueeze Where""".split(),  # noqa: SIM905
        ANYTHING,
    ),
    "Constant": CONSTANTS,
    "Cast": CONSTANTS | {TensorProto.UINT8},
}
COMPARING = {"Equal", "Greater"}
CONSTANT_AXES = {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Squeeze", "Unsqueeze"}
RESIZING: dict[str, set[Any]] = {
    "mode": {"nearest", "linear"},
    "coordinate_transformation_mode": {
        "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners",
    },
    "nearest_mode": {"floor", "ceil", "round_prefer_floor", "round_prefer_ceil"},
    "keep_aspect_ratio_policy": {"stretch"},
    "antialias": {0},
}  # fmt: skip


def reasons(model: onnx.ModelProto) -> list[str]:
    """The reasons why TensorRT or ONNX Runtime would reject the model; empty if they accept it."""
    graph = model.graph
    found = [
        f"opset {used.version}: TensorRT takes {OPSETS.start} to {OPSETS.stop - 1}"
        for used in model.opset_import
        if used.domain in ("", "ai.onnx") and used.version not in OPSETS
    ]
    found += edge_reasons(graph)
    if unknown := sorted({node.op_type for node in graph.node} - set(TYPES)):
        return [*found, f"operators that TensorRT or ONNX Runtime may lack: {', '.join(unknown)}"]
    types, constants = tensor_types(model), _constants(graph)
    for node in graph.node:
        found += [f"{node.op_type} {node.name}: {reason}" for reason in _node_reasons(node, types, constants)]
    return found


def edge_reasons(graph: onnx.GraphProto) -> list[str]:
    """The reasons for rejection due to UINT8, which TensorRT accepts only at a graph's edge: an input must go straight
    into a Cast to float, and an output must come straight from a Cast."""
    uint8 = TensorProto.UINT8
    inputs, outputs = (
        {v.name for v in each if v.type.tensor_type.elem_type == uint8} for each in (graph.input, graph.output)
    )
    makers = {name: node for node in graph.node for name in node.output}
    wrong = {name for node in graph.node for name in inputs & set(node.input) if casts_to(node) != TensorProto.FLOAT}
    wrong |= {name for name in outputs if name in makers and casts_to(makers[name]) != uint8}
    return [f"{name}: UINT8 must meet a Cast to or from FP32 at the graph's edge" for name in sorted(wrong)]


def casts_to(node: onnx.NodeProto) -> int:
    """The type that a Cast converts to; 0 for any other operator."""
    return int(onnx.helper.get_node_attr_value(node, "to")) if node.op_type == "Cast" else 0


def _node_reasons(node: onnx.NodeProto, types: dict[str, int], constants: set[str]) -> list[str]:
    kind, found = node.op_type, []
    taken = node.input[:1] if kind == "Resize" else node.input  # its other inputs are sizes
    given = () if kind in COMPARING else node.output
    strange = {types[name] for name in (*taken, *given) if name in types} - TYPES[kind]
    found += [f"computes in {TensorProto.DataType.Name(each)}, which TensorRT does not" for each in sorted(strange)]
    has = {each.name: _plain(onnx.helper.get_attribute_value(each)) for each in node.attribute}
    if kind == "Resize":
        found += [f"{name} {has[name]!r}" for name, known in RESIZING.items() if name in has and has[name] not in known]
    if kind in CONSTANT_AXES and len(node.input) > 1 and node.input[1] not in constants:
        found.append("its axes are computed")
    if kind in ("AveragePool", "MaxPool") and len(has["kernel_shape"]) not in (2, 3):
        found.append(f"pools over {len(has['kernel_shape'])} dimensions")
    if kind in ("AveragePool", "MaxPool") and set(has.get("dilations", [1])) != {1}:
        found.append(f"dilations {has['dilations']}")
    if kind == "MaxPool" and len(node.output) > 1:
        found.append("gives indices")
    return found


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """The type of each tensor whose type is known."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {weights.name: weights.data_type for weights in graph.initializer}


def _constants(graph: onnx.GraphProto) -> set[str]:
    made = {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    return made | {weights.name for weights in graph.initializer}


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
