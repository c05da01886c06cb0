"""Runs a server program on this machine under a keeper: it is ready once started or says why not, and leaves nothing
behind."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import http.client
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Generic, Self, TypeVar

from serving import cli
from serving.errors import PortTaken, RepositoryError, ServerError, ServingError
from serving.repository import REPOSITORY, check_names, lacking, models

KEEPER = Path(__file__).with_name("keeper.py")
# Windows has no SIGHUP.
TERMINATION_SIGNALS = [each for each in signal.Signals if each.name in ("SIGINT", "SIGTERM", "SIGHUP")]
FREE_PORT_ATTEMPTS = 5
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.02
POLL_TIMEOUT_S = 1.0
WATCH_S = 0.5
LOG_BYTES = 16 << 20
"""About how much of a log that is shown stays on disk; older parts are discarded."""
KEEP_SIZE, PUNCH_HOLE = 1, 2
"""Flags of fallocate, from linux/falloc.h."""
EVERY_INTERFACE = "0.0.0.0"
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Ports:
    """Where a server listens; 0 is any free port."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    def __post_init__(self) -> None:
        for name, port in vars(self).items():
            if not 0 <= port <= 65535:
                raise ServerError(f"{flag(name)} {port}: give a number from 1 to 65535, or 0 for any free port")
        fixed = [port for port in astuple(self) if port]
        if len(set(fixed)) < len(fixed):
            *others, last = map(flag, vars(self))
            raise ServerError(f"ports {astuple(self)}: {', '.join(others)} and {last} must differ")

    def resolved(self, host: str) -> Self:
        """These ports, with a free one in place of each 0. Raises PortTaken if something listens on one of them."""
        with contextlib.ExitStack() as held:  # all held open together, so that they differ
            return type(self)(*(_free_port(held, name, host, port) for name, port in vars(self).items()))


P = TypeVar("P", bound=Ports)


class LocalServer(ABC, Generic[P]):
    """A server that `with` starts and stops; subclasses define what it runs and when it is ready."""

    program: ClassVar[str]
    """Its name in messages."""
    writes_to_cwd: ClassVar[bool] = False
    """Whether it writes files into its working directory, which is then `Run.folder`."""

    def __init__(self, *, host: str, ports: P, timeout_s: float, show_log: bool = False) -> None:
        self.host = _ipv4(host)
        self.ports = ports
        self.timeout_s = timeout_s
        self.show_log = show_log
        self._run: Run[P] | None = None

    @abstractmethod
    def command(self, run: Run[P]) -> tuple[list[str], dict[str, str]]:
        """The command line and the environment variables. `run.folder` takes files; it is removed with the server."""

    @abstractmethod
    def is_ready(self, run: Run[P]) -> bool:
        """Whether the server on these ports is this one (another program may answer there) and is fully ready."""

    @abstractmethod
    def failure(self, run: Run[P]) -> ServerError | None:
        """The server's own reason for not starting, from its log; None if the log has none."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def http(self) -> str:
        return self.address(self.running.ports.http)

    @property
    def grpc(self) -> str:
        return self.address(self.running.ports.grpc)

    @property
    def metrics(self) -> str:
        return self.address(self.running.ports.metrics)

    @property
    def log(self) -> Path:
        return self.running.log

    @property
    def running(self) -> Run[P]:
        assert self._run is not None, "start() first"
        return self._run

    def start(self) -> None:
        """Returns when every model is ready."""
        assert self._run is None, "it runs already"
        attempts = FREE_PORT_ATTEMPTS if 0 in astuple(self.ports) else 1
        for left in reversed(range(attempts)):
            run = None
            try:
                # A signal that arrives while the keeper starts is handled once there is a run to stop.
                with _deferred_signals():
                    run = Run(self, self.ports.resolved(self.host))
                run.wait_until_ready(time.monotonic() + self.timeout_s)
            except BaseException as exc:
                if run is not None:
                    run.stop(keep_log=isinstance(exc, ServerError))
                if not (isinstance(exc, PortTaken) and left):
                    raise
                # Another program took a free port first: choose again.
            else:
                self._run = run
                return

    def stop(self) -> None:
        """Lets the server finish its requests in flight; returns when no process or shared memory is left."""
        if self._run is not None:
            self._run.stop()
            self._run = None

    def check(self) -> None:
        """Raises ServerError if the server has ended by itself."""
        self.running.check()

    def address(self, port: int) -> str:
        return f"{_reachable(self.host)}:{port}"


class Run(Generic[P]):
    """One run of a server. Whatever it creates on the machine has `id` in its name; `folder` is removed at the end."""

    def __init__(self, server: LocalServer[P], ports: P) -> None:
        self._server = server
        self.ports = ports
        self.id = f"atelier-{uuid.uuid4().hex[:12]}"
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.id}-"))
        self.log = self.folder.with_suffix(".log")
        try:
            self._keeper = self._launch(*server.command(self))
        except BaseException:
            self._remove()
            raise
        self._tailing = threading.Thread(target=_tail, args=(self.log, self._keeper), daemon=True)
        if server.show_log:
            self._tailing.start()

    def _launch(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        keeper = [sys.executable, "-I", "-S", str(KEEPER), self.id, str(self.folder)]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [*keeper, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.folder if self._server.writes_to_cwd else None,
                start_new_session=True,  # Ctrl-C reaches only this process, which stops the server cleanly
            )

    def wait_until_ready(self, deadline: float) -> None:
        while not self._server.is_ready(self):
            if self._keeper.poll() is not None:
                raise self._server.failure(self) or self._exit_error()
            if time.monotonic() > deadline:
                raise ServerError(f"{self._server.program} is not ready in time; its log: {self.log}")
            time.sleep(POLL_S)

    def check(self) -> None:
        if self._keeper.poll() is not None:
            raise self._exit_error()

    def _exit_error(self) -> ServerError:
        status = self._keeper.poll()
        return ServerError(f"{self._server.program} ended by itself with status {status}; its log: {self.log}")

    def stop(self, *, keep_log: bool = False) -> None:
        """Stops the server; its log is kept if `keep_log`, if the server had ended by itself or if it does not end.

        Termination signals are deferred meanwhile. The keeper also gets SIGTERM, as a program forked in the meantime
        may hold its standard input open. Raises ServerError if the server does not end in time.
        """
        assert self._keeper.stdin is not None
        by_itself = not self._keeper.stdin.closed and self._keeper.poll() is not None
        keep_log = keep_log or by_itself
        with _deferred_signals():
            try:
                self._keeper.stdin.close()
                self._keeper.terminate()
                self._keeper.wait(STOP_TIMEOUT_S)
                if self._tailing.is_alive():
                    self._tailing.join(STOP_TIMEOUT_S)  # with a timeout, as perhaps nobody reads its output
            except subprocess.TimeoutExpired as exc:
                keep_log = True
                raise ServerError(f"{self._server.program} does not end in time; its log: {self.log}") from exc
            finally:
                self._remove(keep_log=keep_log)

    def _remove(self, *, keep_log: bool = False) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for shared in Path("/dev/shm").glob(f"{self.id}*"):  # left by a keeper that was killed
            shared.unlink(missing_ok=True)
        if not keep_log:
            self.log.unlink(missing_ok=True)

    def get(self, port: int, path: str, headers: Mapping[str, str] = NO_HEADERS) -> bytes | None:
        """The body of the server's response to a GET; None if there is none or its status is not 200."""
        connection = http.client.HTTPConnection(self._server.address(port), timeout=POLL_TIMEOUT_S)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.read() if answer.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


@contextlib.contextmanager
def _deferred_signals() -> Iterator[None]:
    """Defers termination signals until the block has ended. Does nothing outside the main thread, as Python runs
    handlers only there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    heard = [each for each in TERMINATION_SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
    previous = {each: signal.signal(each, lambda number, _: received.append(number)) for each in heard}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
        for number in received[:1]:
            signal.raise_signal(number)


def servable(repository: Path, names: Sequence[str] = ()) -> list[str]:
    """The named models, or by default those that lack no version. Raises RepositoryError if a named one lacks one, or
    all do."""
    known = models(repository)
    for name in names:
        if name not in known:
            raise RepositoryError(f"--model {name}: not in {repository}, which has {', '.join(known)}")
    wanted = list(names) or known
    for name in wanted:
        check_names(repository, name)
    missing = {name: gone for name in wanted if (gone := lacking(repository, name))}
    if missing and (names or len(missing) == len(wanted)):
        absent = sorted({each for gone in missing.values() for each in gone})
        command = f"python -m training.run {absent[0]} --publish {repository}"
        raise RepositoryError(f"{repository}: no version of {', '.join(absent)} yet; `{command}` makes one")
    return [name for name in wanted if name not in missing]


def _tail(log: Path, keeper: subprocess.Popen[bytes]) -> None:
    """Copies the log to stderr as it grows, until the server has ended, and frees the disk space of what it has copied:
    each request that ONNX Runtime rejects adds lines, and a pod whose /tmp outgrows its limit is evicted."""
    with log.open("r+b") as text:
        given_back = 0
        while True:
            ended = keeper.poll() is not None  # checked before reading, so that the last read misses nothing
            shutil.copyfileobj(text, sys.stderr.buffer)
            sys.stderr.flush()
            if ended:
                return
            if text.tell() - given_back > LOG_BYTES:
                given_back = text.tell()
                length = ctypes.c_int64(given_back)
                ctypes.CDLL(None).fallocate(text.fileno(), KEEP_SIZE | PUNCH_HOLE, ctypes.c_int64(0), length)
            time.sleep(WATCH_S)


def _ipv4(host: str) -> str:
    if not host:  # which the system takes for every interface
        raise ServerError(f"--host: is empty; give an IPv4 address, 127.0.0.1 or {EVERY_INTERFACE}")
    try:
        return socket.gethostbyname(host)
    except (OSError, UnicodeError) as exc:  # UnicodeError: an impossible name, such as a..b
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
        return port_taken(name, port)
    if exc.errno == errno.EACCES:
        return ServerError(f"{flag(name)} {port}: {exc.strerror}; choose one above 1023")
    return _no_address(host, exc)


def _no_address(host: str, exc: OSError | UnicodeError) -> ServerError:
    return ServerError(f"--host {host}: not an IPv4 address of this machine ({getattr(exc, 'strerror', None) or exc})")


def port_taken(name: str, port: int) -> PortTaken:
    return PortTaken(f"{flag(name)} {port}: in use by another program; choose another, or use --free-ports")


def flag(name: str) -> str:
    """The option that sets the port of this name."""
    return f"--{name.replace('_', '-')}-port"


# --- command line


def add_options(parser: cli.Parser, ports: Ports) -> None:
    """Adds the options that all servers have in common; `ports` are the defaults."""
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="model repository; default %(default)s")
    parser.add_argument("--model", action="append", default=[], help="load this one (again for more); default all")
    for name, port in vars(ports).items():
        parser.add_argument(flag(name), type=int, default=port, help="default %(default)s; 0 is any free port")
    parser.add_argument("--free-ports", action="store_true", help="any free port for all of them")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input closes")
    parser.add_argument("--json", action="store_true", help="print the addresses as one line of JSON")
    parser.add_argument("--show-log", action="store_true", help="copy the server's log to standard error")


def requested_ports(options: argparse.Namespace, ports: P) -> P:
    """The ports that the options ask for, as the type of `ports`."""
    return type(ports)(*(0 if options.free_ports else getattr(options, f"{name}_port") for name in vars(ports)))


def run(serve: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Serves until Ctrl-C, SIGTERM or the terminal closes; returns the exit status."""
    for each in TERMINATION_SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:  # as under nohup
            signal.signal(each, signal.default_int_handler)
    try:
        serve(options)
    except KeyboardInterrupt:
        return 0
    except (ServingError, OSError) as exc:
        return cli.report(exc)
    return 0


def wait(server: LocalServer[P], with_parent: bool) -> None:
    """Returns when the parent has gone, if `with_parent`; termination signals raise KeyboardInterrupt."""
    parent, watched = os.getppid(), [0] if with_parent else []
    while True:
        server.check()
        readable, _, _ = select.select(watched, [], [], WATCH_S)
        input_closed = bool(readable) and not os.read(0, 4096)
        if with_parent and (input_closed or os.getppid() != parent):
            return
