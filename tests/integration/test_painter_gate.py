"""A version of the painter on its way through the gate: a real Triton streams, and its first answer is judged."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import need_tritonserver
from noise import picture
from tritonclient.grpc import InferenceServerClient

from atelier import Client
from serving import repository
from serving.embedded import Embedded
from serving.errors import Disagreement, ServerError, Unreachable
from serving.verify import verify
from training import export, run
from training.models.painter.spec import SPEC


@pytest.fixture(scope="module")
def candidate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_tritonserver()
    runs = tmp_path_factory.mktemp("runs")
    assert run.main(["painter", "--preset", "tiny", "--no-film", "--runs", str(runs)]) == 0
    return runs / "painter" / "candidate"


@pytest.fixture(scope="module")
def published(candidate: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository that the gate let it into."""
    into = tmp_path_factory.mktemp("published") / "repository"
    assert export.publish("painter", candidate, into) == 1
    return into


@pytest.fixture(scope="module")
def server(published: Path) -> Iterator[Embedded]:
    with Embedded(published) as server:
        yield server


@pytest.fixture
def golden(published: Path, tmp_path: Path) -> Path:
    """A copy, to be spoilt."""
    return Path(shutil.copy(published / "painter" / "1" / repository.GOLDEN, tmp_path))


def changed(golden: Path, **arrays: Any) -> Path:
    with np.load(golden) as file:
        np.savez(golden, **{**file, **arrays})
    return golden


def test_a_version_is_what_is_served_and_no_more(published: Path) -> None:
    """What the gate needed to see inside the graph stays in the run."""
    assert {path.name for path in (published / "painter" / "1").iterdir()} == set(repository.FILES)


def test_first_answer_of_the_stream_agrees(server: Embedded, golden: Path) -> None:
    """Noise to the last level, and what the eager objective says of it."""
    assert verify(server.grpc, "painter", 1, golden) < 1e-3


def test_a_golden_request_that_paints_on(server: Embedded, golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is judged by its first answer all the same, once its stream has come to its end: its place is free again."""
    start, answers = InferenceServerClient.start_stream, list[Any]()

    def overheard(client: InferenceServerClient, callback: Any, **options: Any) -> None:
        start(client, lambda result, error: (answers.append(error or result), callback(result, error)), **options)

    monkeypatch.setattr(InferenceServerClient, "start_stream", overheard)
    painted_on = changed(golden, iterations=np.array([100], np.int32), total=np.array([100], np.int32))
    for _ in range(SPEC.streams + 1):
        assert verify(server.grpc, "painter", 1, painted_on) < 1e-3
        assert answers[-1].as_numpy("iteration") == 100


def test_other_losses_disagree(server: Embedded, golden: Path) -> None:
    """A graph that saw the same noise otherwise is told from this one."""
    with np.load(golden) as file:
        losses = file["losses"] * np.float32(1.01)
    with pytest.raises(Disagreement, match="losses differs from its golden batch"):
        verify(server.grpc, "painter", 1, changed(golden, losses=losses))


def test_refused_request_is_one_line(server: Embedded, golden: Path) -> None:
    """An error in the stream is the server's answer, not a wait."""
    with pytest.raises(ServerError, match="every: 0 must be 1 to 1000") as error:
        verify(server.grpc, "painter", 1, changed(golden, every=np.array([0], np.int32)))
    assert "\n" not in str(error.value)


def test_more_paintings_than_there_is_room_for(server: Embedded, golden: Path) -> None:
    """A painter that is busy says nothing about its version: a hand-over asks again, and withdraws nothing."""
    photo = picture(400, 400)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Client(server.grpc, patient=True))
        for _ in range(SPEC.streams):
            painting = stack.enter_context(client.paint(photo, photo, iterations=1000, every=1, scales=1))
            assert next(painting).iteration == 0
        with pytest.raises(Unreachable, match="exceeds maximum queue size; it has too much to do; try again later"):
            verify(server.grpc, "painter", 1, golden)


def test_candidate_that_triton_answers_otherwise_is_refused(candidate: Path, tmp_path: Path) -> None:
    """The gate's third check sees what the first two can't: how the backend begins."""
    spoilt = shutil.copytree(candidate, tmp_path / "candidate")
    with np.load(spoilt / repository.GOLDEN) as file:
        image = 255 - file["image"]
    changed(spoilt / repository.GOLDEN, image=image)
    (reason,) = export.serving_reasons(spoilt, export.catalog.spec("painter"))
    assert reason.startswith("Triton: painter 1 at")
    assert "image differs" in reason
