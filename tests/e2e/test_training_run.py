"""`python -m training.run` as a person or a Job calls it."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from scripts import free_port

ROOT = Path(__file__).parents[2]
PATIENCE_S = 300
TINY = ["wgan", "--preset", "tiny"]
ENDLESS = [*TINY, "--steps", "100000", "--samples-every", "100000"]


def training_run(*arguments: object, module: str = "training.run") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)


@contextlib.contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python that does not outlive its test, whatever befalls that."""
    command = [sys.executable, *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A whole tiny run: trained, evaluated, exported, and turned down by the gate, for it has learnt nothing."""
    runs = tmp_path_factory.mktemp("runs")
    return training_run(*TINY, "--runs", runs, "--publish", runs / "repository"), runs / "wgan"


def test_tiny_run_is_refused_with_its_reasons_and_kept(
    tiny: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    """Exit status 3, every missed threshold named, nothing published, the candidate complete."""
    done, run = tiny
    assert done.returncode == 3, done.stderr
    assert "structure" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (run.parent / "repository").exists()
    candidate = {path.name for path in (run / "candidate").iterdir()}
    assert candidate == {"model.onnx", "card.json", "golden.npz", "refused.txt"}


def test_tiny_run_logs_every_step_as_the_source_does(tiny: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """A line per step with the critic's loss, its real, fake and penalty parts, and the generator's loss."""
    lines = [line for line in tiny[0].stdout.splitlines() if line.startswith("step ")]
    assert len(lines) == 4
    assert all(part in lines[-1] for part in ("4/4", "critic", "real", "fake", "penalty", "generator", "left"))


def test_card_tells_how_to_make_it_again(tiny: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """Options, corpus with checksum, commit, machine, metrics and the graph's checksum are in card.json."""
    import hashlib

    candidate = tiny[1] / "candidate"
    card = json.loads((candidate / "card.json").read_text())
    assert card["options"]["steps"] == 4
    assert len(card["corpus"]["sha256"]) == 64
    assert card["preset"] == "tiny"
    assert card["trained_on"]["threads"] >= 1
    assert card["metrics"]["structure"] < 0.5
    assert card["commit"]
    assert card["sha256"] == hashlib.sha256((candidate / "model.onnx").read_bytes()).hexdigest()


def test_finished_run_is_not_overwritten(tiny: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """The same call again, without --resume, touches nothing."""
    before = (tiny[1] / "checkpoints" / "last.pt").read_bytes()
    again = training_run(*TINY, "--runs", tiny[1].parent)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    assert (tiny[1] / "checkpoints" / "last.pt").read_bytes() == before


@pytest.mark.parametrize("version", ["7", ".withdrawn-7"], ids=["in service", "rolled back"])
def test_run_that_was_published_is_not_published_again(
    version: str, tiny: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path
) -> None:
    """A pod that takes over from one that ended after publishing says which version there is, and adds none."""
    said = f"published wgan version 7 in {tmp_path}\n"
    (tiny[1] / "published.txt").write_text(said)
    (tmp_path / "wgan" / version).mkdir(parents=True)
    again = training_run(*TINY, "--runs", tiny[1].parent, "--resume", "--publish", tmp_path)
    (tiny[1] / "published.txt").unlink()
    assert (again.returncode, again.stdout) == (0, said), again.stderr
    assert [path.name for path in (tmp_path / "wgan").iterdir()] == [version]


def test_a_note_of_a_version_that_is_not_there_is_not_believed(
    tiny: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path
) -> None:
    """Of a repository that was deleted, or is another one under the same name: the run goes through the gate anew."""
    (tiny[1] / "published.txt").write_text(f"published wgan version 7 in {tmp_path}\n")
    again = training_run(*TINY, "--runs", tiny[1].parent, "--resume", "--publish", tmp_path)
    (tiny[1] / "published.txt").unlink()
    assert again.returncode == 3, again.stderr
    assert again.stderr.startswith("training.run: wgan refused")


@pytest.mark.parametrize("stop", ["SIGTERM", "SIGINT", "nobody reads"])
def test_what_ends_a_run_leaves_a_checkpoint_that_goes_on(tmp_path: Path, stop: str) -> None:
    """A pod that is preempted, Ctrl-C, which may end `tee` first, and `head`: the run ends with 143 after a whole step,
    and the checkpoint holds that step."""
    with started("-u", "-m", "training.run", *ENDLESS, "--runs", tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        if stop == "nobody reads":
            process.stdout.close()
            process.wait(PATIENCE_S)
            errors = process.stderr.read()
        else:
            process.send_signal(signal.Signals[stop])
            _, errors = process.communicate(timeout=PATIENCE_S)
    assert first.startswith("step 1/"), errors
    assert process.returncode == 143, errors
    assert errors == f"stopped; the same command with --resume goes on from {tmp_path}/wgan/checkpoints/last.pt\n"
    state = torch.load(tmp_path / "wgan" / "checkpoints" / "last.pt", weights_only=True)
    steps = (tmp_path / "wgan" / "stats.jsonl").read_text().splitlines()
    assert state["step"] == len(steps) >= 1


@pytest.mark.parametrize("ask", ["--help", "--dry-run"])
def test_a_reader_that_has_seen_enough_gets_no_traceback(ask: str) -> None:
    """`| head` that ended before the run printed: the exit status is 0, and nothing is said."""
    with started("-m", "training.run", *TINY, ask) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait(PATIENCE_S)) == ("", 0)


def test_dry_run_prints_the_options_and_makes_nothing(tmp_path: Path) -> None:
    """--dry-run resolves preset and flags, as JSON."""
    done = training_run(*TINY, "--batch", 7, "--dry-run", "--runs", tmp_path)
    assert done.returncode == 0
    options = json.loads(done.stdout)
    assert (options["steps"], options["batch"]) == (4, 7)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def broken_folder(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(20):
        Image.new("RGB", (128, 128), (k, 0, 0)).save(folder / f"{k}.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:60])
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "MODEL"),
        (["nope"], "wgan"),
        (["wgan", "--preset", "huge"], "--preset"),
        ([*TINY, "--steps", "0"], "--steps"),
        ([*TINY, "--steps", "many"], "--steps"),
        ([*TINY, "--colour", "red"], "--colour"),
        ([*TINY, "--corpus", "cats"], "--corpus"),
        ([*TINY, "--corpus", "{empty}"], "no pictures"),
        ([*TINY, "--corpus", "{broken}"], "broken.png"),
        ([*TINY, "--evaluate", "{empty}/none.pt"], "none.pt"),
        ([*TINY, "--evaluate", "{other}"], "not one of wgan's"),
        ([*TINY, "--runs", "/proc/none"], "--runs"),
        ([*TINY, "--metrics-port", "99999", "--runs", "{empty}/r"], "--metrics-port"),
        ([*TINY, "--publish", "{other}", "--runs", "{empty}/q"], "--publish"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_bad_input_is_one_clear_line_and_status_2(
    arguments: list[str], says: str, tmp_path: Path, broken_folder: Path
) -> None:
    """Every refusal names the flag or file, without a traceback, before anything is trained."""
    empty, other = tmp_path / "empty", tmp_path / "other.pt"
    empty.mkdir()
    torch.save({"network": "resnet", "average": {}}, other)
    begun = time.monotonic()
    done = training_run(*(a.format(empty=empty, broken=broken_folder, other=other) for a in arguments))
    assert done.returncode == 2, f"{done.stderr} after {time.monotonic() - begun:.0f} s"
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "step 1/" not in done.stdout


def test_metrics_are_served_while_training(tmp_path: Path) -> None:
    """Prometheus finds step, steps asked for, step time and the recipe's figures at --metrics-port."""
    import urllib.request

    port = free_port()
    with started("-u", "-m", "training.run", *ENDLESS, "--runs", tmp_path, "--metrics-port", port) as process:
        assert process.stdout is not None
        first = [process.stdout.readline() for _ in range(2)]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            page = answer.read().decode()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
    assert first[1].startswith("step 2/")
    assert 'atelier_training_steps{model="wgan",run="wgan"} 100000.0' in page
    assert 'atelier_training_step{model="wgan",run="wgan"}' in page
    assert 'atelier_training_stat{model="wgan",run="wgan",stat="penalty"}' in page
    assert "atelier_training_step_seconds_bucket" in page
