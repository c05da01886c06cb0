"""Run directories: nothing of an earlier run is lost, whatever is asked of it or happens to the disk."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import gallery
import prometheus_client
import pytest
import torch
from conftest import mounted
from garment_files import TEST, TRAIN, official
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training import catalog, provenance, rundir
from training.errors import BadInput, Refused
from training.run import _push_metrics, main
from training.rundir import RunDir, Stopped, load_checkpoint, machine


@dataclasses.dataclass(frozen=True)
class Options:
    batch_size: int = 8


@dataclasses.dataclass(frozen=True)
class Named(Options):
    corpus: str = "c"


def open_run(path: Path, options: Options = Options(), *, resume: bool = False, sha256: str = "0") -> RunDir:
    return RunDir(path, model="m", preset="p", options=options, corpus={"name": "c", "sha256": sha256}, resume=resume)


def test_new_run_never_overwrites_an_old_one(tmp_path: Path) -> None:
    """Without --resume, a directory that holds a run is refused and left alone."""
    run = open_run(tmp_path / "run")
    run.save({"step": 3})
    run.close()
    before = run.last.read_bytes()
    with pytest.raises(BadInput, match="--resume"):
        open_run(tmp_path / "run")
    assert run.last.read_bytes() == before


def test_nothing_stays_of_a_run_that_had_no_checkpoint_yet(tmp_path: Path) -> None:
    """Its samples would be taken for the new one's, in a film; a folder that was never a run keeps what it holds."""
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "mine.png").write_bytes(b"")
    open_run(tmp_path).close()
    assert (tmp_path / "samples" / "mine.png").exists()
    (tmp_path / "samples" / "000005.png").write_bytes(b"")
    (tmp_path / "published.txt").write_text("published m version 1 in /models\n")
    open_run(tmp_path).close()
    assert not (tmp_path / "published.txt").exists()
    assert list((tmp_path / "samples").iterdir()) == []
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_resume_with_other_options_names_the_flag(tmp_path: Path) -> None:
    """A run goes on with the options it began with."""
    run = open_run(tmp_path / "run")
    run.save({"step": 3})
    run.close()
    with pytest.raises(BadInput, match=r"--batch-size: .* begun with 8, not 16"):
        open_run(tmp_path / "run", Options(batch_size=16), resume=True)


@pytest.mark.parametrize(("options", "named"), [(Named(), "--corpus"), (Options(), "the pictures")])
def test_resume_with_other_pictures_says_so(options: Options, named: str, tmp_path: Path) -> None:
    """By --corpus, of a model that has it."""
    run = open_run(tmp_path / "run", options)
    run.save({"step": 3})
    run.close()
    with pytest.raises(BadInput, match=f"^{named}: .* begun with 0, not 1; use that or another --name"):
        open_run(tmp_path / "run", options, resume=True, sha256="1")


def test_what_a_run_went_on_with_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another commit, machine or command than the last one's, once each time, beside those that it began with."""
    run = open_run(tmp_path / "run")
    run.save({"step": 3})
    run.close()
    begun = run.made_by
    here = {name: begun[name] for name in ("commit", "machine", "command")}
    there, again = {**here, "commit": "b", "machine": {"device": "x"}}, {**here, "command": ["wgan", "--resume"]}
    told = []
    for now in (here, there, there, again):
        monkeypatch.setattr(rundir, "commit", lambda now=now: now["commit"])
        monkeypatch.setattr(rundir, "machine", lambda now=now: now["machine"])
        monkeypatch.setattr(sys, "argv", ["training.run", *now["command"]])
        run = open_run(tmp_path / "run", resume=True)
        run.close()
        told.append(run.made_by)
    assert told[0] == begun
    assert told[1] == told[2] == {**begun, "resumed": [there]}
    assert told[3] == {**begun, "resumed": [there, again]}
    assert not list(run.path.glob(".options*"))


@pytest.mark.parametrize(
    "content",
    [None, "", '{"model": "m", "opt', "{}", "[]", "3"],
    ids=["missing", "empty", "cut short", "no fields", "a list", "a number"],
)
def test_a_run_that_does_not_say_how_it_was_begun_is_named(content: str | None, tmp_path: Path) -> None:
    """Its options.json is missing, cut short or something else: one line, and nothing is changed."""
    run = open_run(tmp_path / "run")
    run.save({"step": 3})
    run.close()
    options = run.path / "options.json"
    options.unlink()
    if content is not None:
        options.write_text(content)
    says = rf"^{options}: doesn't say how the run was begun \(.*\); begin another --name$"
    with pytest.raises(BadInput, match=says):
        open_run(tmp_path / "run", resume=True)
    assert options.exists() == (content is not None)


@pytest.mark.parametrize("content", ['{"run": ', "[]", "\0"], ids=["cut short", "a list", "zeros"])
def test_a_damaged_story_of_what_a_run_starts_from_is_named(content: str, tmp_path: Path) -> None:
    """The options.json beside --init: one line, and no directory is made. Without one, the story is the checkpoint."""

    @dataclasses.dataclass(frozen=True)
    class Started(Options):
        init: str = str(tmp_path / "before" / "checkpoints" / "last.pt")

    options = tmp_path / "before" / "options.json"
    options.parent.mkdir()
    options.write_text(content)
    says = (
        rf"^{options}: doesn't say how the run was begun \(.*\); put it right, or remove it to start without its story$"
    )
    with pytest.raises(BadInput, match=says):
        open_run(tmp_path / "run", Started())
    assert not (tmp_path / "run").exists()
    options.unlink()
    run = open_run(tmp_path / "run", Started())
    run.close()
    assert run.made_by["started_from"] == {"checkpoint": Started().init}


def test_a_checkpoint_that_does_not_say_its_step_is_named(tmp_path: Path) -> None:
    """In one line."""
    run = open_run(tmp_path / "run")
    run.save({"net": {}})
    with pytest.raises(BadInput, match=r"^--resume: .*last\.pt was written by another version of the program; "):
        run.restore()
    run.close()


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What to ask of each recipe for a corpus of a few pictures."""
    pictures, garments = gallery.pictures(tmp_path_factory.mktemp("pictures")), tmp_path_factory.mktemp("garments")
    photos, paintings = str(pictures / "photos"), str(pictures / "paintings")
    return {
        "classifier": ["--corpus", str(official(garments, TRAIN, TEST))], "colorizer": ["--corpus", photos],
        "features": ["--corpus", str(pictures)], "painter": [], "style": ["--styles", paintings, "--content", photos],
        "upscaler": ["--corpus", photos], "wgan": [],
    }  # fmt: skip


def test_a_run_leaves_the_hook_of_others_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    """pytest's, which makes a test fail for what its threads raise."""
    before = threading.excepthook
    assert main(["nothing"]) == 2
    assert threading.excepthook is before
    assert "MODEL: no 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize("model", catalog.trained())
def test_a_checkpoint_without_its_parts_is_named(
    model: str, corpora: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By every recipe, in one line, with status 2: a Job would else try again and again."""
    asked = [model, "--preset", "tiny", *corpora[model], "--runs", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "terminated", property(lambda self: True))
        assert main(asked) == 143
    last = tmp_path / model / "checkpoints" / "last.pt"
    torch.save({"step": 1}, last)
    capsys.readouterr()
    assert main([*asked, "--resume"]) == 2
    says = "was written by another version of the program; begin another --name"
    *before, told = capsys.readouterr().err.splitlines()
    assert told == f"training.run: --resume: {last} {says}"
    assert len(before) == (model == "classifier"), "that so few garments aren't all of Fashion-MNIST"


@pytest.fixture(scope="module")
def begun(corpora: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each recipe, stopped after its first step."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "terminated", property(lambda self: True))
        for model, more in corpora.items():
            assert main([model, "--preset", "tiny", *more, "--runs", str(runs)]) == 143
    return runs


@pytest.mark.parametrize("model", catalog.trained())
def test_the_checkpoint_of_every_other_recipe_is_refused(model: str, begun: Path) -> None:
    """By its name: anything else would be a traceback, and a status for which a Job tries again."""
    recipe = catalog.recipe(model)
    recipe.load_net(begun / model / "checkpoints" / "last.pt")
    for other in set(catalog.trained()) - {model}:
        path = begun / other / "checkpoints" / "last.pt"
        with pytest.raises(BadInput, match=f"^checkpoint {path}: not "):
            recipe.load_net(path)


@pytest.mark.parametrize("of", ["style", "colorizer"])
def test_the_checkpoint_of_another_recipe_begins_no_run(
    of: str, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of wgan, which takes more of it than what is served."""
    path = begun / of / "checkpoints" / "last.pt"
    assert main(["wgan", "--preset", "tiny", "--init", str(path), "--runs", str(tmp_path)]) == 2
    says = f"checkpoint {path}: not one of wgan's; give one that `training.run wgan` wrote"
    assert capsys.readouterr().err == f"training.run: {says}\n"


@pytest.mark.parametrize("becomes", ["gone", "another"])
@pytest.mark.parametrize("model", [each for each in catalog.trained() if hasattr(catalog.recipe(each).Options, "init")])
def test_a_run_that_goes_on_needs_nothing_of_what_it_started_from(
    model: str, becomes: str, corpora: dict[str, list[str]], begun: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its --init has gone, or is something else by now: it takes the same step to the bit."""
    monkeypatch.setattr(RunDir, "terminated", property(lambda self: True))
    init = tmp_path / "init.pt"
    shutil.copy(begun / model / "checkpoints" / "last.pt", init)
    asked = [model, "--preset", "tiny", *corpora[model], "--init", str(init), "--runs"]
    assert main([*asked, str(tmp_path / "kept")]) == 143
    shutil.copytree(tmp_path / "kept", tmp_path / "spoilt")
    assert main([*asked, str(tmp_path / "kept"), "--resume"]) == 143
    if becomes == "gone":
        init.unlink()
    else:
        torch.save({"step": 1}, init)
    assert main([*asked, str(tmp_path / "spoilt"), "--resume"]) == 143
    kept, spoilt = (load_checkpoint(tmp_path / name / model / "checkpoints/last.pt") for name in ("kept", "spoilt"))
    assert kept["step"] == spoilt["step"] == 2
    part = "generator" if model == "wgan" else "net"
    assert all(torch.equal(tensor, spoilt[part][key]) for key, tensor in kept[part].items())


def test_a_run_that_has_no_checkpoint_yet_needs_its_init(
    begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --resume, too: one line, before a corpus is made."""
    (tmp_path / "wgan" / "checkpoints").mkdir(parents=True)
    asked = ["wgan", "--preset", "tiny", "--init", str(tmp_path / "init.pt"), "--corpus", "nowhere", "--resume"]
    assert main([*asked, "--runs", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"training.run: --init: checkpoint {tmp_path / 'init.pt'}: no such file")


@pytest.mark.parametrize(
    ("place", "card", "counts"),
    [
        ("m/2", None, True),
        ("m/.withdrawn-2", None, True),
        ("m/2", {"run": "{own}"}, True),
        ("m/2", {"run": "another"}, False),
        ("m/.withdrawn-2", {"run": "another"}, False),
        ("m/1", None, False),
        ("", None, False),
    ],
    ids=["there", "rolled back", "there by its card", "another's", "another's, rolled back", "gone", "no repository"],
)
def test_a_note_counts_while_the_repository_holds_the_version(
    place: str, card: dict[str, str] | None, counts: bool, tmp_path: Path
) -> None:
    """The run's own: a relative name may mean another folder, whose versions have the same numbers."""
    run = open_run(tmp_path / "run")
    run.close()
    if place:
        version = tmp_path / "models" / place
        version.mkdir(parents=True)
        if card:
            written = {"model": "m", "preset": "p", "corpus": {"name": "c"}, "metrics": {}, "commit": "", "sha256": ""}
            own = {name: value.format(own=run.made_by["run"]) for name, value in card.items()}
            (version / "card.json").write_text(json.dumps(written | own))
    said = provenance.note(run.path, "m", 2, tmp_path / "models")
    assert said == f"published m version 2 in {tmp_path / 'models'}\n"
    assert provenance.noted(run.path / "published.txt") == (said if counts else "")


@pytest.mark.parametrize(
    ("minutes", "stops", "saved"),
    [(60.0, None, [3]), (-1.0, None, [1, 2, 3, 3]), (60.0, 1, [2]), (60.0, 2, [3])],
    ids=["at the end", "when it is due", "where it is stopped", "stopped in the last step"],
)
def test_a_loop_saves(minutes: float, stops: int | None, saved: list[int], tmp_path: Path) -> None:
    """After the last step, too, and then with the signals' handlers as they were, so that none goes unheard."""
    run, steps, handler = open_run(tmp_path / "run"), [], signal.getsignal(signal.SIGTERM)

    def save(step: int) -> None:
        steps.append(step)
        last = step == 3 and stops is None and len(steps) == len(saved)
        assert (signal.getsignal(signal.SIGTERM) is handler) == last

    with pytest.raises(Stopped) if stops is not None else contextlib.nullcontext():
        for step in run.steps(0, 3, save=save, every_minutes=minutes):
            if step == stops:
                run.stop()
    run.close()
    assert steps == saved


def test_figures_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    """A run killed after a checkpoint repeats the steps since; stats.jsonl has each step once."""
    run = open_run(tmp_path / "run")
    for step in run.steps(0, 3):
        run.record(step, "line", loss=float(step))
        if step == 1:
            run.save({"step": 2})
    run.close()
    resumed = open_run(tmp_path / "run", resume=True)
    assert resumed.restore() == {"step": 2}
    assert [row["step"] for row in resumed.stats()] == [0, 1]
    resumed.close()


def test_half_written_last_line_is_dropped(tmp_path: Path) -> None:
    """A kill in the middle of a line costs that line, not the run."""
    run = open_run(tmp_path / "run")
    for step in run.steps(0, 2):
        run.record(step, "line", loss=1.0)
    run.save({"step": 2})
    run.close()
    with (run.path / "stats.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    resumed = open_run(tmp_path / "run", resume=True)
    resumed.restore()
    assert [row["step"] for row in resumed.stats()] == [0, 1]
    resumed.close()


def test_figures_that_a_crash_has_lost_leave_the_others_at_their_steps(tmp_path: Path) -> None:
    """Of a node that went down, on whose volume a checkpoint was and the last figures were not: later resumes keep
    what there is, by its step."""
    run = open_run(tmp_path / "run")
    for step in run.steps(0, 4):
        run.record(step, "", loss=1.0)
    run.save({"step": 4})
    run.close()
    stats = run.path / "stats.jsonl"
    lines = stats.read_text().splitlines(keepends=True)
    stats.write_text("".join(lines[:2]) + "\0\0\0")
    for first in (4, 5):
        run = open_run(tmp_path / "run", resume=True)
        assert run.restore() == {"step": first}
        for step in run.steps(first, first + 2):
            run.record(step, "", loss=2.0)
            if step == first:
                run.save({"step": first + 1})
        run.close()
    assert [row["step"] for row in run.stats()] == [0, 1, 4, 5, 6]


def test_figures_are_on_the_disk_before_the_checkpoint_that_follows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this order, a node that goes down may lose a checkpoint, but no figure of one."""
    run, synced = open_run(tmp_path / "run"), []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(Path(f"/proc/self/fd/{file}").readlink().name))
    run.save({"step": 0})
    run.close()
    assert synced == ["stats.jsonl", "last.tmp"]


def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    """What a run showed after its last checkpoint goes, when these steps come again."""
    run = open_run(tmp_path / "run")
    for step in run.steps(0, 3):
        run.record(step, "", loss=float(step))
        if step == 0:
            run.save({"step": 1})
    run.close()
    time.sleep(1)  # TensorBoard reads files by name: the second, and of one second a process's 10th before its 9th
    run = open_run(tmp_path / "run", resume=True)
    run.restore()
    for step in run.steps(1, 2):
        run.record(step, "", loss=10.0)
    run.close()
    shown = EventAccumulator(str(run.path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in shown] == [(0, 0.0), (1, 10.0)]


def test_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    """A checkpoint that can't be written leaves the old one, no fragment, and one line that names the file."""
    with mounted(tmp_path / "small", "size=1m") as disk:
        run = open_run(disk / "run")
        run.save({"step": 1})
        with pytest.raises(BadInput, match=r"--runs: .*last\.pt: No space left on device; the one before is kept"):
            run.save({"step": 2, "net": torch.zeros(1_000_000)})
        run.close()
        assert load_checkpoint(run.last) == {"step": 1}
        assert [p.name for p in run.last.parent.iterdir()] == ["last.pt"]


def test_progress_can_be_told_from_outside(tmp_path: Path) -> None:
    """When the last step was done, from the loop's beginning on, and both outcomes of publishing, as yet 0."""

    def metric(name: str, **labels: str) -> float | None:
        return prometheus_client.REGISTRY.get_sample_value(name, {"model": "m", "run": "seen", **labels})

    run, stamps = open_run(tmp_path / "seen"), []
    for step in run.steps(0, 2):
        stamps.append(metric("atelier_training_last_step_timestamp_seconds"))
        assert metric("atelier_training_step") == step
        run.record(step, "", loss=1.0)
    run.close()
    assert 0 < stamps[0] < stamps[1] < metric("atelier_training_last_step_timestamp_seconds")
    assert [metric("atelier_publish_total", outcome=each) for each in ("published", "refused")] == [0, 0]
    with pytest.raises(Refused), run.counted_outcome():
        raise Refused
    with run.counted_outcome():
        pass
    assert [metric("atelier_publish_total", outcome=each) for each in ("published", "refused")] == [1, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_that_diverges_ends_there(value: float, tmp_path: Path) -> None:
    """With the step, the figure and the flags that may mend it; nothing of that step is kept."""

    @dataclasses.dataclass(frozen=True)
    class Rated(Options):
        generator_lr: float = 1.0
        critic_lr: float = 1.0

    run = open_run(tmp_path / "run", Rated())
    run.steps(0, 8).send(None)
    run.record(0, "", critic_loss=1.0)
    says = f"^step 2: critic loss is {value}, the run has diverged; .* with a lower --generator-lr or --critic-lr$"
    with pytest.raises(BadInput, match=says):
        run.record(1, "", critic_loss=value)
    assert [row["step"] for row in run.stats()] == [0]
    run.close()


@pytest.mark.parametrize("gateway", ["127.0.0.1:9", "http://host:port", "http://[::1", "ftp://host"])
def test_a_gateway_that_takes_no_figures_costs_no_run(
    gateway: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is down, and an address that is none: one line."""
    monkeypatch.setenv("ATELIER_PUSHGATEWAY", gateway)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    _push_metrics("m", "run")
    told = capsys.readouterr().err
    assert told.startswith(f"ATELIER_PUSHGATEWAY: {gateway} took no metrics (")
    assert told.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"], ids=["empty", "text", "zip"])
def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    """Any file that torch can't read is one clear error."""
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"last\.pt: not a checkpoint"):
        load_checkpoint(path)


def test_missing_checkpoint_says_where_one_would_be(tmp_path: Path) -> None:
    """The error tells the place to look."""
    with pytest.raises(BadInput, match=r"runs/<name>/checkpoints/last\.pt"):
        load_checkpoint(tmp_path / "none.pt")


def test_directory_that_cannot_be_written_names_the_flag(tmp_path: Path) -> None:
    """--runs on a file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="--runs: can't write"):
        open_run(tmp_path / "file" / "run")


def test_the_machine_is_what_the_run_computes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that was not asked for has not trained anything."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setenv("ATELIER_DEVICE", "cpu")
    assert machine()["device"] == "cpu"
    monkeypatch.delenv("ATELIER_DEVICE")
    assert machine()["device"] == "a GPU"
