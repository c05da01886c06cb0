"""How a server is ended, whatever program it is: in order, once, and with nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fleet
import pytest
import stand_in
import traces
from conftest import need

from serving import local
from serving.errors import RepositoryError, ServerError
from serving.local import LocalServer, Ports, Run


class Sleeper(LocalServer[Ports]):
    """A server that does nothing."""

    program = "sleeper"

    def command(self, run: Run[Ports]) -> tuple[list[str], dict[str, str]]:
        return ["bash", "-c", f": {run.id}; echo runs; sleep 1000 & wait"], dict(os.environ)

    def is_ready(self, run: Run[Ports]) -> bool:
        return run.log.read_text() == "runs\n"

    def failure(self, run: Run[Ports]) -> ServerError | None:
        return None


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    need(sys.platform == "linux", "process groups and signal masks of Linux")
    with Sleeper(host="127.0.0.1", ports=Ports(0, 0, 0), timeout_s=traces.PATIENCE_S) as server:
        yield server


def test_a_second_ctrl_c_waits_for_the_end(sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes when the server is gone, and its log with it."""
    name, wait = sleeper.running.id, subprocess.Popen.wait

    def struck(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return wait(process, timeout)

    over = threading.Event()
    other = threading.Thread(target=over.wait)  # to which the system may give the signal
    other.start()
    monkeypatch.setattr(subprocess.Popen, "wait", struck)
    with pytest.raises(KeyboardInterrupt):
        sleeper.stop()
    over.set()
    other.join()
    assert (traces.processes(name), traces.files(name), traces.logs(name)) == ([], [], [])


def test_a_server_that_does_not_end(sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told in one line, with its log, which stays; it can be stopped again."""
    name = sleeper.running.id
    with fleet.frozen(*traces.processes(name, "keeper")), monkeypatch.context() as patched:
        patched.setattr(local, "STOP_TIMEOUT_S", 0.1)
        with pytest.raises(ServerError, match=r"^sleeper does not end in time; its log: ") as error:
            sleeper.stop()
        assert str(error.value).endswith(str(sleeper.log))
        assert sleeper.log.exists()
    sleeper.stop()
    assert (traces.processes(name), traces.files(name), traces.logs(name)) == ([], [], [])


def test_a_program_was_forked_meanwhile(sleeper: Sleeper) -> None:
    """As by multiprocessing: it holds all that was open, and the server ends at once all the same."""
    name, keeper = sleeper.running.id, sleeper.running._keeper
    assert keeper.stdin is not None
    held = os.dup(keeper.stdin.fileno())
    try:
        sleeper.stop()
    finally:
        os.close(held)
    assert (traces.processes(name), traces.files(name), traces.logs(name)) == ([], [], [])


def test_a_step_that_was_put_away_by_hand(tmp_path: Path) -> None:
    """Whoever asks for an ensemble alone has its steps served as well, of which none may be 2.bak."""
    root = stand_in.repository(tmp_path / "repository", spec=stand_in.WGAN_X4)
    away = (root / "wgan" / "2").rename(root / "wgan" / "2.bak")
    with pytest.raises(RepositoryError, match=re.escape(f"{away}: neither a version nor put away")):
        local.servable(root, ["wgan_x4"])


def test_a_log_that_is_shown_does_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Whoever sends bad requests without end would have a pod evicted for its /tmp: what was shown takes no disk."""
    log, line = tmp_path / "server.log", 4095 * b"x" + b"\n"
    log.touch()
    taken: list[int] = []

    class Talking:
        """A server that writes a line whenever it is looked at."""

        def poll(self) -> int | None:
            with log.open("ab") as end:
                end.write(line)
            taken.append(512 * log.stat().st_blocks)
            return 0 if len(taken) == 200 else None

    monkeypatch.setattr(local, "WATCH_S", 0)
    monkeypatch.setattr(local, "LOG_BYTES", 16 * len(line))
    local._tail(log, Talking())
    assert capfdbinary.readouterr().err == 200 * line
    assert log.stat().st_size == 200 * len(line)
    assert max(taken) <= 32 * len(line)
