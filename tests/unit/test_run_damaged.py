"""--resume of a run that is done, whose files were damaged since, and runs that diverge in their last step."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gallery
import numpy as np
import pytest
import torch

from training import catalog, export, provenance
from training.data.corpus import Corpus
from training.errors import BadInput
from training.run import main
from training.rundir import RunDir, load_checkpoint

TINY = ["wgan", "--preset", "tiny", "--steps", "3"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs' folder of a run of three steps that was trained to its end; nothing was exported."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "export", lambda *_, **__: runs / "candidate")
        assert main([*TINY, "--runs", str(runs)]) == 0
    return runs


@pytest.fixture
def runs(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "runs"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def misread(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"step": 1', b'"st\xffp": 1'))


def text(path: Path) -> None:
    path.write_text(path.read_text().replace('{"step": 1, "', '{"step": 1, "of": "text", "'))


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (Path.unlink, []),
        (lambda path: path.write_bytes(b""), []),
        (cut, [0, 1]),
        (misread, [0, 2]),
        (text, [0, 2]),
        (lambda path: path.write_text(path.read_text() + '[3]\n3\nnull\n{"step": "x"}\n{"step": NaN}\n'), [0, 1, 2]),
    ],
    ids=["missing", "empty", "cut short", "0xFF", "a figure that is text", "other JSON"],
)
def test_damaged_figures_keep_no_weights_from_being_exported(
    damage: Callable[[Path], object], left: list[int], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken lines are dropped; what is left of the curve is drawn."""
    monkeypatch.setattr(export, "export", lambda *_, **__: runs / "candidate")
    stats = runs / "wgan" / "stats.jsonl"
    damage(stats)
    assert main([*TINY, "--runs", str(runs), "--resume"]) == 0
    assert [json.loads(line)["step"] for line in stats.read_text().splitlines()] == left


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("options", None, "its options is a NoneType"),
        ("corpus", "lines", "its corpus is a str"),
        ("command", None, "its command is a NoneType"),
        ("resumed", None, "its resumed is a NoneType"),
    ],
)
def test_options_of_another_type_are_named(
    name: str, value: object, why: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and status 2."""
    path = runs / "wgan" / provenance.OPTIONS
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    assert main([*TINY, "--runs", str(runs), "--resume"]) == 2
    says = f"training.run: {path}: doesn't say how the run was begun ({why}); begin another --name\n"
    assert capsys.readouterr().err == says


def test_a_note_that_is_not_text_does_not_count(runs: Path) -> None:
    """The run is published once more, or found in the repository."""
    path = runs / "wgan" / provenance.PUBLISHED
    path.write_bytes(b"published wgan version 1 in \xff\n")
    assert provenance.noted(path) == ""


@pytest.mark.parametrize("link", [False, True], ids=["a file", "a link"])
def test_a_candidate_that_is_no_folder_is_named(
    link: bool, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is nothing that a run has made, so it stays."""
    candidate = runs / "wgan" / "candidate"
    candidate.symlink_to(tmp_path) if link else candidate.write_text("mine")
    assert main([*TINY, "--runs", str(runs), "--resume"]) == 2
    says = f"training.run: {candidate}: is no folder; move it away, and the same command with --resume goes on"
    assert capsys.readouterr().err.splitlines()[-1] == says
    assert candidate.exists()


@dataclasses.dataclass(frozen=True)
class Rated:
    generator_lr: float = 1.0
    critic_lr: float = 1.0


@pytest.mark.parametrize("where", ["net", "learners"])
def test_weights_that_are_not_finite_replace_no_checkpoint(where: str, tmp_path: Path) -> None:
    """The one before stays; an optimizer's estimates may be what they are."""
    weights, adam = {"w": torch.ones(2), "n": torch.tensor(1)}, {"state": {0: torch.tensor(torch.inf)}}
    good = {"net": weights, "adam": adam | {"param_groups": []}, "step": 1}
    bad = {"w": torch.tensor([1.0, torch.nan])}
    run = RunDir(tmp_path / "run", model="m", preset="p", options=Rated(), corpus={"name": "c"}, resume=False)
    run.save(good)
    says = "^the run has diverged: its weights are not finite; .* with a lower --generator-lr or --critic-lr$"
    with pytest.raises(BadInput, match=says):
        run.save({**good, where: bad if where == "net" else [{"net": bad}], "step": 2})
    run.close()
    assert load_checkpoint(run.last)["step"] == 1


@pytest.mark.parametrize("model", ["features", "style", "upscaler"])
def test_a_run_that_diverges_in_its_last_step_is_not_exported(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last loss was still finite; the weights that this has led to are not."""
    pictures = gallery.pictures(tmp_path)
    paintings, photos = str(pictures / "paintings"), str(pictures / "photos")
    corpus = {
        "features": ["--corpus", str(pictures), "--epochs", "1"],
        "style": ["--styles", paintings, "--content", photos, "--steps", "1"],
        "upscaler": ["--corpus", photos, "--steps", "1"],
    }
    asked = [model, "--preset", "tiny", *corpus[model], "--lr", "inf", "--runs", str(tmp_path)]
    assert main(asked) == 2
    says = "training.run: the run has diverged: its weights are not finite; begin another --name with a lower --lr"
    assert capsys.readouterr().err.splitlines()[-1] == says
    assert not (tmp_path / model / "candidate").exists()


@pytest.mark.parametrize(
    ("way", "weight"),
    [("export", torch.inf), ("export_weights", torch.inf), ("export_weights", 1e30)],
    ids=["served", "kept", "kept in half precision"],
)
def test_a_checkpoint_that_is_not_finite_is_not_exported(
    way: str, weight: float, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an older version of the program may have written one."""
    net = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(net.weight, weight)

    class Recipe:
        load_net = staticmethod(lambda _: net)
        weights = staticmethod(lambda net: {name: value.half() for name, value in net.state_dict().items()})

    monkeypatch.setattr(catalog, "recipe", lambda _: Recipe)
    corpus = Corpus("c", np.zeros(0), np.zeros(0), "", three_lines=False)
    with pytest.raises(BadInput, match=r"^the run has diverged: .* with a lower --generator-lr or --critic-lr$"):
        getattr(export, way)("wgan", Path("last.pt"), runs / "wgan", corpus=corpus)
    assert not (runs / "wgan" / "candidate").exists()
