"""Where a server is: what people write, what gRPC is told, and what is refused."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from atelier import AsyncClient, Client, _address, errors
from atelier._types import DEFAULT_TIMEOUT_S


@pytest.mark.parametrize(
    ("url", "target", "secure"),
    [
        ("localhost:8001", "localhost:8001", False),
        ("gpu-box", "gpu-box:8001", False),
        ("grpc://10.0.0.7:9001/", "10.0.0.7:9001", False),
        ("grpcs://atelier.example:443", "atelier.example:443", True),
        ("dns:///triton-headless:8001", "dns:///triton-headless:8001", False),
        ("[::1]:9001", "[::1]:9001", False),
        (" localhost:8001 ", "localhost:8001", False),
    ],
)
def test_addresses_are_read_as_people_write_them(url, target, secure):
    """gRPC's target and whether it is TLS."""
    found = _address.parse(url)
    assert (found.target, found.secure) == (target, secure)


@pytest.mark.parametrize(
    "url",
    [
        "", "http://localhost:8000", "https://x", "localhost:99999", "localhost:0", "a b", "::1", "ftp://x", "x:y",
        "\udcff:1",
    ],
    ids=lambda url: url or "empty",
)  # fmt: skip
def test_what_is_no_address_is_refused(url):
    """gRPC would take localhost:99999 for port 34463, and a missing port for 443."""
    with pytest.raises(errors.InvalidInput, match=r"HOST:PORT|1 to 65535"):
        _address.parse(url)


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("url", [8001, b"localhost:8001"], ids=["number", "bytes"])
def test_what_is_no_text_is_no_address(client, url):
    """As of a port alone."""
    with pytest.raises(errors.InvalidInput, match=r"^url .*: must be text, such as localhost:8001$"):
        client(url)


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_the_default_address_is_what_the_environment_says_now(client, monkeypatch):
    """Asked when a client is made, not when the SDK is imported; without the variable Triton's own port here."""
    monkeypatch.delenv("ATELIER_URL", raising=False)
    assert repr(client()) == f"{client.__name__}('localhost:8001')"
    monkeypatch.setenv("ATELIER_URL", "box:9")
    assert repr(client()) == f"{client.__name__}('box:9')"
    assert repr(client("other")) == f"{client.__name__}('other:8001')"


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_an_address_of_the_environment_that_is_none_is_named_with_its_variable(client, monkeypatch):
    """Whoever has given no address would look for it; one that was given is not the variable's, even if it is alike."""
    monkeypatch.setenv("ATELIER_URL", "http://localhost:8001")
    with pytest.raises(errors.InvalidInput, match=r"^ATELIER_URL: 'http://localhost:8001' is an HTTP address"):
        client()
    with pytest.raises(errors.InvalidInput, match=r"^'http://localhost:8001' is an HTTP address"):
        client("http://localhost:8001")


def test_no_proxy_stands_between_a_client_and_its_own_machine():
    """gRPC obeys http_proxy even for localhost."""
    options = {url: dict(_address.parse(url).options) for url in ("localhost:1", "127.0.0.1:1", "far:1")}
    assert [found["grpc.enable_http_proxy"] for found in options.values()] == [0, 0, 1]


def peers(port: int) -> Iterator[socket.socket]:
    """This process's connections to a port."""
    for path in filter(Path.is_socket, Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(path.name))) as found:
            if found.getpeername()[1:2] == (port,):
                yield found


def test_a_server_that_falls_silent_is_found_out():
    """What nobody acknowledges ends the connection before the deadline of a call that has the default one."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        port = silent.getsockname()[1]
        with Client(f"127.0.0.1:{port}") as client:
            assert client.ready(timeout_s=0.5) is False
            connection, _ = silent.accept()
            with connection:
                (limit_ms,) = [each.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) for each in peers(port)]
    assert 0 < limit_ms < 1000 * DEFAULT_TIMEOUT_S
