"""What the scripts in clients/ share: options that are checked, one line for each error, and the exit status.

0: all went well; 1: some of what was given had to be left out; 2: it could not be done at all.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO

from tqdm import tqdm

from atelier import _address, errors
from atelier._types import LARGEST_VERSION

if TYPE_CHECKING:
    from atelier._client import Client
    from atelier.tasks import Task

# gRPC's log lines say again what the errors say. It reads this when it is first imported: scripts import this module in
# a statement of its own, `import atelier.cli as cli`, which isort puts before every `from`.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

_FLAGS: Final[dict[type[errors.AtelierError], str]] = {
    errors.UnknownModel: "--model",
    errors.UnknownVersion: "--version",
    errors.ServerUnreachable: "--url",
    errors.NotATritonServer: "--url",
    errors.DeadlineExceeded: "--url",
    errors.Overloaded: "--url",
}


@dataclass(frozen=True)
class Outcome:
    """What a script prints, and whether it had to leave out some of what it was given: exit status 1."""

    text: str
    partial: bool = False


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, without the usage, and whose flags cannot be shortened."""

    def __init__(self, script: str, *, about: str, examples: str) -> None:
        super().__init__(
            prog=Path(script).name,
            description=about,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def add_model(self, name: str, *, implied: bool = True, in_process: bool = True) -> None:
        """Options of a script that asks a model for something: which one, and where that is.

        implied: `name` is what --model is unless it is given, and not None. in_process: it can run without a server.
        """
        add = self.add_argument_group("the model").add_argument
        add("--model", default=name if implied else None, metavar="NAME", help=f"which model ({name})")
        add("--version", type=at_least(1, LARGEST_VERSION), metavar="N", help="which version of it (the newest)")
        add("--url", type=server, metavar="HOST:PORT", help="a server (localhost:8001, or one is started)")
        add("--repository", type=Path, metavar="DIR", help="start a server for this folder of models")
        if in_process:
            add("--in-process", action="store_true", help="no server: run the model in this program")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message.removeprefix('argument ')}\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        if message:
            _tell(message)
        sys.exit(status)

    def run(self, act: Callable[[argparse.Namespace], Outcome]) -> None:
        """Parses the command line, and prints what `act` makes of it, or in one line why it could not.

        SIGTERM and SIGHUP stop it as Ctrl-C does.
        """
        if sys.stderr is None:  # it was closed; `print` would then take standard output, and tqdm fails
            sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", errors="backslashreplace")
        stopped_by = _stopping()
        try:
            self._run(act)
        except KeyboardInterrupt as exc:
            status = 128 + next(iter(stopped_by), signal.SIGINT)
            self.exit(status, f"{self.prog}: stopped; {str(exc) or 'nothing was saved'}\n")

    def _run(self, act: Callable[[argparse.Namespace], Outcome]) -> NoReturn:
        try:
            options = self.parse_args()
            if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name need not be text
                sys.stdout.reconfigure(errors="backslashreplace")
            outcome = act(options)
        except errors.AtelierError as exc:
            flag = _FLAGS.get(type(exc))
            if flag == "--url" and not getattr(options, "url", None):
                flag = None  # it is the default server, or one that was started for this run
            self.error(f"{flag}: {exc}" if flag else str(exc))
        try:
            if outcome.text:
                print(outcome.text, flush=True)
        except OSError as exc:
            _drop(sys.stdout)
            if not isinstance(exc, BrokenPipeError):  # whoever reads it, such as head, has had enough
                self.error(f"standard output: cannot be written: {exc.strerror}")
        except KeyboardInterrupt as exc:
            raise KeyboardInterrupt("all was done, but not all of it is printed") from exc
        self.exit(int(outcome.partial))


def connect(
    options: argparse.Namespace, script: str, *, task: Task[Any], model: str | None = None
) -> AbstractContextManager[Client]:
    """What `local.connect` gives for the options of `add_model`, to a script of a checkout's clients/.

    model: another than --model.
    """
    from atelier import local  # which imports gRPC

    return local.connect(
        options.url,
        task=task,
        model=model or options.model,
        checkout=Path(script).resolve().parents[1],
        say=say,
        repository=options.repository,
        in_process=getattr(options, "in_process", False),
    )


def _stopping() -> list[int]:
    """Makes SIGTERM, and SIGHUP of a terminal that is closed, raise KeyboardInterrupt. Returns those that came so far.

    A signal that is ignored, as SIGHUP under `nohup`, stays so.
    """
    came: list[int] = []

    def stop(number: int, _: object) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)  # shells and `timeout` send it twice, which would end the clean-up
        came.append(number)
        raise KeyboardInterrupt

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, stop)
    return came


def say(line: str) -> None:
    """Tells people something beside the result."""
    _tell(f"{Path(sys.argv[0]).name}: {line}\n")


def _tell(text: str) -> None:
    """Writes to standard error, above a progress bar; where that cannot be, what is said is lost, and nothing else."""
    try:
        with tqdm.external_write_mode(file=sys.stderr):
            print(text, end="", file=sys.stderr, flush=True)
    except OSError:
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Loses what a stream cannot write, or Python tries once more as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def naming(flag: str) -> Iterator[None]:
    """Puts the flag before whatever the block finds wrong."""
    try:
        yield
    except errors.AtelierError as exc:
        raise errors.InvalidInput(f"{flag}: {exc}") from exc


@contextlib.contextmanager
def counting(done: Sized, count: int) -> Iterator[None]:
    """Has Ctrl-C, and an error after the first, say how many of `count` there are already."""
    try:
        yield
    except errors.AtelierError as exc:
        if done:
            exc.args = (f"{exc}; {_so_far(done, count)}",)
        raise
    except KeyboardInterrupt as exc:
        raise KeyboardInterrupt(_so_far(done, count)) from exc


def _so_far(done: Sized, count: int) -> str:
    return f"{len(done)} of {count} {'is' if len(done) == 1 else 'are'} done"


def server(text: str) -> str:
    """An argparse type: where a server is."""
    try:
        _address.parse(text)
    except errors.InvalidInput as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
    return text


def rate(text: str) -> float:
    """An argparse type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return value


def between(least: float, most: float) -> Callable[[str], float]:
    """An argparse type: a number from `least` to `most`."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} must be a number from {least:g} to {most:g}")
        return value

    return number


def at_least(least: int, most: float = math.inf) -> Callable[[str], int]:
    """An argparse type: a whole number of `least` or more, and of `most` or less."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            limit = f", {most} or less" if value > most else ""
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, {least} or more{limit}")
        return value

    return number
