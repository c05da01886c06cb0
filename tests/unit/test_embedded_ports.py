"""serving.embedded: why tritonserver could not open a port, from its log."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stand_in

from serving.embedded import Embedded
from serving.errors import PortTaken, ServerError
from serving.local import Ports

LOST = "E1201 00:00:00.000000 1 main.cc:309] failed to start GRPC service: Unavailable - Socket '127.0.0.1:1' already"


def failure(tmp_path: Path, port: int, options: Sequence[str]) -> tuple[ServerError | None, Path]:
    """What a server says whose log tells that its gRPC port could not be opened, and that log."""
    log = tmp_path / "triton.log"
    log.write_text(f"{LOST} in use\n")
    run: Any = SimpleNamespace(log=log, folder=tmp_path, ports=Ports(0, port, 0))
    server = Embedded(stand_in.repository(tmp_path / "models"), options=options)
    return server.failure(run), log


@pytest.fixture
def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def test_a_port_that_the_options_keep_closed_is_not_called_taken(tmp_path: Path, free: int) -> None:
    """As --grpc-use-ssl without certificates does: the port is free, and the log says more, so it is kept."""
    said, log = failure(tmp_path, free, ["--grpc-use-ssl=true"])
    assert not isinstance(said, PortTaken)
    reason = "can't open its GRPC port with the options --grpc-use-ssl=true"
    assert str(said) == f"tritonserver {reason}; its log: {log}"
    assert log.exists()


def test_a_port_that_is_taken_is_called_so_with_options_too(tmp_path: Path) -> None:
    """The log says no more than that, and goes."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        said, log = failure(tmp_path, port := other.getsockname()[1], ["--grpc-use-ssl=true"])
    assert isinstance(said, PortTaken)
    assert str(said).startswith(f"--grpc-port {port}: in use by another program")
    assert not log.exists()


def test_without_options_a_lost_port_is_chosen_again(tmp_path: Path, free: int) -> None:
    """Another program may have had it only for a moment."""
    assert isinstance(failure(tmp_path, free, [])[0], PortTaken)
