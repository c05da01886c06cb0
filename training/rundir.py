"""A run's directory: what was asked, what happened, what it made. Every recipe writes through it.

runs/<name>/  options.json   the options, the corpus, the commit and the machine; and those that it went on with
              stats.jsonl    one line per step
              samples/       pictures made on the way
              checkpoints/   last.pt: everything needed to go on to the same bits
              tensorboard/
"""

from __future__ import annotations

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import prometheus_client
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from serving import cli
from training import distributed, provenance
from training.devices import pick_device
from training.errors import STOPPED, BadInput, Refused, stopping_signals

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
        self.last = path / "checkpoints" / "last.pt"
        self._terminated = False
        if self.last.exists() and not resume:
            raise BadInput(f"--name: {path} already holds a run; --resume continues it, another --name starts anew")
        if self.last.exists():
            self._go_on()
        else:
            self._begin()
        self.made_by = provenance.read(path)
        self._stats = (path / "stats.jsonl").open("a")
        self.board = SummaryWriter(str(path / "tensorboard"))

    def _begin(self) -> None:
        try:
            if (self.path / provenance.OPTIONS).exists():  # of a run that has no checkpoint
                for folder in ("samples", "tensorboard"):
                    shutil.rmtree(self.path / folder, ignore_errors=True)
                (self.path / provenance.PUBLISHED).unlink(missing_ok=True)
            for folder in ("samples", "checkpoints"):
                (self.path / folder).mkdir(parents=True, exist_ok=True)
            made_by = {"run": uuid.uuid4().hex, **self.asked, "commit": commit(), "machine": machine()}
            made_by["command"] = sys.argv[1:]
            if init := getattr(self.options, "init", ""):
                made_by["started_from"] = self._story(Path(init))
            provenance.write(self.path, made_by)
            (self.path / "stats.jsonl").write_text("")
        except OSError as error:
            raise BadInput(f"--runs: can't write {self.path}: {error.strerror}") from error

    @staticmethod
    def _story(checkpoint: Path) -> dict[str, Any]:
        """How the checkpoint that a run starts from was made, so that a card tells it from the beginning."""
        options = checkpoint.resolve().parent.parent / provenance.OPTIONS
        made_by: dict[str, Any] = json.loads(options.read_text()) if options.is_file() else {}
        return {**made_by, "checkpoint": str(checkpoint)}

    def _go_on(self) -> None:
        """With the same options; another commit, machine or command is noted for the card."""
        made_by = provenance.read(self.path)
        self._same_options(made_by)
        now = _plain({"commit": commit(), "machine": machine(), "command": sys.argv[1:]})
        before, resumed = provenance.last(made_by), made_by.get("resumed", [])
        if any(before[name] != value for name, value in now.items()):
            provenance.write(self.path, {**made_by, "resumed": [*resumed, now]})

    def _same_options(self, before: dict[str, Any]) -> None:
        pictures = "--corpus" if hasattr(self.options, "corpus") else "the pictures"  # which other flags name
        for part in ("options", "corpus"):
            for key in sorted(before[part].keys() | self.asked[part].keys()):
                was, now = before[part].get(key), self.asked[part].get(key)
                if was != now:
                    flag = pictures if part == "corpus" else f"--{key.replace('_', '-')}"
                    raise BadInput(f"{flag}: {self.path} was begun with {was}, not {now}; use that or another --name")

    # --- checkpoints ---

    def save(self, state: dict[str, Any]) -> None:
        """Write last.pt beside and swap it in: a full disk or a kill leaves the one before. The figures up to it are on
        the disk first, so that none is missing where a node goes down."""
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
        lines = (self.path / "stats.jsonl").read_text().splitlines()
        return state, [line for line in lines if _step(line) < step]

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

    def steps(self, first: int, last: int) -> Iterator[int]:
        """first .. last - 1 with a progress bar on a terminal. SIGTERM and Ctrl-C end it where the recipe can save."""
        for outcome in ("published", "refused"):
            self._outcome(outcome)  # a counter that begins at 1 would show no increase
        STEPS.labels(self.model, self.path.name).set(last)
        STEP.labels(self.model, self.path.name).set(first)
        LAST_STEP.labels(self.model, self.path.name).set_to_current_time()
        self._begun, self._first, self._last = time.monotonic(), first, last
        quiet = not (sys.stderr.isatty() and distributed.leads())
        self._bar = tqdm(total=last, initial=first, unit="step", disable=quiet, dynamic_ncols=True)
        with self._bar, self._stopping():
            for step in range(first, last):
                begun = time.monotonic()
                yield step
                SECONDS.labels(self.model, self.path.name).observe(time.monotonic() - begun)
                STEP.labels(self.model, self.path.name).set(step + 1)
                LAST_STEP.labels(self.model, self.path.name).set_to_current_time()

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
                rates = [f"--{key.replace('_', '-')}" for key in self.asked["options"] if key.endswith("lr")]
                raise BadInput(
                    f"step {step + 1}: {name.replace('_', ' ')} is {value}, the run has diverged; "
                    f"begin another --name with a lower {' or '.join(rates) or 'weight'}"
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
        return [json.loads(line) for line in (self.path / "stats.jsonl").read_text().splitlines()]

    def close(self) -> None:
        self._stats.close()
        self.board.close()


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


def _step(line: str) -> float:
    """Of a line of stats.jsonl; infinite for what a crash left of one."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """As JSON would give it back."""
    return json.loads(json.dumps(options, default=str))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
