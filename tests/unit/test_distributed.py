"""Workers of one run: shards of a batch, and who may be one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from training import catalog, distributed, run, torchrun
from training.errors import BadInput


def worker(rank: int, of: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun's environment."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(of))


@pytest.mark.parametrize(("batch", "workers"), [(4, 1), (4, 2), (12, 3)])
def test_shards_are_equal_and_make_the_batch(batch: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of ranks, each member once."""
    members: list[int] = []
    for rank in range(workers):
        worker(rank, workers, monkeypatch)
        shard = list(range(batch))[distributed.shard(batch)]
        assert len(shard) == batch // workers
        members += shard
    assert members == list(range(batch))


def test_a_batch_that_cannot_be_shared_names_its_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    """And both numbers."""
    worker(0, 3, monkeypatch)
    with pytest.raises(BadInput, match=r"^--batch: 4 can't be shared evenly by 3 workers"):
        distributed.shard(4)


@pytest.mark.parametrize("model", [model for model in catalog.trained() if not catalog.multinode(model)])
def test_a_model_for_one_worker_refuses_several(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batch norm and a critic see a whole batch; under torchrun such a model's run ends in one line."""
    worker(0, 2, monkeypatch)
    assert run.main([model, "--preset", "tiny"]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert told.err.startswith(f"training.run: WORLD_SIZE: {model} is for one worker, not 2; several train ")


def test_a_published_run_is_said_once_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To a pod that takes over when the others are done; not to a Job that asks for something else under its name."""
    models, published, command = tmp_path / "models", tmp_path / "published.txt", ["style", "--styles=/runs/styles"]
    (models / "style" / "2").mkdir(parents=True)
    published.write_text(f"published style version 2 in {models}\n")
    (tmp_path / "options.json").write_text(json.dumps({"command": command}))
    workers = [f"--unless={published}", "--nnodes=2", "-m", "training.run"]
    assert torchrun.main([*workers, *command]) == 0
    assert capsys.readouterr() == (f"published style version 2 in {models}\n", "")
    assert torchrun.main([*workers, "style", "--styles=/runs/more"]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert "made with other options: style --styles=/runs/styles; give the Job another name" in told.err
    made_by = {"command": command, "resumed": [{"command": [*command, "--metrics-port=1"]}]}
    (tmp_path / "options.json").write_text(json.dumps(made_by))
    assert torchrun.main([*workers, *command, "--metrics-port=1"]) == 0, "the run went on with it"


@pytest.mark.parametrize("note", ["published style version 2 in {models}\n", ""], ids=["a version gone", "cut short"])
def test_a_note_of_a_version_that_is_not_there_ends_no_pod(
    note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It goes to the others, which publish anew."""
    published, asked = tmp_path / "published.txt", ["--nnodes=2", "-m", "training.run", "style"]
    (tmp_path / "models" / "style" / "1").mkdir(parents=True)
    published.write_text(note.format(models=tmp_path / "models"))
    (tmp_path / "options.json").write_text(json.dumps({"command": ["style"]}))
    begun: list[list[str]] = []
    monkeypatch.setattr(torchrun.run, "main", begun.append)
    assert torchrun.main([f"--unless={published}", *asked]) == 0
    assert begun == [asked]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("content", [None, '{"comm', "{}"], ids=["missing", "cut short", "empty"])
def test_a_published_run_that_does_not_say_how_it_was_begun_is_named(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, in one line: another try would find it as it is."""
    (tmp_path / "models" / "style" / "2").mkdir(parents=True)
    (tmp_path / "published.txt").write_text(f"published style version 2 in {tmp_path / 'models'}\n")
    if content is not None:
        (tmp_path / "options.json").write_text(content)
    assert torchrun.main([f"--unless={tmp_path / 'published.txt'}", "-m", "training.run", "style"]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert told.err.startswith(f"training.torchrun: {tmp_path / 'options.json'}: doesn't say how the run was begun (")


@pytest.mark.parametrize(
    ("codes", "status"),
    [
        pytest.param([1, 143], 1, id="a crash, and one that torchrun stopped"),
        pytest.param([1, 2], 2, id="bad options, and one that lost the other"),
        pytest.param([143, 143], 143, id="stopped"),
        pytest.param([-9, 143], 137, id="killed"),
    ],
)
def test_a_job_ends_with_what_its_workers_said(codes: list[int], status: int) -> None:
    """143 would be forgiven without end by the Job's podFailurePolicy."""
    failures = {}
    for rank, code in enumerate(codes):
        failures[rank] = ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file="none")
        failures[rank].timestamp = rank
    assert torchrun._status(ChildFailedError("training.run", failures)) == status
