"""`python -m training.run classifier` as a person or a Job calls it, on a small set in the official form."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
DEAD = "http://127.0.0.1:9"  # a proxy that refuses
TINY = ["classifier", "--preset", "tiny"]


def training_run(*arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "training.run", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise with labels, as the four official files."""
    folder = tmp_path_factory.mktemp("fashion-mnist")
    rng = np.random.default_rng(0)
    for part, count in (("train", 200), ("t10k", 60)):
        pixels = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8).tobytes()
        labels = (np.arange(count) % 10).astype(np.uint8).tobytes()
        sizes = np.array([2051, count, 28, 28], ">i4"), np.array([2049, count], ">i4")
        for name, size, data in zip(("images-idx3", "labels-idx1"), sizes, (pixels, labels), strict=True):
            with gzip.open(folder / f"{part}-{name}-ubyte.gz", "wb") as file:
                file.write(size.tobytes() + data)
    return folder


@pytest.fixture(scope="module")
def tiny(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A whole run on noise: trained, evaluated, exported, and turned down by the gate."""
    runs = tmp_path_factory.mktemp("runs")
    return training_run(
        *TINY, "--corpus", corpus, "--runs", runs, "--publish", runs / "repository"
    ), runs / "classifier"


def test_tiny_run_is_refused_with_its_reasons_and_kept(tiny: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """Noise can't be told apart: exit status 3, the accuracy named, nothing published, the candidate complete."""
    done, run = tiny
    assert done.returncode == 3, done.stderr
    assert "test_accuracy" in done.stderr
    assert not (run.parent / "repository").exists()
    candidate = {path.name for path in (run / "candidate").iterdir()}
    assert candidate == {"model.onnx", "card.json", "golden.npz", "refused.txt"}


def test_tiny_run_leaves_its_pictures(tiny: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """Curves, confusion matrix, the worst mistakes and calibration, each a picture of a size to be read."""
    for name in ("convergence", "confusion", "mistakes", "calibration"):
        with Image.open(tiny[1] / f"{name}.png") as picture:
            assert min(picture.size) > 300, name


def test_a_line_for_each_epoch_and_figures_for_each_step(tiny: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """The log has one line per epoch of each net, with validation's accuracy; stats.jsonl has every step."""
    lines = [line for line in tiny[0].stdout.splitlines() if line.startswith("step ")]
    assert ["net 1 epoch   1" in lines[0], "net 2 epoch   1" in lines[1]] == [True, True]
    assert [line for line in lines if "validation accuracy" in line] == lines
    steps = [json.loads(line) for line in (tiny[1] / "stats.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == [0, 1, 2, 3]


def test_card_has_both_sets_and_every_class(tiny: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """Accuracy, loss and calibration on validation and test pictures, what was learnt by heart, the corpus."""
    card = json.loads((tiny[1] / "candidate" / "card.json").read_text())
    assert {"validation_accuracy", "test_accuracy", "test_loss", "test_ece", "train_accuracy"} <= card["metrics"].keys()
    assert "test_accuracy_ankle_boot" in card["metrics"]
    assert len(card["corpus"]["sha256"]) == 64
    assert card["missed_aims"]


def test_corpus_that_is_none_is_one_clear_line(tmp_path: Path) -> None:
    """An empty folder: the flag, what was looked for, status 2, and no run directory."""
    done = training_run(*TINY, "--corpus", tmp_path, "--runs", tmp_path / "runs")
    assert done.returncode == 2
    assert "--corpus" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_corpus_that_cannot_be_fetched_may_be_tried_again(tmp_path: Path) -> None:
    """Without a network: one line that says where the files go, and status 1, with which a Job tries again."""
    environment = {**os.environ, "ATELIER_DATA": str(tmp_path), "http_proxy": DEAD, "https_proxy": DEAD}
    environment = {name: value for name, value in environment.items() if name.lower() != "no_proxy"}
    done = training_run(*TINY, "--runs", tmp_path / "runs", environment=environment)
    assert done.returncode == 1
    assert f"into {tmp_path / 'fashion-mnist'} yourself" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
