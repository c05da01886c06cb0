"""What training.run, training.export and training.data refuse in one line with status 2, wherever stdout leads."""

import io
import sys
from pathlib import Path

import pytest
import torch

from training import export, run
from training.data import files, lines
from training.models.wgan import train as wgan

LISTS = "python -m training.run wgan --help lists the options"
TOO_LARGE = "training.run: too large for this machine's memory: lower --batch, --pictures or --size\n"


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (["--publish", ""], "--publish"),
        (["--publish="], "--publish"),
        (["--runs", ""], "--runs"),
        (["--runs="], "--runs"),
    ],
    ids=["publish", "publish=", "runs", "runs="],
)
def test_an_empty_folder_is_refused(asked: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a variable that is not set, and would be the current directory."""
    assert run.main(["wgan", "--dry-run", *asked]) == 2
    assert capsys.readouterr().err == f"training.run: {named}: is empty; give a folder\n"


def test_an_empty_folder_is_not_exported_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By training.export, likewise."""
    monkeypatch.setattr(sys, "argv", ["training.export", str(tmp_path), "--publish", ""])
    with pytest.raises(SystemExit, match="2"):
        export.main()
    assert "--publish: is empty; give a folder" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", None], ids=["UTF-8", "Latin-1", "closed"])
@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["--steps"], "Missing value for argument '--steps'. Expected 1 values"),
        (["--steps", "x"], "Error parsing --steps: invalid literal for int() with base 10: 'x'"),
        (["--stepz", "3"], "Unrecognized options: --stepz, 3"),
    ],
    ids=["no value", "no number", "no option"],
)
def test_a_wrong_flag_says_why(
    asked: list[str], says: str, encoding: str | None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """tyro draws its box with what stdout can show, and fails where there is none."""
    stdout = None if encoding is None else io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    assert run.main(["wgan", *asked]) == 2
    sys.stdout.close()
    assert capsys.readouterr().err == f"training.run: {says}; {LISTS}\n"


@pytest.mark.parametrize("count", ["1000000000000", "100000000000000000000"], ids=["8 TB", "more than 64 bits"])
@pytest.mark.parametrize("flag", ["--pictures", "--batch"])
def test_a_number_that_memory_cannot_hold_is_one_line(
    flag: str, count: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With status 2: a Job would else try again."""
    assert run.main(["wgan", "--preset", "tiny", flag, count, "--runs", str(tmp_path)]) == 2
    assert capsys.readouterr().err == TOO_LARGE


@pytest.mark.parametrize("count", ["10000000000000", "100000000000000000000"], ids=["80 TB", "more than 64 bits"])
def test_pictures_that_memory_cannot_hold_are_one_line(
    count: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the commands that draw a corpus, too."""
    monkeypatch.setattr(sys, "argv", ["training.data.lines", "--out", str(tmp_path / "out"), "--count", count])
    with pytest.raises(SystemExit, match="2"):
        files.run(lines.main)
    assert capsys.readouterr().err == "too large for this machine's memory: lower --count\n"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), RuntimeError("a fault"), ValueError("x")]
)
def test_other_errors_are_left_as_they_are(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is full may have room at the next try, and a fault of the program is nobody's option."""

    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(wgan, "load_corpus", fail)
    with pytest.raises(type(error), match=str(error)):
        run.main(["wgan", "--preset", "tiny"])
