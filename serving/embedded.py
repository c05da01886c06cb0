"""The real tritonserver on this machine, without Docker or a GPU. Run: python -m serving.embedded

The server comes from the nvidia-pytriton wheel; serving/backends run the models on the CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Self

from serving import cli, wheel
from serving.errors import PortTaken, RepositoryError, ServerError, ServingError
from serving.repository import REPOSITORY, lacking, models

KEEPER = Path(__file__).with_name("keeper.py")
ENDING = (signal.SIGINT, signal.SIGTERM)
FREE_PORT_ATTEMPTS = 5
START_TIMEOUT_S = 120.0
EXIT_TIMEOUT_S = 15  # for requests that run; shorter than the keeper's patience
STOP_TIMEOUT_S = 30.0
POLL_S = 0.02
POLL_TIMEOUT_S = 1.0
WATCH_S = 0.5
EVERY_INTERFACE = "0.0.0.0"
REASONS = (  # in tritonserver's log, the most telling first
    r"(failed to load '.+' version \d+: .*)\"",
    r'(Poll failed .*)"',
    r"error: creating server: (.+)",
)


@dataclass(frozen=True)
class Ports:
    """Where the server listens; 0 is any free port."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    def __post_init__(self) -> None:
        for name, port in vars(self).items():
            if not 0 <= port <= 65535:
                raise ServerError(f"--{name}-port {port}: give a number from 1 to 65535, or 0 for any free port")
        fixed = [port for port in astuple(self) if port]
        if len(set(fixed)) < len(fixed):
            raise ServerError(f"ports {astuple(self)}: --http-port, --grpc-port and --metrics-port must differ")

    def chosen(self, host: str) -> Ports:
        """These, with a free one in place of each 0. Raises PortTaken for one that something listens on."""
        with contextlib.ExitStack() as held:  # all at once, so that they differ
            return Ports(*(_free_port(held, name, host, port) for name, port in vars(self).items()))


FREE = Ports(0, 0, 0)


class Embedded:
    """A tritonserver that serves `repository`: `with Embedded(path) as server: connect(server.grpc)`.

    `models` names what to load, all by default. `http`, `grpc`, `metrics` are addresses ("127.0.0.1:8001"),
    open and with every model ready once entered. Raises ServerError with the server's own reason, PortTaken
    for a port that was asked for by its number, RepositoryError where there is nothing to serve.
    """

    def __init__(
        self,
        repository: Path | str = REPOSITORY,
        *,
        models: Sequence[str] = (),
        host: str = "127.0.0.1",
        ports: Ports = FREE,
        timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self.repository = Path(repository)
        self.models = servable(self.repository, models)
        self.host = _ipv4(host)  # tritonserver takes no names
        self.ports = ports
        self.timeout_s = timeout_s
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def http(self) -> str:
        return self._address(self.running.ports.http)

    @property
    def grpc(self) -> str:
        return self._address(self.running.ports.grpc)

    @property
    def metrics(self) -> str:
        return self._address(self.running.ports.metrics)

    @property
    def log(self) -> Path:
        return self.running.log

    @property
    def running(self) -> _Server:
        assert self._server is not None, "start() first"
        return self._server

    def start(self) -> None:
        """Returns when every model is ready."""
        assert self._server is None, "it runs already"
        attempts = FREE_PORT_ATTEMPTS if 0 in astuple(self.ports) else 1
        for left in reversed(range(attempts)):
            held = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
            try:
                server = _Server(self, self.ports.chosen(self.host))
            except BaseException:
                signal.pthread_sigmask(signal.SIG_SETMASK, held)
                raise
            try:
                # A signal that came while the keeper started strikes here, where the keeper is known and ended.
                signal.pthread_sigmask(signal.SIG_SETMASK, held)
                server.wait_until_ready(time.monotonic() + self.timeout_s)
            except BaseException as exc:
                server.stop(keep_log=isinstance(exc, ServerError))
                if not (isinstance(exc, PortTaken) and left):
                    raise
                # Another program was quicker to open what was a free port: choose again.
            else:
                self._server = server
                return

    def stop(self) -> None:
        """Lets the server finish what it has begun; returns when no process or shared memory is left."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def check(self) -> None:
        """Raises ServerError if the server has ended by itself."""
        self.running.check()

    def _address(self, port: int) -> str:
        return f"{_reachable(self.host)}:{port}"


class _Server:
    """One run of tritonserver, under a keeper."""

    def __init__(self, plan: Embedded, ports: Ports) -> None:
        found = wheel.find()
        self.ports = ports
        self.host = _reachable(plan.host)
        self.id = f"atelier-{uuid.uuid4().hex[:12]}"
        self._folder = Path(tempfile.mkdtemp(prefix=f"{self.id}-"))
        self.log = self._folder.with_suffix(".log")
        try:
            backends = found.assemble(self._folder / "backends")
            arguments = _arguments(plan, ports, self.id, backends)
            self._keeper = self._launch(str(found.binary), *arguments, environment=found.environment())
        except BaseException:
            self._remove()
            raise

    def _launch(self, *command: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        keeper = [sys.executable, "-I", "-S", str(KEEPER), self.id, str(self._folder)]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [*keeper, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches this process alone, which ends the server in order
            )

    def wait_until_ready(self, deadline: float) -> None:
        while not self._ready():
            if self._keeper.poll() is not None:
                raise _failure(self.log, self.ports) or self._ended()
            if time.monotonic() > deadline:
                raise ServerError(f"tritonserver is not ready in time; its log: {self.log}")
            time.sleep(POLL_S)

    def check(self) -> None:
        if self._keeper.poll() is not None:
            raise self._ended()

    def _ended(self) -> ServerError:
        return ServerError(f"tritonserver ended by itself with status {self._keeper.poll()}; its log: {self.log}")

    def stop(self, *, keep_log: bool = False) -> None:
        """Ends the server; its log stays if asked for, or if the server had ended by itself."""
        keep_log = keep_log or self._keeper.poll() is not None
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait(STOP_TIMEOUT_S)
        self._remove(keep_log=keep_log)

    def _remove(self, *, keep_log: bool = False) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        if not keep_log:
            self.log.unlink(missing_ok=True)

    def _ready(self) -> bool:
        """Whether the server on these ports is this one (a stranger may answer there), complete and ready."""
        metadata = self._get(self.ports.http, "/v2")
        return (
            metadata is not None
            and self.id.encode() in metadata
            and self._get(self.ports.http, "/v2/health/ready") is not None
            and self._get(self.ports.metrics, "/metrics") is not None
        )

    def _get(self, port: int, path: str) -> bytes | None:
        connection = http.client.HTTPConnection(self.host, port, timeout=POLL_TIMEOUT_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.read() if answer.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


def servable(repository: Path, names: Sequence[str] = ()) -> list[str]:
    """The named models, or else those that lack no version. Raises RepositoryError for a named one that does."""
    known = models(repository)
    for name in names:
        if name not in known:
            raise RepositoryError(f"--model {name}: not in {repository}, which has {', '.join(known)}")
    wanted = list(names) or known
    missing = {name: gone for name in wanted if (gone := lacking(repository, name))}
    if missing and (names or len(missing) == len(wanted)):
        absent = sorted({each for gone in missing.values() for each in gone})
        command = f"python -m training.run {absent[0]} --publish {repository}"
        raise RepositoryError(f"{repository}: no version of {', '.join(absent)} yet; `{command}` makes one")
    return [name for name in wanted if name not in missing]


def _arguments(plan: Embedded, ports: Ports, server_id: str, backends: Path) -> list[str]:
    options = {
        "id": server_id,
        "model-repository": plan.repository.resolve(),
        "backend-directory": backends,
        "backend-config": f"python,shm-region-prefix-name={server_id}",
        "model-control-mode": "explicit",
        "strict-readiness": "true",
        "exit-timeout-secs": EXIT_TIMEOUT_S,
        "http-address": plan.host,
        "grpc-address": plan.host,
        "metrics-address": plan.host,
        "http-port": ports.http,
        "grpc-port": ports.grpc,
        "metrics-port": ports.metrics,
        "allow-gpu-metrics": "false",
        "pinned-memory-pool-byte-size": 0,
    }
    loads = [f"--load-model={name}" for name in plan.models]
    return ["--disable-auto-complete-config", *(f"--{key}={value}" for key, value in options.items()), *loads]


def _ipv4(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError as exc:
        raise _no_address(host, exc) from exc


def _reachable(host: str) -> str:
    return "127.0.0.1" if host == EVERY_INTERFACE else host


def _free_port(held: contextlib.ExitStack, name: str, host: str, port: int) -> int:
    probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, port))
    except OSError as exc:
        raise _unavailable(name, host, port, exc) from exc
    return int(probe.getsockname()[1])


def _unavailable(name: str, host: str, port: int, exc: OSError) -> ServerError:
    if exc.errno == errno.EADDRINUSE:
        return _taken(name, port)
    if exc.errno == errno.EACCES:
        return ServerError(f"--{name}-port {port}: {exc.strerror}; choose one above 1023")
    return _no_address(host, exc)


def _no_address(host: str, exc: OSError) -> ServerError:
    return ServerError(f"--host {host}: not an IPv4 address of this machine ({exc.strerror})")


def _taken(name: str, port: int) -> PortTaken:
    return PortTaken(f"--{name}-port {port}: in use by another program; choose another, or use --free-ports")


def _failure(log: Path, ports: Ports) -> ServerError | None:
    """Why the server did not start, in its own words, from its log."""
    text = log.read_text(errors="replace")
    if taken := re.search(r"failed to start (\w+) service: Unavailable - Socket", text):
        name = taken[1].lower()
        log.unlink(missing_ok=True)
        return _taken(name, vars(ports)[name])
    for pattern in REASONS:
        if reason := re.search(pattern, text):
            return ServerError(f"{_readable(reason[1])}; tritonserver's log: {log}")
    return None


def _readable(reason: str) -> str:
    without_traceback = reason.partition(r"\n\nAt:")[0]
    return without_traceback.replace(r"\n", " ").replace("Internal: TritonModelException: ", "").strip()


# --- command line


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _serve(options)
    except KeyboardInterrupt:
        return 0
    except ServingError as exc:
        print(exc, file=sys.stderr)
        return cli.BAD_INPUT
    return 0


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m serving.embedded", description="The real tritonserver on this machine.")
    ports = Ports()
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="model repository; default %(default)s")
    parser.add_argument("--model", action="append", default=[], help="load this one (again for more); default all")
    parser.add_argument("--host", default="127.0.0.1", help=f"{EVERY_INTERFACE} listens on every interface")
    parser.add_argument("--http-port", type=int, default=ports.http, help="0 is any free port, as for the others")
    parser.add_argument("--grpc-port", type=int, default=ports.grpc)
    parser.add_argument("--metrics-port", type=int, default=ports.metrics)
    parser.add_argument("--free-ports", action="store_true", help="any free port for all three")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input closes")
    parser.add_argument("--json", action="store_true", help="print the addresses as one line of JSON")
    return parser


def _serve(options: argparse.Namespace) -> None:
    given = Ports(options.http_port, options.grpc_port, options.metrics_port)
    ports = FREE if options.free_ports else given
    began = time.monotonic()
    with Embedded(options.repository, models=options.model, host=options.host, ports=ports) as server:
        addresses = {"http": server.http, "grpc": server.grpc, "metrics": server.metrics}
        if options.json:
            print(json.dumps(addresses), flush=True)
        else:
            print(_announcement(server, time.monotonic() - began), flush=True)
        _wait(server, options.with_parent)


def _announcement(server: Embedded, seconds: float) -> str:
    return f"""\
Triton serves {", ".join(server.models)} from {server.repository} (ready in {seconds:.1f} s; Ctrl-C ends it)
  gRPC     {server.grpc}
  HTTP     http://{server.http}
  metrics  http://{server.metrics}/metrics
  log      {server.log}"""


def _wait(server: Embedded, with_parent: bool) -> None:
    """Returns when the parent has gone; Ctrl-C and SIGTERM come as KeyboardInterrupt."""
    parent, watched = os.getppid(), [0] if with_parent else []
    while True:
        server.check()
        readable, _, _ = select.select(watched, [], [], WATCH_S)
        input_closed = bool(readable) and not os.read(0, 4096)
        if with_parent and (input_closed or os.getppid() != parent):
            return


if __name__ == "__main__":
    sys.exit(main())
