"""A client for this machine: connects to the server that runs here, or starts one for the duration of a run.

with local.connect(None, task=tasks.GENERATE, model="wgan", checkout=Path("."), say=print) as client:
    ...
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from atelier import _address, _repository, errors, files
from atelier._client import Client
from atelier._models import MODELS
from atelier._types import Say
from atelier.inprocess import InProcessClient
from atelier.tasks import Task

GREETING_TIMEOUT_S: Final = 3.0
"""How long the server at the default address has to answer before it counts as absent."""
ANSWER_TIMEOUT_S: Final = 10.0
"""How long an explicitly requested address has to answer before any work is sent there."""
TIMEOUT_S: Final = 120.0
"""Timeout of each batch. Long, because a user with many batches would rather wait than start over."""
START_TIMEOUT_S: Final = 150.0
STOP_TIMEOUT_S: Final = 40.0
END_TIMEOUT_S: Final = 5.0
"""How long the process that started a Triton may take to notice that it has exited."""


@contextlib.contextmanager
def connect(
    url: str | None = None,
    *,
    task: Task[Any],
    model: str,
    checkout: Path,
    say: Say,
    repository: Path | None = None,
    in_process: bool = False,
) -> Iterator[Client]:
    """Yields a client for `url`; without one, for the default address, or else for this checkout's own `model`.

    That model is served by the embedded Triton while the block runs or, where Triton cannot run, in this process.
    `repository` and `in_process` request these outright. `checkout` is this project's source folder, which has serving/
    and, without a `repository`, the models. `say` is told which is used. Raises AtelierError; if the SDK knows that the
    model cannot do the task, before anything is started.
    """
    if url is not None and (repository or in_process):
        raise errors.InvalidInput(f"{url}: is a server with models of its own; leave out the repository and in-process")
    task.contract(model)
    folder = repository or checkout / "serving" / "model_repository"
    chosen: contextlib.AbstractContextManager[Client]
    if url is not None:
        chosen = _connected(url)
    elif in_process:
        chosen = InProcessClient(_with_model(folder, model))
    elif repository is None and (default := _default(say)):
        chosen = default
    else:
        chosen = _started(checkout, _with_model(folder, model), task, model, say)
    with chosen as client:
        yield client


def _connected(url: str) -> Client:
    """A client for a server that has answered. Closes it and raises AtelierError if the server does not answer."""
    client = Client(url, timeout_s=TIMEOUT_S, patient=True)
    try:
        client.models(timeout_s=ANSWER_TIMEOUT_S)
    except BaseException:
        client.close()
        raise
    return client


def _default(say: Say) -> Client | None:
    """A client for the default address, or None if no server is ready there."""
    client = Client(timeout_s=TIMEOUT_S, patient=True)
    try:
        if client.ready(timeout_s=GREETING_TIMEOUT_S):
            return client
        say(f"no server is ready at {_address.default()}")
    except errors.AtelierError as exc:
        say(str(exc))
    client.close()
    return None


@contextlib.contextmanager
def _started(checkout: Path, repository: Path, task: Task[Any], model: str, say: Say) -> Iterator[Client]:
    with contextlib.ExitStack() as stack:
        try:
            address = stack.enter_context(_embedded(checkout, repository, model))
            say("started the embedded Triton for this run; `make serve` keeps one running")
            client: Client = Client(address, timeout_s=TIMEOUT_S, patient=True)
        except errors.ServerUnreachable as exc:
            if task.streams:
                raise errors.ServerUnreachable(f"{exc}, and {model} needs a server; give --url") from exc
            client = _in_process(repository, exc)
            say(f"running the model in this process with ONNX Runtime: {exc}")
        yield stack.enter_context(client)


def _in_process(repository: Path, why: errors.ServerUnreachable) -> InProcessClient:
    try:
        return InProcessClient(repository)
    except errors.MissingPackage as exc:
        raise errors.MissingPackage(f"{why}, and {exc}; or give --url") from exc


@contextlib.contextmanager
def _embedded(checkout: Path, repository: Path, model: str) -> Iterator[str]:
    """Runs a Triton during the block; yields its gRPC address. Raises ServerUnreachable with the reason."""
    if reason := _cannot_embed():
        raise errors.ServerUnreachable(reason)
    command = [sys.executable, "-m", "serving.embedded", "--json", "--free-ports", "--with-parent"]
    command += ["--repository", str(repository.absolute()), "--model", model]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            cwd=checkout,
            stdin=subprocess.PIPE,  # the server exits when this closes
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C reaches only this process, which then shuts the server down
        )
        with process:
            try:
                address = _announced(process) or _start_failed(log)
                with _explained(process, log):
                    yield address
            finally:
                _stop(process)


def _cannot_embed() -> str | None:
    machine = f"{platform.system()} {platform.machine()}"
    if machine != "Linux x86_64":
        return f"tritonserver runs on Linux x86_64, and this is {machine}"
    if importlib.util.find_spec("pytriton") is None:
        return "nvidia-pytriton, which holds tritonserver, is not installed (`make setup` does)"
    return None


def _announced(process: subprocess.Popen[str]) -> str | None:
    assert process.stdout is not None
    timer = threading.Timer(START_TIMEOUT_S, process.kill)
    timer.start()
    try:
        line = process.stdout.readline()
    finally:
        timer.cancel()
    return str(json.loads(line)["grpc"]) if line else None


def _start_failed(log: IO[str]) -> str:
    raise errors.ServerUnreachable(f"the embedded Triton did not start ({_last_line(log)})")


@contextlib.contextmanager
def _explained(process: subprocess.Popen[str], log: IO[str]) -> Iterator[None]:
    """If the server has exited, replaces the block's ServerUnreachable by one with the server's last log line."""
    try:
        yield
    except errors.ServerUnreachable as exc:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT_S)
            raise errors.ServerUnreachable(f"the embedded Triton broke down ({_last_line(log)}); try again") from exc
        raise


def _last_line(log: IO[str]) -> str:
    log.seek(0)
    return (log.read().strip().splitlines() or ["it said nothing"])[-1]


def _stop(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _with_model(repository: Path, model: str) -> Path:
    """Returns the folder. Raises InvalidInput if there is none, UnknownModel if it lacks the model or a step of it."""
    steps = MODELS[model].steps
    with files.map_os_errors(repository, "read"):
        if not repository.is_dir():
            what = "no such folder of models; start a server elsewhere and give --url"
            raise errors.InvalidInput(f"{repository}: {what}")
        if steps and not (repository / model).is_dir():
            there = f"copy its folder from a checkout's serving/model_repository, beside {' and '.join(steps)}"
            raise errors.UnknownModel(f"{repository}: has no {model}; {there}")
        absent = _repository.lacking(repository, model)
    if absent:
        command = f"python -m training.run {absent[0]} --publish {repository}"
        raise errors.UnknownModel(f"{repository}: no version of {', '.join(absent)} yet; `{command}` makes one")
    return repository
