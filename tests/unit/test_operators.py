"""The gate's table of what TensorRT takes, on the graphs that ship and on graphs that are spoilt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving import repository as repo
from serving import tensorrt
from training import operators

GRAPHS = sorted(repo.REPOSITORY.glob(f"*/*/{repo.MODEL}"))


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: "-".join(path.parts[-3:-1]))
def test_every_committed_graph_is_within_the_table(path: Path) -> None:
    """As TensorRT is given it: operators, types, attributes, opset and edges; each tensor's type is known, so that none
    goes unseen."""
    model = tensorrt.for_gpus(onnx.load(path))
    assert operators.reasons(model) == []
    types = operators.tensor_types(model)
    unknown = [name for node in model.graph.node for name in node.output if not types.get(name)]
    assert unknown == []


def network(*nodes: onnx.NodeProto, opset: int = 17) -> onnx.ModelProto:
    """x -> y, 1 x 3 x 8 x 8 floats, with constants `axes` and `sizes` at hand."""
    faces = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    faces[0].type.tensor_type.shape.CopyFrom(
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8]).type.tensor_type.shape
    )
    weights = [
        numpy_helper.from_array(np.array(values, kind), name)
        for name, values, kind in (("axes", [1], "int64"), ("scales", [1, 1, 2, 2], "float32"), ("w", 1.5, "float64"))
    ]
    graph = helper.make_graph(nodes, "network", faces[:1], faces[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def resize(**attributes: object) -> onnx.ModelProto:
    return network(helper.make_node("Resize", ["x", "", "scales"], ["y"], name="up", **attributes))


def pool(kind: str, outputs: tuple[str, ...] = ("y",), **attributes: object) -> onnx.ModelProto:
    return network(helper.make_node(kind, ["x"], list(outputs), name="pool", **attributes))


def computed_axes() -> onnx.ModelProto:
    return network(
        helper.make_node("Identity", ["axes"], ["some"]),
        helper.make_node("ReduceSum", ["x", "some"], ["y"], name="sum"),
    )


def in_doubles() -> onnx.ModelProto:
    return network(
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Mul", ["wide", "w"], ["more"], name="mul"),
        helper.make_node("Cast", ["more"], ["y"], to=TensorProto.FLOAT),
    )


def convolved_in_whole_numbers() -> onnx.ModelProto:
    return network(
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT32),
        helper.make_node("Clip", ["whole"], ["cut"], name="clip"),
        helper.make_node("Cast", ["cut"], ["y"], to=TensorProto.FLOAT),
    )


SPOILT: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "opset": (lambda: network(helper.make_node("Relu", ["x"], ["y"]), opset=8), "opset 8: TensorRT takes 9 to 24"),
    "operator": (lambda: network(helper.make_node("Det", ["x"], ["y"])), "operators that TensorRT or ONNX Runtime may"),
    "cubic": (lambda: resize(mode="cubic"), "Resize up: mode 'cubic'"),
    "corners": (
        lambda: resize(mode="linear", coordinate_transformation_mode="tf_crop_and_resize"),
        "Resize up: coordinate_transformation_mode 'tf_crop_and_resize'",
    ),
    "one dimension": (lambda: pool("MaxPool", kernel_shape=[2]), "MaxPool pool: pools over 1 dimensions"),
    "dilated": (
        lambda: pool("MaxPool", kernel_shape=[2, 2], dilations=[2, 2]),
        "MaxPool pool: dilations [2, 2]",
    ),
    "indices": (lambda: pool("MaxPool", ("y", "where"), kernel_shape=[2, 2]), "MaxPool pool: gives indices"),
    "axes": (computed_axes, "ReduceSum sum: its axes are computed"),
    "doubles": (in_doubles, "Mul mul: computes in DOUBLE, which TensorRT does not"),
    "whole numbers": (convolved_in_whole_numbers, "Clip clip: computes in INT32, which TensorRT does not"),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_what_tensorrt_does_not_take_is_named(spoilt: str) -> None:
    """By operator, node and reason."""
    made, reason = SPOILT[spoilt]
    assert any(said.startswith(reason) for said in operators.reasons(made()))


def test_what_tensorrt_takes_passes() -> None:
    """The same operators within their limits."""
    assert operators.reasons(resize(mode="linear", coordinate_transformation_mode="half_pixel")) == []
    assert operators.reasons(pool("AveragePool", kernel_shape=[2, 2])) == []
    assert operators.reasons(network(helper.make_node("ReduceSum", ["x", "axes"], ["y"]))) == []
