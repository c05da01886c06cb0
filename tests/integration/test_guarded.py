"""A server as a pod runs it: guarded by a key, over TLS, probed for all its models at once, drained before its end."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import counts
import numpy as np
import pytest
import stand_in
import tritonclient.grpc as triton
from conftest import need, need_tritonserver
from test_embedded import Command, addresses, command  # noqa: F401 - a fixture
from tritonclient.utils import InferenceServerException

from atelier import Client, errors
from serving import repository as repo
from serving import verify
from serving.embedded import Embedded


@pytest.fixture(autouse=True)
def _tritonserver() -> None:
    need_tritonserver()


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and their ensemble, seeded, so that there is a key."""
    folder = tmp_path_factory.mktemp("guarded")
    repo.seed(stand_in.repository(folder / "shipped", spec=stand_in.WGAN_X4), folder / "models")
    return folder / "models"


@pytest.fixture(scope="module")
def guarded(volume: Path) -> Iterator[Embedded]:
    need_tritonserver()
    with Embedded(volume, control_key=repo.control_key(volume)) as server:
        yield server


def probe(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = [sys.executable, "-m", "serving.verify", *arguments]
    return subprocess.run(done, capture_output=True, text=True, timeout=120)


# --- the key ---


def test_the_key_is_asked_for(guarded: Embedded, volume: Path) -> None:
    """Listing and loading models take the key, by gRPC and by HTTP; asking for pictures and for health does not."""
    with triton.InferenceServerClient(guarded.grpc) as client:
        for forbidden in (client.get_model_repository_index, lambda: client.unload_model("wgan")):
            with pytest.raises(InferenceServerException, match="restricted"):
                forbidden()
        with pytest.raises(InferenceServerException, match="restricted"):
            client.load_model("wgan", headers={"triton-grpc-protocol-atelier-key": "guessed"})
        client.load_model("wgan", headers=repo.control_headers(volume))
        assert client.is_model_ready("wgan")
    request = urllib.request.Request(f"http://{guarded.http}/v2/repository/index", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="403"), urllib.request.urlopen(request):
        pass
    with urllib.request.urlopen(f"http://{guarded.http}/v2/health/ready") as answer:
        assert answer.status == 200


def test_no_key_to_guard_with(repository: Path, command: Command) -> None:  # noqa: F811
    """A volume that was not seeded can't be guarded, and the line says what seeds it."""
    process = command("--repository", str(repository), "--free-ports", "--guarded")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert "seed` makes it" in err


def test_no_page_in_a_browser_loads_models(repository: Path, tmp_path: Path) -> None:
    """A page may post text to any address of this machine; a model of its own would be its own Python in the server.

    Without a key, gRPC on this machine, which pages don't speak, loads models as before.
    """
    run = tmp_path / "run"
    code = f"import pathlib; pathlib.Path({str(run)!r}).touch()\nclass TritonPythonModel: pass\n"
    files = {"file:1/model.py": base64.b64encode(code.encode()).decode()}
    config = json.dumps({"backend": "python", "max_batch_size": 0})
    body = json.dumps({"parameters": {"config": config, **files}}).encode()
    with Embedded(repository) as server, triton.InferenceServerClient(server.grpc) as client:
        address = f"http://{server.http}/v2/repository/models/own/load"
        request = urllib.request.Request(address, body, {"Content-Type": "text/plain"})
        with pytest.raises(urllib.error.HTTPError, match="403"), urllib.request.urlopen(request):
            pass
        assert not run.exists()
        client.load_model("wgan")
        assert client.is_model_ready("wgan")


def test_beyond_this_machine_nobody_loads_models(repository: Path) -> None:
    """Without a key there is none that a stranger could have."""
    with Embedded(repository, host="0.0.0.0") as server, triton.InferenceServerClient(server.grpc) as client:
        with pytest.raises(InferenceServerException, match="restricted"):
            client.unload_model("wgan")
        assert client.is_model_ready("wgan")


# --- the deep probe ---


def test_every_model_at_once(guarded: Embedded, volume: Path) -> None:
    """Without --model, each model that the server has loaded answers, an ensemble included, with a line for each."""
    done = probe("--url", guarded.grpc, "--repository", str(volume))
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(" at ")[0] for line in done.stdout.splitlines()] == ["upscaler 2", "wgan 2", "wgan_x4 1"]


def test_the_version_that_is_served(guarded: Embedded, volume: Path) -> None:
    """A version that came after the server had started is not what it is asked for."""
    newer = volume / "wgan" / "3"
    shutil.copytree(volume / "wgan" / "2", newer)
    try:
        assert "wgan 2 at" in probe("--url", guarded.grpc, "--repository", str(volume)).stdout
    finally:
        shutil.rmtree(newer)


def test_one_wrong_model_fails_the_probe(guarded: Embedded, volume: Path, tmp_path: Path) -> None:
    """A model that answers otherwise than its golden batch says is found among the others."""
    other = tmp_path / "other"
    shutil.copytree(volume, other)
    golden = other / "wgan" / "2" / repo.GOLDEN
    with np.load(golden) as arrays:
        np.savez(golden, latent=arrays["latent"], image=255 - arrays["image"])
    done = probe("--url", guarded.grpc, "--repository", str(other))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "wgan 2" in done.stderr


def test_a_version_of_which_model(guarded: Embedded) -> None:
    """--version without --model is a mistake."""
    done = probe("--url", guarded.grpc, "--version", "2")
    assert (done.returncode, done.stderr) == (2, "--version 2: of which model? name it with --model\n")


# --- tritonserver's own options and its log ---


def test_options_and_log(volume: Path, command: Command) -> None:  # noqa: F811
    """What stands after -- reaches tritonserver, whose log comes out on standard error."""
    process = command(
        *(
            "--repository",
            str(volume),
            "--model",
            "wgan",
            "--free-ports",
            "--json",
            "--show-log",
            "--",
            "--log-verbose=1",
        )
    )
    addresses(process)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Started GRPCInferenceService" in err
    assert "All models are stopped" in err  # to its very end
    assert "grpc_server.cc" in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(["--", "--no-such=1"], "unrecognized option '--no-such=1'", id="unknown"),
        pytest.param(["stray"], "'stray' is no option of tritonserver", id="no option"),
    ],
)
def test_bad_options(volume: Path, command: Command, options: list[str], says: str) -> None:  # noqa: F811
    """One line and status 2."""
    process = command("--repository", str(volume), "--free-ports", *options)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert says in err
    for log in re.findall(r"log: (\S+)$", err):  # a server that had begun leaves it, to tell what happened
        Path(log).unlink()


# --- TLS ---


def test_tls(volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the name and the roots in the environment the probe verifies who answers; without them it gets no answer,
    nor from a server whose certificate has another name. The SDK without TLS is told what is there."""
    need(shutil.which("openssl"), "openssl, which makes the certificate, is not installed")
    key, certificate = tmp_path / "tls.key", tmp_path / "tls.crt"
    subject = ["-subj", "/CN=atelier-triton", "-addext", "subjectAltName=DNS:atelier-triton"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*make, *subject, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    files = [f"--grpc-server-cert={certificate}", f"--grpc-server-key={key}"]
    with Embedded(volume, models=["wgan"], options=["--grpc-use-ssl=true", *files]) as server:
        with Client(server.grpc) as client, pytest.raises(errors.NotATritonServer, match="over TLS it is grpcs://"):
            client.models()
        arguments = ("--url", server.grpc, "--repository", str(volume))
        assert probe(*arguments).returncode == 2
        monkeypatch.setenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", str(certificate))
        monkeypatch.setenv(verify.TLS_NAME, "somebody-else")
        assert probe(*arguments).returncode == 2
        monkeypatch.setenv(verify.TLS_NAME, "atelier-triton")
        done = probe(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("wgan 2 at ")


# --- draining ---


class Service:
    """Stands in for a Service of Kubernetes: a new connection goes to the backend that is in it now; those that are
    open stay where they are."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._relays: list[tuple[str, threading.Thread]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def switch(self, backend: str) -> None:
        with self._lock:
            self._backend = backend

    def connections(self, backend: str) -> int:
        """So many lead there."""
        with self._lock:
            return sum(relay.is_alive() for where, relay in self._relays if where == backend)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        for _, relay in self._relays:
            relay.join()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                with self._lock:
                    relay = threading.Thread(target=_relay, args=(client, self._backend))
                    self._relays.append((self._backend, relay))
                    relay.start()


def _relay(client: socket.socket, backend: str) -> None:
    host, port = backend.split(":")
    with contextlib.suppress(OSError), client, socket.create_connection((host, int(port))) as server:
        while True:
            for ready in select.select([client, server], [], [])[0]:
                if not (data := ready.recv(65536)):
                    return
                (server if ready is client else client).sendall(data)


@dataclass
class Met:
    """What a caller met who never pauses."""

    answers: int = 0
    errors: list[InferenceServerException] = field(default_factory=list)

    def wait_for_answers(self, count: int) -> None:
        """So many more."""
        counts.reached(lambda: self.answers, self.answers + count)


@contextlib.contextmanager
def calling(address: str) -> Iterator[Met]:
    latent = triton.InferInput("latent", [1, stand_in.LATENT], "FP32")
    latent.set_data_from_numpy(np.zeros((1, stand_in.LATENT), np.float32))
    met, ended = Met(), threading.Event()

    def call() -> None:
        with triton.InferenceServerClient(address) as client:
            while not ended.is_set():
                try:
                    client.infer("wgan", [latent], client_timeout=30)
                    met.answers += 1
                except InferenceServerException as exc:
                    met.errors.append(exc)
                    time.sleep(0.02)

    with ThreadPoolExecutor(1) as threads:
        caller = threads.submit(call)
        try:
            yield met
        finally:
            ended.set()
        caller.result()


@contextlib.contextmanager
def leaving(volume: Path, *options: str) -> Iterator[tuple[Embedded, Service, Met]]:
    """A replica that is in its Service no more, while a caller who came when it was goes on; another one has taken its
    place there, and still answers when this one has ended."""
    with (
        Embedded(volume, models=["wgan"], options=options) as stays,
        Embedded(volume, models=["wgan"], options=options) as leaves,
        contextlib.closing(Service(leaves.grpc)) as service,
        calling(service.address) as met,
    ):
        met.wait_for_answers(1)
        service.switch(stays.grpc)
        yield leaves, service, met
        met.wait_for_answers(10)


def test_a_replica_leaves_without_an_error(volume: Path) -> None:
    """Connections that are renewed often all move before the end: the caller notices nothing."""
    with leaving(volume, "--grpc-max-connection-age=500") as (replica, service, met):
        counts.reached(lambda: not service.connections(replica.grpc), True)
        replica.stop()
    assert met.errors == []


def test_waiting_alone_does_not_do(volume: Path) -> None:
    """Without renewal a caller keeps its connection to the end, and gets errors: what the option above is there for."""
    with leaving(volume) as (replica, service, met):
        met.wait_for_answers(200)
        assert (service.connections(replica.grpc), met.errors) == (1, [])
        replica.stop()
    assert met.errors
