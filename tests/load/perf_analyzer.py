"""NVIDIA's perf_analyzer as a second opinion: the same server, the same closed loop, the same requests.

It is in no Debian package, and only in tritonclient's wheels up to 2.48.0, one of which is downloaded into out/; it
needs Debian's libb64-0d and a libcudart.so.12, which the nvidia-pytriton wheel contains under another name.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving import wheel
from serving.errors import ServerError
from tests.load.generator import Generator
from tests.load.plan import ClosedLoop, Plan, Share
from tests.load.targets import Target, Triton

CACHE = Path(__file__).parents[2] / "out" / "perf_analyzer"
WHEEL = "tritonclient==2.48.0"
SHA256 = "7074885798e8a711fedaf94d6dd77f310973fe2ebf29fb2837db350a43e2d6a5"
"""of the wheel for Linux on x86-64; the others don't contain perf_analyzer"""
INSIDE = "tritonclient-2.48.0.data/data/bin/perf_analyzer"
WINDOWS = 3
"""The fewest windows that it measures; it reports them together."""


class Missing(ServerError):
    """perf_analyzer is not available on this machine; the text says why."""


@dataclass(frozen=True)
class Measured:
    per_s: float
    p50_ms: float


def find(cache: Path = CACHE) -> Path:
    """The program, downloaded if needed. Raises Missing."""
    program = cache / "perf_analyzer"
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _fetch(program)
    tried = subprocess.run([program, "--help"], env=_environment(cache), capture_output=True, text=True, check=False)
    if tried.returncode == wheel.LIBRARY_MISSING:
        reason = tried.stderr.strip().rpartition("libraries: ")[2]
        raise Missing(f"perf_analyzer: {reason}; `apt install libb64-0d`")
    return program


def _fetch(program: Path) -> None:
    with tempfile.TemporaryDirectory(dir=program.parent) as folder:
        asked = Path(folder) / "requirements.txt"
        asked.write_text(f"{WHEEL} --hash=sha256:{SHA256}\n")
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            folder,
            "--requirement",
            asked,
        ]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), done.stderr)
            raise Missing(f"perf_analyzer: pip can't fetch {WHEEL} for Linux on x86-64 ({reason.strip()})")
        (found,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(found) as archive:
            unpacked = Path(archive.extract(INSIDE, folder))
        unpacked.chmod(0o755)
        unpacked.replace(program)  # atomically, as others may fetch it at the same time


def _environment(cache: Path) -> dict[str, str]:
    """The environment variables, with libcudart under the name that perf_analyzer looks for."""
    libraries = wheel.find().libraries
    for runtime in libraries.glob("libcudart*.so.12*"):
        link = cache / "libcudart.so.12"
        if not link.exists():
            own = cache / f".cudart-{os.getpid()}"
            own.symlink_to(runtime)
            own.replace(link)
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join([str(cache), str(libraries)])}


def measure(target: Target, share: Share, callers: int, window_s: float, cache: Path = CACHE) -> Measured:
    """Over HTTP if the target uses it, else over gRPC. Raises ServerError with the end of its output if it fails."""
    url, protocol = (target.http, "http") if isinstance(target, Triton) else (target.statistics_url, "grpc")
    program = find(cache)
    with tempfile.TemporaryDirectory() as folder:
        data, table = Path(folder) / "data.json", Path(folder) / "table.csv"
        data.write_text(json.dumps({"data": [_row(question.inputs) for question in share.questions]}))
        command = [program, "-m", share.model, "-u", url, "-i", protocol, "--concurrency-range", callers]
        command += ["-p", round(1000 * window_s / WINDOWS), "-s", 10**6, "--max-trials", WINDOWS]
        command += ["--input-data", data, "-f", table]
        done = subprocess.run(map(str, command), env=_environment(cache), capture_output=True, text=True, check=False)
        if done.returncode or not table.exists():
            raise ServerError(f"perf_analyzer failed: {(done.stdout + done.stderr).strip()[-500:]}")
        with table.open() as file:
            (row,) = csv.DictReader(file)
    return Measured(float(row["Inferences/Second"]), float(row["p50 latency"]) / 1000)


def _row(inputs: Any) -> dict[str, Any]:
    """A request in perf_analyzer's format: flat, and without the batch dimension."""
    return {name: {"content": array.ravel().tolist(), "shape": list(array.shape[1:])} for name, array in inputs.items()}


@dataclass(frozen=True)
class Agreement:
    """What this generator and perf_analyzer measured, alternately."""

    model: str
    callers: int
    ours: Sequence[Measured]
    theirs: Sequence[Measured]

    @property
    def per_s(self) -> float:
        """The ratio of our median to theirs."""
        return statistics.median(m.per_s for m in self.ours) / statistics.median(m.per_s for m in self.theirs)

    @property
    def p50(self) -> float:
        return statistics.median(m.p50_ms for m in self.ours) / statistics.median(m.p50_ms for m in self.theirs)

    def data(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "callers": self.callers,
            "rounds": len(self.ours),
            "ours_per_s": round(statistics.median(m.per_s for m in self.ours), 2),
            "theirs_per_s": round(statistics.median(m.per_s for m in self.theirs), 2),
            "throughput_ratio": round(self.per_s, 3),
            "p50_ratio": round(self.p50, 3),
        }


def agree(target: Target, share: Share, callers: int, *, rounds: int, window_s: float) -> Agreement:
    """Alternates windows of both, so that other load on the machine affects both. `target` reaches a Triton in any
    way."""
    find()
    ours, theirs = [], []
    plan = Plan(target=target, load=ClosedLoop(callers), mix=[share], warmup_s=window_s / WINDOWS, duration_s=window_s)
    with Generator() as generator:
        for _ in range(rounds):
            result = generator.run(plan)
            if result.failures or not result.total.correct:
                told = f"{result.total.correct} right answers and {result.failures} failures"
                raise ServerError(f"{share.model}: {told}: {result.total.examples}")
            ours.append(Measured(result.per_s, result.percentile_ms(50)))
            theirs.append(measure(target, share, callers, window_s))
    return Agreement(share.model, callers, ours, theirs)
