"""What a server leaves on a machine: for tests that nothing stays behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

from tests.waiting import until

PATIENCE_S = 60.0
PROGRAMS = {"keeper": "python", "server": "tritonserver", "model": "triton_python_backend_stub", "java": "java"}


def server_id(address: str) -> str:
    """The name under which the server at an HTTP address runs; all its traces carry it, but for Triton's own
    /tmp/python_env_* and /tmp/folder*: that none of these stays after a SIGKILL is not checked."""
    connection = http.client.HTTPConnection(address, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("GET", "/v2")
        return str(json.loads(connection.getresponse().read())["name"])


def processes(name: str, program: str = "") -> list[int]:
    """Numbers of the processes whose command line holds the server's name, of one `program` or of all."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = os.fsdecode(path.read_bytes())  # of any process here: names of files need not be UTF-8
            if name in command and Path(command.split("\0")[0]).name.startswith(PROGRAMS.get(program, "")):
                found.append(int(path.parent.name))
    return found


def wait_for_child(process: subprocess.Popen[str]) -> str:
    """The name of the server that a starting command starts, as soon as it does."""

    def found() -> str:
        assert process.poll() is None, process.communicate()
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parent = int(path.read_bytes().rpartition(b")")[2].split()[1])
                named = re.search(r"atelier-\w{12}", os.fsdecode(path.with_name("cmdline").read_bytes()))
                if parent == process.pid and named:
                    return named[0]
        return ""

    return until(found, lambda: f"{process.args} started no server", pause_s=0)


def files(name: str) -> list[Path]:
    """Shared memory and temporary files of the server, its log apart."""
    places = Path("/dev/shm"), Path(tempfile.gettempdir())
    return [path for place in places for path in place.glob(f"*{name}*") if path.suffix != ".log"]


def logs(name: str) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"{name}*.log"))


def wait_until_gone(name: str) -> None:
    """Returns when no process and no file of the server is left; fails the test if some stay."""
    until(lambda: not processes(name) and not files(name), lambda: f"left behind: {processes(name)}, {files(name)}")
