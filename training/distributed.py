"""Data-parallel training: several workers share a run, each with its shard of every batch, and their collectives.
Run: torchrun --nproc-per-node 2 -m training.run style --styles DIR

All workers draw the same batch from the same seed and take their shard of it; gradients are averaged. So, except for
rounding, a run does not depend on the number of workers. With one worker, every function here is a no-op.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from training.errors import BadInput

# How long a worker waits for the others while no connection breaks: the leader's evaluation and export take minutes, on
# a CPU up to half an hour. A worker that dies is noticed at once.
TIMEOUT = timedelta(hours=1)
T = TypeVar("T")


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def leads() -> bool:
    """Whether this is the leader: the worker that writes the run's directory, evaluates and publishes."""
    return rank() == 0


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """The process group of all workers: gradients on GPUs go over NCCL, everything else over gloo."""
    if world_size() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def own_folder(run: Path) -> Iterator[Path]:
    """The run's directory for the leader; for every other worker a temporary one of the same name."""
    if leads():
        yield run
        return
    with tempfile.TemporaryDirectory(prefix="atelier-worker-") as folder:
        yield Path(folder, run.name)


def shard(batch: int) -> slice:
    """This worker's part of a batch that all workers draw alike. Raises BadInput if it can't be split evenly: the mean
    of unequal shards' means is not the batch's mean."""
    each, over = divmod(batch, world_size())
    if over:
        raise BadInput(f"--batch: {batch} can't be shared evenly by {world_size()} workers; give a multiple of that")
    return slice(rank() * each, (rank() + 1) * each)


def data_parallel(net: nn.Module) -> nn.Module:
    """`net`, wrapped so that backward() averages its gradients over the workers."""
    return net if world_size() == 1 else nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True)


def all_reduce_mean(figures: dict[str, float]) -> dict[str, float]:
    """The mean of each figure over all workers."""
    if world_size() == 1:
        return figures
    values = torch.tensor(list(figures.values()), dtype=torch.float64)
    dist.all_reduce(values)
    return dict(zip(figures, (values / world_size()).tolist(), strict=True))


def any_worker(yes: bool) -> bool:
    """Whether `yes` is true on at least one worker, so that all of them react after the same step."""
    if world_size() == 1:
        return yes
    told = torch.tensor(int(yes))
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return bool(told)


def broadcast(value: T) -> T:
    """Returns the leader's value on every worker."""
    if world_size() == 1:
        return value
    carrier = [value]
    dist.broadcast_object_list(carrier, src=0)
    return carrier[0]


def barrier() -> bool:
    """Returns True once all workers are here, False if one has gone. dist.barrier() would not react to SIGTERM."""
    if world_size() == 1:
        return True
    try:
        here = dist.all_reduce(torch.zeros(1), async_op=True)
        assert here is not None
        while not here.is_completed():
            time.sleep(0.1)
        here.wait()
    except RuntimeError:  # the only error that gloo raises
        return False
    return True
