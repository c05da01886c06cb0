"""Two workers at one run, over gloo on the CPU: as one torchrun starts them, and as two pods of an Indexed Job."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gallery
import pytest
import torch
from scripts import ROOT, free_port

from serving import repository

PATIENCE_S = 300
Pods = list[subprocess.Popen[str]]
LENIENT = str(ROOT / "tests" / "lenient_run.py")
LONG = ["--batch", "4", "--steps", "300", "--sample-every", "1000"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gallery.pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(autouse=True)
def loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # torchrun leaves a folder torchelastic_* behind


def started(command: Sequence[object]) -> subprocess.Popen[str]:
    line = [sys.executable, "-u", *map(str, command)]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def pods(*script: object, unless: Path | None = None) -> Pods:
    """Both pods' processes, with the options that deploy/train-style-multinode.yaml gives them."""
    port = free_port()
    own = [f"--unless={unless}"] if unless else []
    group = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=localhost", f"--master-port={port}"]
    return [started(["-m", "training.torchrun", *own, *group, f"--node-rank={rank}", *script]) for rank in (0, 1)]


def ended(processes: Pods) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each."""
    try:
        told = [process.communicate(timeout=PATIENCE_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *each) for process, each in zip(processes, told, strict=True)]


def checkpoint(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    return state


def gradients(run: Path) -> torch.Tensor:
    """Of a run's first step, all in one: Adam's first mean is a tenth of them."""
    return torch.cat([moments["exp_avg"].flatten() for moments in checkpoint(run)["adam"]["state"].values()])


@pytest.mark.parametrize("model", ["style", "upscaler"])
def test_two_workers_have_the_gradients_of_one(model: str, pictures: Path, tmp_path: Path) -> None:
    """Each with half the batch. In float32 they differ by the order of sums, 1e-5 of their length at most, and the
    losses likewise; in bf16, as a run trains, by that format's rounding, where half the batch is rounded by itself."""
    asked = gallery.asked(pictures) if model == "style" else ["upscaler", "--preset", "tiny", "--corpus", pictures]
    for precision, allowed in (("float32", 1e-5), ("bf16", 2e-2)):
        runs = tmp_path / precision
        script = [ROOT / "tests" / f"{precision}_run.py"] if precision == "float32" else ["-m", "training.run"]
        run = [*script, *asked, "--batch", 4, "--steps", 1, "--runs", runs, "--name"]
        torchrun = ["-m", "training.torchrun", "--nproc-per-node=2"]
        alone, together = ended([started([*run, "one"]), started([*torchrun, *run, "two"])])
        assert (alone[0], together[0]) == (0, 0), (alone, together)
        one, two = gradients(runs / "one"), gradients(runs / "two")
        assert one.norm() > 0
        assert (one - two).norm() <= allowed * one.norm(), precision
        losses = [json.loads((runs / name / "stats.jsonl").read_text()) for name in ("one", "two")]
        assert losses[0] == pytest.approx(losses[1], rel=allowed)


@pytest.fixture(scope="module")
def unbroken(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two pods, published, in a folder with the model repository."""
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        both = ended(pods(LENIENT, *gallery.asked(pictures, *LONG), "--runs", folder, "--publish", folder / "models"))
        assert [pod[0] for pod in both] == [0, 0], both
        assert "published style version 1" in both[0][1]
        assert both[1][1] == ""
        assert not list(Path(os.environ["TMPDIR"]).glob("atelier-worker-*"))
    return folder


def test_two_workers_write_one_run_and_one_version(unbroken: Path) -> None:
    """The leader alone writes, logs and publishes; the other leaves nothing."""
    assert {path.name for path in unbroken.iterdir()} == {"style", "models"}
    assert repository.versions(unbroken / "models", "style") == [1]
    assert len((unbroken / "style" / "stats.jsonl").read_text().splitlines()) == 300
    assert len(list((unbroken / "style" / "tensorboard").iterdir())) == 1


def drain(pods: Pods) -> None:
    """The second pod is told to stop."""
    pods[1].send_signal(signal.SIGTERM)


def crash(pods: Pods) -> None:
    """The second pod's worker is killed, as for memory."""
    os.kill(int(Path(f"/proc/{pods[1].pid}/task/{pods[1].pid}/children").read_text().split()[0]), signal.SIGKILL)


@pytest.mark.parametrize(("breaks", "statuses"), [(drain, [143, 143]), (crash, [1, 137])], ids=["drained", "crashed"])
def test_when_one_pod_ends_all_do_and_go_on_together(
    breaks: Callable[[Pods], None],
    statuses: list[int],
    pictures: Path,
    unbroken: Path,
    tmp_path: Path,
) -> None:
    """Drained: both stop after the same step, with a checkpoint and the status that counts for nothing. Crashed: the
    other doesn't wait for it. The next two pods end with the bits of a run that nothing broke."""
    asked = gallery.asked(pictures, *LONG, "--checkpoint-minutes", "0.0001", "--resume", "--runs", str(tmp_path))
    both = pods("-m", "training.run", *asked)
    assert both[0].stdout is not None
    assert both[0].stdout.readline().startswith("step 50/300 ")
    breaks(both)
    assert [pod[0] for pod in ended(both)] == statuses
    reached = checkpoint(tmp_path / "style")["step"]
    assert 0 < reached < 300
    assert [pod[0] for pod in ended(pods("-m", "training.run", *asked))] == [0, 0]
    rows = (tmp_path / "style" / "stats.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(300))
    whole, resumed = checkpoint(unbroken / "style")["net"], checkpoint(tmp_path / "style")["net"]
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())


def test_a_pod_that_comes_back_when_all_is_published_has_nothing_to_do(unbroken: Path) -> None:
    """It waits for nobody, and says which version there is."""
    begun = json.loads((unbroken / "style" / "options.json").read_text())["command"]
    done, _ = ended(pods(LENIENT, *begun, unless=unbroken / "style" / "published.txt"))
    assert done == (0, f"published style version 1 in {unbroken / 'models'}\n", "")


def test_a_refusal_is_the_status_of_the_pod_that_publishes(pictures: Path, tmp_path: Path) -> None:
    """3, which fails the Job; the other pod tells in one line that it waited in vain."""
    asked = gallery.asked(pictures, "--style-weight", "0", "--runs", str(tmp_path), "--publish", str(tmp_path / "m"))
    (leader, _, reasons), (other, _, why) = ended(pods("-m", "training.run", *asked))
    assert (leader, other) == (3, 1), (reasons, why)
    assert "style refused" in reasons
    assert "training.run: the worker that evaluates and publishes has ended before it was done" in why
    assert "Traceback" not in reasons + why


def test_bad_options_end_every_pod_with_2(pictures: Path, tmp_path: Path) -> None:
    """One line each, and no group that waits."""
    asked = gallery.asked(pictures, "--content", str(tmp_path / "nowhere"), "--runs", str(tmp_path / "runs"))
    for status, out, err in ended(pods("-m", "training.run", *asked)):
        assert (status, out) == (2, ""), err
        assert len(re.findall("^training.run: --content: .* is not there", err, re.MULTILINE)) == 1
        assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()
