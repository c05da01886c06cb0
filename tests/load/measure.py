"""The server's own statistics, and its cost: what Triton has counted, CPU time, memory."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Self

import psutil
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from serving.errors import ServerError

CORES = os.cpu_count() or 1
STAGES = ("queue", "compute_input", "compute_infer", "compute_output")
SAMPLE_S = 1.0
TIMEOUT_S = 30.0


@dataclass
class Counts:
    """Triton's statistics of one model, over all versions: requests, their time in each stage, and batches by size."""

    answered: int = 0
    failed: int = 0
    inferences: int = 0
    executions: int = 0
    ns: Counter[str] = field(default_factory=Counter)
    batches: Counter[int] = field(default_factory=Counter)

    def minus(self, before: Counts) -> Counts:
        return Counts(
            self.answered - before.answered,
            self.failed - before.failed,
            self.inferences - before.inferences,
            self.executions - before.executions,
            self.ns - before.ns,
            self.batches - before.batches,
        )

    def data(self) -> dict[str, Any]:
        """Mean milliseconds of a request in each stage, the counts, and the mean batch size."""
        stages = {f"{stage}_ms": 1e-6 * self.ns[stage] / max(1, self.answered) for stage in STAGES}
        return stages | {
            "answered": self.answered,
            "failed": self.failed,
            "mean_batch": self.inferences / max(1, self.executions),
            "batches": {str(size): count for size, count in sorted(self.batches.items())},
        }


def statistics(url: str, models: Iterable[str]) -> dict[str, Counts]:
    """What Triton has counted so far, for these models and the steps of ensembles among them.

    Raises ServerError if no Triton answers, or if it does not know one of the models.
    """
    if not url:
        return {}
    try:
        with triton.InferenceServerClient(url) as client:
            wanted = dict.fromkeys(each for model in models for each in (model, *_steps(client, model)))
            return {model: _counts(client, model) for model in wanted}
    except InferenceServerException as exc:
        raise ServerError(f"--url {url}: {exc.message()}; is a server with these models running there?") from exc


def _steps(client: triton.InferenceServerClient, model: str) -> list[str]:
    config = client.get_model_config(model, client_timeout=TIMEOUT_S).config
    return [step.model_name for step in config.ensemble_scheduling.step]


def _counts(client: triton.InferenceServerClient, model: str) -> Counts:
    counts = Counts()
    for stats in client.get_inference_statistics(model, client_timeout=TIMEOUT_S).model_stats:
        counts.answered += stats.inference_stats.success.count
        counts.failed += stats.inference_stats.fail.count
        counts.inferences += stats.inference_count
        counts.executions += stats.execution_count
        counts.ns.update({stage: getattr(stats.inference_stats, stage).ns for stage in STAGES})
        counts.batches.update({batch.batch_size: batch.compute_infer.count for batch in stats.batch_stats})
    return counts


@dataclass(frozen=True)
class Usage:
    """Resources that a server's processes used in `elapsed_s`: CPU seconds, and pairs of seconds from the start and
    bytes of memory. Shared memory is divided among the processes that map it (PSS), so what a second server or the
    generator maps as well counts only in part."""

    cpu_s: float
    elapsed_s: float
    memory: Sequence[tuple[float, int]]

    @property
    def cores(self) -> float:
        """Average number of busy cores while it was watched, which is not quite the window, as Triton's statistics are
        read at its beginning."""
        return self.cpu_s / self.elapsed_s

    def data(self) -> dict[str, Any]:
        sizes = [size / 2**20 for _, size in self.memory]
        return {"cpu_s": self.cpu_s, "memory_mib": sizes[-1], "memory_most_mib": max(sizes)}


class Watch:
    """Samples the memory of processes in a thread until its context ends, in whatever way; then `usage` is known, or
    None without processes."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._ended = threading.Event()
        self._memory: list[tuple[float, int]] = []
        self._thread = threading.Thread(target=self._sample)
        self.usage: Usage | None = None

    def __enter__(self) -> Self:
        self._before_s, self._began = cpu_s(self._pids), time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        used, elapsed_s = cpu_s(self._pids) - self._before_s, time.monotonic() - self._began
        self._thread.join()
        if self._pids:
            self.usage = Usage(used, elapsed_s, self._memory)

    def _sample(self) -> None:
        while self._pids:
            self._memory.append((time.monotonic() - self._began, pss_bytes(self._pids)))
            if self._ended.wait(SAMPLE_S):
                return


def cpu_s(pids: Sequence[int]) -> float:
    """CPU time that these processes and their children have used."""
    total = 0.0
    for process in _process_tree(pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def pss_bytes(pids: Sequence[int]) -> int:
    total = 0
    for process in _process_tree(pids):
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


def _process_tree(pids: Sequence[int]) -> Iterator[psutil.Process]:
    found: set[psutil.Process] = set()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            found |= {process, *process.children(recursive=True)}
    yield from found


def machine() -> dict[str, Any]:
    """The context of every figure: when it was measured, and on what machine."""
    return {"date": date.today().isoformat(), "machine": processor(), "cores": CORES}


def processor() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
