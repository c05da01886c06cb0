"""What the load generator's ways to a real Triton make of its refusals: over HTTP, over gRPC, through clients."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from conftest import need_tritonserver
from fleet import frozen
from tritonclient.grpc import model_config_pb2 as pb

from serving.repository import REPOSITORY
from tests.load import servers
from tests.load.questions import Question, mismatch, questions
from tests.load.sdk import Sdk, SdkThreads
from tests.load.targets import (
    Arrays,
    AsyncTarget,
    Call,
    Failed,
    Grpc,
    ThreadedTarget,
    Triton,
    Tritonclient,
    gathered,
    layout,
)

SHORT_QUEUE = 4
WAYS = (Triton, Grpc, Tritonclient, Sdk, SdkThreads)
Way = type[AsyncTarget] | type[ThreadedTarget]


def short_queue(model: pb.ModelConfig) -> None:
    if model.HasField("dynamic_batching"):
        model.dynamic_batching.default_queue_policy.max_queue_size = SHORT_QUEUE


@pytest.fixture(scope="module")
def triton() -> Iterator[Triton]:
    need_tritonserver()
    with servers.changed(REPOSITORY, short_queue) as copy, servers.triton(copy, ["wgan", "painter"]) as target:
        yield target


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def target(triton: Triton, request: pytest.FixtureRequest) -> AsyncTarget | ThreadedTarget:
    return as_a(request.param, triton)


def as_a(way: Way, triton: Triton) -> AsyncTarget | ThreadedTarget:
    addresses = {"http": triton.http} if way is Triton else {}
    return way(name=way.__name__, url=triton.url, **addresses)


async def answered(target: AsyncTarget | ThreadedTarget, asked: Question, times: int = 1) -> list[Arrays | Exception]:
    """Answers and exceptions of so many calls at once."""
    if isinstance(target, ThreadedTarget):
        return await asyncio.to_thread(answered_in_threads, target, asked, times)
    async with target.opened([asked]) as (call,):
        return await gathered(call, times)


def answered_in_threads(target: ThreadedTarget, asked: Question, times: int) -> list[Arrays | Exception]:
    with target.opened([asked]) as (call,), ThreadPoolExecutor(times) as threads:
        return list(threads.map(outcome, [call] * times))


def outcome(call: Call) -> Arrays | Exception:
    try:
        return call()
    except Exception as exc:
        return exc


def test_the_tensors_of_an_answer_lie_one_after_the_other_behind_its_head() -> None:
    outputs = [("seen", "UINT8", [1, 3], 3), ("sure", "FP32", [1, 2], 8)]
    told = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}
        for name, datatype, shape, size in outputs
    ]
    found = layout(json.dumps({"model_name": "two", "outputs": told}).encode())
    assert found == [("seen", np.uint8, (1, 3), 0), ("sure", np.float32, (1, 2), 3)]


async def test_a_full_queue_is_overloaded_and_whom_it_takes_is_answered(target: AsyncTarget | ThreadedTarget) -> None:
    (asked,) = questions(REPOSITORY, "wgan", 1)
    answers = await answered(target, asked, 40 * SHORT_QUEUE)

    assert {answer.kind for answer in answers if isinstance(answer, Failed)} == {"overloaded"}
    rest = [answer for answer in answers if not isinstance(answer, Failed)]
    assert rest
    assert not [mismatch(answer, asked) for answer in rest if mismatch(answer, asked)]


async def test_a_model_that_is_not_there_is_another_fault_in_the_servers_words(triton: Triton) -> None:
    (asked,) = questions(REPOSITORY, "classifier", 1)
    for way in (Triton, Grpc):
        (answer,) = await answered(as_a(way, triton), asked)
        assert isinstance(answer, Failed)
        assert answer.kind == "other"
        assert "classifier" in str(answer)


async def test_no_answer_in_time_is_a_deadline(triton: Triton, target: AsyncTarget | ThreadedTarget) -> None:
    """From a server that hangs, since its processes are stopped; once they go on, it answers again."""
    (asked,) = questions(REPOSITORY, "wgan", 1)
    with frozen(*triton.pids):
        (answer,) = await answered(replace(target, timeout_s=0.2), asked)
    assert isinstance(answer, Failed)
    assert answer.kind == "deadline"
    (answer,) = await answered(target, asked)
    assert mismatch(answer, asked) is None


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_nobody_there_is_unavailable(way: Way) -> None:
    (asked,) = questions(REPOSITORY, "wgan", 1)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        addresses = {"http": address} if way is Triton else {}
        (answer,) = await answered(way(name="nobody", url=address, timeout_s=20.0, **addresses), asked)
    assert isinstance(answer, Failed)
    assert answer.kind == "unavailable"


async def test_streams_go_over_grpc(triton: Triton) -> None:
    """Triton's HTTP has none of the painter's kind."""
    (asked,) = questions(REPOSITORY, "painter", 1)
    (answer,) = await answered(triton, asked)
    assert mismatch(answer, asked) is None
