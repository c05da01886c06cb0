"""A Job on a GPU of the serving type: its candidate holds a TensorRT plan, with stand-ins for the GPU and TensorRT."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorrt_stand_in as fake
from scripts import ROOT


def test_a_run_ends_with_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--export onnx,tensorrt: beside the graph, built from it, and told on standard output."""
    path = os.environ["PATH"]
    fake.install(tmp_path / "tools", monkeypatch)
    command = [sys.executable, "-m", "training.run", "wgan", "--preset=tiny", f"--runs={tmp_path / 'runs'}"]
    done = subprocess.run(
        [*command, "--export=onnx,tensorrt"],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path / 'tools'}:{path}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    candidate = tmp_path / "runs" / "wgan" / "candidate"
    plan = candidate / "model.plan"
    assert f"plan: {plan}, for TensorRT {fake.VERSION} on NVIDIA L4, compute capability 8.9\n" in done.stdout
    card, record = (json.loads((candidate / name).read_text()) for name in ("card.json", "plan.json"))
    assert record["graph_sha256"] == card["sha256"]
    assert record["plan_bytes"] == plan.stat().st_size > 0
