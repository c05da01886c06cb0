"""One process of the load generator: sends requests as the plan says, and records their outcomes.

Latency counts from the intended send time, to avoid coordinated omission: in open loop that is a request's arrival,
whether or not this process had time for it then. A request sent more than LATE_S after it is counted as late.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import resource
import select
import selectors
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from hdrh.histogram import HdrHistogram

from serving.errors import ServingError
from tests.load.plan import ClosedLoop, OpenLoop, Plan
from tests.load.questions import Arrays, Question, mismatch
from tests.load.targets import AsyncTarget, Call, Failed, Kind, Send, ThreadedTarget

LATE_S = 1e-3
TICK_S = 10e-3
EPOLL_S = 1e-3
"""epoll's resolution"""
THREADS = 16
"""The most requests that a ThreadedTarget has in flight in open loop; one that arrives while no thread is free waits,
which counts as latency."""
HIGHEST_US = 3600 * 10**6
SIGNIFICANT_DIGITS = 3
READY = "ready"
T = TypeVar("T")

clock = time.monotonic  # the same in all processes of a machine


def histogram() -> HdrHistogram:
    """A histogram of microseconds."""
    return HdrHistogram(1, HIGHEST_US, SIGNIFICANT_DIGITS)


def microseconds(seconds: float) -> int:
    return max(1, round(1e6 * seconds))


@dataclass
class Tally:
    """Counts for one model. `requests` are those whose intended send time lies in the window. Of these, `correct` were
    answered correctly, at any time, with the latencies in `latency`, and `late` were sent late. `completed` are the
    correct answers that arrived within the window, to any request."""

    requests: int = 0
    correct: int = 0
    completed: int = 0
    late: int = 0
    failures: Counter[Kind] = field(default_factory=Counter)
    examples: dict[Kind, str] = field(default_factory=dict)
    latency: HdrHistogram = field(default_factory=histogram)

    def record(self, latency_s: float, failure: Failed | None) -> None:
        self.requests += 1
        if failure is None:
            self.correct += 1
            self.latency.record_value(microseconds(latency_s))
        else:
            self.failures[failure.kind] += 1
            self.examples.setdefault(failure.kind, str(failure))

    def add(self, other: Tally) -> None:
        self.requests += other.requests
        self.correct += other.correct
        self.completed += other.completed
        self.late += other.late
        self.failures += other.failures
        self.examples = other.examples | self.examples
        self.latency.add(other.latency)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"latency": self.latency.encode()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"latency": HdrHistogram.decode(state["latency"])})


@dataclass(frozen=True)
class WorkerResult:
    """The results of one process. `utilisation` is that of one core, until its last answer; `wakeup_delay_us` is how
    late it wakes up from sleeps of 10 ms (median), which it adds to every latency itself."""

    tallies: dict[str, Tally]
    utilisation: float
    last_answer: float
    wakeup_delay_us: int


class Abandoned(Exception):
    """Another process could not start."""


def work(connection: Connection) -> None:
    """A process's main loop: receives plans and sends results or exceptions, until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection for each request in flight
    with contextlib.suppress(EOFError):
        while True:
            plan, index = connection.recv()
            connection.send(_result(Worker(plan, index), connection))


def _result(worker: Worker, connection: Connection) -> WorkerResult | Exception:
    try:
        return _run(worker, connection)
    except (ServingError, Abandoned) as exc:
        return exc
    except Exception as exc:  # which may not be picklable
        return RuntimeError("".join(traceback.format_exception(exc)))


def _run(worker: Worker, connection: Connection) -> WorkerResult:
    if isinstance(worker.plan.target, ThreadedTarget):
        return worker.in_threads(connection)
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(PunctualSelector())) as runner:
        return runner.run(worker.in_loop(connection))


class PunctualSelector(selectors.DefaultSelector):
    """Waits with microsecond precision: epoll by itself waits whole milliseconds, and arrivals would be up to one late.

    A longer wait ends with its last whole millisecond, which takes one system call; the event loop asks for the rest.
    """

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout >= EPOLL_S:
            timeout = timeout // EPOLL_S * EPOLL_S - EPOLL_S / 2  # epoll rounds up
        elif timeout is not None and timeout > 0:
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


class Worker:
    """This process's share of a plan: it is number `index` of `plan.processes`."""

    def __init__(self, plan: Plan, index: int) -> None:
        self.plan = plan
        self.index = index
        self.questions = [question for share in plan.mix for question in share.questions]
        self.tallies = {share.model: Tally() for share in plan.mix}
        self.window_start = self.window_end = math.inf
        self.last_answer = 0.0
        self._outstanding = 0  # closed loop: callers; open loop: requests in flight, and 1 while more are to arrive
        self._arrival_rng, self._mix_rng = (random.Random(f"{plan.seed} {index} {use}") for use in ("arrivals", "mix"))
        self._order = LockedIterator(self._drawn())
        # With fewer callers than processes, the first processes have one each, and share all requests.
        asking = min(plan.processes, plan.load.callers) if isinstance(plan.load, ClosedLoop) else plan.processes
        self._left = split(plan.requests, asking, index) if plan.requests else math.inf
        self._wakeup_delays = histogram()
        self._answers = itertools.count()
        self._recording = threading.Lock()

    # --- in an event loop, with callbacks: a coroutine per request takes a fifth to a half more CPU

    async def in_loop(self, connection: Connection) -> WorkerResult:
        assert isinstance(self.plan.target, AsyncTarget)
        self._drained: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        async with self.plan.target.opened(self.questions) as sends:
            self._await_start(connection)
            ticking = asyncio.create_task(self._tick())
            cpu_before = cpu_s()
            if isinstance(self.plan.load, ClosedLoop):
                self._outstanding = callers = split(self.plan.load.callers, self.plan.processes, self.index)
                for _ in range(callers):
                    self._send_next(sends)
            else:
                self._outstanding = callers = 1
                arrivals = self._due(self.plan.load)
                self._send_arrived(sends, arrivals, next(arrivals, math.inf))
            if callers:
                await self._drained
            ticking.cancel()
        return self._finished(cpu_before)

    def _send_next(self, sends: Sequence[Send]) -> None:
        """Sends one caller's next request, and all that follow."""
        if self._claim(intended := clock()):
            self._send(sends, intended, partial(self._send_next, sends))
        else:
            self._finish_one()

    def _send_arrived(self, sends: Sequence[Send], arrivals: Iterator[float], intended: float) -> None:
        """Sends the requests that have arrived by now, the first at `intended`, and schedules itself for the rest."""
        now = clock()
        try:
            while intended <= now:
                self._outstanding += 1
                self._send(sends, intended, self._finish_one)
                intended = next(arrivals, math.inf)
        except Exception as exc:
            self._fail(exc)
            return
        if intended < math.inf:
            asyncio.get_running_loop().call_at(intended, self._send_arrived, sends, arrivals, intended)
        else:
            self._finish_one()

    def _send(self, sends: Sequence[Send], intended: float, then: Callable[[], None]) -> None:
        which, sent = next(self._order), clock()

        def done(outcome: Arrays | Exception) -> None:
            try:
                self._record(which, intended, sent, outcome)
                then()
            except Exception as exc:
                self._fail(exc)

        sends[which](done)

    def _finish_one(self) -> None:
        self._outstanding -= 1
        if not self._outstanding and not self._drained.done():
            self._drained.set_result(None)

    def _fail(self, exc: Exception) -> None:
        """Reports an error of the generator itself in a callback, which would otherwise go unnoticed."""
        if not self._drained.done():
            self._drained.set_exception(exc)

    async def _tick(self) -> None:
        while True:
            before = clock()
            await asyncio.sleep(TICK_S)
            self._wakeup_delays.record_value(microseconds(clock() - before - TICK_S))

    # --- with threads

    def in_threads(self, connection: Connection) -> WorkerResult:
        assert isinstance(self.plan.target, ThreadedTarget)
        load, closed = self.plan.load, isinstance(self.plan.load, ClosedLoop)
        count = split(load.callers if closed else THREADS, self.plan.processes, self.index)
        with self.plan.target.opened(self.questions) as calls:
            self._await_start(connection)
            send_times = LockedIterator(self._at_once() if closed else self._due(load))
            ended = threading.Event()
            ticking = threading.Thread(target=self._tick_in_thread, args=(ended,))
            threads = [threading.Thread(target=self._call_in_turn, args=(calls, send_times)) for _ in range(count)]
            cpu_before = cpu_s()
            for thread in (ticking, *threads):
                thread.start()
            for thread in threads:
                thread.join()
            ended.set()
            ticking.join()
        return self._finished(cpu_before)

    def _call_in_turn(self, calls: Sequence[Call], send_times: LockedIterator[float]) -> None:
        for intended in send_times:
            time.sleep(max(0.0, intended - clock()))
            which, sent = next(self._order), clock()
            try:
                answer = calls[which]()
            except Exception as exc:
                self._record(which, intended, sent, exc)
            else:
                self._record(which, intended, sent, answer)

    def _tick_in_thread(self, ended: threading.Event) -> None:
        while not ended.is_set():
            before = clock()
            time.sleep(TICK_S)
            self._wakeup_delays.record_value(microseconds(clock() - before - TICK_S))

    # --- what both share

    def _await_start(self, connection: Connection) -> None:
        """A barrier: once all processes are ready, each is told when the window starts, and warms up until then."""
        connection.send(READY)
        window_start = connection.recv()
        if window_start is None:
            raise Abandoned
        self.window_start = window_start
        self.window_end = math.inf if self.plan.requests else self.window_start + self.plan.duration_s
        begins = self.window_start - self.plan.warmup_s
        self.warmup_start = clock() if isinstance(self.plan.load, ClosedLoop) else begins  # callers start at once

    def _at_once(self) -> Iterator[float]:
        """The intended send times of a closed loop: whenever a thread is free."""
        while self._claim(intended := clock()):
            yield intended

    def _due(self, load: OpenLoop) -> Iterator[float]:
        """The arrivals. If the plan has a number of `requests`, the window ends when the last of them is due: what is
        answered later was backlog."""
        if not self.plan.requests:
            return self._arrivals(load)
        arrivals = list(self._arrivals(load))
        self.window_end = math.nextafter(max(arrivals, default=self.window_start), math.inf)
        return iter(arrivals)

    def _arrivals(self, load: OpenLoop) -> Iterator[float]:
        """The intended send times of an open loop, from the warm-up on: this process's part of a Poisson process."""
        arrival = self.warmup_start
        rate = load.per_s / self.plan.processes
        while self._claim(arrival := arrival + self._arrival_rng.expovariate(rate)):
            yield math.ceil(arrival / load.coalesce_s) * load.coalesce_s if load.coalesce_s else arrival

    def _claim(self, intended: float) -> bool:
        """Whether a request is still to be sent at that time; after the warm-up it is one of the plan's `requests`."""
        if intended >= self.window_start:
            self._left -= 1
        return intended < self.window_end and self._left >= 0

    def _drawn(self) -> Iterator[int]:
        """Yields indices of questions: models are drawn by weight, each model's questions come in turn."""
        starts = itertools.accumulate((len(share.questions) for share in self.plan.mix), initial=0)
        turns = [
            itertools.cycle(range(start, start + len(share.questions)))
            for share, start in zip(self.plan.mix, starts, strict=False)
        ]
        weights = list(itertools.accumulate(share.weight for share in self.plan.mix))
        while True:
            (turn,) = self._mix_rng.choices(turns, cum_weights=weights) if len(turns) > 1 else turns
            yield next(turn)

    def _record(self, which: int, intended: float, sent: float, outcome: Arrays | Exception) -> None:
        now, question = clock(), self.questions[which]
        failure = self._failure(outcome, question)
        with self._recording:
            self.last_answer = max(self.last_answer, now)
            tally = self.tallies[question.model]
            tally.completed += failure is None and self.window_start <= now < self.window_end
            if self.window_start <= intended < self.window_end:
                tally.late += sent - intended > LATE_S
                tally.record(now - intended, failure)

    def _failure(self, outcome: Arrays | Exception, question: Question) -> Failed | None:
        if isinstance(outcome, Failed):
            return outcome
        if isinstance(outcome, Exception):
            return Failed("other", f"{type(outcome).__name__}: {outcome}")
        said = mismatch(outcome, question, closely=next(self._answers) % self.plan.closely_every == 0)
        return Failed("wrong answer", said) if said else None

    def _finished(self, cpu_before: float) -> WorkerResult:
        elapsed_s = max(self.last_answer - self.warmup_start, 1e-9)
        utilisation = (cpu_s() - cpu_before) / elapsed_s if self.last_answer else 0.0  # there was nothing to do
        wakeup_delay_us = self._wakeup_delays.get_value_at_percentile(50)
        return WorkerResult(self.tallies, utilisation, self.last_answer, wakeup_delay_us)


class LockedIterator(Iterator[T], Generic[T]):
    """An iterator that several threads draw from."""

    def __init__(self, source: Iterator[T]) -> None:
        self._source = source
        self._lock = threading.Lock()

    def __next__(self) -> T:
        with self._lock:
            return next(self._source)


def split(total: int, processes: int, index: int) -> int:
    """How many of `total` go to process `index`."""
    return total // processes + (index < total % processes)


def cpu_s() -> float:
    """CPU time that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
