"""A run's directory: what was asked, what happened, what it made. Every recipe writes through it.

runs/<name>/  options.json   the options, the corpus, the commit and the machine; and those that it went on with
              stats.jsonl    one line per step
              samples/       pictures made on the way
              checkpoints/   last.pt: everything needed to go on to the same bits
              tensorboard/
              .lock          locked by the process that trains it
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import prometheus_client
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from serving import cli
from training import distributed, provenance
from training.devices import pick_device
from training.errors import STOPPED, BadInput, Refused, stopping_signals
from training.options import flag

STEP = prometheus_client.Gauge("atelier_training_step", "Steps done", ["model", "run"])
STEPS = prometheus_client.Gauge("atelier_training_steps", "Steps asked for", ["model", "run"])
STAT = prometheus_client.Gauge(
    "atelier_training_stat", "The recipe's figures of the last step", ["model", "run", "stat"]
)
SECONDS = prometheus_client.Histogram(
    "atelier_training_step_seconds", "Time of one step", ["model", "run"], buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10)
)
# A run that stalls: time() - this grows while step < steps. Set when the loop begins, too: the first step may hang.
LAST_STEP = prometheus_client.Gauge(
    "atelier_training_last_step_timestamp_seconds", "When the last step was done", ["model", "run"]
)
OUTCOMES = prometheus_client.Counter(
    "atelier_publish", "Candidates that were published or refused", ["model", "run", "outcome"]
)


LAST = Path("checkpoints", "last.pt")
LOCK = ".lock"
LOCK_WAIT_S = 150.0
"""How long --resume waits for the run's other process: a Job's old pod may take 120 s to end."""
LOCK_POLL_S = 0.5


class Stopped(Exception):
    """The run was asked to stop; the checkpoint is written."""


class RunDir:
    """An open run directory. `steps()` drives the loop; `record()` tells everyone how a step went."""

    def __init__(
        self, path: Path, *, model: str, preset: str, options: Any, corpus: dict[str, str], resume: bool
    ) -> None:
        self.path, self.model, self.options = path, model, options
        self.asked: dict[str, Any] = {
            "model": model,
            "preset": preset,
            "options": _plain(asdict(options)),
            "corpus": corpus,
        }
        self.last = path / LAST
        self._terminated = False
        init = "" if self.last.exists() else getattr(options, "init", "")
        started_from = {"started_from": self._story(Path(init))} if init else {}  # before a directory is made
        self._lock = _lock(path, wait_s=LOCK_WAIT_S if resume else 0.0)
        try:
            if not resume:
                check_free(path)
            if self.last.exists():
                self._go_on()
            else:
                self._begin(started_from)
            self.made_by = provenance.read(path)
            self._stats = (path / "stats.jsonl").open("a")
            self.board = SummaryWriter(str(path / "tensorboard"))
        except BaseException:
            self._lock.close()
            raise

    def _begin(self, started_from: dict[str, Any]) -> None:
        try:
            if (self.path / provenance.OPTIONS).exists():  # of a run that has no checkpoint
                for folder in ("samples", "tensorboard"):
                    shutil.rmtree(self.path / folder, ignore_errors=True)
                (self.path / provenance.PUBLISHED).unlink(missing_ok=True)
            for folder in ("samples", "checkpoints"):
                (self.path / folder).mkdir(parents=True, exist_ok=True)
            made_by = {"run": uuid.uuid4().hex, **self.asked, "commit": commit(), "machine": machine()}
            provenance.write(self.path, {**made_by, "command": sys.argv[1:], **started_from})
            (self.path / "stats.jsonl").write_text("")
        except OSError as error:
            raise BadInput(f"--runs: can't write {self.path}: {error.strerror}") from error

    @staticmethod
    def _story(checkpoint: Path) -> dict[str, Any]:
        """How the checkpoint that a run starts from was made, so that a card tells it from the beginning."""
        before = checkpoint.resolve().parent.parent
        if not (before / provenance.OPTIONS).is_file():
            return {"checkpoint": str(checkpoint)}
        made_by = provenance.read(before, fields=(), instead="put it right, or remove it to start without its story")
        return {**made_by, "checkpoint": str(checkpoint)}

    def _go_on(self) -> None:
        """With the same options; another commit, machine or command is noted for the card."""
        made_by = provenance.read(self.path)
        self._same_options(made_by)
        now = _plain({"commit": commit(), "machine": machine(), "command": sys.argv[1:]})
        before, resumed = provenance.last(made_by), made_by.get("resumed", [])
        if any(before.get(name) != value for name, value in now.items()):
            provenance.write(self.path, {**made_by, "resumed": [*resumed, now]})

    def _same_options(self, before: dict[str, Any]) -> None:
        pictures = "--corpus" if hasattr(self.options, "corpus") else "the pictures"  # which other flags name
        for part in ("options", "corpus"):
            for key in sorted(before[part].keys() | self.asked[part].keys()):
                was, now = before[part].get(key), self.asked[part].get(key)
                if was != now:
                    named = pictures if part == "corpus" else flag(key)
                    raise BadInput(f"{named}: {self.path} was begun with {was}, not {now}; use that or another --name")

    # --- checkpoints ---

    def save(self, state: dict[str, Any]) -> None:
        """Write last.pt beside and swap it in: a full disk or a kill leaves the one before. The figures up to it are on
        the disk first, so that none is missing where a node goes down. Raises BadInput if it can't be written, or if a
        weight is not finite: a run may diverge in a step whose loss still was."""
        if not _finite(state):
            raise BadInput(provenance.diverged(self.asked["options"]))
        beside = self.last.with_suffix(".tmp")
        content = io.BytesIO()
        torch.save(state, content)  # into memory: a full disk makes it raise "unexpected pos", in many words
        try:
            os.fsync(self._stats.fileno())
            with beside.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self.last)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise BadInput(
                f"--runs: can't write {self.last}: {error.strerror}; the one before is kept: put that right, "
                "and --resume goes on from there"
            ) from error

    def restore(self) -> dict[str, Any] | None:
        """The last checkpoint, or None for a new run; `restoring` is for what takes it. Figures recorded after it are
        dropped: they will come again."""
        state, kept = distributed.broadcast(self._kept())
        if state is None:
            return None
        path = self.path / "stats.jsonl"
        self._stats.close()
        beside = path.with_suffix(".tmp")
        beside.write_text("".join(f"{line}\n" for line in kept))
        beside.replace(path)
        self._stats = path.open("a")
        self.board.close()
        self.board = SummaryWriter(str(self.path / "tensorboard"), purge_step=state["step"])
        return state

    def _kept(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The last checkpoint's state, and the lines of stats.jsonl up to it."""
        if not self.last.exists():
            return None, []
        state = load_checkpoint(self.last)
        with self.restoring():
            step = int(state["step"])
        return state, [json.dumps(row) for row in self.stats() if row["step"] < step]

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Around what takes a checkpoint's parts. Raises BadInput for one that lacks a part, or has it in another
        shape."""
        try:
            yield
        except (torch.OutOfMemoryError, torch.AcceleratorError):  # the GPU's; another try may do
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise BadInput(
                f"--resume: {self.last} was written by another version of the program; begin another --name"
            ) from error

    # --- the loop ---

    def steps(
        self, first: int, last: int, *, save: Callable[[int], None] | None = None, every_minutes: float = math.inf
    ) -> Iterator[int]:
        """first .. last - 1 with a progress bar on a terminal.

        `save(steps done)` is called between two steps when its minutes are over, after the last one, and where SIGTERM
        or Ctrl-C ends the loop with Stopped. A recipe that can't save after any step leaves it out, and looks at
        `terminated` itself.
        """
        for outcome in ("published", "refused"):
            self._outcome(outcome)  # a counter that begins at 1 would show no increase
        STEPS.labels(self.model, self.path.name).set(last)
        STEP.labels(self.model, self.path.name).set(first)
        LAST_STEP.labels(self.model, self.path.name).set_to_current_time()
        self._begun, self._first, self._last = time.monotonic(), first, last
        quiet = not (sys.stderr.isatty() and distributed.leads())
        self._bar = tqdm(total=last, initial=first, unit="step", disable=quiet, dynamic_ncols=True)
        last_saved = time.monotonic()
        with self._bar, self._stopping():
            for step in range(first, last):
                begun = time.monotonic()
                yield step
                SECONDS.labels(self.model, self.path.name).observe(time.monotonic() - begun)
                STEP.labels(self.model, self.path.name).set(step + 1)
                LAST_STEP.labels(self.model, self.path.name).set_to_current_time()
                if save and distributed.any_worker(self.terminated):
                    save(step + 1)
                    raise Stopped
                if save and time.monotonic() - last_saved > 60 * every_minutes:
                    save(step + 1)
                    last_saved = time.monotonic()
        if save:
            save(last)

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        interrupted = False

        def on_signal(number: int, _frame: FrameType | None) -> None:
            # A second Ctrl-C is somebody's who won't wait; of several workers' torchrun passes on each one again.
            nonlocal interrupted
            if interrupted and number == signal.SIGINT and distributed.world_size() == 1:
                sys.exit(STOPPED)
            interrupted |= number == signal.SIGINT
            self.stop()

        before = {number: signal.signal(number, on_signal) for number in stopping_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Ask the recipe to save at the next step where it can and raise Stopped. SIGTERM and Ctrl-C do the same."""
        self._terminated = True

    @property
    def terminated(self) -> bool:
        """It was asked to stop: save, then raise Stopped."""
        return self._terminated

    def record(self, step: int, line: str, **stats: float) -> None:
        """`line` for people, if there is anything to say; `stats` for stats.jsonl, TensorBoard and Prometheus.

        Raises BadInput for a figure that is no finite number: nothing would be learnt from there on.
        """
        for name, value in stats.items():
            if not math.isfinite(value):
                lower = provenance.to_lower(self.asked["options"])
                raise BadInput(
                    f"step {step + 1}: {name.replace('_', ' ')} is {value}, the run has diverged; "
                    f"begin another --name with a lower {lower}"
                )
        self._stats.write(json.dumps({"step": step, **stats}) + "\n")
        self._stats.flush()
        for name, value in stats.items():
            self.board.add_scalar(name, value, step)
            STAT.labels(self.model, self.path.name, name).set(value)
        if not self._bar.disable:
            if line:
                self._bar.set_postfix_str(line, refresh=False)
            self._bar.update()
        elif line and distributed.leads():
            done = step + 1 - self._first
            left = (time.monotonic() - self._begun) / done * (self._last - step - 1)
            if not cli.show(f"step {step + 1}/{self._last} {line} | {_duration(left)} left"):
                self.stop()

    @contextmanager
    def counted_outcome(self) -> Iterator[None]:
        """Counts what comes of publishing for Prometheus."""
        try:
            yield
        except Refused:
            self._outcome("refused").inc()
            raise
        self._outcome("published").inc()

    def _outcome(self, outcome: str) -> prometheus_client.Counter:
        return OUTCOMES.labels(self.model, self.path.name, outcome)

    def stats(self) -> list[dict[str, float]]:
        """The rows of stats.jsonl, without the lines that a crash or a disk has damaged."""
        rows = map(_row, (self.path / "stats.jsonl").read_bytes().splitlines())
        return [row for row in rows if row]

    def close(self) -> None:
        self._stats.close()
        self.board.close()
        self._lock.close()


def _lock(path: Path, *, wait_s: float) -> TextIO:
    """The open lock file of a run's directory, which is made; closing it releases the lock, as the kernel does after a
    kill. Raises BadInput if another process still holds it after `wait_s`. Where the filesystem has no locks, as some
    NFS, and on Windows, nothing is locked."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / LOCK).open("a")
    except OSError as error:
        raise BadInput(f"--runs: can't write {path}: {error.strerror}") from error
    try:
        _acquire(lock, path, wait_s)
    except BaseException:
        lock.close()
        raise
    return lock


def _acquire(lock: TextIO, path: Path, wait_s: float) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    taken, began, told = f"{path} is being trained by another process", time.monotonic(), False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() - began >= wait_s:
                raise BadInput(f"--name: {taken}; wait for it, or give another --name") from error
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP):
                return
            raise
        if not told:
            cli.show(f"{taken}; waiting up to {wait_s:.0f} s for it to end")
            told = True
        time.sleep(LOCK_POLL_S)


def check_free(path: Path) -> None:
    """Raises BadInput if a run's directory has a checkpoint already."""
    if (path / LAST).exists():
        raise BadInput(f"--name: {path} already holds a run; --resume continues it, another --name starts anew")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content. BadInput if it isn't one."""
    if not path.is_file():
        raise BadInput(f"checkpoint {path}: no such file; runs/<name>/checkpoints/last.pt is where training leaves one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        assert isinstance(state, dict)
    except Exception as error:  # torch.load raises a dozen types for a file that is not its own
        raise BadInput(f"checkpoint {path}: not a checkpoint of training.run ({type(error).__name__})") from error
    return state


def commit() -> str:
    """The commit of the training code, with -dirty if the code differs from it; in an image, ATELIER_COMMIT."""
    if given := os.environ.get("ATELIER_COMMIT"):
        return given
    root = Path(__file__).parents[1]
    try:
        head = _git(root, "rev-parse", "HEAD").strip()
        dirty = _git(root, "status", "--porcelain", "--", "training", "serving/spec.py")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if dirty else head


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the options."""
    device = torch.cuda.get_device_name() if pick_device().type == "cuda" else "cpu"
    return {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}


def push_metrics(gateway: str, *, model: str, run: str) -> None:
    """Send the last figures to a Pushgateway: a Job is gone before Prometheus comes round again."""
    prometheus_client.push_to_gateway(
        gateway, job="atelier_training", registry=prometheus_client.REGISTRY, grouping_key={"model": model, "run": run}
    )


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def _row(line: bytes) -> dict[str, float]:
    """The figures in a line of stats.jsonl; none if it is damaged: cut short, not UTF-8, or with a figure that is no
    number."""
    try:
        row: dict[str, float] = json.loads(line)
        whole = "step" in row and all(math.isfinite(value) for value in row.values())
    except (ValueError, TypeError, AttributeError, OverflowError):
        return {}
    return row if whole else {}


def _finite(part: Any) -> bool:
    """Whether all weights in a checkpoint or a part of it are finite; an optimizer's estimates are none."""
    if isinstance(part, torch.Tensor):
        return not part.is_floating_point() or bool(part.isfinite().all())
    if isinstance(part, dict):
        return "param_groups" in part or all(map(_finite, part.values()))
    return not isinstance(part, list | tuple) or all(map(_finite, part))


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """As JSON would give it back."""
    return json.loads(json.dumps(options, default=str))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
