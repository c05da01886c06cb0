"""The load generator itself, on stand-ins for a server whose behaviour is known."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from serving.errors import RepositoryError, ServerError
from serving.repository import GOLDEN, REPOSITORY
from serving.spec import Ensemble
from tests.load import __main__ as command
from tests.load import knee, measure, page, plots, questions, side_by_side, tables, tune
from tests.load.generator import Generator
from tests.load.loop import Tally, Worker, WorkerResult
from tests.load.plan import ClosedLoop, OpenLoop, Plan, Share
from tests.load.questions import Question
from tests.load.result import Result, percentile_ms, server_lines
from tests.load.targets import (
    Arrays,
    AsyncTarget,
    Call,
    Failed,
    InProcess,
    Send,
    Target,
    ThreadedTarget,
    from_coroutine,
)

RIGHT = {"number": np.ones((1, 1), np.float32)}
QUESTION = Question(model="stand-in", inputs=RIGHT, expected=RIGHT, atol=0.1)
MIX = [Share("stand-in", 1, [QUESTION])]


@dataclass(frozen=True, kw_only=True)
class Stalling(AsyncTarget):
    """Answers one request after the other; the first takes `stall_s`, the others nothing."""

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
    """Goes through `answers` for ever: arrays, or kinds of failures."""

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


@pytest.fixture(scope="module")
def generator() -> Iterator[Generator]:
    with Generator(1) as generator:
        yield generator


def test_open_loop_counts_the_wait_of_requests_that_came_during_a_stall(generator: Generator) -> None:
    """The server stalls once, for half of the arrivals: half of the latencies must say so, where a closed loop with
    one caller has a single one."""
    stalling = Stalling(name="stalling", stall_s=1.0)
    plan = Plan(target=stalling, load=OpenLoop(100.0), mix=MIX, warmup_s=0.001, requests=200, seed=1)
    opened = generator.run(plan).total
    closed = generator.run(replace(plan, load=ClosedLoop(1))).total

    assert 0.3 < slower(opened, 0.1) < 0.7
    assert closed.requests == closed.correct == 200
    assert slower(closed, 0.5) <= 1 / 200


def slower(tally: Tally, seconds: float) -> float:
    """Share of the requests."""
    counted = sum(
        item.count_added_in_this_iter_step
        for item in tally.latency.get_recorded_iterator()
        if item.value_iterated_to > 1e6 * seconds
    )
    return counted / tally.requests


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


@pytest.mark.parametrize(("load", "at_once"), [(ClosedLoop(2), True), (OpenLoop(50.0), False)], ids=["closed", "open"])
def test_utilisation_is_of_the_time_in_which_requests_are_sent(load: ClosedLoop | OpenLoop, at_once: bool) -> None:
    """Callers begin when they are told of the window; arrivals wait for the warm-up before it."""
    plan = Plan(target=Faulty(name="none", answers=()), load=load, mix=MIX, warmup_s=100.0)
    worker, (ours, theirs) = Worker(plan, 0), multiprocessing.Pipe()
    told = time.monotonic()
    theirs.send(told + 200)
    worker._await_start(ours)
    assert worker.window_start == told + 200
    assert worker.warmup_start == pytest.approx(told if at_once else told + 100, abs=50)


def test_arrivals_are_drawn_by_the_seed_and_shared_by_processes() -> None:
    """The same seed draws the same; two processes have other arrivals each, and the rate together."""

    def send_times(seed: int, index: int, processes: int = 2, coalesce_s: float = 0.0) -> list[float]:
        arrivals = OpenLoop(50.0, coalesce_s=coalesce_s)
        faulty = Faulty(name="none", answers=())
        worker = Worker(Plan(target=faulty, load=arrivals, mix=MIX, processes=processes, seed=seed), index)
        worker.warmup_start, worker.window_start, worker.window_end = 0.0, 0.0, 100.0
        return list(worker._arrivals(arrivals))

    assert send_times(1, 0) == send_times(1, 0)
    assert send_times(1, 0) != send_times(2, 0)
    assert send_times(1, 0) != send_times(1, 1)
    assert len(send_times(1, 0)) + len(send_times(1, 1)) == pytest.approx(5000, abs=5 * 5000**0.5)
    gaps = np.diff(send_times(1, 0, processes=1))
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1), "as a Poisson process has it"
    together = np.array(send_times(1, 0, coalesce_s=0.25))
    waits = together - send_times(1, 0)
    assert set(together % 0.25) == {0.0}
    assert 0 <= waits.min() < waits.max() < 0.25


def test_arrivals_do_not_depend_on_when_models_are_drawn() -> None:
    """Threads draw both as it happens, and the same seed has to give the same arrivals."""
    mix = [Share(model, 1, [replace(QUESTION, model=model)]) for model in ("one", "other")]
    plan = Plan(target=Faulty(name="none", answers=()), load=OpenLoop(50.0), mix=mix, seed=1)

    def send_times(drawn_before: int) -> list[float]:
        worker = Worker(plan, 0)
        worker.warmup_start, worker.window_start, worker.window_end = 0.0, 0.0, 10.0
        for _ in range(drawn_before):
            next(worker._order)
        return list(worker._arrivals(plan.load))

    assert send_times(drawn_before=0) == send_times(drawn_before=7)


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


def worker_result(
    wakeup_delay_us: int = 10, utilisation: float = 0.1, late: int = 0, latency_us: int = 10_000, requests: int = 100
) -> WorkerResult:
    tally = Tally(requests=requests, correct=requests, completed=requests, late=late)
    tally.latency.record_value(latency_us, requests)
    return WorkerResult({"stand-in": tally}, utilisation, 0.0, wakeup_delay_us)


def made(load: OpenLoop | ClosedLoop, **of_worker: float) -> Result:
    plan = Plan(target=Stalling(name="none", stall_s=0), load=load, mix=MIX)
    counts = measure.Counts(answered=100, inferences=100, executions=50)
    counts.batches.update({1: 20, 2: 40})
    return Result(plan, [worker_result(**of_worker)], 5.0, {"stand-in": counts}, None)


@pytest.mark.parametrize(
    ("of_worker", "says"),
    [
        ({}, None),
        ({"utilisation": 0.95}, "--processes"),
        ({"late": 5}, "5.0% of the requests"),
        ({"wakeup_delay_us": 5000}, "wakes up 5.0 ms late"),
    ],
    ids=["none", "busy", "late", "waiting"],
)
def test_it_says_when_it_is_itself_the_bottleneck(of_worker: dict[str, float], says: str | None) -> None:
    doubts = made(OpenLoop(20.0), **of_worker).doubts()
    assert len(doubts) == (says is not None)
    assert not says or says in doubts[0]


@pytest.mark.parametrize(
    ("target", "doubted"),
    [(Faulty(name="threads", answers=("1",)), True), (InProcess(name="in process", repository=REPOSITORY), False)],
    ids=["threads", "in process"],
)
def test_a_busy_process_is_no_bottleneck_where_the_model_computes_in_it(target: Target, doubted: bool) -> None:
    """Threads that ask a server share one interpreter, and are doubted as an event loop is."""
    busy = made(ClosedLoop(2), utilisation=0.95)
    busy = replace(busy, plan=replace(busy.plan, target=target))
    assert bool(busy.doubts()) == doubted
    assert command._doubted([busy]).endswith(f"measured at {ClosedLoop(2)}.") == doubted


def test_the_knee_is_the_highest_rate_below_the_first_that_is_too_slow() -> None:
    """A rate beyond one that failed does not count, however well it went."""
    latencies = {10: 20, 20: 40, 30: 200, 40: 50}
    results = [made(OpenLoop(rate), latency_us=1000 * ms) for rate, ms in latencies.items()]
    found = knee.knee(results, 100.0)
    assert found is results[1]
    assert knee.knee(results, 10.0) is None
    callers = [made(ClosedLoop(8), latency_us=90_000), made(ClosedLoop(1), latency_us=10_000)]
    assert knee.limit_ms(callers) == pytest.approx(50, rel=0.01), "five times the fewest callers', in any order"


@pytest.mark.parametrize(
    ("rates", "limit_ms", "says"),
    [
        ({20: 40, 10: 20}, 100.0, "Knee: at least 20/s (p99 40.03 ms)"),
        ({10: 20, 20: 200}, 100.0, "Knee: 10/s (p99 20.02 ms) is the highest rate"),
        ({10: 200}, 100.0, "No rate kept"),
        ({10: 20}, None, "No limit"),
        ({}, 100.0, "No rate was tried"),
    ],
    ids=["all", "some", "none", "no limit", "no rate"],
)
def test_the_verdict_says_what_was_seen_of_the_knee(rates: dict[float, int], limit_ms: float | None, says: str) -> None:
    results = [made(ClosedLoop(1)), *(made(OpenLoop(rate), latency_us=1000 * ms) for rate, ms in rates.items())]
    found = knee.knee(results, limit_ms) if limit_ms else None
    assert command._verdict(results, found, limit_ms).startswith(says)


def test_a_tally_of_two_processes_is_that_of_all_their_requests() -> None:
    result = Result(
        made(ClosedLoop(2)).plan, [worker_result(latency_us=1000), worker_result(latency_us=9000)], 5.0, {}, None
    )
    assert (result.total.requests, result.per_s) == (200, 40)
    assert result.percentile_ms(50) == pytest.approx(1, rel=0.01)
    assert result.percentile_ms(99) == pytest.approx(9, rel=0.01)
    assert json.dumps(result.data())


@pytest.mark.parametrize(("answers", "rank"), [(1, 1), (50, 50), (60, 60), (100, 99), (101, 100), (149, 148)])
def test_a_percentile_is_the_nearest_rank(answers: int, rank: int) -> None:
    """Of 60 answers no 59 are 99 in a hundred, so that p99 is the slowest."""
    tally = Tally()
    for number in range(1, answers + 1):
        tally.record(number / 1000, None)
    assert percentile_ms(tally, 99) == pytest.approx(rank, rel=0.001)


def test_a_servers_cores_are_those_of_the_time_that_it_was_watched_for() -> None:
    """Which is not the window."""
    watched = replace(made(ClosedLoop(1)), usage=measure.Usage(cpu_s=6.0, elapsed_s=4.0, memory=[(0.0, 2**20)]))
    assert "server: 1.50 cores, 1 MiB at most" in server_lines(watched)


def test_the_histogram_shows_which_latencies_are_usual() -> None:
    """Three in four requests take 10 ms, and the others 20."""
    tally = Tally(correct=100)
    tally.latency.record_value(10_000, 75)
    tally.latency.record_value(20_000, 25)
    result = replace(made(ClosedLoop(1)), workers=[WorkerResult({"stand-in": tally}, 0.1, 0.0, 10)])
    figure, axes = plots.plt.subplots()
    plots._histogram(axes, [result])
    (outline,) = axes.patches
    heights = {round(height, 9): left for left, height in outline.get_xy() if height}
    plots.plt.close(figure)
    assert heights == {0.75: pytest.approx(10, rel=0.03), 0.25: pytest.approx(20, rel=0.03)}


def test_pictures_and_page_stand_alone(tmp_path: Path) -> None:
    results = [made(ClosedLoop(1)), made(OpenLoop(10.0)), made(OpenLoop(20.0), latency_us=30_000)]
    pictures = plots.all_of(results, 50.0, tmp_path)
    assert [path.name for path in pictures] == ["latency.png", "histogram.png", "distribution.png", "batches.png"]
    page.write(tmp_path / "report.html", "a <b>", "about", "verdict", results, pictures)
    text = (tmp_path / "report.html").read_text()
    assert "a &lt;b&gt;" in text
    assert text.count("data:image/png;base64,") == 4
    assert "http" not in text
    assert "$" not in text


def test_batches_are_told_by_about_their_size() -> None:
    """Doubling: few enough for a legend, whatever sizes the server made. Shares are of the requests, not of batches."""
    result = made(ClosedLoop(8))
    result.counts["stand-in"].batches.update({3: 20, 4: 10, 5: 4, 64: 1})
    assert plots.batch_shares(result) == {1: 20 / 284, 2: 80 / 284, 4: 100 / 284, 8: 20 / 284, 64: 64 / 284}


def test_tables_go_between_their_markers_and_nowhere_else(tmp_path: Path) -> None:
    row, ceiling = (side_by_side.Row("classifier", way) for way in ("triton", "in-process"))
    for load in side_by_side.CALLERS:
        row.results[load], ceiling.results[load] = [made(ClosedLoop(load))], [made(ClosedLoop(load), requests=200)]
    readme, page = tmp_path / "README.md", tmp_path / "page.md"
    readme.write_text("before\n<!-- load-report -->\nold\n<!-- /load-report -->\nafter\n")
    page.write_text("<!-- capacity -->\n<!-- /capacity -->\nafter\n")
    tables.check_markers([readme, page])
    tables.write([readme, page], [ceiling, row], side_by_side.QUICK)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| classifier | triton | 20 | 20 | 20 | 20 | 0.50 |" in text
    assert "| classifier | 20 | - | 2 | 9 | 73 |" in page.read_text(), "ceil(target / (0.7 x 20)) + 1"
    tables.check_markers([readme, page])


def test_a_way_that_answered_nothing_has_its_row_in_every_table(tmp_path: Path) -> None:
    """Without latencies, of which 0 ms would be the best."""
    nothing: dict[float, list[Result]] = {load: [made(ClosedLoop(load), requests=0)] for load in side_by_side.CALLERS}
    nothing |= {share: [made(OpenLoop(1.0), requests=0)] for share in side_by_side.SHARES}
    row = side_by_side.Row("classifier", "triton", nothing)
    page = tmp_path / "page.md"
    page.write_text("<!-- load-report --><!-- /load-report -->\n<!-- capacity --><!-- /capacity -->\n")
    tables.write([page], [row], side_by_side.QUICK)
    assert "| classifier | triton | 0 | 0 | 0 | 0 | - | - | - | - | - | - |" in page.read_text()
    assert "| classifier | 0 | - | - | - | - |" in page.read_text()
    assert set(tables.data([row])["classifier"]["triton"]["p99_ms"].values()) == {None}


def test_a_row_of_the_sweep_tells_what_went_wrong_in_it() -> None:
    """How many requests failed, and how many windows the generator doubts."""
    doubted, sound = made(ClosedLoop(1), utilisation=0.95), made(ClosedLoop(32))
    row = tune.Row([sound, doubted], [sound, sound], [sound, sound], [doubted, doubted])
    sound.total.failures["overloaded"] = 2
    data = row.data(row)
    assert (data["errors"], data["doubtful"]) == (10, 3)
    assert tune.table({"one": data, "two": data | {"errors": 0, "doubtful": 0}})[2].startswith(
        "| one (10 errors, 3 doubtful) |"
    )
    assert tune.table({"two": data | {"errors": 0, "doubtful": 0}})[2].startswith("| two |")


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


@pytest.mark.parametrize(
    ("bench", "arguments"),
    [
        ("bench_fast_slow", ["--side", "0"]),
        ("bench_painter", ["--size", "0"]),
        ("bench_quantized", ["--rounds", "0"]),
        ("bench_serving", ["--rounds", "0"]),
        ("bench_serving", ["--model", "classifier", "--requests", "0"]),
        ("bench_serving", ["--model", "style", "--side", "15"]),
        ("bench_training", ["--rounds", "0"]),
        ("bench_serving", ["--model", "upscaler", "--side", "1024"]),
        ("bench_fast_slow", ["--out", "/proc/nowhere/x.png"]),
        ("bench_training", ["--steps", "-1"]),
        ("bench_training", ["--steps", "1"]),
        ("bench_training", ["--out", "/proc/nowhere/x.png"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_bench_refuses_what_it_cannot_measure(
    bench: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [bench, *arguments])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(bench).main()
    said = capsys.readouterr().err
    assert arguments[-2] in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "walrus"], "no model 'walrus'"),
        (["--model", "wgan=0"], "--model"),
        (["--rate", "-1"], "--rate"),
        (["--callers", "0"], "--callers: '0' must be a whole number, 1 or more"),
        (["--callers", "two"], "--callers: 'two' must be a whole number, 1 or more"),
        (["--rate", "nan"], "--rate: 'nan' must be a number above 0"),
        (["--model", "painter", "--way", "in-process"], "--model painter"),
        (["--way", "in-process", "--url", "localhost:1"], "--url"),
        (["--callers", "1", "--processes", "2"], "--callers 1"),
        (["--report", "--write", "/nowhere/README.md"], "--write /nowhere/README.md"),
        (["--repository", "/nowhere"], "/nowhere"),
        (["--url", "localhost:1", "--callers", "1", "--requests", "1"], "localhost:1"),
        (["--agree", "--url", "localhost:1"], "--url: goes with a plain load, not with --agree"),
        (["--agree", "--seed", "0"], "--seed: goes with a plain load, not with --agree"),
        (["--agree", "--callers", "1", "--callers", "2"], "--callers: --agree takes one number"),
        (["--agree", "--way", "in-process"], "--way in-process"),
        (["--report", "--callers", "1"], "--callers: goes with a plain load or --agree, not with --report"),
        (["--report", "--p99-ms", "1"], "--p99-ms: goes with a plain load, not with --report"),
        (["--report", "--model", "painter"], "--model painter"),
        (["--report", "--model", "wgan=3"], "--model NAME=WEIGHT: makes a mix"),
        (["--write", "README.md"], "--write: goes with --report, not with a plain load"),
        (["--quick"], "--quick: goes with --agree or --report"),
        (["--model", "wgan=1", "--model", "wgan=3"], "--model wgan: given more than once"),
        (["--requests", "1", "--duration-s", "1"], "--requests: instead of --duration-s"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    try:
        status = command.main([*arguments, "--out", str(tmp_path / "out")])
    except SystemExit as exc:
        status = exc.code
    said = capsys.readouterr().err
    assert (status, said.count("\n")) == (2, 1), said
    assert says in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("main", "first"), [(command.main, []), (tune.main, ["classifier"])], ids=["load", "tune"])
def test_a_folder_that_cannot_be_written_is_refused_before_measuring(
    main: Callable[[list[str]], int], first: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what is in its place stays."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        main([*first, "--out", str(tmp_path / "file" / "deeper")])
    said = capsys.readouterr().err
    assert f"--out: {tmp_path / 'file'}: Not a directory" in said
    assert said.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_the_command_says_its_options_without_a_server() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.load", "--model", "classifier=3", "--dry-run"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["model"] == [["classifier", 3.0]]
