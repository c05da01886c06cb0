"""The load generator beside NVIDIA's perf_analyzer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import need, need_tritonserver
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from tests.load import perf_analyzer, servers
from tests.load.plan import Share
from tests.load.questions import Question
from tests.load.targets import Triton

SLEEP_S = 0.05
INSTANCES = 2
CALLERS = 6
SLEEPER = f"""
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        time.sleep({SLEEP_S})
        tensors = [pb_utils.get_input_tensor_by_name(request, "number").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("same", tensor)]) for tensor in tensors]
"""


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Triton]:
    """A stand-in for a model that computes: it takes as long whatever else the machine does."""
    need_tritonserver()
    (tmp_path / "sleeper" / "1").mkdir(parents=True)
    (tmp_path / "sleeper" / "1" / "model.py").write_text(SLEEPER)
    config = pb.ModelConfig(
        name="sleeper",
        backend="python",
        max_batch_size=1,
        input=[pb.ModelInput(name="number", data_type=pb.TYPE_FP32, dims=[1])],
        output=[pb.ModelOutput(name="same", data_type=pb.TYPE_FP32, dims=[1])],
        instance_group=[pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_CPU, count=INSTANCES)],
    )
    (tmp_path / "sleeper" / "config.pbtxt").write_text(text_format.MessageToString(config))
    with servers.triton(tmp_path) as target:
        yield target


def test_agrees_with_perf_analyzer_on_throughput_and_median_latency(sleeper: Triton) -> None:
    """To a tenth, of the medians of windows that both took in turn, with three callers for each instance."""
    try:
        perf_analyzer.find()
    except perf_analyzer.Missing as exc:
        need(False, str(exc))
    number = np.ones((1, 1), np.float32)
    asked = Question(model="sleeper", inputs={"number": number}, outputs={"same": number}, atol=0)
    found = perf_analyzer.agree(sleeper, Share("sleeper", 1, [asked]), CALLERS, rounds=3, window_s=2.4)

    assert found.per_s == pytest.approx(1, abs=0.1), found
    assert found.p50 == pytest.approx(1, abs=0.1), found
    most = INSTANCES / SLEEP_S
    assert all(0 < measured.per_s <= 1.1 * most for measured in (*found.ours, *found.theirs)), found
