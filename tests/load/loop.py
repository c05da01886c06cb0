"""One process of the load generator: sends requests as the plan says, and records what comes of them.

Latency counts from the moment when a request was to be sent. In open loop that is its arrival, whether or not this
process had time for it then; what is sent more than LATE_S afterwards is counted as late, too.
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
from tests.load.plan import Closed, Open, Plan
from tests.load.questions import Arrays, Question, wrong
from tests.load.targets import Ask, Awaited, Failed, Kind, Run, Threaded

LATE_S = 1e-3
TICK_S = 10e-3
EPOLL_S = 1e-3
"""the least that epoll waits"""
LONGEST_US = 3600 * 10**6
DIGITS = 3
READY = "ready"
T = TypeVar("T")

clock = time.monotonic  # the same in all processes of a machine


def histogram() -> HdrHistogram:
    """Of microseconds, to three digits."""
    return HdrHistogram(1, LONGEST_US, DIGITS)


def microseconds(seconds: float) -> int:
    return max(1, round(1e6 * seconds))


@dataclass
class Tally:
    """Of one model. `asked`, `right` and `latency` are about what was to be sent within the window, of `latency` what
    was answered rightly; `done` are the right answers that came within it."""

    asked: int = 0
    right: int = 0
    done: int = 0
    late: int = 0
    failures: Counter[Kind] = field(default_factory=Counter)
    examples: dict[Kind, str] = field(default_factory=dict)
    latency: HdrHistogram = field(default_factory=histogram)

    def count(self, took_s: float, failure: Failed | None) -> None:
        self.asked += 1
        if failure is None:
            self.right += 1
            self.latency.record_value(microseconds(took_s))
        else:
            self.failures[failure.kind] += 1
            self.examples.setdefault(failure.kind, str(failure))

    def add(self, other: Tally) -> None:
        self.asked += other.asked
        self.right += other.right
        self.done += other.done
        self.late += other.late
        self.failures += other.failures
        self.examples = other.examples | self.examples
        self.latency.add(other.latency)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"latency": self.latency.encode()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"latency": HdrHistogram.decode(state["latency"])})


@dataclass(frozen=True)
class Part:
    """What one process has done. `busy` is its CPU time in cores; `delays_us` is how much later than asked for it woke
    up, every 10 ms: its own share of every latency."""

    tallies: dict[str, Tally]
    busy: float
    ended: float
    delays_us: tuple[int, int]


class Abandoned(Exception):
    """Another process could not begin."""


def work(connection: Connection) -> None:
    """The process: plans come in, Parts go out, until the other end closes. What fails is sent in place of a Part."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection for each request under way
    with contextlib.suppress(EOFError):
        while True:
            plan, place = connection.recv()
            connection.send(_tried(Load(plan, place), connection))


def _tried(load: Load, connection: Connection) -> Part | Exception:
    try:
        return _run(load, connection)
    except (ServingError, Abandoned) as exc:
        return exc
    except Exception as exc:  # which may not cross to another process
        return RuntimeError("".join(traceback.format_exception(exc)))


def _run(load: Load, connection: Connection) -> Part:
    if isinstance(load.plan.target, Threaded):
        return load.in_threads(connection)
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(PunctualSelector())) as runner:
        return runner.run(load.in_loop(connection))


class PunctualSelector(selectors.DefaultSelector):
    """Waits microseconds: epoll by itself waits whole milliseconds, and arrivals would be up to one late.

    Of longer waits only the whole milliseconds: one call for the system, not two, and the loop asks for the rest.
    """

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout >= EPOLL_S:
            timeout = timeout // EPOLL_S * EPOLL_S - EPOLL_S / 2  # which is rounded up
        elif timeout is not None and timeout > 0:
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


class Load:
    """This process's share of a plan: it is number `place` of `plan.processes`."""

    def __init__(self, plan: Plan, place: int) -> None:
        self.plan = plan
        self.place = place
        self.questions = [question for share in plan.mix for question in share.questions]
        self.tallies = {share.model: Tally() for share in plan.mix}
        self.begin = self.end = math.inf
        self.ended = 0.0
        self._unfinished = 0  # callers, or requests under way and the arrivals
        self._arrival_rng, self._mix_rng = (random.Random(f"{plan.seed} {place} {use}") for use in ("arrivals", "mix"))
        self._order = Shared(self._drawn())
        self._left = share(plan.requests, plan.processes, place) if plan.requests else math.inf
        self._delays = histogram()
        self._answers = itertools.count()
        self._recording = threading.Lock()

    # --- in an event loop, by callbacks: with a coroutine for each request it takes a fifth to a half more CPU

    async def in_loop(self, connection: Connection) -> Part:
        assert isinstance(self.plan.target, Awaited)
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        async with self.plan.target.opened(self.questions) as calls:
            self._agree(connection)
            ticking = asyncio.create_task(self._tick())
            used = cpu_s()
            if isinstance(self.plan.load, Closed):
                self._unfinished = callers = share(self.plan.load.callers, self.plan.processes, self.place)
                for _ in range(callers):
                    self._call(calls)
            else:
                self._unfinished = callers = 1
                dues = self._due(self.plan.load)
                self._arrive(calls, dues, next(dues, math.inf))
            if callers:
                await self._over
            ticking.cancel()
        return self._part(used)

    def _call(self, calls: Sequence[Ask]) -> None:
        """One caller's next request, and all that follow."""
        if self._goes_on(due := clock()):
            self._ask(calls, due, partial(self._call, calls))
        else:
            self._finish()

    def _arrive(self, calls: Sequence[Ask], dues: Iterator[float], due: float) -> None:
        """Sends what is due, and comes back for the rest."""
        now = clock()
        try:
            while due <= now:
                self._unfinished += 1
                self._ask(calls, due, self._finish)
                due = next(dues, math.inf)
        except Exception as exc:
            self._fail(exc)
            return
        if due < math.inf:
            asyncio.get_running_loop().call_at(due, self._arrive, calls, dues, due)
        else:
            self._finish()

    def _ask(self, calls: Sequence[Ask], due: float, then: Callable[[], None]) -> None:
        which, sent = next(self._order), clock()

        def done(came: Arrays | Exception) -> None:
            try:
                self._record(which, due, sent, came)
                then()
            except Exception as exc:
                self._fail(exc)

        calls[which](done)

    def _finish(self) -> None:
        self._unfinished -= 1
        if not self._unfinished and not self._over.done():
            self._over.set_result(None)

    def _fail(self, exc: Exception) -> None:
        """The generator itself went wrong, in a callback, which nobody waits for."""
        if not self._over.done():
            self._over.set_exception(exc)

    async def _tick(self) -> None:
        while True:
            before = clock()
            await asyncio.sleep(TICK_S)
            self._delays.record_value(microseconds(clock() - before - TICK_S))

    # --- with threads

    def in_threads(self, connection: Connection) -> Part:
        assert isinstance(self.plan.target, Threaded)
        load, closed = self.plan.load, isinstance(self.plan.load, Closed)
        count = share(load.callers if closed else load.threads, self.plan.processes, self.place)
        with self.plan.target.opened(self.questions) as calls:
            self._agree(connection)
            dues = Shared(self._now() if closed else self._due(load))
            ended = threading.Event()
            ticking = threading.Thread(target=self._tick_in_thread, args=(ended,))
            threads = [threading.Thread(target=self._hand, args=(calls, dues)) for _ in range(count)]
            used = cpu_s()
            for thread in (ticking, *threads):
                thread.start()
            for thread in threads:
                thread.join()
            ended.set()
            ticking.join()
        return self._part(used)

    def _hand(self, calls: Sequence[Run], dues: Shared[float]) -> None:
        for due in dues:
            time.sleep(max(0.0, due - clock()))
            which, sent = next(self._order), clock()
            try:
                answer = calls[which]()
            except Exception as exc:
                self._record(which, due, sent, exc)
            else:
                self._record(which, due, sent, answer)

    def _tick_in_thread(self, ended: threading.Event) -> None:
        while not ended.is_set():
            before = clock()
            time.sleep(TICK_S)
            self._delays.record_value(microseconds(clock() - before - TICK_S))

    # --- what both share

    def _agree(self, connection: Connection) -> None:
        """All processes begin at the same moment, which the first one to know tells them."""
        connection.send(READY)
        begin = connection.recv()
        if begin is None:
            raise Abandoned
        self.begin = begin
        self.end = math.inf if self.plan.requests else self.begin + self.plan.duration_s
        self.started = self.begin - self.plan.warmup_s

    def _now(self) -> Iterator[float]:
        while self._goes_on(due := clock()):
            yield due

    def _due(self, load: Open) -> Iterator[float]:
        """When requests are to be sent, warm-up and all."""
        due = self.started
        rate = load.per_s / self.plan.processes
        while self._goes_on(due := due + self._arrival_rng.expovariate(rate)):
            yield math.ceil(due / load.together_s) * load.together_s if load.together_s else due

    def _goes_on(self, due: float) -> bool:
        """Whether a request that is due then is still to be sent."""
        if due >= self.begin:
            self._left -= 1
        return due < self.end and self._left >= 0

    def _drawn(self) -> Iterator[int]:
        """Which question next: a model by its weight, and of that one question after the other."""
        starts = itertools.accumulate((len(share.questions) for share in self.plan.mix), initial=0)
        turns = [
            itertools.cycle(range(start, start + len(share.questions)))
            for share, start in zip(self.plan.mix, starts, strict=False)
        ]
        weights = list(itertools.accumulate(share.weight for share in self.plan.mix))
        while True:
            (turn,) = self._mix_rng.choices(turns, cum_weights=weights) if len(turns) > 1 else turns
            yield next(turn)

    def _record(self, which: int, due: float, sent: float, came: Arrays | Exception) -> None:
        now, question = clock(), self.questions[which]
        failure = self._failure(came, question)
        with self._recording:
            self.ended = max(self.ended, now)
            tally = self.tallies[question.model]
            tally.done += failure is None and self.begin <= now < self.end
            if self.begin <= due < self.end:
                tally.late += sent - due > LATE_S
                tally.count(now - due, failure)

    def _failure(self, came: Arrays | Exception, question: Question) -> Failed | None:
        if isinstance(came, Failed):
            return came
        if isinstance(came, Exception):
            return Failed("other", f"{type(came).__name__}: {came}")
        said = wrong(came, question, closely=next(self._answers) % self.plan.closely_every == 0)
        return Failed("wrong answer", said) if said else None

    def _part(self, used_before: float) -> Part:
        busy = (cpu_s() - used_before) / max(self.ended - self.started, 1e-9) if self.ended else 0.0  # nothing to do
        delays = self._delays.get_value_at_percentile(50), self._delays.get_value_at_percentile(99)
        return Part(self.tallies, busy, self.ended, delays)


class Shared(Iterator[T], Generic[T]):
    """An iterator that several threads draw from."""

    def __init__(self, source: Iterator[T]) -> None:
        self._source = source
        self._lock = threading.Lock()

    def __next__(self) -> T:
        with self._lock:
            return next(self._source)


def share(total: int, parts: int, place: int) -> int:
    """How many of `total` are for one of `parts`."""
    return total // parts + (place < total % parts)


def cpu_s() -> float:
    """That this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
