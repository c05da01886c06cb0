"""The whole gate, with its throwaway Triton."""

import json
from pathlib import Path

import numpy as np
import pytest
import stand_in
from conftest import need_tritonserver

from serving import repository
from serving.spec import ModelSpec
from training import export
from training.errors import Refused
from training.models.wgan.spec import SPEC

GOOD = {"sliced_wasserstein_ratio": 1.2, "structure": 0.95, "palette": 0.95}


def measured(root: Path, spec: ModelSpec, metrics: dict[str, float]) -> Path:
    """A candidate whose card says that it has these metrics. Its graph rounds nothing, quantized or not."""
    need_tritonserver()
    folder = stand_in.candidate(root / "run" / "candidate", spec=spec)
    if spec.quantized:
        golden = dict(np.load(folder / repository.GOLDEN))
        floats = {f"{tensor.name}{repository.IN_FLOATS}": golden[tensor.name] for tensor in spec.outputs}
        np.savez(folder / repository.GOLDEN, **golden, **floats)
    card = json.loads((folder / repository.CARD).read_text())
    (folder / repository.CARD).write_text(json.dumps(card | {"metrics": metrics}))
    return folder


@pytest.fixture
def candidate(tmp_path: Path) -> Path:
    return measured(tmp_path, SPEC, GOOD)


def test_no_proxy_stands_between_the_gate_and_its_triton(candidate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Job that fetches its corpus through one asks its own Triton directly; gRPC obeys http_proxy for localhost."""
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.setenv(name, "" if name == "no_proxy" else "http://127.0.0.1:9")
    assert export.serving_reasons(candidate, SPEC) == []


@pytest.mark.parametrize(
    ("spec", "metrics", "beside"),
    [
        pytest.param(SPEC, GOOD, {"config.pbtxt"}, id="wgan"),
        pytest.param(
            stand_in.CLASSIFIER,
            {"test_accuracy": 0.95, "test_ece": 0.01},
            {"config.pbtxt", "labels.txt"},
            id="classifier",
        ),
    ],
)
def test_candidate_that_passes_is_published_as_the_next_version(
    spec: ModelSpec, metrics: dict[str, float], beside: set[str], tmp_path: Path
) -> None:
    """Twice through the gate gives versions 1 and 2, complete, beside what the server needs to load them."""
    candidate, into = measured(tmp_path, spec, metrics), tmp_path / "repository"
    assert [export.publish(spec.name, candidate, into) for _ in range(2)] == [1, 2]
    files = {path.name for path in (into / spec.name / "2").iterdir()}
    assert files == {"model.onnx", "card.json", "golden.npz"}
    assert {path.name for path in (into / spec.name).glob("[!.]*.*")} == beside
    assert repository.card(into, spec.name, 2).version == 2


def test_triton_that_answers_otherwise_is_a_reason(candidate: Path) -> None:
    """The third check alone catches a golden batch that the served model does not give."""
    golden = dict(np.load(candidate / repository.GOLDEN))
    golden["image"] = 255 - golden["image"]
    np.savez(candidate / repository.GOLDEN, **golden)
    (reason,) = export.serving_reasons(candidate, SPEC)
    assert reason.startswith("Triton: ")


def test_repository_that_cannot_be_written_keeps_the_candidate(candidate: Path, tmp_path: Path) -> None:
    """--publish on a file: one line that names the flag, and the candidate is where it was."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Exception, match="--publish") as caught:
        export.publish("wgan", candidate, tmp_path / "file")
    assert not isinstance(caught.value, Refused)
    assert (candidate / repository.MODEL).is_file()
    assert (tmp_path / "file").read_text() == "mine"
