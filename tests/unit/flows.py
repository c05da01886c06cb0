"""The client's flows run without a server and without a clock: what they ask for, and what they make of the replies."""

from __future__ import annotations

import grpc

from atelier import _address, errors
from atelier._protocol import Core, Probe, Sleep

REFUSED = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:9: Connection refused"
FULL = "[request id: <id_unknown>] Exceeds maximum queue size"


class Failed(grpc.RpcError):
    """What gRPC raises, as far as the core looks at it."""

    def __init__(self, code: grpc.StatusCode, details: str = "", trailers: tuple[tuple[str, str], ...] = ()):
        self.code = lambda: code
        self.details = lambda: details
        self.trailing_metadata = lambda: trailers


class Clock:
    """Time passes only in pauses, and `call_s` in each call."""

    def __init__(self, call_s: float = 0.0) -> None:
        self.now, self.call_s = 0.0, call_s

    def __call__(self) -> float:
        return self.now


def core(*, patient: bool = False, timeout_s: float = 10.0, clock: Clock | None = None, uniform: float = 0.5):
    return Core(
        _address.parse("box:8001"),
        timeout_s=timeout_s,
        patient=patient,
        clock=clock or Clock(),
        uniform=lambda: uniform,
    )


def drive(flow, *replies, clock: Clock | None = None, accepts: bool = False):
    """Runs a flow on `replies`, the last one for ever: (its result or AtelierError, the steps it took)."""
    clock, waiting, steps = clock or Clock(), list(replies), []
    try:
        step = next(flow)
        while True:
            steps.append(step)
            reply = None
            if isinstance(step, Sleep):
                clock.now += step.seconds
            elif isinstance(step, Probe):
                reply = accepts
            else:
                clock.now += clock.call_s
                reply = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            step = flow.throw(reply) if isinstance(reply, grpc.RpcError) else flow.send(reply)
    except StopIteration as done:
        return done.value, steps
    except errors.AtelierError as exc:
        return exc, steps
