"""TorchServe starts ready or says in one line why not, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stand_in
import traces
from conftest import need_torchserve
from google.protobuf import text_format

from serving.errors import PortTaken, ServerError
from serving.repository import CONFIG, config
from serving.torchserve.server import Ports, TorchServe


@pytest.fixture(autouse=True)
def _torchserve() -> None:
    need_torchserve()


Command = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The stand-in generator with one worker, which is all that a start has to wait for."""
    root = stand_in.repository(tmp_path / "repository")
    found = config(root, "wgan")
    found.instance_group[0].count = 1
    (root / "wgan" / CONFIG).write_text(text_format.MessageToString(found))
    return root


@pytest.fixture
def command(repository: Path) -> Iterator[Command]:
    """Starts `python -m serving.torchserve`; ends with the test what is still running."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "serving.torchserve", "--repository", str(repository), *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        running.append(subprocess.Popen(line, text=True, **pipes))
        return running[-1]

    yield start
    for process in running:
        with process:
            process.kill()


def announced(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a server says of itself once it is ready, and the name that its traces carry."""
    assert process.stdout is not None
    text = "".join(process.stdout.readline() for _ in range(7))
    named = re.search(r"atelier-\w{12}", text)
    assert named, (text, process.communicate())
    return text, named[0]


def test_ends_on_signal(command: Command) -> None:
    """It says where it listens; SIGTERM ends it with status 0, and no process, file or log of it stays."""
    process = command("--free-ports")
    text, name = announced(process)
    assert text.startswith("TorchServe serves wgan from ")
    assert re.findall(r"^  (\w+) ", text, re.MULTILINE) == ["gRPC", "HTTP", "management", "metrics", "tokens", "log"]
    assert len(traces.processes(name)) == 3  # keeper, Java, worker
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=traces.PATIENCE_S)
    assert (process.returncode, errors) == (0, "")
    assert (traces.processes(name), traces.files(name), traces.logs(name)) == ([], [], [])


def test_killed_server(command: Command) -> None:
    """kill -9 of Java ends the command with one line, and the workers with it."""
    process = command("--free-ports")
    _, name = announced(process)
    (java,) = traces.processes(name, "java")
    os.kill(java, signal.SIGKILL)
    _, errors = process.communicate(timeout=traces.PATIENCE_S)
    assert process.returncode == 2
    assert re.fullmatch(r"TorchServe ended by itself with status \d+; its log: \S+\n", errors)
    traces.wait_until_gone(name)
    for log in traces.logs(name):
        log.unlink()


def test_ends_while_starting(command: Command) -> None:
    """Ctrl-C before it is ready ends it as cleanly."""
    process = command("--free-ports", "--json")
    name = traces.wait_for_child(process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=traces.PATIENCE_S)
    assert (process.returncode, output, errors) == (0, "", "")
    assert (traces.processes(name), traces.files(name), traces.logs(name)) == ([], [], [])


def test_broken_model(repository: Path) -> None:
    """A model that does not load is one line: which, why, and where the log lies."""
    (repository / "wgan" / "2" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ServerError, match=r"failed to load 'wgan': model\.onnx: .*Protobuf") as error:
        TorchServe(repository).start()
    message = str(error.value)
    assert "\n" not in message
    log = Path(message.rpartition(": ")[2])
    name = "-".join(log.name.split("-")[:2])
    assert (traces.processes(name), traces.files(name)) == ([], [])
    log.unlink()


@pytest.mark.parametrize("name", ["http", "grpc", "management_grpc"])
def test_port_lost(repository: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that another program opens while Java starts is named by its flag."""
    choose = Ports.resolved

    def lost(ports: Ports, host: str) -> Ports:
        chosen = choose(ports, host)
        other.bind((host, vars(chosen)[name]))
        other.listen()
        return chosen

    free = Ports(0, 0, 0, 0, 0).resolved("127.0.0.1")
    monkeypatch.setattr(Ports, "resolved", lost)
    with socket.socket() as other, pytest.raises(PortTaken) as error:
        TorchServe(repository, ports=free).start()
    flag = f"--{name.replace('_', '-')}-port {vars(free)[name]}"
    assert str(error.value).startswith(f"{flag}: in use by another program")


def test_port_taken(command: Command) -> None:
    """A port that is in use is one line on stderr, and status 2, before anything starts."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        process = command("--management-port", port)
        output, errors = process.communicate(timeout=traces.PATIENCE_S)
    assert (process.returncode, output) == (2, "")
    assert errors == f"--management-port {port}: in use by another program; choose another, or use --free-ports\n"
