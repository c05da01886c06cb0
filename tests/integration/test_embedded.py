"""The embedded server starts ready, says in one line why it does not, and leaves nothing behind however it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stand_in
import traces
import tritonclient.grpc as triton
from conftest import mounted, need_tritonserver

from serving import embedded
from serving.embedded import FREE, Embedded, Ports
from serving.errors import PortTaken, RepositoryError, ServerError

GIVEN_AGAIN = {"--disable-auto-complete-config", "--http-restricted-api", "--grpc-restricted-protocol"}
"""Without a value, or of which a second one only restricts more."""


@pytest.fixture(autouse=True)
def _tritonserver() -> None:
    need_tritonserver()


Command = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def command() -> Iterator[Command]:
    """Starts `python -m serving.embedded` with arguments; ends with the test what is still running."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        process = subprocess.Popen([sys.executable, "-m", "serving.embedded", *arguments], text=True, **pipes)
        running.append(process)
        return process

    yield start
    for process in running:
        with process:
            process.kill()


def addresses(process: subprocess.Popen[str]) -> dict[str, str]:
    """The line of JSON that a server prints once it is ready."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()
    return dict(json.loads(line))


def serve(repository: Path, command: Command, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """A server that is ready, and its name."""
    process = command("--repository", str(repository), "--free-ports", "--json", *arguments)
    return process, traces.server_id(addresses(process)["http"])


def test_ready_on_entry(repository: Path) -> None:
    """Within the `with`, every version answers at the three addresses; after it, nothing is left."""
    with Embedded(repository) as server:
        name = traces.server_id(server.http)
        assert traces.processes(name)
        log = server.log
        assert log.exists()
        with triton.InferenceServerClient(server.grpc) as client:
            assert client.is_model_ready("wgan", "1")
            assert client.is_model_ready("wgan", "2")
        host, port = server.metrics.split(":")
        with socket.create_connection((host, int(port))):
            pass
    assert traces.processes(name) == []
    assert traces.files(name) == []
    assert not log.exists()


@pytest.mark.parametrize("folder", ["my models", "o'brien", "a;b", "a$b", "ä"])
def test_a_folder_with_any_name(repository: Path, tmp_path: Path, folder: str) -> None:
    """Triton's Python backend starts its processes through a shell, and quotes nothing."""
    with Embedded(repository.rename(tmp_path / folder)) as server, triton.InferenceServerClient(server.grpc) as client:
        assert client.is_model_ready("wgan", "2")


def test_host_by_name(repository: Path) -> None:
    """A host may be given by its name."""
    with Embedded(repository, host="localhost") as server:
        assert server.grpc.startswith("127.")
        assert traces.server_id(server.http)


def test_outlives_the_thread_that_started_it(repository: Path) -> None:
    """A server started from a thread, as a test runner or a notebook does, does not end with that thread."""
    server = Embedded(repository)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        assert traces.server_id(server.http)
    finally:
        server.stop()


def test_two_servers(repository: Path) -> None:
    """Free ports differ: two servers run side by side and each knows its own."""
    with Embedded(repository) as one, Embedded(repository) as other:
        assert traces.server_id(one.http) != traces.server_id(other.http)
        places = {one.http, one.grpc, one.metrics, other.http, other.grpc, other.metrics}
        assert len(places) == 6


def test_restart(repository: Path) -> None:
    """A stopped server starts again; stopping twice does nothing."""
    server = Embedded(repository)
    for _ in range(2):
        server.start()
        with triton.InferenceServerClient(server.grpc) as client:
            assert client.is_server_ready()
        server.stop()
    server.stop()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["Ctrl-C", "SIGTERM", "SIGHUP"])
def test_ends_on_signal(repository: Path, command: Command, signum: signal.Signals) -> None:
    """So does a window that is closed: status 0, no traceback and nothing left behind."""
    process, name = serve(repository, command)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=traces.PATIENCE_S)
    assert (process.returncode, errors) == (0, "")
    assert (traces.processes(name), traces.files(name), traces.logs(name)) == ([], [], [])


def test_ends_while_starting(repository: Path, command: Command) -> None:
    """A signal before the server is ready ends it as cleanly."""
    process = command("--repository", str(repository), "--free-ports", "--json")
    name = traces.wait_for_child(process)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=traces.PATIENCE_S)
    assert (process.returncode, output, errors) == (0, "", "")
    assert (traces.processes(name), traces.files(name), traces.logs(name)) == ([], [], [])


def test_ends_with_standard_input(repository: Path, command: Command) -> None:
    """With --with-parent it ends when its standard input closes, and not for what is written there."""
    process, name = serve(repository, command, "--with-parent")
    assert process.stdin is not None
    process.stdin.write("still here\n")
    process.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    process.stdin.close()
    assert process.wait(traces.PATIENCE_S) == 0
    assert (traces.processes(name), traces.files(name), traces.logs(name)) == ([], [], [])


def test_killed_command(repository: Path, command: Command) -> None:
    """kill -9 of the command itself takes the server, its models' processes and its shared memory along."""
    process, name = serve(repository, command)
    process.kill()
    traces.wait_until_gone(name)
    for log in traces.logs(name):  # it stays, to tell what happened
        log.unlink()


@pytest.mark.parametrize("program", ["keeper", "server"])
def test_killed_part(repository: Path, command: Command, program: str) -> None:
    """kill -9 of any part ends the command with one line, and the rest goes, too."""
    process, name = serve(repository, command)
    (victim,) = traces.processes(name, program)
    os.kill(victim, signal.SIGKILL)
    _, errors = process.communicate(timeout=traces.PATIENCE_S)
    assert process.returncode == 2
    assert errors.count("\n") == 1
    assert "ended by itself" in errors
    traces.wait_until_gone(name)
    (log,) = traces.logs(name)
    assert str(log) in errors
    log.unlink()


def test_announcement(repository: Path, command: Command) -> None:
    """Without --json people read what is served, and where."""
    process = command("--repository", str(repository), "--free-ports")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(5)]
    assert lines[0].startswith(f"Triton serves wgan from {repository}")
    named = dict(line.split() for line in lines[1:])
    assert list(named) == ["gRPC", "HTTP", "metrics", "log"]
    assert traces.server_id(named["HTTP"].removeprefix("http://"))
    process.send_signal(signal.SIGINT)
    assert process.wait(traces.PATIENCE_S) == 0


def test_named_model(repository: Path) -> None:
    """Only the named model is loaded."""
    shutil.copytree(repository / "wgan", repository / "other")
    config = repository / "other" / "config.pbtxt"
    config.write_text(config.read_text().replace('name: "wgan"', 'name: "other"', 1))
    with Embedded(repository, models=["other"]) as server, triton.InferenceServerClient(server.grpc) as client:
        assert server.models == ["other"]
        assert client.is_model_ready("other")
        assert not client.is_model_ready("wgan")


@pytest.mark.parametrize("name", ["http", "grpc", "metrics"])
def test_port_taken(repository: Path, name: str) -> None:
    """A port that is in use is refused by its flag and number, before anything is started."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ports = Ports(**{"http": 0, "grpc": 0, "metrics": 0, name: port})
        with pytest.raises(PortTaken, match=f"--{name}-port {port}: in use"):
            Embedded(repository, ports=ports).start()


@pytest.mark.parametrize("name", ["http", "grpc", "metrics"])
def test_port_lost(repository: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A free port that another program opens first is given up for another one."""
    choose, chosen = Ports.resolved, list[Ports]()

    def one_is_lost(ports: Ports, host: str) -> Ports:
        chosen.append(choose(ports, host))
        if len(chosen) == 1:
            other.bind((host, vars(chosen[0])[name]))
            other.listen()
        return chosen[-1]

    monkeypatch.setattr(Ports, "resolved", one_is_lost)
    with socket.socket() as other, Embedded(repository, ports=FREE) as server:
        assert len(chosen) == 2
        with triton.InferenceServerClient(server.grpc) as client:
            assert client.is_server_ready()


def test_not_ready_in_time(repository: Path) -> None:
    """A server that is not ready in time is ended, and its log stays to say how far it came."""
    with pytest.raises(ServerError, match="not ready in time") as error, Embedded(repository, timeout_s=0):
        pass
    log = Path(str(error.value).rpartition(": ")[2])
    name = "-".join(log.name.split("-")[:2])
    assert (traces.processes(name), traces.files(name)) == ([], [])
    log.unlink()


def _drop(repository: Path) -> None:
    (repository / "wgan" / "2" / "model.onnx").unlink()


def _spoil(repository: Path) -> None:
    (repository / "wgan" / "2" / "model.onnx").write_bytes(b"no model")


def _misname(repository: Path) -> None:
    config = repository / "wgan" / "config.pbtxt"
    config.write_text(config.read_text().replace('name: "latent"', 'name: "other"'))


def _misspell(repository: Path) -> None:
    (repository / "wgan" / "config.pbtxt").write_text("wat: 1\n")


def _threads(repository: Path) -> None:
    config = repository / "wgan" / "config.pbtxt"
    config.write_text(config.read_text().replace('string_value: "1"', 'string_value: "many"'))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(_drop, "version 2.*model.onnx", id="model.onnx missing"),
        pytest.param(_spoil, "version 2.*model.onnx.*Protobuf", id="model.onnx spoilt"),
        pytest.param(_misname, "model.onnx: no input 'other'", id="tensor not in the graph"),
        pytest.param(_misspell, "config.pbtxt", id="config.pbtxt wrong"),
        pytest.param(_threads, "intra_op_thread_count is 'many'", id="parameter wrong"),
    ],
)
def test_broken_model(repository: Path, damage: Callable[[Path], None], says: str) -> None:
    """A model that does not load is one line: which, the server's own reason, and where its log lies."""
    damage(repository)
    with pytest.raises(ServerError, match=says) as error, Embedded(repository):
        pass
    message = str(error.value)
    assert "\n" not in message
    log = Path(message.rpartition(": ")[2])
    assert "tritonserver" in message
    name = "-".join(log.name.split("-")[:2])
    assert (traces.processes(name), traces.files(name)) == ([], [])
    log.unlink()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["--repository", "absent"], "--repository absent: no such folder", id="no folder"),
        pytest.param(["--repository", "."], "no model in it", id="no model"),
        pytest.param(["--model", "nope"], "--model nope: not in", id="unknown model"),
        pytest.param(["--http-port", "70000"], "--http-port 70000", id="port too high"),
        pytest.param(["--grpc-port", "9000", "--http-port", "9000"], "must differ", id="same port twice"),
        pytest.param(["--grpc-port", "x"], "--grpc-port: invalid int value", id="port not a number"),
        pytest.param(["--host", "192.0.2.1", "--free-ports"], "--host 192.0.2.1", id="host of another machine"),
        pytest.param(["--host", "::1", "--free-ports"], "--host ::1", id="host not IPv4"),
        pytest.param(["--host", "nowhere.invalid"], "--host nowhere.invalid", id="host unknown"),
        pytest.param(["--host", ""], "--host: is empty", id="host of nothing"),
        pytest.param(["--host", "no..name"], "--host no..name", id="host that is no name"),
    ],
)
def test_bad_input(command: Command, repository: Path, tmp_path: Path, arguments: list[str], says: str) -> None:
    """A mistake is one line on stderr that names the flag, and status 2."""
    if "--repository" not in arguments:
        arguments = [*arguments, "--repository", str(repository)]
    process = command(*arguments, cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.getcwd()})  # noqa: PTH109
    output, errors = process.communicate(timeout=traces.PATIENCE_S)
    assert (process.returncode, output) == (2, "")
    assert errors.count("\n") == 1
    assert says in errors


@pytest.mark.parametrize("name", ["2.bak", "02", "1 copy"])
def test_a_version_put_away_by_hand(repository: Path, name: str) -> None:
    """tritonserver takes 2.bak for version 2, and passes over 02: neither is what was meant."""
    folder = repository / "wgan" / name
    folder.mkdir()
    with pytest.raises(RepositoryError, match=re.escape(f"{folder}: neither a version nor put away; name it")):
        Embedded(repository)


@pytest.mark.parametrize(("name", "special"), [("t m", " "), ("tümp", "ü")], ids=["a space", "not ASCII"])
def test_a_temporary_folder_that_triton_cannot_run_in(
    command: Command, repository: Path, tmp_path: Path, name: str, special: str
) -> None:
    """It would wait for two minutes otherwise, and its log say nothing, or something of a codec."""
    folder = tmp_path / name
    folder.mkdir()
    process = command("--repository", str(repository), "--free-ports", env=os.environ | {"TMPDIR": str(folder)})
    output, errors = process.communicate(timeout=traces.PATIENCE_S)
    said = f"TMPDIR: tritonserver can't run in {folder}; name a folder without {special!r} in its path\n"
    assert (process.returncode, output, errors) == (2, "", said)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "says"),
    [
        pytest.param("--grpc-address=0.0.0.0", "--grpc-address itself; give --host before the --", id="an address"),
        pytest.param("--grpc-addr=0.0.0.0", "--grpc-address itself; give --host before the --", id="cut short"),
        pytest.param("--http-port", "--http-port itself; give --http-port before the --", id="a port of two words"),
        pytest.param("--load-model=other", "--load-model itself; give --model before the --", id="a model"),
        pytest.param("--model-store=.", "--model-store itself; give --repository before the --", id="an old name"),
        pytest.param("--id=mine", "--id itself; leave it out", id="what tells it from others"),
        pytest.param("--allow-http=false", "--allow-http itself; leave it out", id="what it is asked by"),
        pytest.param("--allow-sagemaker=true", "--allow-sagemaker itself; leave it out", id="a way around the key"),
    ],
)
def test_options_that_would_undo_ours(command: Command, repository: Path, option: str, says: str) -> None:
    """They would open model control to whoever asks, announce an address that is none, or never be ready."""
    with pytest.raises(ServerError, match=f"^{option}: serving.embedded decides on {says}$"):
        Embedded(repository, options=["--log-verbose=1", option])
    process = command("--repository", str(repository), "--free-ports", "--", option)
    output, errors = process.communicate(timeout=traces.PATIENCE_S)
    assert (process.returncode, output, errors) == (2, "", f"{option}: serving.embedded decides on {says}\n")


def test_options_that_add_to_ours(repository: Path) -> None:
    """What may be given again is, and all others that we give are ours alone."""
    added = ["--metrics-config=counter_latencies=false", "--backend-config=python,shm-default-byte-size=2097152"]
    with Embedded(repository, options=added) as server, triton.InferenceServerClient(server.grpc) as client:
        assert client.is_server_ready()
        given = [option.partition("=")[0] for option in embedded._arguments(server, FREE, "id", Path(), Path())]
    for option in {*given} - {each.partition("=")[0] for each in added} - GIVEN_AGAIN:
        with pytest.raises(ServerError, match=f"^{option}: serving.embedded decides on {option} itself; "):
            Embedded(repository, options=[option])


def test_full_disk(command: Command, repository: Path, tmp_path: Path) -> None:
    """No room for what a server needs beside it is one line, which names what was to be written, and status 2."""
    with mounted(tmp_path / "full", "size=1m") as full:
        process = command("--repository", str(repository), "--free-ports", env=os.environ | {"TMPDIR": str(full)})
        output, errors = process.communicate(timeout=traces.PATIENCE_S)
        assert (process.returncode, output, errors.count("\n")) == (2, "", 1), errors
        assert re.search(rf" -> {full}/\S+: No space left on device$", errors)
        assert list(full.iterdir()) == []


def without_a_version(root: Path) -> Path:
    """A repository with the classifier's generated files and nothing to serve."""
    return stand_in.repository(root, versions=(), spec=stand_in.CLASSIFIER)


def test_no_version_yet(tmp_path: Path) -> None:
    """A repository with a model but no version names the command that makes one."""
    with pytest.raises(RepositoryError, match=r"no version of classifier yet.*training.run classifier --publish"):
        Embedded(without_a_version(tmp_path))


def test_a_model_without_a_version_is_left_out(repository: Path) -> None:
    """Generated files of a model that is not trained yet don't keep the others from being served, and the server
    says that this one is not there."""
    with Embedded(without_a_version(repository)) as server, triton.InferenceServerClient(server.grpc) as client:
        assert server.models == ["wgan"]
        assert client.is_model_ready("wgan")
        assert not client.is_model_ready("classifier")


def test_a_named_model_without_a_version(repository: Path) -> None:
    """A model that was asked for by name is not left out in silence."""
    with pytest.raises(RepositoryError, match="no version of classifier yet"):
        Embedded(without_a_version(repository), models=["wgan", "classifier"])
