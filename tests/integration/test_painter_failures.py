"""The painter counts what it answers with an error, as Triton takes every answer for a success."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import failures
import grpc
import numpy as np
import onnx
import painter_stand_in
import pytest
from conftest import need_tritonserver
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from atelier import _wire
from serving.embedded import Embedded

SMALL = np.zeros((16, 20, 3), np.uint8)
LARGE = np.zeros((400, 400, 3), np.uint8)
Ask = Callable[..., Iterator[str]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """One painting at a time; and beside the painter another, whose graph is none of a painter's."""
    need_tritonserver()
    root = painter_stand_in.repository(tmp_path_factory.mktemp("painter") / "repository", streams=1)
    shutil.copytree(root / "painter", root / "spoilt")
    config = root / "spoilt" / "config.pbtxt"
    config.write_text(config.read_text().replace('name: "painter"', 'name: "spoilt"'))
    sides = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [7]) for name in ("canvas", "losses"))
    given, made = ([side] for side in sides)
    graph = helper.make_graph([helper.make_node("Identity", ["canvas"], ["losses"])], "spoilt", given, made)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), root / "spoilt" / "1" / "model.onnx")
    with Embedded(root) as server:
        yield server


@pytest.fixture(scope="module")
def ask(server: Embedded) -> Iterator[Ask]:
    """Sends a request, and gives each answer's error, "" for a canvas."""

    def answers(model: str, **tensors: np.ndarray[Any, Any]) -> Iterator[str]:
        request = pb.ModelInferRequest(model_name=model)
        for name, array in tensors.items():
            _wire.put(request.inputs, request.raw_input_contents, name, array)
        return (answer.error_message for answer in made.ModelStreamInfer(iter([request])))

    with grpc.insecure_channel(server.grpc) as channel:
        made: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        yield answers


def test_failures_are_counted_by_whose_fault_they_are(server: Embedded, ask: Ask) -> None:
    """The request's own, one painting too many, and the model's, which another thread counts; a canvas is none."""
    reasons = {"INVALID": 0, "REJECTED": 0, "BACKEND": 0}
    assert failures.counted(server, "painter") == failures.counted(server, "spoilt") == reasons

    (error,) = ask("painter", content=SMALL[:15], style=SMALL)
    assert "needs 16 or more" in error
    assert failures.counted(server, "painter") == reasons | {"INVALID": 1}

    endless = {"iterations": np.array([1000], np.int32), "every": np.array([1], np.int32)}
    long = ask("painter", content=LARGE, style=LARGE, **endless)
    assert next(long) == ""
    for refused in range(1, 4):
        (error,) = ask("painter", content=SMALL, style=SMALL)
        assert "exceeds maximum queue size" in error
        assert failures.counted(server, "painter") == reasons | {"INVALID": 1, "REJECTED": refused}

    (error,) = ask("spoilt", content=SMALL, style=SMALL)
    assert error.startswith("spoilt: ")
    assert failures.counted(server, "spoilt") == reasons | {"BACKEND": 1}
