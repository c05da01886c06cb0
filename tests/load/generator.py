"""Runs plans: worker processes send the requests, while this process watches the server."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Self

from serving.errors import ServerError
from tests.load import measure
from tests.load.loop import READY, WorkerResult, clock, work
from tests.load.plan import Plan
from tests.load.result import Result

HEAD_START_S = 0.1
"""for every process to learn when to start"""


class Generator:
    """Worker processes, kept for several plans as they take 2 s to start. `with Generator(2) as generator: …`"""

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
        for process, connection in zip(self._processes, self._connections, strict=True):
            process.terminate()
            process.join()
            connection.close()

    def run(self, plan: Plan) -> Result:
        """Runs a plan. Raises what a process raised, such as ServerError if a target could not be opened."""
        assert plan.processes == self._count, f"a plan for {plan.processes} processes, and there are {self._count}"
        try:
            for index, connection in enumerate(self._connections):
                connection.send((plan, index))
            self._await_ready()
            window_start = clock() + HEAD_START_S + plan.warmup_s
            for connection in self._connections:
                connection.send(window_start)
            return self._watch_window(plan, window_start)
        except (EOFError, BrokenPipeError):
            raise ServerError("a process of the load generator has ended, perhaps for lack of memory") from None

    def _watch_window(self, plan: Plan, window_start: float) -> Result:
        models = [share.model for share in plan.mix]
        _sleep_until(window_start)
        before = measure.statistics(plan.target.statistics_url, models)
        with measure.Watch(plan.target.pids) as watch:
            if not plan.requests:
                _sleep_until(window_start + plan.duration_s)
            workers: Sequence[WorkerResult] = self._received() if plan.requests else ()
        after = measure.statistics(plan.target.statistics_url, models)
        workers = workers or self._received()
        window_s = max(worker.last_answer for worker in workers) - window_start if plan.requests else plan.duration_s
        counts = {model: after[model].minus(before[model]) for model in after}
        return Result(plan, workers, window_s, counts, watch.usage)

    def _await_ready(self) -> None:
        answers = [connection.recv() for connection in self._connections]
        if all(answer == READY for answer in answers):
            return
        for answer, connection in zip(answers, self._connections, strict=True):
            if answer == READY:
                connection.send(None)  # so that it does not wait for the others
                connection.recv()
        raise next(answer for answer in answers if answer != READY)

    def _received(self) -> list[WorkerResult]:
        answers = [connection.recv() for connection in self._connections]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - clock()))
