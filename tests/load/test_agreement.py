"""The load generator beside NVIDIA's perf_analyzer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import need, need_tritonserver
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from tests.load import __main__ as command
from tests.load import perf_analyzer, servers
from tests.load.plan import Share
from tests.load.questions import Question
from tests.load.targets import Triton

SLEEP_S = 0.05
INSTANCES = 2
CALLERS = 6
ROUNDS, WINDOW_S = 3, 2.4
NUMBER = np.ones((1, 1), np.float32)
ASKED = Question(model="sleeper", inputs={"number": NUMBER}, expected={"same": NUMBER}, atol=0)
STAND_IN = """#!/bin/sh
test "$1" = --help && exit
echo "$@" > "$(dirname "$0")/told"
while test "$1" != -f; do shift; done
printf 'Concurrency,Inferences/Second,p50 latency\\n6,38.5,152500\\n' > "$2"
"""
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


def test_both_measure_the_same_server_and_report_how_far_they_agree(sleeper: Triton) -> None:
    """With three callers for each instance. How near the ratios are to 1 is for the reader: the machine has its part in
    that. It has none in what bounds both: an instance answers one request, rightly, in SLEEP_S and no sooner."""
    try:
        perf_analyzer.find()
    except perf_analyzer.Missing as exc:
        need(False, str(exc))
    found = perf_analyzer.agree(sleeper, Share("sleeper", 1, [ASKED]), CALLERS, rounds=ROUNDS, window_s=WINDOW_S)
    print(found.data())

    assert (len(found.ours), len(found.theirs)) == (ROUNDS, ROUNDS)
    window_s = WINDOW_S / perf_analyzer.WINDOWS
    most = (INSTANCES * window_s / SLEEP_S + CALLERS) / window_s  # what was in flight before may be answered in it
    for measured in (*found.ours, *found.theirs):
        assert 0 < measured.per_s <= most, found
        assert 1000 * SLEEP_S <= measured.p50_ms < math.inf, found


def test_what_perf_analyzer_reports_is_read_in_requests_a_second_and_milliseconds(tmp_path: Path) -> None:
    """It is told the same load as ours, and tells microseconds; a stand-in for it keeps what it was told."""
    need_tritonserver()
    program = tmp_path / "perf_analyzer"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    target = Triton(name="none", http="localhost:1", url="localhost:2")
    share = Share("sleeper", 1, [ASKED])
    measured = perf_analyzer.measure(target, share, CALLERS, WINDOW_S, cache=tmp_path)
    assert measured == perf_analyzer.Measured(per_s=38.5, p50_ms=152.5)
    told = (tmp_path / "told").read_text()
    assert f"-m sleeper -u localhost:1 -i http --concurrency-range {CALLERS} " in told
    ours = perf_analyzer.Agreement("sleeper", CALLERS, [perf_analyzer.Measured(77, 305)], [measured])
    assert (ours.per_s, ours.p50) == (2, 2), "ours for each of theirs"


@pytest.mark.parametrize(
    ("way", "throughput", "p50", "verdict"),
    [
        ("triton", 1.1, 0.9, "kept"),
        ("triton", 1.11, 1.0, "MISSED"),
        ("grpc", 1.0, 0.89, "MISSED"),
        ("sdk", 0.9, 1.5, "kept"),
        ("sdk-threads", 0.89, 1.0, "MISSED"),
    ],
)
def test_it_says_whether_the_aim_was_kept(way: str, throughput: float, p50: float, verdict: str) -> None:
    """Of the SDK's latency nothing is asked, as it packs and unpacks what perf_analyzer sends as it is."""
    found = {"model": "sleeper", "throughput_ratio": throughput, "p50_ratio": p50}
    assert command._agreement(way, found).split()[0] == verdict
