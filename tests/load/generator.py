"""Runs plans: processes of its own send the requests, while this one watches the server."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Self

from tests.load import measure
from tests.load.loop import READY, Part, clock, work
from tests.load.plan import Plan
from tests.load.result import Result

HEAD_START_S = 0.1
"""until every process knows when to begin"""


def run(plan: Plan) -> Result:
    """One plan, in processes that end with it."""
    with Generator(plan.processes) as generator:
        return generator.run(plan)


class Generator:
    """Processes that stay for several plans: they take 2 s to start. `with Generator(2) as generator: …`"""

    def __init__(self, processes: int = 1) -> None:
        self._count = processes
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._connections: list[Connection] = []

    def __enter__(self) -> Self:
        spawn = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
        for _ in range(self._count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
            process.join()

    def run(self, plan: Plan) -> Result:
        """Raises what a process raised: ServerError and the like, where a target could not be opened."""
        assert plan.processes == self._count, f"a plan for {plan.processes} processes, and there are {self._count}"
        for place, connection in enumerate(self._connections):
            connection.send((plan, place))
        self._await_ready()
        begin = clock() + HEAD_START_S + plan.warmup_s
        for connection in self._connections:
            connection.send(begin)
        return self._watched(plan, begin)

    def _watched(self, plan: Plan, begin: float) -> Result:
        models = [share.model for share in plan.mix]
        _sleep_until(begin)
        before = measure.statistics(plan.target.statistics, models)
        with measure.Watch(plan.target.pids) as watch:
            if not plan.requests:
                _sleep_until(begin + plan.duration_s)
            parts: Sequence[Part] = self._received() if plan.requests else ()
        after = measure.statistics(plan.target.statistics, models)
        parts = parts or self._received()
        window_s = max(part.ended for part in parts) - begin if plan.requests else plan.duration_s
        counts = {model: after[model].minus(before[model]) for model in after}
        return Result(plan, parts, window_s, counts, watch.usage)

    def _await_ready(self) -> None:
        answers = [connection.recv() for connection in self._connections]
        if all(answer == READY for answer in answers):
            return
        for answer, connection in zip(answers, self._connections, strict=True):
            if answer == READY:
                connection.send(None)  # it is not to wait for the others
                connection.recv()
        raise next(answer for answer in answers if answer != READY)

    def _received(self) -> list[Part]:
        answers = [connection.recv() for connection in self._connections]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - clock()))
