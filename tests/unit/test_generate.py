"""training.generate: what is committed is what the specs say, and drift is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serving.spec import ANY, Batching, Ensemble, ModelSpec, Tensor
from training import catalog, generate, jobs, run

SORTER = ModelSpec(
    name="sorter",
    summary='what a picture shows ("Fashion" \\ MNIST)',
    inputs=(Tensor(name="image", dtype="UINT8", shape=(28, 28, 1)), Tensor(name="more", dtype="FP32", shape=(ANY, 2))),
    outputs=(Tensor(name="probabilities", dtype="FP32", shape=(3,)),),
    batching=Batching(max_batch=64),
    labels=("T-shirt/haut", "baskets", "bottes de cheville"),
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with every generated file in place."""
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "0.1.0"\n')
    generate.write(tmp_path, generate.files())
    return tmp_path


def test_the_committed_files_are_up_to_date():
    """What the specs say is what is there: the property that `make check` holds."""
    assert generate.drifted(jobs.ROOT, generate.files()) == []


def test_every_kind_of_file_is_generated():
    """config.pbtxt, labels.txt, the Job's manifest and the SDK's table, for every model that has them."""
    made = generate.files()
    for name in catalog.names():
        folder, spec = Path("serving/model_repository", name), catalog.served(name)
        assert folder / "config.pbtxt" in made
        assert (folder / "labels.txt" in made) == (isinstance(spec, ModelSpec) and bool(spec.labels))
        assert (folder / "1/.gitkeep" in made) == isinstance(spec, Ensemble)
    manifests = {jobs.file(name, job) for name in catalog.names() for job in catalog.jobs(name)}
    assert {path for path in made if path.is_relative_to("deploy")} == manifests
    assert Path("clients/src/atelier/_models.py") in made


@pytest.mark.parametrize("damage", ["edited", "missing", "binary"])
@pytest.mark.parametrize("path", generate.files(), ids=str)
def test_drift_is_named_and_mended(path, damage, root, capsys):
    """--check writes nothing, names the one file and the command; the command writes that file and no other."""
    match damage:
        case "edited":
            (root / path).write_text((root / path).read_text() + "# mine\n")
        case "missing":
            (root / path).unlink()
        case "binary":
            (root / path).write_bytes(b"\xff")
    before = (root / path).read_bytes() if (root / path).exists() else None

    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().err == f"{path}: drifted from the specs; run `make generate`\n"
    assert ((root / path).read_bytes() if (root / path).exists() else None) == before

    assert generate.main([]) == 0
    assert capsys.readouterr().out == f"wrote {path}\n"
    assert generate.main(["--check"]) == 0


def test_generating_twice_writes_once(root, capsys):
    """An unchanged file keeps its modification time."""
    stamps = {path: (root / path).stat().st_mtime_ns for path in generate.files()}
    assert generate.main([]) == 0
    assert capsys.readouterr().out == ""
    assert {path: (root / path).stat().st_mtime_ns for path in stamps} == stamps


@pytest.mark.parametrize("arguments", [[], ["--check"]], ids=["write", "check"])
def test_a_file_that_cannot_be_written(arguments, root, capsys):
    """One line that names it; what was there stays, and nothing is left beside it."""
    path = root / "deploy" / "train-wgan.yaml"
    there = sorted(path.parent.iterdir())
    path.unlink()
    path.mkdir()
    assert generate.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("training.generate: ")
    assert "train-wgan.yaml" in captured.err
    assert captured.err.count("\n") == 1
    assert sorted(path.parent.iterdir()) == there


def test_an_ensemble_is_served_and_not_trained():
    """The catalog lists it among what is served, has no recipe or Job for it, and no spec of weights."""
    assert "wgan_x4" in catalog.names()
    assert "wgan_x4" not in catalog.trained()
    assert catalog.job("wgan_x4") is None
    with pytest.raises(AssertionError, match="wgan_x4 is an ensemble"):
        catalog.spec("wgan_x4")


def test_an_ensemble_cannot_be_trained(capsys):
    """One line with the models that can be."""
    assert run.main(["wgan_x4", "--dry-run"]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert told.err.startswith("training.run: MODEL: no 'wgan_x4'; there are classifier, ")


def test_a_model_without_a_job(monkeypatch):
    """A model without job.py gets no manifest; all else that it has is made."""
    monkeypatch.setattr(catalog, "names", lambda: ["sorter"])
    monkeypatch.setattr(catalog, "served", lambda name: SORTER)
    made = generate.files()
    assert made[Path("serving/model_repository/sorter/labels.txt")].splitlines() == list(SORTER.labels)
    assert not [path for path in made if path.parts[0] == "deploy"]


@pytest.mark.parametrize(
    "specs", [[SORTER], [catalog.served(name) for name in catalog.names()]], ids=["odd texts", "this project's"]
)
def test_the_sdk_table_is_python(specs):
    """The table says what the specs say, whatever is in their texts, and is formatted as ruff would."""
    text = generate.sdk_table(specs)
    table: dict[str, Any] = {}
    exec(text, table)
    assert list(table["MODELS"]) == [spec.name for spec in specs]
    for spec in specs:
        contract = table["MODELS"][spec.name]
        assert contract.summary == spec.summary
        assert contract.max_batch == spec.max_batch
        assert [(t.name, t.dtype, t.shape) for t in contract.inputs] == [_facts(t) for t in spec.inputs]
        assert [(t.name, t.dtype, t.shape) for t in contract.outputs] == [_facts(t) for t in spec.outputs]
        if isinstance(spec, Ensemble):
            assert (contract.labels, contract.steps) == ((), tuple(step.model.name for step in spec.steps))
        else:
            assert (contract.labels, contract.steps) == (spec.labels, ())
    formatted = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(generate.SDK_TABLE), "-"],
        input=text, capture_output=True, text=True, check=True, cwd=jobs.ROOT,
    )  # fmt: skip
    assert formatted.stdout == text


def _facts(tensor: Tensor) -> tuple[str, str, tuple[int, ...]]:
    return tensor.name, tensor.dtype, tensor.shape


def test_generate_needs_no_torch():
    """The files can be made, and checked, on a machine without torch."""
    code = "import sys; sys.modules['torch'] = None; from training.generate import main; sys.exit(main(['--check']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=jobs.ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
