"""The load generator asks a Triton that runs already, where it is told that one is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import counts
import pytest
import scripts
import tritonclient.grpc as triton
from traces import PATIENCE_S

from serving.embedded import Embedded

REQUESTS, CALLERS = 20, 2


def load(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.load", "--model", "classifier", *map(str, arguments)]
    return subprocess.run(command, cwd=scripts.ROOT, capture_output=True, text=True, timeout=2 * PATIENCE_S)


@pytest.mark.parametrize("way", ["grpc", "sdk"])
def test_a_server_that_runs_already(classifier_server: Embedded, tmp_path: Path, way: str) -> None:
    """It answers as many requests as were asked for, all rightly; what came of it is the last line and a page."""
    places = ("--url", classifier_server.grpc, "--repository", classifier_server.repository, "--out", tmp_path)
    with triton.InferenceServerClient(classifier_server.grpc) as client:
        before = counts.inferences(client, "classifier")
        done = load(*places, "--way", way, "--requests", REQUESTS, "--callers", CALLERS, "--warmup-s", 0.01)
        assert (done.returncode, done.stderr) == (0, "")
        counts.reached(lambda: counts.inferences(client, "classifier"), before + REQUESTS)
    (result,) = json.loads(done.stdout.splitlines()[-1])["results"]
    assert (result["target"], result["load"]) == (f"{way} at {classifier_server.grpc}", CALLERS)
    assert (result["total"]["requests"], result["total"]["errors"]) == (REQUESTS, {})
    assert (tmp_path / f"classifier-{way}" / "report.html").is_file()


def test_nobody_there(classifier_server: Embedded, tmp_path: Path) -> None:
    """One line and status 2, and nothing is written."""
    address = f"127.0.0.1:{scripts.free_port()}"
    done = load("--url", address, "--repository", classifier_server.repository, "--out", tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"--url {address}: " in done.stderr
    assert list(tmp_path.iterdir()) == []
