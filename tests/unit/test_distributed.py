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
    published, command = tmp_path / "published.txt", ["style", "--styles=/runs/styles"]
    published.write_text("published style version 2 in /models\n")
    (tmp_path / "options.json").write_text(json.dumps({"command": command}))
    workers = [f"--unless={published}", "--nnodes=2", "-m", "training.run"]
    assert torchrun.main([*workers, *command]) == 0
    assert capsys.readouterr() == ("published style version 2 in /models\n", "")
    assert torchrun.main([*workers, "style", "--styles=/runs/more"]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert "begun with other options: style --styles=/runs/styles; give the Job another name" in told.err


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
