"""Where a server is: what people write for it, and what gRPC calls it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final

from atelier.errors import InvalidInput

_PORT: Final = 8001
DEFAULT_URL: Final = os.environ.get("ATELIER_URL") or f"localhost:{_PORT}"
_RECONNECT_MS: Final = (100, 500)
"""First and longest pause before gRPC tries a broken connection again. Until it does, it answers every call with the
old failure, so both are shorter than the retries of one call together; its own would be 1 s and 120 s."""
_SILENT_MS: Final = (330_000, 10_000)
"""After how long without a word gRPC asks the server of a call whether it is there, which Triton bears every 300 s, and
when TCP gives up a connection on which nothing is acknowledged. It would try for a quarter of an hour, and of a machine
that died every call be late for as long, while other replicas are ready."""

_WRITTEN = re.compile(
    r"(?:(?P<scheme>\w+):///?)?(?P<host>\[[\w:.%]+\]|[^\s:/\[\]]+)(?::(?P<port>\d{1,5}))?/?",
)


@dataclass(frozen=True)
class Address:
    """`balanced` spreads requests over every address that the host's name stands for."""

    host: str
    port: int
    secure: bool = False
    balanced: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def target(self) -> str:
        """gRPC's name for it."""
        return f"dns:///{self}" if self.balanced else str(self)

    @property
    def options(self) -> list[tuple[str, int | str]]:
        """Channel options: messages of any size, quick reconnection, no proxy on the way to this machine."""
        local = self.host in ("localhost", "::1") or self.host.startswith("127.")
        first, longest = _RECONNECT_MS
        ask, lost = _SILENT_MS
        return [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", first),
            ("grpc.max_reconnect_backoff_ms", longest),
            ("grpc.keepalive_time_ms", ask),
            ("grpc.keepalive_timeout_ms", lost),
            ("grpc.enable_http_proxy", 0 if local else 1),
            ("grpc.lb_policy_name", "round_robin" if self.balanced else "pick_first"),
        ]


def parse(url: str) -> Address:
    """HOST, HOST:PORT or grpc://HOST:PORT; grpcs:// for TLS; dns:/// to balance over a name's addresses."""
    found = _WRITTEN.fullmatch(url.strip())
    scheme = (found["scheme"] or "grpc") if found else ""
    if found is None or scheme not in ("grpc", "grpcs", "dns"):
        web = url.startswith(("http://", "https://"))
        why = "is an HTTP address, and this speaks gRPC" if web else "is not a server's address"
        raise InvalidInput(f"{_named(url)} {why}: give HOST:PORT, such as localhost:{_PORT}")
    port = int(found["port"] or _PORT)
    if not 0 < port < 65536:
        raise InvalidInput(f"{_named(url)}: a port is a number from 1 to 65535")
    return Address(found["host"].strip("[]"), port, secure=scheme == "grpcs", balanced=scheme == "dns")


def _named(url: str) -> str:
    """With the name of the environment variable, if that is where it comes from."""
    return f"ATELIER_URL: {url!r}" if url == DEFAULT_URL else repr(url)
