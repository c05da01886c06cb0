"""The classifier that computes next to nothing: a model like any other to whoever serves or asks it."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from serving.repository import MODEL, REPOSITORY
from tests.load import nothing
from tests.load.generator import Generator
from tests.load.plan import ClosedLoop, Plan, mixed
from tests.load.questions import questions
from tests.load.servers import triton
from training.models.classifier.spec import SPEC

import onnxruntime


def test_it_has_the_classifiers_face_and_pictures(tmp_path: Path) -> None:
    """Inputs and outputs as the shipped graph's; the shipped golden pictures, with answers of its own."""
    version = nothing.write(tmp_path / "repository")
    ours, shipped = (
        onnx.load(path).graph for path in (version / MODEL, REPOSITORY / "classifier" / version.name / MODEL)
    )
    for made, known in ((ours.input, shipped.input), (ours.output, shipped.output)):
        assert [(v.name, v.type.tensor_type.elem_type) for v in made] == [
            (v.name, v.type.tensor_type.elem_type) for v in known
        ]
    session = onnxruntime.InferenceSession(version / MODEL)
    of_shipped, alike = questions(REPOSITORY, "classifier"), []
    for question, known in zip(questions(tmp_path / "repository", "classifier"), of_shipped, strict=True):
        assert np.array_equal(question.inputs["image"], known.inputs["image"])
        (answer,) = session.run(["probabilities"], dict(question.inputs))
        assert answer.shape == (1, *SPEC.outputs[0].shape)
        assert answer.sum() == pytest.approx(1, abs=1e-5)
        assert np.array_equal(answer, question.expected["probabilities"])
        alike.append(np.allclose(answer, known.expected["probabilities"], atol=0.1))
    assert np.mean(alike) < 0.2  # one class in ten is the same by chance


def test_triton_serves_it(tmp_path: Path) -> None:
    """As the load generator asks it: right answers and no failures."""
    repository = tmp_path / "repository"
    nothing.write(repository)
    with triton(repository, ["classifier"]) as target, Generator() as generator:
        mix = mixed({"classifier": 1}, repository)
        result = generator.run(Plan(target=target, load=ClosedLoop(8), mix=mix, requests=200))
    assert (result.total.correct, result.failures) == (200, 0)


def test_the_command_writes_all_of_it_and_nothing_beside(tmp_path: Path) -> None:
    """A repository whose model can be asked."""
    assert nothing.main(["--out", str(tmp_path / "new" / "repository")]) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["repository"]
    assert questions(tmp_path / "new" / "repository", "classifier")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names the flag and the folder, and status 2."""
    (tmp_path / "file").write_text("")
    assert nothing.main(["--out", str(tmp_path / "file" / "repository")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("--out: can't write")
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names the flag, and status 2."""
    assert nothing.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
