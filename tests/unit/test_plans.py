"""Triton is told of a model's plans while every version in service has a good one, whatever comes or goes."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import stand_in
import tensorrt_stand_in as fake
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from serving import pbtxt, plans, tensorrt
from serving import repository as repo
from serving.errors import RepositoryError
from serving.spec import ModelSpec
from training import catalog, export, jobs
from training import run as training_run

SERVED = [catalog.served(name) for name in catalog.names()]
CONFIG = Path("wgan") / plans.CONFIG


@pytest.fixture
def planned(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose versions 1 and 2 have plans that Triton is told of."""
    fake.install(tmp_path / "tools", monkeypatch)
    tensorrt.build_missing(repository, ["wgan"])
    assert (repository / CONFIG).is_file()
    return repository


def candidate(folder: Path, number: int, *, plan: bool) -> Path:
    made = stand_in.candidate(folder, number)
    if plan:
        tensorrt.build(made, pbtxt.config(stand_in.SPEC), tensorrt.builder(), folder.parent / "timings")
    return made


@pytest.fixture
def watched(planned: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Before and after every rename, a Triton that started just then would find each version's plan, or not look."""

    def sound() -> bool:
        present = repo.versions(planned, "wgan")[-2:]
        return not (planned / CONFIG).exists() or all(
            (planned / "wgan" / str(version) / plans.PLAN).is_file() for version in present
        )

    renamed, found = Path.rename, []

    def rename(path: Path, target: Path) -> Path:
        found.append(sound())
        made = renamed(path, target)
        found.append(sound())
        return made

    monkeypatch.setattr(Path, "rename", rename)
    yield planned
    assert found
    assert all(found)


def test_a_version_without_a_plan_is_served_by_its_graph(watched: Path, tmp_path: Path) -> None:
    """From the moment it is there; until plans are built again, so is the one before."""
    repo.publish(candidate(tmp_path / "new", 3, plan=False), watched, "wgan")
    assert not (watched / CONFIG).exists()
    tensorrt.build_missing(watched, ["wgan"])
    assert (watched / CONFIG).is_file()


def test_a_version_that_brings_its_plan_is_served_by_it(watched: Path, tmp_path: Path) -> None:
    """A Job on a GPU of the serving type has built it: nothing is built on the serving side."""
    version = repo.publish(candidate(tmp_path / "new", 3, plan=True), watched, "wgan")
    assert (watched / CONFIG).is_file()
    assert (watched / "wgan" / str(version) / plans.PLAN).read_bytes() == (tmp_path / "new" / plans.PLAN).read_bytes()


def test_a_plan_for_another_gpu_is_not_served(watched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Job elsewhere may bring one: the version is served by its graph."""
    fake.install(tmp_path / "tools", monkeypatch, gpu=fake.H100)
    repo.publish(candidate(tmp_path / "new", 3, plan=True), watched, "wgan")
    assert not (watched / CONFIG).exists()


@pytest.mark.parametrize("kept", [True, False], ids=["plan kept", "plan gone"])
def test_after_a_rollback_plans_are_served_if_the_older_version_has_one(
    watched: Path, tmp_path: Path, kept: bool
) -> None:
    """Versions 1 and 2 are in service again."""
    repo.publish(candidate(tmp_path / "new", 3, plan=True), watched, "wgan")
    if not kept:
        plans.remove(watched / "wgan" / "1")
    assert (watched / CONFIG).is_file()
    repo.rollback(watched, "wgan")
    assert (watched / CONFIG).is_file() == kept


def test_a_refused_candidate_changes_nothing(planned: Path, tmp_path: Path) -> None:
    """What was told is told still."""
    broken = candidate(tmp_path / "new", 3, plan=False)
    (broken / repo.MODEL).write_bytes(b"other")
    with pytest.raises(RepositoryError, match="SHA-256"):
        repo.publish(broken, planned, "wgan")
    assert (planned / CONFIG).is_file()


def test_what_triton_is_told_follows_config_pbtxt(planned: Path, tmp_path: Path) -> None:
    """A publisher may bring other limits on the queue; the plans still fit, and the new text is told."""
    text = (planned / "wgan" / repo.CONFIG).read_text().replace("max_queue_size: 256", "max_queue_size: 99")
    repo.publish(candidate(tmp_path / "new", 3, plan=True), planned, "wgan", beside={repo.CONFIG: text})
    assert "max_queue_size: 99" in (planned / CONFIG).read_text()


def test_without_a_gpu_that_serves_nothing_is_told_or_taken_away(repository: Path, tmp_path: Path) -> None:
    """A checkout has the committed file and no plan; publishing there leaves it be."""
    (repository / CONFIG).parent.mkdir()
    (repository / CONFIG).write_text("committed")
    repo.publish(candidate(tmp_path / "new", 3, plan=False), repository, "wgan")
    assert (repository / CONFIG).read_text() == "committed"


def test_a_fresh_volume_is_not_told_of_plans_before_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeding brings the committed file along; the init container that comes next takes it away, if it must."""
    fake.install(tmp_path / "tools", monkeypatch, trtexec=fake.REFUSES)
    volume = tmp_path / "models"
    repo.seed(repo.REPOSITORY, volume)
    assert (volume / CONFIG).is_file()
    models = tensorrt.plannable(volume)
    assert tensorrt.build_missing(volume, models) == dict.fromkeys(models, False)
    assert not list(volume.glob(f"*/{plans.CONFIG}"))


# --- the generated file


@pytest.mark.parametrize("spec", SERVED, ids=lambda spec: spec.name)
def test_plans_have_the_signature_of_the_graph(spec: ModelSpec) -> None:
    """Same tensors, batches, queue and limits; another backend, on GPUs, which prefer no batch size.

    The painter and ensembles have no plans.
    """
    made = pbtxt.plan_files(spec)
    assert bool(made) == (spec.name not in ("painter", "wgan_x4"))
    if not made:
        return
    config, plan = pbtxt.config(spec), text_format.Parse(made[plans.CONFIG], pb.ModelConfig())
    assert (plan.backend, plan.default_model_filename) == ("tensorrt", "model.plan")
    assert {group.kind for group in plan.instance_group} == {pb.ModelInstanceGroup.KIND_GPU}
    assert not plan.dynamic_batching.preferred_batch_size
    del config.dynamic_batching.preferred_batch_size[:]
    for field in ("input", "output", "max_batch_size", "dynamic_batching", "version_policy", "model_warmup"):
        assert getattr(plan, field) == getattr(config, field)
    assert set(config.parameters) - set(plan.parameters) == {"intra_op_thread_count"}


# --- training.run --export


def invoke(tmp_path: Path, *arguments: str, model: str = "wgan") -> int:
    return training_run.main([model, "--preset=tiny", f"--runs={tmp_path / 'runs'}", *arguments])


@pytest.mark.parametrize("place", ["none yet", "its like", "another GPU"])
def test_a_candidate_gets_a_plan_where_that_is_of_use(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """On a GPU of the type that serves, or before any has; elsewhere a line says what serves."""
    fake.install(tmp_path / "tools", monkeypatch, gpu=fake.H100 if place == "another GPU" else fake.L4)
    if place != "none yet":
        tensorrt.build_missing(repository, ["wgan"])
    fake.install(tmp_path / "tools", monkeypatch)
    made = stand_in.candidate(tmp_path / "run" / "candidate", 3)
    said = export.add_plan("wgan", made, repository)
    if place == "another GPU":
        assert said == (
            f"no plan: {repository} is served by TensorRT {fake.VERSION} on NVIDIA H100 80GB HBM3, compute capability "
            f"9.0, and this is TensorRT {fake.VERSION} on NVIDIA L4, compute capability 8.9"
        )
    assert (made / plans.PLAN).is_file() == (place != "another GPU")


def test_a_plan_that_fails_does_not_cost_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours of training are behind it: the ONNX graph is published, and a line says why there is no plan."""
    fake.install(tmp_path / "tools", monkeypatch, trtexec=fake.REFUSES)
    made = stand_in.candidate(tmp_path / "run" / "candidate", 3)
    said = export.add_plan("wgan", made, None)
    assert said.startswith("no plan, so that the ONNX graph is served: ")
    assert said.endswith("In node 3 (GridSample): unsupported; Failed to parse onnx file")
    assert not plans.files(made)


def test_export_is_refused_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No GPU, a graph that Triton does not run itself, or a format that there is not: status 2, one line, no run."""
    fake.install(tmp_path / "tools", monkeypatch)
    (tmp_path / "tools" / "nvidia-smi").unlink()
    cases = [
        ("wgan", "onnx,tensorrt", "--export: no NVIDIA GPU here"),
        ("painter", "onnx,tensorrt", "--export: Triton does not run the graph of painter itself"),
        ("wgan", "tensorrt", "--export: no 'tensorrt'; give onnx or onnx,tensorrt"),
        ("wgan", "tensorrt --dry-run", "--export: no 'tensorrt'; give onnx or onnx,tensorrt"),
    ]
    for model, formats, reason in cases:
        assert invoke(tmp_path, *f"--export={formats}".split(), model=model) == 2
        said = capsys.readouterr().err
        assert reason in said
        assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_the_gpu_image_has_what_builds_plans() -> None:
    """TensorRT's API in the image's own version, and all that serving.tensorrt imports besides."""
    text = (jobs.ROOT / "deploy" / "images" / "gpu.Dockerfile").read_text()
    assert "'.[gpu]' \"tensorrt-cu13-bindings==${TRT_VERSION%%+*}.*\"" in text
    extras = tomllib.loads((jobs.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "onnx==1.23.2" in extras["gpu"]
