"""A short load on every served model: no request may fail or be answered wrongly. How long it takes is not judged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import need, need_tritonserver

from serving.repository import REPOSITORY
from tests.load import knee, overload, servers
from tests.load.generator import Generator
from tests.load.plan import ClosedLoop, OpenLoop, Plan, mixed
from tests.load.result import Result, rows, server_lines
from tests.load.sdk import Sdk
from tests.load.targets import Triton
from training.catalog import names

FEW, MANY = 8, 100
REQUESTS = {"classifier": MANY, "wgan": MANY // 2}
RATE = 40.0


@pytest.fixture(scope="module")
def target() -> Iterator[Triton]:
    need_tritonserver()
    with servers.triton(REPOSITORY) as target:
        yield target


@pytest.fixture(scope="module")
def generator() -> Iterator[Generator]:
    with Generator(2) as generator:
        yield generator


def all_right(result: Result, requests: int) -> None:
    told = "\n".join([*(" ".join(row) for row in rows(result)), *server_lines(result)])
    assert (result.total.requests, result.total.correct, result.failures) == (requests, requests, 0), told


@pytest.mark.parametrize("model", names())
def test_every_model_answers_rightly_under_load(target: Triton, generator: Generator, model: str) -> None:
    """Callers that wait, then requests that come by themselves; every answer is compared number by number."""
    requests = REQUESTS.get(model, FEW)
    streams = model == "painter"
    plan = Plan(
        target=target, load=ClosedLoop(max(knee.STREAMS) if streams else 4), mix=mixed({model: 1}), warmup_s=0.01,
        requests=requests, processes=2, closely_every=1,
    )  # fmt: skip
    closed = generator.run(plan)
    all_right(closed, requests)

    # Triton counts a request just after it has answered, and is asked just after the window has begun.
    assert 0 < closed.counts[model].answered <= requests + 4
    assert closed.usage is not None
    assert closed.usage.memory
    if not streams:  # two more might come while two are in flight
        all_right(generator.run(Plan(**vars(plan) | {"load": OpenLoop(RATE)})), requests)


def shed(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    """What the last line of a short overload of wgan says, which its page says, too."""
    need_tritonserver()
    assert overload.main(["wgan", "--seconds", "2", "--minutes", "0.05", "--out", str(folder), *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["kept"]["only_overloaded"], found
    assert found["capacity_per_s"] > 0
    (page,) = folder.iterdir()
    assert f"of capacity, {found['capacity_per_s']:.4g}/s" in page.read_text()
    return found


def test_overload_is_shed_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing fails but what is refused for lack of room."""
    assert not shed(tmp_path, capsys)["apart"]
    assert (tmp_path / "wgan-overload.md").exists()


def test_server_and_generator_have_cores_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the test's own process has all of them again."""
    need_tritonserver()
    need(len(os.sched_getaffinity(0)) > 1, "it takes two cores")
    before, asked = os.sched_getaffinity(0), Generator.run
    seen = []

    def run(self: Generator, plan: Plan) -> Result:
        servers_cores = [os.sched_getaffinity(pid) for pid in plan.target.pids]
        seen.append((set.union(*servers_cores), os.sched_getaffinity(self._processes[0].pid or 0)))
        return asked(self, plan)

    monkeypatch.setattr(Generator, "run", run)
    assert shed(tmp_path, capsys, "--apart")["apart"]
    assert (tmp_path / "wgan-overload-apart.md").exists()
    assert len(seen) == 2
    for servers_cores, generators_cores in seen:
        assert servers_cores
        assert generators_cores
        assert not servers_cores & generators_cores
        assert servers_cores | generators_cores == before
    assert os.sched_getaffinity(0) == before


def test_a_mix_through_the_sdk_answers_rightly(target: Triton, generator: Generator) -> None:
    """Each model gets requests, about as its weight says."""
    mix = mixed({"classifier": 6, "wgan": 2, "style": 1, "wgan_x4": 1})
    sdk = Sdk(name="SDK", url=target.url)
    plan = Plan(target=sdk, load=ClosedLoop(8), mix=mix, warmup_s=0.01, requests=40, processes=2, closely_every=1)
    result = generator.run(plan)
    all_right(result, 40)
    asked = {model: tally.requests for model, tally in result.models.items()}
    assert all(asked.values()), asked
    assert max(asked, key=asked.__getitem__) == "classifier"
