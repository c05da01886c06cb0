"""The load generator itself, on stand-ins for a server whose behaviour is known."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from serving.errors import RepositoryError, ServerError
from serving.repository import GOLDEN, REPOSITORY
from serving.spec import Ensemble
from tests.load import knee, questions
from tests.load.generator import Generator
from tests.load.loop import Tally
from tests.load.plan import ClosedLoop, OpenLoop, Plan
from tests.load.questions import Question
from tests.load.stand_ins import MIX, RIGHT, Faulty, Stalling, worker_result
from tests.load.targets import Arrays, AsyncTarget, Call, InProcess, Send, ThreadedTarget, from_coroutine

DRIP_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Closing(AsyncTarget):
    """Can't be opened."""

    @contextlib.asynccontextmanager
    async def opened(self, questions: Sequence[Question]) -> AsyncIterator[Sequence[Send]]:
        raise ServerError("--url nowhere: nothing answers there")
        yield []


@dataclass(frozen=True, kw_only=True)
class Malformed(AsyncTarget):
    """What its calls give is no array, which no target may."""

    @contextlib.asynccontextmanager
    async def opened(self, questions: Sequence[Question]) -> AsyncIterator[Sequence[Send]]:
        async def ask() -> Arrays:
            return {"number": "one"}

        yield [from_coroutine(ask)] * len(questions)


@dataclass(frozen=True, kw_only=True)
class Dripping(AsyncTarget):
    """Answers one request after the other, each in DRIP_S."""

    @contextlib.asynccontextmanager
    async def opened(self, questions: Sequence[Question]) -> AsyncIterator[Sequence[Send]]:
        turn = asyncio.Lock()

        async def ask() -> Arrays:
            async with turn:
                await asyncio.sleep(DRIP_S)
            return RIGHT

        yield [from_coroutine(ask)] * len(questions)


@dataclass(frozen=True, kw_only=True)
class DrippingThreads(ThreadedTarget):
    """The same for threads."""

    @contextlib.contextmanager
    def opened(self, questions: Sequence[Question]) -> Iterator[Sequence[Call]]:
        turn = threading.Lock()

        def ask() -> Arrays:
            with turn:
                time.sleep(DRIP_S)
            return RIGHT

        yield [ask] * len(questions)


@pytest.fixture(scope="module")
def generator() -> Iterator[Generator]:
    with Generator(1) as generator:
        yield generator


def slower(tally: Tally, seconds: float) -> float:
    """Share of the requests."""
    counted = sum(
        item.count_added_in_this_iter_step
        for item in tally.latency.get_recorded_iterator()
        if item.value_iterated_to > 1e6 * seconds
    )
    return counted / tally.requests


def test_open_loop_counts_the_wait_of_requests_that_came_during_a_stall(generator: Generator) -> None:
    """The server stalls once, for half of the arrivals: half of the latencies say so."""
    stalling = Stalling(name="stalling", stall_s=1.0)
    plan = Plan(target=stalling, load=OpenLoop(100.0), mix=MIX, warmup_s=0.001, requests=200, seed=1)
    total = generator.run(plan).total
    assert total.requests == total.correct == 200
    assert 0.3 < slower(total, 0.1) < 0.7


@pytest.mark.parametrize("way", [Dripping, DrippingThreads], ids=["event loop", "threads"])
def test_so_many_requests_come_too_fast_though_each_is_answered(
    generator: Generator, way: type[Dripping] | type[DrippingThreads]
) -> None:
    """A server that answers 50 a second at most was asked 400: it has answered few of them when the last one comes."""
    plan = Plan(target=way(name="dripping"), load=OpenLoop(400.0), mix=MIX, warmup_s=0.001, requests=40, seed=1)
    result = generator.run(plan)
    assert (result.total.requests, result.total.correct) == (40, 40)
    assert knee.knee([result], math.inf) is None
    assert "a backlog grew" in knee.shortfall(result, math.inf)


@pytest.mark.parametrize(("requests", "window_s"), [(0, 50.0), (100, 2.5)], ids=["duration", "requests"])
def test_the_window_of_so_many_requests_ends_with_the_last_answer(
    requests: int, window_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whichever process; one of a duration is as long as asked for."""
    generator, window_start = Generator(2), time.monotonic() - 100
    workers = [worker_result(last_answer=window_start + after_s) for after_s in (2.5, 1.5)]
    monkeypatch.setattr(generator, "_received", lambda: workers)
    target = Stalling(name="none", stall_s=0)
    plan = Plan(target=target, load=ClosedLoop(2), mix=MIX, duration_s=50.0, requests=requests, processes=2)
    assert generator._watch_window(plan, window_start).window_s == pytest.approx(window_s)


def test_each_failure_is_of_its_kind_and_no_latency(generator: Generator) -> None:
    answers = ([[1.05]], [[2.0]], [1.0], "overloaded", "deadline", None)
    plan = Plan(
        target=Faulty(name="faulty", answers=answers), load=ClosedLoop(1), mix=MIX, warmup_s=0.0, requests=60,
        closely_every=1,
    )  # fmt: skip
    total = generator.run(plan).total
    assert total.failures == Counter({"wrong answer": 20, "overloaded": 10, "deadline": 10, "other": 10})
    assert (total.correct, total.latency.get_total_count()) == (10, 10)
    assert "ZeroDivisionError" in total.examples["other"]


def test_answers_that_are_not_compared_closely_must_have_the_shape(generator: Generator) -> None:
    faulty = Faulty(name="faulty", answers=([[2.0]], [1.0]))
    plan = Plan(target=faulty, load=ClosedLoop(1), mix=MIX, warmup_s=0.0, requests=40, closely_every=10**6)
    total = generator.run(plan).total
    assert total.failures == Counter({"wrong answer": 20}), "one in two has another shape"


def test_every_question_is_compared_closely_in_its_turn(generator: Generator) -> None:
    """Though there are four of each model, and answers come in the order of the questions."""
    third = Faulty(name="third", answers=([[1.0]], [[1.0]], [[2.0]], [[1.0]]))
    plan = Plan(target=third, load=ClosedLoop(1), mix=MIX, warmup_s=0.0, requests=200)
    assert generator.run(plan).total.failures["wrong answer"] in (2, 3), "of 50, one in 17"


@pytest.mark.parametrize("load", [ClosedLoop(2), OpenLoop(100.0)], ids=str)
def test_a_fault_of_the_generators_own_ends_the_run(generator: Generator, load: ClosedLoop | OpenLoop) -> None:
    """And the thread that watches the server, for which the program would wait at its end."""
    before = threading.enumerate()
    watched = Malformed(name="malformed", pids=(os.getpid(),))
    plan = Plan(target=watched, load=load, mix=MIX, warmup_s=0.0, requests=10)
    with pytest.raises(RuntimeError, match="AttributeError: 'str' object has no attribute 'shape'"):
        generator.run(plan)
    assert threading.enumerate() == before


def test_a_target_that_cannot_be_opened_is_told_and_the_processes_go_on() -> None:
    fine = Faulty(name="fine", answers=([[1.0]],))
    plan = Plan(target=Closing(name="closing"), load=ClosedLoop(2), mix=MIX, warmup_s=0.0, requests=10, processes=2)
    with Generator(2) as generator:
        with pytest.raises(ServerError, match="nothing answers there"):
            generator.run(plan)
        assert generator.run(replace(plan, target=fine)).total.correct == 10


def test_fewer_callers_than_processes_send_all_requests() -> None:
    """A process without a caller has none to send."""
    fine = Faulty(name="fine", answers=([[1.0]],))
    plan = Plan(target=fine, load=ClosedLoop(1), mix=MIX, warmup_s=0.0, requests=9, processes=2)
    with Generator(2) as generator:
        assert generator.run(plan).total.correct == 9


def test_a_process_that_had_nothing_to_do_was_not_busy() -> None:
    """Of one request for two processes; no warm-up, in which both would ask."""
    fine = Faulty(name="fine", answers=([[1.0]],))
    plan = Plan(target=fine, load=OpenLoop(50.0), mix=MIX, warmup_s=0.0, requests=1, processes=2)
    with Generator(2) as generator:
        result = generator.run(plan)
    assert [worker.tallies["stand-in"].requests for worker in result.workers] == [1, 0]
    assert result.workers[1].utilisation == 0.0


class Slow:
    """A session that notes how many of its runs there are at once."""

    def __init__(self) -> None:
        self._lock, self._now, self.most, self.runs = threading.Lock(), 0, 0, 0

    def run(self, outputs: list[str], given: Arrays) -> list[np.ndarray]:
        with self._lock:
            self._now, self.runs = self._now + 1, self.runs + 1
            self.most = max(self.most, self._now)
        time.sleep(0.01)
        with self._lock:
            self._now -= 1
        return [np.zeros(1)] * len(outputs)


@pytest.mark.parametrize("model", ["classifier", "wgan_x4"])
def test_in_process_computes_as_many_at_once_as_the_server(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads call, each step of an ensemble included; and all of them are answered."""
    sessions: dict[str, Slow] = {}
    monkeypatch.setattr(questions, "open_session", lambda path, spec: sessions.setdefault(spec.name, Slow()))
    asked = questions.served(model)
    inputs = asked.steps[0].inputs.values() if isinstance(asked, Ensemble) else [t.name for t in asked.inputs]
    question = Question(model=model, inputs=dict.fromkeys(inputs, np.zeros(1)), expected={}, atol=0)
    with InProcess(name="in process", repository=REPOSITORY).opened([question]) as (call,):
        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {session.runs for session in sessions.values()} == {len(threads)}
    assert all(session.most <= questions.served(name).instances for name, session in sessions.items())


def test_a_process_that_was_killed_is_told_in_a_line() -> None:
    plan = Plan(target=Stalling(name="none", stall_s=0), load=ClosedLoop(1), mix=MIX)
    with Generator(1) as generator:
        generator._processes[0].kill()
        generator._processes[0].join()
        with pytest.raises(ServerError, match="a process of the load generator has ended"):
            generator.run(plan)


def test_a_version_without_its_golden_batch_is_named(tmp_path: Path) -> None:
    """Nor with a damaged one, or with one that lacks what the model takes."""
    shutil.copytree(REPOSITORY / "classifier", tmp_path / "classifier", ignore=shutil.ignore_patterns(GOLDEN))
    golden = questions.folder(tmp_path, "classifier") / GOLDEN
    with pytest.raises(RepositoryError, match=rf"classifier/\d+/{GOLDEN}: not a golden batch .*No such file"):
        questions.questions(tmp_path, "classifier")
    golden.write_bytes(b"PK no archive")
    with pytest.raises(RepositoryError, match=rf"{GOLDEN}: not a golden batch"):
        questions.questions(tmp_path, "classifier")
    np.savez(golden, other=np.zeros(1))
    with pytest.raises(RepositoryError, match=rf"{GOLDEN}: no array 'image'"):
        questions.questions(tmp_path, "classifier")
