"""Stand-ins for a server with known behaviour, and for the results of asking it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tests.load import measure
from tests.load.loop import Tally, WorkerResult
from tests.load.plan import ClosedLoop, OpenLoop, Plan, Share
from tests.load.questions import Question
from tests.load.result import Result
from tests.load.targets import Arrays, AsyncTarget, Call, Failed, Send, ThreadedTarget, from_coroutine

RIGHT = {"number": np.ones((1, 1), np.float32)}
QUESTION = Question(model="stand-in", inputs=RIGHT, expected=RIGHT, atol=0.1)
MIX = [Share("stand-in", 1, [QUESTION])]


@dataclass(frozen=True, kw_only=True)
class Stalling(AsyncTarget):
    """Answers one request after the other; the first takes `stall_s`, the others no time."""

    stall_s: float

    @contextlib.asynccontextmanager
    async def opened(self, questions: Sequence[Question]) -> AsyncIterator[Sequence[Send]]:
        turn, first = asyncio.Lock(), [True]

        async def ask() -> Arrays:
            async with turn:
                if first:
                    first.clear()
                    await asyncio.sleep(self.stall_s)
            return RIGHT

        yield [from_coroutine(ask)] * len(questions)


@dataclass(frozen=True, kw_only=True)
class Faulty(ThreadedTarget):
    """Cycles through `answers`: arrays, or kinds of failures, or None for another exception."""

    answers: tuple[object, ...]

    @contextlib.contextmanager
    def opened(self, questions: Sequence[Question]) -> Iterator[Sequence[Call]]:
        rest = itertools.cycle(self.answers)

        def run() -> Arrays:
            answer = next(rest)
            if isinstance(answer, str):
                raise Failed(answer, f"{answer} as told")
            if answer is None:
                raise ZeroDivisionError("by zero")
            return {"number": np.asarray(answer, np.float32)}

        yield [run] * len(questions)


def worker_result(
    *,
    wakeup_delay_us: int = 10,
    utilisation: float = 0.1,
    late: int = 0,
    latency_us: int = 10_000,
    requests: int = 100,
    unfinished: int = 0,
    failed: int = 0,
    last_answer: float = 0.0,
) -> WorkerResult:
    """The result of one process. Of its `requests`, `unfinished` were answered correctly after the window, and `failed`
    were not."""
    correct = requests - failed
    tally = Tally(requests, correct, completed=correct - unfinished, late=late, failures=+Counter(overloaded=failed))
    tally.latency.record_value(latency_us, correct)
    return WorkerResult({"stand-in": tally}, utilisation, last_answer, wakeup_delay_us)


def made(load: OpenLoop | ClosedLoop, **of_worker: float) -> Result:
    """The result of 5 s and one process."""
    plan = Plan(target=Stalling(name="none", stall_s=0), load=load, mix=MIX)
    counts = measure.Counts(answered=100, inferences=100, executions=50)
    counts.batches.update({1: 20, 2: 40})
    return Result(plan, [worker_result(**of_worker)], 5.0, {"stand-in": counts}, None)
