"""A server's address: the URL that users write, and gRPC's target and channel options for it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final

from atelier.errors import InvalidInput

_PORT: Final = 8001
_VARIABLE: Final = "ATELIER_URL"
_RECONNECT_BACKOFF_MS: Final = (100, 500)
"""gRPC's initial and maximum backoff before it reconnects. Until then it fails every call with the previous error, so
both are shorter than all retries of one call together; gRPC's defaults are 1 s and 120 s."""
_KEEPALIVE_MS: Final = (330_000, 10_000)
"""gRPC's keepalive time and timeout: pings while a call waits, which Triton allows every 300 s, and TCP_USER_TIMEOUT,
after which unacknowledged data closes the connection. Without it TCP would retransmit to a dead machine for a quarter
of an hour, and every call would miss its deadline meanwhile, although other replicas are ready."""

_URL = re.compile(
    r"(?:(?P<scheme>\w+):///?)?(?P<host>\[[\w:.%]+\]|[^\s:/\[\]\ud800-\udfff]+)(?::(?P<port>\d{1,5}))?/?",
)


@dataclass(frozen=True)
class Address:
    """`balanced`: round robin over every address that the host's name resolves to; `secure`: TLS."""

    host: str
    port: int
    secure: bool = False
    balanced: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def target(self) -> str:
        """gRPC's target, with its name resolver if requests are balanced."""
        return f"dns:///{self}" if self.balanced else str(self)

    @property
    def options(self) -> list[tuple[str, int | str]]:
        """Channel options: messages of any size, quick reconnection, no proxy for this machine."""
        local = self.host in ("localhost", "::1") or self.host.startswith("127.")
        initial_backoff, max_backoff = _RECONNECT_BACKOFF_MS
        keepalive_time, keepalive_timeout = _KEEPALIVE_MS
        return [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", initial_backoff),
            ("grpc.max_reconnect_backoff_ms", max_backoff),
            ("grpc.keepalive_time_ms", keepalive_time),
            ("grpc.keepalive_timeout_ms", keepalive_timeout),
            ("grpc.enable_http_proxy", 0 if local else 1),
            ("grpc.lb_policy_name", "round_robin" if self.balanced else "pick_first"),
        ]


def default() -> str:
    """The default address: the current value of ATELIER_URL, or Triton's default port on this machine."""
    return os.environ.get(_VARIABLE) or f"localhost:{_PORT}"


def resolve(url: str | None) -> Address:
    """Parses `url`, or the default for None. Raises InvalidInput, which names the variable if that is at fault."""
    if url is not None:
        return parse(url)
    try:
        return parse(default())
    except InvalidInput as exc:
        raise InvalidInput(f"{_VARIABLE}: {exc}") from exc


def parse(url: str) -> Address:
    """Parses HOST, HOST:PORT or grpc://HOST:PORT; grpcs:// for TLS; dns:/// to balance over a name's addresses.

    Raises InvalidInput for anything else.
    """
    if not isinstance(url, str):
        raise InvalidInput(f"url {url!r:.60}: must be text, such as localhost:{_PORT}")
    match = _URL.fullmatch(url.strip())
    scheme = (match["scheme"] or "grpc") if match else ""
    if match is None or scheme not in ("grpc", "grpcs", "dns"):
        http = url.startswith(("http://", "https://"))
        why = "is an HTTP address, and this speaks gRPC" if http else "is not a server's address"
        raise InvalidInput(f"{url!r} {why}: give HOST:PORT, such as localhost:{_PORT}")
    port = int(match["port"] or _PORT)
    if not 0 < port < 65536:
        raise InvalidInput(f"{url!r}: a port is a number from 1 to 65535")
    return Address(match["host"].strip("[]"), port, secure=scheme == "grpcs", balanced=scheme == "dns")
