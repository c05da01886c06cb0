"""Nothing calls home: ONNX Runtime's wheels would, and leave an identifier where they think that they may."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.repository import MODEL, REPOSITORY, newest

AUTOMATION = {"CI", "TF_BUILD", "GITHUB_ACTIONS", "GITLAB_CI"}
"""Where one of these is set, ONNX Runtime is silent anyway."""
SESSION = f"onnxruntime.InferenceSession({str(REPOSITORY / 'wgan' / str(newest(REPOSITORY, 'wgan')) / MODEL)!r})"
SERVER = """
from serving.embedded import Embedded
with Embedded(models=["painter", "wgan"]):
    pass
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(f"import training.export, onnxruntime; {SESSION}", id="training"),
        pytest.param(f"import tests.load.nothing, onnxruntime; {SESSION}", id="load tests"),
        pytest.param(f"from atelier import inprocess; onnxruntime = inprocess._onnxruntime(); {SESSION}", id="SDK"),
        pytest.param(SERVER, id="server"),
    ],
)
def test_nothing_calls_home(program: str, tmp_path: Path) -> None:
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if name not in {*AUTOMATION, "ORT_DISABLE_TELEMETRY"}
    }
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "TMPDIR": str(temporary)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=300)
    assert [path for path in (*home.rglob("*"), *temporary.rglob("*")) if path.is_file()] == []
