"""The real tritonserver on this machine, without Docker or a GPU. Run: python -m serving.embedded

The server comes from the nvidia-pytriton wheel; serving/backends run the models on the CPU.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import re
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from serving import cli, local, wheel
from serving.errors import ServerError
from serving.local import EVERY_INTERFACE, START_TIMEOUT_S, LocalServer, Ports, Run, port_taken, servable
from serving.repository import CONTROL_HEADER, REPOSITORY, control_key

EXIT_TIMEOUT_S = 15  # for requests in flight to finish; shorter than the keeper's grace period
REASONS = (  # patterns in tritonserver's log, the most informative first
    r"(failed to load '.+' version \d+: .*)\"",
    r'(Poll failed .*)"',
    r"error: creating server: (.+)",
    r"tritonserver: (unrecognized option .+|option .+ requires an argument)",
)
MODELS = "models"
SPECIAL = re.compile(r"[^\w/.,:@%+=~#-]", re.ASCII)
"""Characters that a shell may interpret, or that a model's process, limited to ASCII, can't have in a path."""
RESTRICTED_APIS = "model-repository,shared-memory,trace,logging"
"""APIs that require a control key: those that change the server or reach into its memory. Whoever may load models may
run Python code of their own in the server."""


FREE = Ports(0, 0, 0)
INSTEAD = {
    "model-repository": "--repository",
    "model-store": "--repository",
    "load-model": "--model",
    "http-address": "--host",
    "grpc-address": "--host",
    "metrics-address": "--host",
    "http-port": "--http-port",
    "grpc-port": "--grpc-port",
    "metrics-port": "--metrics-port",
}
"""The option to give instead of tritonserver's own."""
KEPT = ("allow-http", "allow-grpc", "allow-metrics", "allow-sagemaker", "allow-vertex-ai")
"""Options that must keep their defaults: SageMaker's API loads models for anyone, on every interface."""
ADDED = ("backend-config", "metrics-config")
"""Options that may be repeated, and add to the values given before."""


class Embedded(LocalServer[Ports]):
    """A tritonserver that serves `repository`: `with Embedded(path) as server: connect(server.grpc)`.

    `models` names what to load, all by default. `http`, `grpc`, `metrics` are addresses ("127.0.0.1:8001"); inside the
    `with` block they are open and every model is ready. With a `control_key` only clients that send it may load models;
    without one, anyone who reaches gRPC on a loopback `host` may, and nobody on any other host. `options` are
    tritonserver's own (--grpc-use-ssl=true), except those set here; `show_log` copies its log to stderr. Raises
    ServerError with the server's own reason, PortTaken if a port requested by number is in use, RepositoryError if
    there is nothing to serve.
    """

    program = "tritonserver"

    def __init__(
        self,
        repository: Path | str = REPOSITORY,
        *,
        models: Sequence[str] = (),
        host: str = "127.0.0.1",
        ports: Ports = FREE,
        timeout_s: float = START_TIMEOUT_S,
        control_key: str | None = None,
        options: Sequence[str] = (),
        show_log: bool = False,
    ) -> None:
        self.repository = Path(repository)
        self.models = servable(self.repository, models)
        super().__init__(host=host, ports=ports, timeout_s=timeout_s, show_log=show_log)
        self.control_key = control_key
        self.options = tuple(options)
        _check_options(self)

    def command(self, run: Run[Ports]) -> tuple[list[str], dict[str, str]]:
        found = wheel.find()
        # Triton's Python backend starts its processes through a shell and quotes nothing, so it only sees our paths.
        if found_one := SPECIAL.search(str(run.folder)):
            without = f"name a folder without {found_one[0]!r} in its path"
            raise ServerError(f"TMPDIR: tritonserver can't run in {run.folder.parent}; {without}")
        backends, repository = found.assemble(run.folder / "backends"), run.folder / MODELS
        repository.symlink_to(self.repository.resolve())
        return [str(found.binary), *_arguments(self, run.ports, run.id, backends, repository)], found.environment()

    def is_ready(self, run: Run[Ports]) -> bool:
        metadata = run.get(run.ports.http, "/v2")
        return (
            metadata is not None
            and run.id.encode() in metadata
            and run.get(run.ports.http, "/v2/health/ready") is not None
            and run.get(run.ports.metrics, "/metrics") is not None
        )

    def failure(self, run: Run[Ports]) -> ServerError | None:
        text = run.log.read_text(errors="replace")
        if lost := re.search(r"failed to start (\w+) service: Unavailable - Socket", text):
            name = lost[1].lower()
            if self.options and _are_free(run.ports, self.host):
                why = f"can't open its {lost[1]} port with the options {' '.join(self.options)}"
                return ServerError(f"{self.program} {why}; its log: {run.log}")
            run.log.unlink(missing_ok=True)
            return port_taken(name, vars(run.ports)[name])
        for pattern in REASONS:
            if reason := re.search(pattern, text):
                said = _readable(reason[1]).replace(str(run.folder / MODELS), str(self.repository.resolve()))
                return ServerError(f"{said}; {self.program}'s log: {run.log}")
        return None


def _are_free(ports: Ports, host: str) -> bool:
    try:
        ports.resolved(host)
    except ServerError:
        return False
    return True


def _check_options(server: Embedded) -> None:
    """Raises ServerError for an option that would override one set here: an address, a guard, the models to load."""
    decided = [*INSTEAD, *KEPT, *_settings(server, FREE, "", Path(), Path())]
    ours = [f"--{name}" for name in decided if name not in ADDED]
    for option in server.options:
        given = option.partition("=")[0]
        for name in ours:
            if len(given) > len("--") and name.startswith(given):  # tritonserver accepts abbreviated names, too
                own = INSTEAD.get(name.removeprefix("--"))
                instead = f"give {own} before the --" if own else "leave it out"
                raise ServerError(f"{option}: serving.embedded decides on {name} itself; {instead}")


def _settings(server: Embedded, ports: Ports, run_id: str, backends: Path, repository: Path) -> dict[str, object]:
    return {
        "id": run_id,
        "model-repository": repository,
        "backend-directory": backends,
        "backend-config": f"python,shm-region-prefix-name={run_id}",
        "model-control-mode": "explicit",
        "strict-readiness": "false",  # a strict server is not ready while it changes versions, or after a failed load
        "exit-timeout-secs": EXIT_TIMEOUT_S,
        "http-address": server.host,
        "grpc-address": server.host,
        "metrics-address": server.host,
        "http-port": ports.http,
        "grpc-port": ports.grpc,
        "metrics-port": ports.metrics,
        "metrics-config": "summary_latencies=true",  # its only quantiles; 146 µs of CPU per request, 144 without
        "allow-gpu-metrics": "false",
        "pinned-memory-pool-byte-size": 0,
    }


def _arguments(server: Embedded, ports: Ports, run_id: str, backends: Path, repository: Path) -> list[str]:
    options = _settings(server, ports, run_id, backends, repository)
    loads = [f"--load-model={name}" for name in server.models]
    given = [f"--{key}={value}" for key, value in options.items()]
    return ["--disable-auto-complete-config", *given, *_restricted(server), *loads, *server.options]


def _restricted(server: Embedded) -> list[str]:
    """The options that restrict RESTRICTED_APIS: always over HTTP, as any page in a browser can post to it, and over
    gRPC beyond this machine. Without a control key these APIs require a random one, which nobody has."""
    rule = f"{RESTRICTED_APIS}:{CONTROL_HEADER}={server.control_key or secrets.token_hex(32)}"
    arguments = [f"--http-restricted-api={rule}"]
    if server.control_key or not ipaddress.ip_address(server.host).is_loopback:
        arguments.append(f"--grpc-restricted-protocol={rule}")
    return arguments


def _readable(reason: str) -> str:
    without_traceback = reason.partition(r"\n\nAt:")[0]
    return without_traceback.replace(r"\n", " ").replace("Internal: TritonModelException: ", "").strip()


# --- command line


def main(arguments: Sequence[str] | None = None) -> int:
    return local.run(_serve, _parser().parse_args(arguments))


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m serving.embedded", description="The real tritonserver on this machine.")
    local.add_options(parser, Ports())
    parser.add_argument("--host", default="127.0.0.1", help=f"{EVERY_INTERFACE} listens on every interface")
    guarded = (
        "load models only for who sends the repository's key, which `serving.repository seed` makes and the list of "
        "processes shows. Without it, all may over gRPC where --host is a loopback address, and nobody in any other way"
    )
    parser.add_argument("--guarded", action="store_true", help=guarded)
    further = "tritonserver's own options, after --, such as -- --grpc-max-connection-age=10000"
    parser.add_argument("options", nargs="*", type=_option, metavar="OPTION", help=further)
    return parser


def _option(text: str) -> str:
    if not text.startswith("--"):
        raise argparse.ArgumentTypeError(f"{text!r} is no option of tritonserver, such as --log-verbose=1")
    return text


def _serve(options: argparse.Namespace) -> None:
    began = time.monotonic()
    with Embedded(
        options.repository,
        models=options.model,
        host=options.host,
        ports=local.requested_ports(options, Ports()),
        control_key=control_key(options.repository) if options.guarded else None,
        options=options.options,
        show_log=options.show_log,
    ) as server:
        addresses = {"http": server.http, "grpc": server.grpc, "metrics": server.metrics}
        if options.json:
            print(json.dumps(addresses), flush=True)
        else:
            print(_announcement(server, time.monotonic() - began), flush=True)
        local.wait(server, options.with_parent)


def _announcement(server: Embedded, seconds: float) -> str:
    return f"""\
Triton serves {", ".join(server.models)} from {server.repository} (ready in {seconds:.1f} s; Ctrl-C ends it)
  gRPC     {server.grpc}
  HTTP     http://{server.http}
  metrics  http://{server.metrics}/metrics
  log      {server.log}"""


if __name__ == "__main__":
    sys.exit(main())
