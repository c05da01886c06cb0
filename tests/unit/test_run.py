"""training.run: what it refuses before there is a corpus, and what its --help says."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
from pathlib import Path

import pytest
import torch

from training import catalog, run
from training.models.wgan import train as wgan


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["--evaluate", "{tmp}/none.pt"], "checkpoint {tmp}/none.pt: no such file"),
        (["--name", "taken"], "--name: {tmp}/taken already holds a run; --resume continues it"),
        (["--publish", "{tmp}/taken/checkpoints/last.pt"], "--publish: can't write {tmp}/taken/checkpoints/last.pt"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_needs_no_corpus_to_be_refused_makes_none(
    asked: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A corpus may be a fetch of 99 MB."""
    (tmp_path / "taken" / "checkpoints").mkdir(parents=True)
    torch.save({"step": 1}, tmp_path / "taken" / "checkpoints" / "last.pt")
    monkeypatch.setattr(wgan, "load_corpus", lambda _: pytest.fail("a corpus was made"))
    monkeypatch.setattr(run, "_check_triton", lambda: None)
    command = ["wgan", "--preset", "tiny", "--runs", str(tmp_path), *(each.format(tmp=tmp_path) for each in asked)]
    assert run.main(command) == 2
    assert capsys.readouterr().err.startswith(f"training.run: {says.format(tmp=tmp_path)}")


@pytest.mark.parametrize(
    "of",
    [*(catalog.recipe(name).Options for name in catalog.trained()), run.Invocation],
    ids=[*catalog.trained(), "every model"],
)
def test_every_option_has_a_help_text(of: type) -> None:
    """`--help` shows what is written beneath the field: one that stands alone, not the end of the sentence before."""
    (made,) = ast.parse(textwrap.dedent(inspect.getsource(of))).body
    assert isinstance(made, ast.ClassDef)
    texts = {}
    for field, beneath in itertools.pairwise([*made.body, ast.Pass()]):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = beneath.value if isinstance(beneath, ast.Expr) else None
            texts[field.target.id] = text.value if isinstance(text, ast.Constant) else ""
    assert texts.keys() == {field.name for field in dataclasses.fields(of)}
    wrong = [name for name, text in texts.items() if not text or str(text).split()[0] in ("and", "of", "likewise")]
    assert not wrong
