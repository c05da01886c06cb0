"""Tuning, overload and the comparison: what is asked in which order, what is made of it, and what was promised."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Self

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from serving.errors import RepositoryError, ServingError
from serving.repository import CONFIG, REPOSITORY
from tests.load import overload, servers, side_by_side, tables, tune
from tests.load.loop import Tally, WorkerResult
from tests.load.measure import Usage, machine
from tests.load.plan import ClosedLoop, OpenLoop, Plan, Share
from tests.load.result import Result
from tests.load.targets import Failed, Kind, Target
from training import catalog

CLASSIFIER = catalog.spec("classifier")
MIB = 2**20


def result(
    load: ClosedLoop | OpenLoop, *, answers: int, took_s: float = 0.01, memory: tuple[int, ...] = (100,)
) -> Result:
    """Of one second, in which so many requests were answered."""
    tally = Tally(completed=answers)
    for _ in range(answers):
        tally.record(took_s, None)
    plan = Plan(target=Target(name="triton"), load=load, mix=[Share("classifier", 1, [])])
    worker = WorkerResult({"classifier": tally}, utilisation=0.1, last_answer=1.0, wakeup_delay_us=1)
    return Result(plan, [worker], 1.0, {}, Usage(1.0, 1.0, [(float(at), size * MIB) for at, size in enumerate(memory)]))


def with_slow(found: Result, took_s: float) -> Result:
    """For every ten answers one more, which takes that long: p50 does not show it, and p99 does."""
    tally = found.workers[0].tallies["classifier"]
    for _ in range(tally.correct // 10):
        tally.record(took_s, None)
    return found


def refused(found: Result, kind: Kind, count: int) -> Result:
    for _ in range(count):
        found.workers[0].tallies["classifier"].record(0.0, Failed(kind, "no"))
    return found


def kept(over: Result) -> dict[str, bool]:
    found: dict[str, bool] = overload.report(CLASSIFIER, result(ClosedLoop(128), answers=100), over)["kept"]
    return found


def test_settings_differ_from_the_specs_own_in_one_thing() -> None:
    """Its own comes first, and no setting twice; instances and threads count as one thing."""
    own = tune.own_setting(CLASSIFIER)
    found = tune.settings(own)
    assert found[0] == own
    assert len(set(found)) == len(found)
    for setting in found[1:]:
        shape = (setting.instances, setting.threads) != (own.instances, own.threads)
        batches = (setting.max_batch != own.max_batch) + (setting.preferred != own.preferred)
        assert shape + batches + (setting.delay_us != own.delay_us) == 1


def test_without_batching_each_request_runs_alone() -> None:
    """Nothing else of the model changes."""
    before = text_format.Parse((REPOSITORY / "classifier" / CONFIG).read_text(), pb.ModelConfig())
    model = pb.ModelConfig()
    model.CopyFrom(before)
    servers.without_batching(model)
    assert before.HasField("dynamic_batching")
    assert not model.HasField("dynamic_batching")
    model.dynamic_batching.CopyFrom(before.dynamic_batching)
    assert model == before


def test_a_setting_changes_its_own_model_alone() -> None:
    """What it does not name stays: the queue's limits, and the warm-up where it still fits."""
    before = text_format.Parse((REPOSITORY / "classifier" / CONFIG).read_text(), pb.ModelConfig())
    setting = tune.Setting(instances=3, threads=2, max_batch=16, delay_us=500, preferred=(8,))
    model, other = pb.ModelConfig(), pb.ModelConfig(name="style")
    model.CopyFrom(before)
    setting.apply("classifier", model)
    setting.apply("classifier", other)
    assert other == pb.ModelConfig(name="style")
    assert (model.instance_group[0].count, model.max_batch_size) == (3, 16)
    assert model.parameters["intra_op_thread_count"].string_value == "2"
    assert model.dynamic_batching.max_queue_delay_microseconds == 500
    assert list(model.dynamic_batching.preferred_batch_size) == [8]
    assert model.dynamic_batching.default_queue_policy == before.dynamic_batching.default_queue_policy
    assert [warmup.batch_size for warmup in model.model_warmup] == [1, 16]


def test_a_row_is_compared_within_its_round() -> None:
    """A machine that slows down from round to round changes no ratio."""
    rounds = [result(ClosedLoop(32), answers=answers) for answers in (400, 200, 100)]
    half = [result(ClosedLoop(32), answers=answers) for answers in (200, 100, 50)]
    own, other = tune.Row(*[rounds] * 4), tune.Row(*[half] * 4)
    assert (own.data(own)["to_own"], other.data(own)["to_own"]) == (1.0, 0.5)


def test_a_page_has_a_row_for_each_setting_and_says_where_there_were_errors() -> None:
    alone, busy = result(ClosedLoop(1), answers=9), result(OpenLoop(8), answers=9)
    own = tune.Row([alone], [alone], [refused(result(ClosedLoop(32), answers=9), "other", 2)], [busy])
    about = machine() | {"rounds": 1, "seconds": 1.0}
    text = tune.page("classifier", {"first": own.data(own), "second": own.data(own)}, about)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert {row.count("|") for row in rows} == {len(tune.COLUMNS) + 2}
    assert rows[2].startswith("| first (2 errors) |")


def test_a_row_tells_of_each_load_what_it_is_named_for() -> None:
    """Medians of the rounds: of one caller p50, of two throughput, of many throughput and p99, in open loop both."""

    def rounds(load: ClosedLoop | OpenLoop, answers: int, took_s: float) -> list[Result]:
        found = [result(load, answers=factor * answers, took_s=factor * took_s) for factor in (1, 4, 2)]
        return [with_slow(each, 0.1 + took_s) for each in found]

    loads = (ClosedLoop(1), ClosedLoop(2), ClosedLoop(32), OpenLoop(9))
    row = tune.Row(*(rounds(load, 10 * step, 0.001 * step) for step, load in enumerate(loads, start=1)))
    data = row.data(row)
    assert (data["two_per_s"], data["per_s"]) == (40, 60)
    figures = {"p50_ms": 2, "p99_ms": 103, "busy_p50_ms": 8, "busy_p99_ms": 104, "slowest_ms": 104}
    assert {name: data[name] for name in figures} == pytest.approx(figures, rel=1e-3)


def test_a_setting_that_answered_nothing_has_no_latency() -> None:
    """In which 0 ms would be the best of all."""
    none, some = result(OpenLoop(8), answers=0), result(ClosedLoop(1), answers=9)
    row = tune.Row([some], [some], [some], [none])
    assert (row.data(row)["p50_ms"], row.data(row)["busy_p50_ms"]) == (10.01, None)
    assert tune.table({"only": row.data(row)})[-1].endswith("| - | - | - |"), "the slowest is unknown, too"


class RecordingGenerator:
    """In place of a Generator: keeps the plans, and answers each as `answer` says."""

    def __init__(self, answer: Callable[[Plan], Result]) -> None:
        self.plans: list[Plan] = []
        self._answer = answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, plan: Plan) -> Result:
        self.plans.append(plan)
        return self._answer(plan)


def recording(monkeypatch: pytest.MonkeyPatch, module: ModuleType, answer: Callable[[Plan], Result]) -> list[Plan]:
    """The plans that the module's generator will be given."""
    generator = RecordingGenerator(answer)
    monkeypatch.setattr(module, "Generator", lambda: generator)
    return generator.plans


def test_each_round_has_other_arrivals_and_all_settings_of_a_round_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A percentile of one draw, however often it is repeated, is of that draw. They arrive at nine tenths of what many
    callers of the first setting reached in that round."""
    callers_reach = {("own", 0): 100, ("own", 1): 200, ("other", 0): 50, ("other", 1): 50}

    def answer(plan: Plan) -> Result:
        many = plan.load == ClosedLoop(tune.MANY)
        return result(plan.load, answers=callers_reach[plan.target.name, plan.seed] if many else 10)

    plans = recording(monkeypatch, tune, answer)
    asked = {name: lambda name=name: contextlib.nullcontext(Target(name=name)) for name in ("own", "other")}
    tune.sweep(asked, [], rounds=2, seconds=1.0, say=lambda line: None)
    opened = [(plan.seed, plan.load) for plan in plans if isinstance(plan.load, OpenLoop)]
    assert opened == [(0, OpenLoop(90.0))] * 2 + [(1, OpenLoop(180.0))] * 2


@pytest.mark.parametrize("model", ["painter", "wgan_x4", "nothing"])
def test_only_what_has_a_batcher_is_tuned(model: str) -> None:
    with pytest.raises(RepositoryError, match=model):
        tune.batched(model)


# --- ways to serve, side by side

TIMES = side_by_side.Times(rounds=3, duration_s=2.0, open_s=6.0, warmup_s=0.5, jit_warmup=0.1)
REACHED = {"in-process": (40, 60, 70, 80), "triton": (10, 20, 40, 30), "torchserve": (10, 5, 5, 5)}
"""by 1, 2, 8 and 32 callers, times that of the round"""
ROUNDS = (1, 4, 2)


def way(name: str) -> servers.Opened:
    def opened(repository: Path, models: Sequence[str]) -> contextlib.AbstractContextManager[Target]:
        if name not in REACHED:
            raise ServingError(f"no {name} here")
        return contextlib.nullcontext(Target(name=name))

    return opened


def as_reached(plan: Plan) -> Result:
    """In open loop one answer in eleven takes 200 ms."""
    if isinstance(plan.load, OpenLoop):
        return with_slow(result(plan.load, answers=20, took_s=0.01 * ROUNDS[plan.seed]), 0.2)
    reached = REACHED[plan.target.name][side_by_side.CALLERS.index(plan.load.callers)]
    return result(plan.load, answers=reached * ROUNDS[plan.seed])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans of a comparison of four ways, of which one can't start."""
    monkeypatch.setattr(side_by_side, "WAYS", {name: way(name) for name in side_by_side.COMPARED})
    return recording(monkeypatch, side_by_side, as_reached)


@pytest.fixture
def compared(asked: list[Plan]) -> dict[str, side_by_side.Row]:
    """Its rows by their way."""
    said: list[str] = []
    rows = side_by_side.compare(REPOSITORY, ["classifier"], TIMES, said.append)
    assert said[0] == "classifier: left out unbatched: no unbatched here"
    assert said[1:] == [f"classifier: {row.way} {row.capacity:.4g}/s" for row in rows]
    return {row.way: row for row in rows}


@pytest.mark.usefixtures("compared")
def test_ways_take_turns_and_each_round_begins_with_another(asked: list[Plan]) -> None:
    """In closed loop by numbers of callers, then in open loop; the same seed for all of a round. Before that a
    just-in-time compiler has its warm-up."""
    warmup, *plans = asked
    assert (warmup.target.name, warmup.load, warmup.duration_s) == ("torchserve", ClosedLoop(32), 1.5)
    orders = (
        ("in-process", "triton", "torchserve"),
        ("triton", "torchserve", "in-process"),
        ("torchserve", "in-process", "triton"),
    )
    told = [(plan.seed, plan.target.name) for plan in plans]
    assert told[:36] == [(turn, name) for turn in range(3) for _ in range(4) for name in orders[turn]]
    assert told[36:] == [(turn, name) for turn in range(3) for _ in range(2) for name in orders[turn]]
    callers = [plan.load for plan in plans[:36]]
    assert callers == [ClosedLoop(many) for _ in range(3) for many in (1, 2, 8, 32) for _ in range(3)]
    assert {(plan.duration_s, plan.warmup_s) for plan in plans[:36]} == {(2.0, 0.5)}
    assert {(plan.duration_s, plan.warmup_s) for plan in plans[36:]} == {(6.0, 0.5)}


def test_open_loop_gets_shares_of_each_ways_own_capacity(
    asked: list[Plan], compared: dict[str, side_by_side.Row]
) -> None:
    """Which is the most that any number of callers reached, of medians of the rounds."""
    capacities = {"in-process": 160, "triton": 80, "torchserve": 20}
    assert {name: row.capacity for name, row in compared.items()} == capacities
    rates = [(plan.target.name, plan.load.per_s) for plan in asked if isinstance(plan.load, OpenLoop)]
    for name, most in capacities.items():
        assert [rate for of, rate in rates if of == name] == [0.5 * most, 0.9 * most] * 3


def test_what_a_comparison_tells_are_medians_of_its_rounds(compared: dict[str, side_by_side.Row]) -> None:
    """Of throughput by callers, of the 99th percentile by load, and the capacity beside that of in process."""
    found = tables.data(list(compared.values()))["classifier"]
    assert list(found) == ["in-process", "triton", "torchserve"]
    assert found["triton"]["per_s"] == {"1": 20, "2": 40, "8": 80, "32": 60}
    assert found["triton"]["of_in_process"] == 0.5
    p99_ms = {"1": 10, "2": 10, "8": 10, "32": 10, "0.5": 200, "0.9": 200}
    assert found["triton"]["p99_ms"] == pytest.approx(p99_ms, rel=2e-3)
    assert compared["triton"].percentile_ms(0.5, 50) == pytest.approx(20, rel=2e-3)


# --- overload


def test_overload_is_twice_what_full_batches_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """First as many callers as fill a batch of every instance. The server has its whole queue's time to refuse."""
    assert CLASSIFIER.batching
    monkeypatch.setattr(overload, "triton", lambda *_: contextlib.nullcontext(Target(name="triton")))
    plans = recording(monkeypatch, overload, lambda plan: result(plan.load, answers=150))
    said: list[Result] = []
    capacity, over = overload.measured(CLASSIFIER, REPOSITORY, seconds=2.0, minutes=0.5, say=said.append)
    assert said == [capacity, over]
    full, overloaded = plans
    assert (full.load, full.duration_s) == (ClosedLoop(CLASSIFIER.instances * CLASSIFIER.max_batch), 2.0)
    assert isinstance(overloaded.load, OpenLoop)
    assert (overloaded.load.per_s, overloaded.duration_s) == (300.0, 30.0)
    assert full.target.timeout_s == overloaded.target.timeout_s > 1e-6 * CLASSIFIER.batching.queue_timeout_us


def test_overload_that_keeps_its_promises() -> None:
    """Refusals cost nothing but themselves."""
    over = refused(result(OpenLoop(200), answers=95, took_s=1.5), "overloaded", 105)
    assert all(kept(over).values())


@pytest.mark.parametrize(
    ("over", "missed"),
    [
        pytest.param(result(OpenLoop(200), answers=89), "goodput", id="too few answers"),
        pytest.param(result(OpenLoop(200), answers=95, took_s=2.2), "p99", id="too late"),
        pytest.param(result(OpenLoop(200), answers=95, memory=(9, 100, 100, 100, 120, 120)), "memory", id="memory"),
        pytest.param(refused(result(OpenLoop(200), answers=95), "deadline", 1), "only_overloaded", id="other errors"),
    ],
)
def test_overload_that_breaks_one(over: Result, missed: str) -> None:
    assert [name for name, well in kept(over).items() if not well] == [missed]


def test_overload_says_what_was_kept() -> None:
    over = refused(result(OpenLoop(200), answers=50), "overloaded", 150)
    found = overload.report(CLASSIFIER, result(ClosedLoop(128), answers=100), over)
    assert found["refused"] == 0.75
    assert [line[:6] for line in overload.lines(found)] == ["kept  ", "MISSED", "kept  ", "kept  "]


def test_a_server_that_answers_nothing_kept_no_time() -> None:
    silent = refused(result(OpenLoop(200), answers=0), "overloaded", 200)
    assert kept(silent) == {"only_overloaded": True, "goodput": False, "p99": False, "memory": True}


def test_one_core_cannot_be_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3})
    with pytest.raises(ServingError, match="--apart"):
        overload.measured(CLASSIFIER, REPOSITORY, seconds=1, minutes=1, apart=True, say=lambda result: None)
