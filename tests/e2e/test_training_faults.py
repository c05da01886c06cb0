"""What a Job meets on a cluster: kills at any moment, others that publish the same, full and read-only volumes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import gallery
import lenient_run
import numpy as np
import pytest
import torch
from conftest import mounted
from scripts import ROOT

from serving import repository
from training import run
from training.rundir import RunDir

PATIENCE_S = 300
OFTEN = ["--checkpoint-minutes", "0.00001", "--steps", "6"]  # a checkpoint after every step


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gallery.pictures(tmp_path_factory.mktemp("pictures"))


def started(arguments: list[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    """A Job's pod whose volumes are folders in `folder`, with a gate that asks for no quality."""
    command = [sys.executable, lenient_run.__file__, *arguments, "--resume"]
    command += ["--runs", str(folder / "runs"), "--publish", str(folder / "models")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    return process.returncode, out, err


def made(folder: Path) -> tuple[str, list[str]]:
    """What a run has come to: its weights, by their checksum, and its figures."""
    net = torch.load(folder / "runs/style/checkpoints/last.pt", weights_only=True)["net"]
    content = b"".join(tensor.contiguous().numpy().tobytes() for tensor in net.values())
    return hashlib.sha256(content).hexdigest(), (folder / "runs/style/stats.jsonl").read_text().splitlines()


@pytest.fixture(scope="module")
def unbroken(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happens to."""
    folder = tmp_path_factory.mktemp("unbroken")
    status, out, err = ended(started(gallery.asked(pictures, *OFTEN), folder))
    assert (status, out.splitlines()[-1]) == (0, f"published style version 1 in {folder / 'models'}"), err
    return folder


@pytest.mark.parametrize("seed", [0, 1])
def test_a_job_killed_at_any_moment_goes_on(seed: int, pictures: Path, unbroken: Path, tmp_path: Path) -> None:
    """Killed five times, at random moments at which a pod changes something on a volume, some of them in a checkpoint,
    in the export, in publishing: weights and figures are those of an unbroken run, and there is one version, whole."""
    arguments = gallery.asked(pictures, *OFTEN)
    # From a finished checkpoint to the end a pod does that 30 times; a run that nothing happens to, 60 times.
    for moment in np.random.default_rng(seed).integers(4, 26, 5):
        status, _, err = ended(started(arguments, tmp_path, KILL_AT=f"{moment} {tmp_path}"))
        assert status == -signal.SIGKILL, err
    status, out, err = ended(started(arguments, tmp_path))
    assert status == 0, err
    assert out.splitlines()[-1] == f"published style version 1 in {tmp_path / 'models'}"
    assert made(tmp_path) == made(unbroken)
    assert repository.versions(tmp_path / "models", "style") == [1]
    one, other = (repository.card(each / "models", "style", 1) for each in (tmp_path, unbroken))
    assert (one.sha256, one.metrics) == (other.sha256, other.metrics)


def test_a_job_killed_after_publishing_publishes_no_second_version(
    pictures: Path, unbroken: Path, tmp_path: Path
) -> None:
    """Between the version's appearing and the run's note of it: the next pod finds the version by its card."""
    arguments = gallery.asked(pictures, *OFTEN)
    note = unbroken / "runs/style/published.txt"
    said = note.read_text()
    note.unlink()
    assert ended(started(arguments, unbroken))[:2] == (0, said)
    assert note.read_text() == said
    assert repository.versions(unbroken / "models", "style") == [1]


def test_two_jobs_that_publish_at_once_make_two_versions(pictures: Path, tmp_path: Path) -> None:
    """Both succeed, each with its own."""
    both = [started([*gallery.asked(pictures), "--name", name], tmp_path) for name in ("one", "two")]
    told = [ended(process) for process in both]
    assert [status for status, _, _ in told] == [0, 0], told
    assert repository.versions(tmp_path / "models", "style") == [1, 2]
    runs = [repository.card(tmp_path / "models", "style", version).data["run"] for version in (1, 2)]
    names = {json.loads((tmp_path / "runs" / name / "options.json").read_text())["run"] for name in ("one", "two")}
    assert set(runs) == names
    said = {out.splitlines()[-1] for _, out, _ in told}
    assert said == {f"published style version {version} in {tmp_path / 'models'}" for version in (1, 2)}


@pytest.mark.parametrize(
    "at",
    [
        "runs/style/stats.jsonl",
        "runs/style/checkpoints/last.tmp",
        "runs/style/samples/.000002.png",
        "runs/style/candidate/golden.npz",
        "runs/style/candidate/model.onnx",
        "runs/style/candidate/card.json",
        "models/style/.lock",
    ],
)
def test_a_full_volume_ends_the_job_and_room_lets_it_go_on(
    at: str, pictures: Path, unbroken: Path, tmp_path: Path
) -> None:
    """Full from that file on: one line that says so, status 2, no version. With room again the next pod ends as an
    unbroken run does."""
    arguments = gallery.asked(pictures, *OFTEN)
    with mounted(tmp_path / "volume", "size=16m") as volume:
        status, _, err = ended(started(arguments, volume, FILL_AT=str(volume / at)))
        assert status == 2, err
        assert err.startswith("training.run: ")
        assert "No space left on device" in err
        assert err.count("\n") == 1, err
        assert repository.versions(volume / "models", "style") == []
        (volume / lenient_run.BALLAST).unlink()
        status, _, err = ended(started(arguments, volume))
        assert status == 0, err
        assert made(volume) == made(unbroken)
        assert repository.versions(volume / "models", "style") == [1]


@pytest.mark.parametrize(("read_only", "flag"), [("runs", "--runs"), ("models", "--publish")])
def test_a_read_only_volume_is_told_before_training(read_only: str, flag: str, pictures: Path, tmp_path: Path) -> None:
    """One line with its flag, status 2, no step."""
    with mounted(tmp_path / read_only, "ro"):
        status, out, err = ended(started(gallery.asked(pictures), tmp_path))
    assert (status, out) == (2, "")
    assert err.startswith(f"training.run: {flag}: can't write {tmp_path / read_only}")
    assert err.count("\n") == 1


def test_files_that_may_not_be_written_are_told_in_one_line(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another user's run: status 2. Root may write everything, so that the kernel's answers are stood in for."""
    arguments = gallery.asked(pictures, "--runs", str(tmp_path))
    assert run.main(arguments) == 0
    capsys.readouterr()
    stats = str(tmp_path / "style/stats.jsonl")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), stats)

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "restore", denied)
        assert run.main([*arguments, "--resume"]) == 2
    told = capsys.readouterr().err
    assert (
        told
        == f"training.run: {stats}: Permission denied; put that right, and the same command with --resume goes on\n"
    )
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert run.main([*arguments, "--evaluate", str(tmp_path / "style/checkpoints/last.pt")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"training.run: --evaluate: can't write {tmp_path / 'style/checkpoints'}; ")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["wgan", "--preset", "huge"], "--preset: no 'huge'"),
        (["wgan", "--preset", "tiny", "--corpus", "nowhere"], "--corpus: nowhere is neither"),
    ],
    ids=["option", "data"],
)
def test_the_termination_message_is_the_reason_alone(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kubernetes would else make it of the log's last 80 lines."""
    message = tmp_path / "termination-log"
    message.touch()
    monkeypatch.setattr(run, "TERMINATION_LOG", message)
    assert run.main(arguments) == 2
    assert message.read_text() == capsys.readouterr().err
    assert message.read_text().startswith("training.run: ")
    assert says in message.read_text()
    assert message.read_text().count("\n") == 1


def test_a_refusal_is_the_termination_message(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every reason, after however long a log."""
    message = tmp_path / "termination-log"
    message.touch()
    monkeypatch.setattr(run, "TERMINATION_LOG", message)
    arguments = gallery.asked(pictures, "--runs", str(tmp_path / "runs"), "--publish", str(tmp_path / "models"))
    assert run.main(arguments) == 3
    (reason,) = message.read_text().splitlines()
    assert reason.startswith("training.run: style refused, kept in ")
    assert (tmp_path / "runs/style/candidate/refused.txt").read_text().splitlines()[0] in reason
