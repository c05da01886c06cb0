"""TorchServe on this machine, with the models of a repository. Run: python -m serving.torchserve

It listens on loopback only, and every call needs a token from the file whose path it prints.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

from serving import cli, local
from serving.torchserve.server import Ports, TorchServe


def main(arguments: Sequence[str] | None = None) -> int:
    return local.run(_serve, _parser().parse_args(arguments))


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m serving.torchserve", description="TorchServe on this machine, on loopback.")
    local.add_options(parser, Ports())
    return parser


def _serve(options: argparse.Namespace) -> None:
    ports, began = local.requested_ports(options, Ports()), time.monotonic()
    with TorchServe(options.repository, models=options.model, ports=ports, show_log=options.show_log) as server:
        if options.json:
            print(json.dumps(_addresses(server)), flush=True)
        else:
            print(_announcement(server, time.monotonic() - began), flush=True)
        local.wait(server, options.with_parent)


def _addresses(server: TorchServe) -> dict[str, str]:
    return {
        "http": server.http,
        "grpc": server.grpc,
        "metrics": server.metrics,
        "management": server.management,
        "keys": str(server.keys),
    }


def _announcement(server: TorchServe, seconds: float) -> str:
    left_out = "".join(f"\n  left out    {name}: {reason}" for name, reason in server.left_out.items())
    return f"""\
TorchServe serves {", ".join(server.models)} from {server.repository} (ready in {seconds:.1f} s; Ctrl-C ends it)
  gRPC        {server.grpc}
  HTTP        http://{server.http}
  management  http://{server.management}
  metrics     http://{server.metrics}/metrics
  tokens      {server.keys}
  log         {server.log}{left_out}"""


if __name__ == "__main__":
    sys.exit(main())
