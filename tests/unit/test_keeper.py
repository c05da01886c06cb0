"""The keeper's promise, kept without a server: whichever ends first, nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import traces
from conftest import need
from waiting import until

from serving.local import KEEPER

Keeper = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.fixture
def name() -> str:
    """A name that marks all that belongs to one keeper."""
    need(sys.platform == "linux", "process groups and /dev/shm of Linux")
    return f"atelier-test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def keeper(name: str, tmp_path: Path) -> Iterator[Keeper]:
    """Starts a keeper over a shell command that knows its name; returns once the command says it runs."""
    running: list[subprocess.Popen[bytes]] = []

    def start(script: str) -> subprocess.Popen[bytes]:
        folder(tmp_path, name).mkdir()
        folder(tmp_path, name).with_suffix(".log").touch()
        (Path("/dev/shm") / f"{name}-region").touch()
        command = [sys.executable, "-I", "-S", str(KEEPER), name, str(folder(tmp_path, name))]
        command += ["bash", "-c", f": {name}; {script}"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"runs\n"
        return process

    yield start
    for process in running:
        with process:
            process.terminate()  # it takes its server along, as it could not if it were killed
            try:
                process.wait(traces.PATIENCE_S)
            finally:
                process.kill()


def folder(tmp_path: Path, name: str) -> Path:
    """As serving.local names it; the log lies beside it."""
    return tmp_path / f"{name}-folder"


def gone(name: str, folder: Path) -> None:
    traces.wait_until_gone(name)
    until(lambda: not folder.exists(), lambda: f"left behind: {folder}")


# A server with a child of its own, as tritonserver has one for each model; `wait` lets traps run at once.
FAMILY = "bash -c ': {name}; sleep 1000 & wait' & {trap} echo runs; wait"


def test_input_closes(keeper: Keeper, name: str, tmp_path: Path) -> None:
    """When standard input closes, the server is asked to end, and its status is passed on."""
    process = keeper(FAMILY.format(name=name, trap="trap 'exit 7' TERM;"))
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(traces.PATIENCE_S) == 7
    gone(name, folder(tmp_path, name))


def test_terminated(keeper: Keeper, name: str, tmp_path: Path) -> None:
    """SIGTERM to the keeper does the same."""
    process = keeper(FAMILY.format(name=name, trap="trap 'exit 7' TERM;"))
    process.terminate()
    assert process.wait(traces.PATIENCE_S) == 7
    gone(name, folder(tmp_path, name))


def test_told_twice(keeper: Keeper, name: str, tmp_path: Path) -> None:
    """serving.local closes standard input and sends SIGTERM: the server hears of it once."""
    counts = "trap 'told=$((told + 1)); echo told' TERM; echo runs; until [ $told ]; do sleep 0.05; done"
    process = keeper(f"{counts}; for each in 1 2 3 4 5; do sleep 0.1; done; exit $told")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    assert process.stdout.readline() == b"told\n"
    process.terminate()
    assert process.wait(traces.PATIENCE_S) == 1
    gone(name, folder(tmp_path, name))


def test_server_killed(keeper: Keeper, name: str, tmp_path: Path) -> None:
    """A server that is killed takes its children along; the status says by which signal."""
    process = keeper(FAMILY.format(name=name, trap=""))
    (server,) = {os.getpgid(pid) for pid in traces.processes(name)} - {os.getpgid(process.pid)}
    os.kill(server, signal.SIGKILL)
    assert process.wait(traces.PATIENCE_S) == 128 + signal.SIGKILL
    gone(name, folder(tmp_path, name))


def test_no_thread_preempts_the_one_that_wakes_it(keeper: Keeper, name: str) -> None:
    """The server and its children are scheduled as a batch; the keeper and what started it as before."""
    before = os.sched_getscheduler(0)
    process = keeper(FAMILY.format(name=name, trap=""))
    # The server's child may still be on its way to its own program.
    pids = until(
        lambda: found if len(found := traces.processes(name)) == 3 else [],
        lambda: f"not three: {traces.processes(name)}",
    )
    policies = {pid: os.sched_getscheduler(pid) for pid in pids}
    assert policies.pop(process.pid) == before == os.sched_getscheduler(0)
    assert list(policies.values()) == [os.SCHED_BATCH] * 2


def test_keeper_killed(keeper: Keeper, name: str, tmp_path: Path) -> None:
    """Should the keeper itself be killed, the kernel ends the server, and the next keeper removes what stayed of it."""
    process = keeper(FAMILY.format(name=name, trap="trap 'kill 0' TERM;"))
    assert traces.files(name)  # from now on any keeper that starts on this machine may remove them
    process.kill()
    until(lambda: not traces.processes(name), lambda: f"the server did not end: {traces.processes(name)}")
    _keep_another(tmp_path)
    assert not traces.files(name)
    assert not list(tmp_path.iterdir())


def test_keeper_lives(keeper: Keeper, name: str, tmp_path: Path) -> None:
    """Another keeper leaves a running server's shared memory, folder and log alone."""
    process = keeper(FAMILY.format(name=name, trap=""))
    before = traces.files(name)
    _keep_another(tmp_path)
    assert traces.files(name) == before
    assert len(list(tmp_path.iterdir())) == 2
    process.terminate()
    process.wait(traces.PATIENCE_S)
    gone(name, folder(tmp_path, name))


def _keep_another(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", str(KEEPER), f"atelier-test-{uuid.uuid4().hex[:8]}"]
    with subprocess.Popen([*command, str(tmp_path / "another"), "true"], stdin=subprocess.PIPE) as process:
        assert process.wait(traces.PATIENCE_S) == 0
