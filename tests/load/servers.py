"""Starts the servers under load: each way is a context manager that yields its `Target`."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from serving.embedded import Embedded
from serving.repository import CONFIG, config
from tests import traces
from tests.load.measure import statistics
from tests.load.sdk import Sdk, SdkThreads
from tests.load.targets import Grpc, InProcess, Target, Triton, Tritonclient
from tests.load.torchserve_target import torchserve

Opened = Callable[[Path, Sequence[str]], AbstractContextManager[Target]]


@contextlib.contextmanager
def triton(repository: Path, models: Sequence[str] = ()) -> Iterator[Triton]:
    """The embedded server."""
    with Embedded(repository, models=models) as server:
        pids = tuple(traces.processes(traces.server_id(server.http)))
        yield Triton(name="triton", http=server.http, url=server.grpc, statistics_url=server.grpc, pids=pids)


@contextlib.contextmanager
def unbatched(repository: Path, models: Sequence[str] = ()) -> Iterator[Triton]:
    """The same models without dynamic batching, from a copy of the repository."""
    with changed(repository, without_batching) as copy, triton(copy, models) as target:
        yield Triton(**vars(target) | {"name": "triton unbatched"})


@contextlib.contextmanager
def preempting(repository: Path, models: Sequence[str] = ()) -> Iterator[Triton]:
    """The same server, with threads that may preempt the one that wakes them, which serving/keeper.py prevents."""
    with triton(repository, models) as target:
        for pid in target.pids:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))
        yield Triton(**vars(target) | {"name": "triton preempting"})


@contextlib.contextmanager
def changed(repository: Path, change: Callable[[pb.ModelConfig], None]) -> Iterator[Path]:
    """A copy of a repository, with `change` applied to every config.pbtxt, which it edits in place."""
    with tempfile.TemporaryDirectory(prefix="atelier-load-") as folder:
        copy = Path(folder) / "repository"
        shutil.copytree(repository, copy)
        for path in copy.glob(f"*/{CONFIG}"):
            model = config(copy, path.parent.name)
            change(model)
            path.write_text(text_format.MessageToString(model))
        yield copy


def without_batching(model: pb.ModelConfig) -> None:
    """Disables dynamic batching: each request runs alone."""
    model.ClearField("dynamic_batching")


@contextlib.contextmanager
def in_process(repository: Path, models: Sequence[str] = ()) -> Iterator[InProcess]:
    yield InProcess(name="in process", repository=repository)


def through(kind: type[Grpc] | type[Sdk] | type[SdkThreads] | type[Tritonclient], name: str) -> Opened:
    """The embedded server over gRPC."""

    @contextlib.contextmanager
    def opened(repository: Path, models: Sequence[str] = ()) -> Iterator[Target]:
        with triton(repository, models) as target:
            yield kind(name=name, url=target.url, statistics_url=target.statistics_url, pids=target.pids)

    return opened


WAYS: dict[str, Opened] = {
    "triton": triton,
    "unbatched": unbatched,
    "grpc": through(Grpc, "triton, gRPC"),
    "tritonclient": through(Tritonclient, "tritonclient"),
    "sdk": through(Sdk, "SDK, AsyncClient"),
    "sdk-threads": through(SdkThreads, "SDK, Client"),
    "in-process": in_process,
    "torchserve": torchserve,
}


@contextlib.contextmanager
def elsewhere(way: str, url: str, models: Sequence[str]) -> Iterator[Target]:
    """A Triton that is already running. Raises ServerError if there is none, or none with these models."""
    statistics(url, models)
    yield ELSEWHERE[way](name=f"{way} at {url}", url=url, statistics_url=url)


ELSEWHERE: dict[str, type[Grpc] | type[Sdk] | type[SdkThreads] | type[Tritonclient]] = {
    "grpc": Grpc,
    "tritonclient": Tritonclient,
    "sdk": Sdk,
    "sdk-threads": SdkThreads,
}
