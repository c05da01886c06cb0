"""Run directories: one process at a time trains a run."""

import dataclasses
import errno
import fcntl
import threading
from pathlib import Path

import pytest

from training import rundir
from training.errors import BadInput
from training.rundir import RunDir


@dataclasses.dataclass(frozen=True)
class Options:
    batch: int = 8


def open_run(path: Path, *, batch: int = 8, resume: bool = False) -> RunDir:
    options, corpus = Options(batch=batch), {"name": "c", "sha256": "0"}
    return RunDir(path, model="m", preset="p", options=options, corpus=corpus, resume=resume)


def content(folder: Path) -> dict[Path, bytes]:
    """Every file but TensorBoard's, which a thread writes when it likes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name}


@pytest.mark.parametrize("resume", [False, True], ids=["anew", "resumed"])
def test_a_second_run_of_a_name_changes_nothing_of_the_first(
    resume: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused as long as the first is open; --resume waits for that before, and says so in one line."""
    monkeypatch.setattr(rundir, "LOCK_WAIT_S", 0.2)
    monkeypatch.setattr(rundir, "LOCK_POLL_S", 0.05)
    path = tmp_path / "run"
    first = open_run(path)
    first.steps(0, 8).send(None)
    first.record(0, "", loss=1.0)
    before = content(path)
    taken = f"{path} is being trained by another process"
    with pytest.raises(BadInput, match=f"^--name: {taken}; wait for it, or give another --name$"):
        open_run(path, batch=16, resume=resume)
    assert content(path) == before
    waits = f"{taken}; waiting up to 0 s for it to end\n"
    assert capsys.readouterr().out == (waits if resume else "")
    first.close()
    open_run(path, batch=16, resume=resume).close()


def test_a_resumed_run_takes_over_from_a_pod_that_is_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on from what that has saved last."""
    monkeypatch.setattr(rundir, "LOCK_POLL_S", 0.05)
    first = open_run(tmp_path / "run")

    def end() -> None:
        first.save({"step": 3})
        first.close()

    ending = threading.Timer(0.3, end)
    ending.start()
    second = open_run(tmp_path / "run", resume=True)
    ending.join()
    assert second.restore() == {"step": 3}
    second.close()


def test_a_run_that_was_refused_holds_no_lock(tmp_path: Path) -> None:
    """A run whose options are refused leaves the directory to the next."""
    run = open_run(tmp_path / "run")
    run.save({"step": 3})
    run.close()
    with pytest.raises(BadInput, match="--batch"):
        open_run(tmp_path / "run", batch=16, resume=True)
    open_run(tmp_path / "run", resume=True).close()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP], ids=["ENOLCK", "ENOTSUP"])
def test_a_filesystem_without_locks_is_trained_on_without(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some NFS."""

    def refuse(*_: object) -> None:
        raise OSError(code, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    run = open_run(tmp_path / "run")
    run.save({"step": 3})
    run.close()
    open_run(tmp_path / "run", resume=True).close()
