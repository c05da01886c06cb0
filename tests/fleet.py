"""Several real servers of one repository, as the replicas of a cluster are, and versions that are good or bad."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import stand_in
import traces
import tritonclient.grpc as triton

from serving import repository as repo
from serving.embedded import Embedded
from serving.reload import Reloader
from serving.replicas import Replica

MODEL = "classifier"
PICTURES = np.random.default_rng(3).integers(0, 256, (2, 28, 28, 1), np.uint8)
PAUSE_S = 0.01
"""Between calls: enough of them at any moment, and time left on two cores for what is tested."""


@dataclass
class Fleet:
    repository: Path
    servers: list[Embedded]

    @property
    def addresses(self) -> list[str]:
        return [server.grpc for server in self.servers]

    def reloader(self, patience_s: float = 2.0) -> Reloader:
        return Reloader(self.repository, lambda: self.addresses, patience_s=patience_s)

    def serve(self, model: str = MODEL) -> list[int]:
        """The newest version that each has ready."""
        return [Replica(address, self.repository).serves()[model] for address in self.addresses]


@contextlib.contextmanager
def fleet(repository: Path, size: int) -> Iterator[Fleet]:
    with contextlib.ExitStack() as stack:
        yield Fleet(repository, [stack.enter_context(Embedded(repository)) for _ in range(size)])


def process(server: Embedded) -> int:
    """Of tritonserver itself, not of its keeper."""
    [pid] = traces.processes(traces.server_id(server.http), "server")
    return pid


@contextlib.contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """A server of these processes is there, and takes connections, and does nothing."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


# --- versions


def publish(repository: Path, folder: Path) -> int:
    """A good version, which answers as `stand_in.probabilities` does of its number."""
    number = _next(repository)
    return repo.publish(stand_in.candidate(folder / f"good-{number}", number, stand_in.CLASSIFIER), repository, MODEL)


def publish_rough(repository: Path, folder: Path) -> int:
    """One whose golden batch is 0.002 from its answers, where rounding explains 0.001."""
    number = _next(repository)
    made = stand_in.candidate(folder / f"rough-{number}", number, stand_in.CLASSIFIER)
    with np.load(made / repo.GOLDEN) as golden:
        arrays = dict(golden)
    np.savez(made / repo.GOLDEN, **arrays | {"probabilities": arrays["probabilities"] + np.float32(0.002)})
    return repo.publish(made, repository, MODEL)


def _next(repository: Path) -> int:
    """The number of the version that is published next."""
    used = [path.name.removeprefix(repo.WITHDRAWN) for path in (repository / MODEL).iterdir() if path.is_dir()]
    return max(int(name) for name in used if name.isdecimal()) + 1


def publish_disagreeing(repository: Path, folder: Path) -> int:
    """One whose golden batch is another's."""
    made = [stand_in.candidate(folder / name, seed, stand_in.CLASSIFIER) for name, seed in (("a", 90), ("b", 91))]
    (made[1] / repo.GOLDEN).replace(made[0] / repo.GOLDEN)
    return repo.publish(made[0], repository, MODEL)


def publish_refusing(repository: Path, folder: Path) -> int:
    """One whose model.onnx is none, which its checksum does not tell."""
    made = stand_in.candidate(folder / "refusing", 92, stand_in.CLASSIFIER)
    (made / repo.MODEL).write_bytes(b"no graph")
    card = json.loads((made / repo.CARD).read_text()) | {"sha256": repo.sha256(made / repo.MODEL)}
    (made / repo.CARD).write_text(json.dumps(card))
    return repo.publish(made, repository, MODEL)


# --- load


@dataclass
class Load:
    """What callers met that asked all the while."""

    answers: int = 0
    versions: set[int] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)


@contextlib.contextmanager
def under_load(addresses: list[str]) -> Iterator[Load]:
    """Each address has two callers of its own, and someone who asks whether it is ready, as a probe does."""
    load, stop, lock = Load(), threading.Event(), threading.Lock()
    works = [(work, address) for address in addresses for work in (_call, _call, _probe)]
    threads = [threading.Thread(target=_repeat, args=(work, address, load, stop, lock)) for work, address in works]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _repeat(work, address: str, load: Load, stop: threading.Event, lock: threading.Lock) -> None:
    with triton.InferenceServerClient(address) as client:
        while not stop.is_set():
            try:
                version, failure = work(client), ""
            except Exception as exc:
                version, failure = None, f"{address}: {exc}"
            with lock:
                load.failures += [failure] if failure else []
                if version:
                    load.answers += 1
                    load.versions.add(version)
            time.sleep(PAUSE_S)


def _call(client: triton.InferenceServerClient) -> int:
    given = triton.InferInput("image", PICTURES.shape, "UINT8")
    given.set_data_from_numpy(PICTURES)
    answer = client.infer(MODEL, [given], client_timeout=30)
    version = int(answer.get_response().model_version)
    if version < 90:
        np.testing.assert_allclose(
            answer.as_numpy("probabilities"), stand_in.probabilities(PICTURES, version), atol=1e-4
        )
    return version


def _probe(client: triton.InferenceServerClient) -> None:
    assert client.is_server_ready(client_timeout=30), "not ready"
