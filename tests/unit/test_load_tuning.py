"""Tuning and overload: which settings are tried, what is written of them, and what an overloaded server promised."""

from __future__ import annotations

import contextlib
from typing import Self

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from serving.errors import RepositoryError, ServingError
from serving.repository import CONFIG, REPOSITORY
from tests.load import overload, tune
from tests.load.loop import Tally, WorkerResult
from tests.load.measure import Usage
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
    about = tune.machine() | {"rounds": 1, "seconds": 1.0}
    text = tune.page("classifier", {"first": own.data(own), "second": own.data(own)}, about)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert {row.count("|") for row in rows} == {len(tune.COLUMNS) + 2}
    assert rows[2].startswith("| first (2 errors) |")


def test_a_setting_that_answered_nothing_has_no_latency() -> None:
    """In which 0 ms would be the best of all."""
    none, some = result(OpenLoop(8), answers=0), result(ClosedLoop(1), answers=9)
    row = tune.Row([some], [some], [some], [none])
    assert (row.data(row)["p50_ms"], row.data(row)["busy_p50_ms"]) == (10.01, None)
    assert tune.table({"only": row.data(row)})[-1].endswith("| - | - | - |"), "the slowest is unknown, too"


class RecordingGenerator:
    """In place of a Generator: keeps the plans of the last one, and answers ten requests of each."""

    plans: list[Plan]

    def __enter__(self) -> Self:
        RecordingGenerator.plans = []
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, plan: Plan) -> Result:
        self.plans.append(plan)
        return result(plan.load, answers=10)


def test_each_round_has_other_arrivals_and_all_settings_of_a_round_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A percentile of one draw, however often it is repeated, is of that draw."""
    monkeypatch.setattr(tune, "Generator", RecordingGenerator)
    target = contextlib.nullcontext(Target(name="none"))
    tune.sweep({"one": lambda: target, "other": lambda: target}, [], rounds=2, seconds=1.0, say=lambda line: None)
    assert [plan.seed for plan in RecordingGenerator.plans if isinstance(plan.load, OpenLoop)] == [0, 0, 1, 1]


@pytest.mark.parametrize("model", ["painter", "wgan_x4", "nothing"])
def test_only_what_has_a_batcher_is_tuned(model: str) -> None:
    with pytest.raises(RepositoryError, match=model):
        tune.batched(model)


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
