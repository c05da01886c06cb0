"""The gate's checks that need no server: each must refuse what it is there for, and only that."""

import dataclasses
import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import stand_in

from serving import files, repository, wheel
from serving.errors import ServerError
from serving.spec import Threshold
from training import catalog, export, operators, provenance, run
from training.errors import BadInput, Refused
from training.models.wgan.spec import SPEC

GATED = dataclasses.replace(SPEC, thresholds=(Threshold(metric="structure", at_least=0.5, may_worsen_by=0.1),))


@pytest.fixture
def candidate(tmp_path: Path) -> Path:
    return stand_in.candidate(tmp_path / "run" / "candidate")


def with_structure(candidate: Path, value: float, *, corpus: str = "lines") -> None:
    path = candidate / repository.CARD
    card = json.loads(path.read_text())
    card |= {"metrics": {"structure": value}, "corpus": {"name": corpus, "sha256": "0"}}
    path.write_text(json.dumps(card))


def test_good_graph_passes(candidate: Path) -> None:
    """A graph with the spec's tensors, a free batch and known operators gives no reason."""
    assert export.graph_reasons(candidate / repository.MODEL, SPEC) == []
    assert export.parity_reasons(candidate, SPEC) == []


def fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def other_name(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "picture"


def other_width(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 99


def other_type(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT8


def turned_after_its_cast(model: onnx.ModelProto) -> None:
    cast = model.graph.node[-1]
    turned = onnx.helper.make_node("Transpose", ["pixels_uint8"], ["image"], perm=[0, 2, 1, 3])
    cast.output[0] = "pixels_uint8"
    model.graph.node.append(turned)


def rare_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "GridSample"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (fixed_batch, "latent: its batch is fixed at 4"),
        (other_name, "the graph has picture where the spec has image"),
        (other_width, "latent: its shape is not"),
        (other_type, "image: its type is not UINT8"),
        (turned_after_its_cast, "image: UINT8 must meet a Cast"),
        (rare_operator, "may lack: GridSample"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_graph_that_the_cluster_would_refuse_is_refused(candidate: Path, spoil: object, reason: str) -> None:
    """What Triton's C++ backend or TensorRT would only say at load is said here."""
    path = candidate / repository.MODEL
    model = onnx.load(path)
    spoil(model)  # type: ignore[operator]
    onnx.save(model, path)
    assert any(reason in said for said in export.graph_reasons(path, SPEC))


@pytest.mark.parametrize("first", ["Transpose", "Cast to INT32"])
def test_an_input_of_uint8_is_cast_to_float_before_anything_else(first: str, tmp_path: Path) -> None:
    """Neither turned before that, nor cast to whole numbers: TensorRT converts UINT8 to and from floats alone."""
    model = onnx.load(stand_in.candidate(tmp_path / "candidate", spec=stand_in.CLASSIFIER) / repository.MODEL)
    assert operators.edge_reasons(model.graph) == []
    if first == "Transpose":
        model.graph.node.insert(0, onnx.helper.make_node("Transpose", ["image"], ["turned"], perm=[0, 2, 1, 3]))
        model.graph.node[1].input[0] = "turned"
    else:
        model.graph.node[0].attribute[0].i = onnx.TensorProto.INT32
    assert operators.edge_reasons(model.graph) == ["image: UINT8 must meet a Cast to or from FP32 at the graph's edge"]


@pytest.mark.parametrize("model", [name for name in repository.models(repository.REPOSITORY) if name != "wgan_x4"])
def test_what_ships_has_graphs_that_the_cluster_takes(model: str) -> None:
    """Each version in the repository, by the same checks that a new one has to pass."""
    spec = catalog.spec(model)
    for version in repository.versions(repository.REPOSITORY, model):
        path = repository.REPOSITORY / model / str(version) / repository.MODEL
        assert export.graph_reasons(path, spec) == []


def test_graph_that_disagrees_with_the_eager_model_is_refused(candidate: Path) -> None:
    """One pixel of one golden picture, two levels off."""
    golden = dict(np.load(candidate / repository.GOLDEN))
    pixel = golden["image"][-1, 64, 64]
    pixel[0] += 2 if pixel[0] < 128 else -2
    np.savez(candidate / repository.GOLDEN, **golden)
    (reason,) = export.parity_reasons(candidate, SPEC)
    assert "image differs from the eager model by 2" in reason


def test_graph_that_does_not_load_is_refused(candidate: Path) -> None:
    """A cut-off file is a reason, not a traceback."""
    path = candidate / repository.MODEL
    path.write_bytes(path.read_bytes()[:100])
    (reason,) = export.parity_reasons(candidate, SPEC)
    assert reason.startswith("ONNX Runtime can't load model.onnx")
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("value", "live", "reason"),
    [
        (0.6, None, None),
        (0.4, None, "structure 0.4 is below 0.5"),
        (float("nan"), None, "structure nan is below 0.5"),
        (0.75, 0.8, None),
        (0.6, 0.8, "structure 0.6 is worse than the live 0.8"),
    ],
)
def test_metrics_meet_the_threshold_and_the_live_version(
    candidate: Path, tmp_path: Path, value: float, live: float | None, reason: str | None
) -> None:
    """The absolute bound always holds; beside a live version on the same corpus, the allowed worsening too."""
    into = tmp_path / "repository"
    if live is not None:
        before = stand_in.candidate(tmp_path / "before")
        with_structure(before, live)
        repository.publish(before, into, "wgan")
    with_structure(candidate, value)
    reasons = export.metric_reasons(candidate, GATED, into)
    assert reasons == [] if reason is None else reason in reasons[0]


def test_live_version_of_another_corpus_does_not_count(candidate: Path, tmp_path: Path) -> None:
    """Figures on other pictures are no yardstick."""
    before = stand_in.candidate(tmp_path / "before")
    with_structure(before, 0.99, corpus="cats")
    repository.publish(before, tmp_path / "repository", "wgan")
    with_structure(candidate, 0.6)
    assert export.metric_reasons(candidate, GATED, tmp_path / "repository") == []


def test_a_better_version_that_came_meanwhile_is_the_one_to_meet(
    candidate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two Jobs may both be better than what is live, and one of them worse than the other."""
    into, other = tmp_path / "repository", stand_in.candidate(tmp_path / "other")
    with_structure(other, 0.95)
    with_structure(candidate, 0.6)

    def meanwhile(*_: object) -> list[str]:
        repository.publish(other, into, "wgan")
        return []

    monkeypatch.setattr(export, "serving_reasons", meanwhile)
    monkeypatch.setattr(catalog, "spec", lambda _: GATED)
    with pytest.raises(Refused, match="structure"):
        export.publish("wgan", candidate, into)
    assert "structure" in (candidate / "refused.txt").read_text()
    assert repository.versions(into, "wgan") == [1]


def test_refused_candidate_stays_with_every_reason(candidate: Path, tmp_path: Path) -> None:
    """Nothing is published; refused.txt has a line for each reason."""
    with_structure(candidate, 0.1)
    spoilt = onnx.load(candidate / repository.MODEL)
    rare_operator(spoilt)
    spoilt.graph.node[0].op_type = "Det"
    onnx.save(spoilt, candidate / repository.MODEL)
    with pytest.raises(Refused, match="kept in"):
        export.publish("wgan", candidate, tmp_path / "repository")
    reasons = (candidate / "refused.txt").read_text().splitlines()
    assert len(reasons) >= 3  # does not load, operator, metrics
    assert repository.versions(tmp_path / "repository", "wgan") == []


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"cut"), Path.unlink], ids=["cut short", "missing"])
def test_candidate_without_a_graph_is_refused(
    damage: Callable[[Path], object], candidate: Path, tmp_path: Path
) -> None:
    """With a reason, like any other."""
    damage(candidate / repository.MODEL)
    with pytest.raises(Refused, match=r"model\.onnx is no graph"):
        export.publish("wgan", candidate, tmp_path / "repository")
    assert repository.versions(tmp_path / "repository", "wgan") == []


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_candidate_with_a_damaged_golden_batch_is_refused(
    share: float, candidate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut short anywhere, as by a disk that filled up: status 3, and the file in refused.txt, in one line."""
    golden = candidate / repository.GOLDEN
    golden.write_bytes(golden.read_bytes()[: int(share * golden.stat().st_size)])
    monkeypatch.setattr(sys, "argv", ["export", str(candidate.parent), "--publish", str(tmp_path / "repository")])
    assert export.main() == 3
    said = capsys.readouterr().err
    assert said.startswith(f"training.export: wgan refused, kept in {candidate}: {golden}: not a golden batch (")
    assert said.count("\n") == 1
    assert (candidate / "refused.txt").read_text().startswith(f"{golden}: not a golden batch (")
    assert repository.versions(tmp_path / "repository", "wgan") == []


def test_missed_aims_are_told_by_how_much() -> None:
    """An aim that was not reached stands in the card with both numbers; one that was not measured is passed over."""
    aims = (Threshold(metric="structure", at_least=0.85), Threshold(metric="palette", at_least=0.9))
    assert export.missed(aims, {"structure": 0.6}) == ["structure 0.6 is below 0.85"]
    assert export.missed(aims, {"structure": 0.9, "palette": 0.95}) == []


def run_of_seed(path: Path, seed: int, accuracy: float, **options: object) -> Path:
    """A run directory whose candidate has a card and nothing else."""
    card = {
        "model": "classifier", "options": {"seed": seed, "epochs": 3, **options}, "corpus": {"name": "bars"},
        "metrics": {"test_accuracy": accuracy}, "preset": "default", "commit": "0" * 40, "sha256": "0" * 64,
    }  # fmt: skip
    (path / "candidate").mkdir(parents=True)
    (path / "candidate" / repository.CARD).write_text(json.dumps(card))
    return path


def test_card_tells_mean_and_spread_over_seeds(tmp_path: Path) -> None:
    """Of every metric, over runs that differ in their seed."""
    runs = [run_of_seed(tmp_path / str(seed), seed, accuracy) for seed, accuracy in enumerate((0.94, 0.95, 0.96))]
    told = export.over_seeds(runs)
    assert told["seeds"] == [0, 1, 2]
    assert told["mean"] == {"test_accuracy": pytest.approx(0.95)}
    assert told["standard_deviation"] == {"test_accuracy": pytest.approx(0.01)}


def test_a_corpus_that_is_drawn_from_the_seed_is_no_difference(tmp_path: Path) -> None:
    """As wgan's and the upscaler's are: its checksum is another with each. Another corpus is told, and so are
    other bytes of one that comes from files."""
    runs = [run_of_seed(tmp_path / str(seed), seed, 0.95) for seed in (0, 1)]

    def of(model: str, *names: str) -> None:
        for digest, (each, name) in enumerate(zip(runs, names, strict=True)):
            path = each / "candidate" / repository.CARD
            corpus = {"name": name, "sha256": str(digest) * 64}
            path.write_text(json.dumps(json.loads(path.read_text()) | {"model": model, "corpus": corpus}))

    for model in ("wgan", "upscaler"):
        of(model, "lines", "lines")
        assert export.over_seeds(runs)["seeds"] == [0, 1]
    for model, *names in (("wgan", "lines", "bars"), ("classifier", "fashion-mnist", "fashion-mnist")):
        of(model, *names)
        with pytest.raises(BadInput, match=f"--beside: {runs[1]} differs"):
            export.over_seeds(runs)


def test_card_tells_what_a_run_went_on_with(tmp_path: Path) -> None:
    """The other commits and machines that a checkpoint was taken over by; and it is compared as one without."""
    made_by = {"preset": "default", "commit": "a", "machine": {"threads": 1}, "command": []}
    resumed = [{"commit": "b", "machine": {"threads": 2}}]
    runs = [run_of_seed(tmp_path / str(seed), seed, 0.95) for seed in (0, 1)]
    (runs[1] / "candidate" / repository.MODEL).write_bytes(b"")
    told = {"options": {"seed": 1, "epochs": 3}, "corpus": {"name": "bars"}, "resumed": resumed, "run": "r"}
    provenance.write(runs[1], made_by | told)
    export._write_card(runs[1] / "candidate", repository.MODEL, "classifier", runs[1], {"test_accuracy": 0.95}, {})
    card = repository.Card.read(runs[1] / "candidate" / repository.CARD)
    assert (card.commit, card.data["trained_on"], card.data["resumed"]) == ("a", {"threads": 1}, resumed)
    assert export.over_seeds(runs)["seeds"] == [0, 1]


def test_runs_beside_must_differ_in_their_seed_only(tmp_path: Path) -> None:
    """Other options or measures, the same seed twice, or no candidate: the message names the flag and the run."""
    first = run_of_seed(tmp_path / "first", 0, 0.94)
    longer = run_of_seed(tmp_path / "longer", 1, 0.95, epochs=9)
    again = run_of_seed(tmp_path / "again", 0, 0.95)
    older = run_of_seed(tmp_path / "older", 2, 0.95)
    card = older / "candidate" / repository.CARD
    card.write_text(card.read_text().replace("test_accuracy", "accuracy"))
    wrong = {
        longer: "longer differs",
        older: "other measures",
        again: "seeds repeat",
        tmp_path / "none": "no candidate",
    }
    for other, reason in wrong.items():
        with pytest.raises(BadInput, match=f"--beside: .*{reason}"):
            export.over_seeds([first, other])


def test_note_on_a_full_disk_leaves_the_card_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line names the file, and the status is that of bad input."""
    asked = run_of_seed(tmp_path / "run", 0, 0.94)
    card = asked / "candidate" / repository.CARD
    before = card.read_text()

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(files, "fsync", full)
    monkeypatch.setattr(sys, "argv", ["export", str(asked), "--publish", str(tmp_path / "repository"), "--note", "new"])
    assert export.main() == 2
    said = capsys.readouterr().err
    assert said.startswith(f"training.export: {card.parent}")
    assert said.endswith(": No space left on device\n")
    assert said.count("\n") == 1
    assert card.read_text() == before
    assert [path.name for path in card.parent.iterdir()] == [card.name]


@pytest.mark.parametrize("damaged", ["run", "beside"])
def test_a_card_that_was_cut_off_is_told(
    damaged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As by a disk that filled up: one line names the file, and the status is that of bad input."""
    runs = {name: run_of_seed(tmp_path / name, seed, 0.94) for seed, name in enumerate(("run", "beside"))}
    card = runs[damaged] / "candidate" / repository.CARD
    card.write_text(card.read_text()[:40])
    asked = [str(runs["run"]), "--publish", str(tmp_path / "repository"), "--beside", str(runs["beside"])]
    monkeypatch.setattr(sys, "argv", ["export", *asked])
    assert export.main() == 2
    said = capsys.readouterr().err
    assert said.startswith(f"training.export: {card}: not a model card (")
    assert said.count("\n") == 1


def test_a_gate_that_could_not_serve_the_candidate_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a line, before the corpus is made."""

    def missing() -> None:
        raise ServerError("nvidia-pytriton is not installed")

    monkeypatch.setattr(wheel, "find", missing)
    monkeypatch.setattr(catalog.recipe("wgan"), "load_corpus", lambda _: pytest.fail("a corpus was made"))
    asked = ["wgan", "--preset", "tiny", "--runs", str(tmp_path / "runs"), "--publish", str(tmp_path / "models")]
    assert run.main(asked) == 2
    assert capsys.readouterr().err == "training.run: --publish: nvidia-pytriton is not installed; or leave it out\n"
    assert list(tmp_path.iterdir()) == []
