"""TorchServe on this machine, on loopback only, with the models of a repository."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from serving import local, wheel
from serving.errors import RepositoryError, ServerError
from serving.local import LocalServer, Run, port_taken, servable
from serving.repository import REPOSITORY, config
from serving.torchserve import archive

LOOPBACK = "127.0.0.1"
KEYS = "key_file.json"
START_TIMEOUT_S = 300.0
"""Each worker imports torch first, which takes a core about two seconds."""
PACKAGES = {"ts": "torchserve", "torch": "torch", "yaml": "pyyaml", "psutil": "psutil"}
"""Modules that TorchServe imports here, and their packages; without one, workers die and restart, and requests hang."""
NEXT_STEP = "run `make setup`, or `pip install '.[torchserve]'`"
JAVA = "Java 17: `apt install openjdk-17-jre-headless`, or set JAVA_HOME"
WORKER_FAILURE = re.compile(r"MODEL_LOG ([\w.]*(?:Error|Exception): .+)")
MODEL_EXCEPTION = "triton_python_backend_utils.TritonModelException: "
ITS_VARIABLES = ("TS_", "LOG_LOCATION", "METRICS_LOCATION")
"""Prefixes of the environment variables that TorchServe takes settings from; its workers need none of them."""
MAX_MESSAGE_BYTES = 1 << 28
TOKEN_LIFETIME_MIN = 10 * 366 * 24 * 60
"""Tokens last as long as the server, instead of an hour, after which all requests would be refused."""
LOG4J = """\
<Configuration>
  <Appenders><Console name="out"><PatternLayout pattern="%d{ISO8601} %p %c %m%n"/></Console></Appenders>
  <Loggers>
    <Root level="warn"><AppenderRef ref="out"/></Root>
    <Logger name="MODEL_LOG" level="info"/>
  </Loggers>
</Configuration>
"""
"""Without the line per request that TorchServe logs by default."""


@dataclass(frozen=True)
class Ports(local.Ports):
    """TorchServe's default ports, which differ from Triton's."""

    http: int = 8080
    grpc: int = 7070
    metrics: int = 8082
    management: int = 8081
    management_grpc: int = 7071


FREE = Ports(0, 0, 0, 0, 0)


class TorchServe(LocalServer[Ports]):
    """A TorchServe that serves models of `repository`: `with TorchServe(path) as server: post(server.http, …)`.

    Every worker of every model is up once entered. Each call needs a token: `token` for inference, `management_token`
    at `management`, where models can be inspected and scaled but not added. `left_out` names models that the
    handler can't serve, with the reason. Raises as serving.embedded.Embedded does.
    """

    program = "TorchServe"
    writes_to_cwd = True

    def __init__(
        self,
        repository: Path | str = REPOSITORY,
        *,
        models: Sequence[str] = (),
        ports: Ports = FREE,
        show_log: bool = False,
    ) -> None:
        self.repository = Path(repository)
        self.models, self.left_out = _fit(self.repository, models)
        super().__init__(host=LOOPBACK, ports=ports, timeout_s=START_TIMEOUT_S, show_log=show_log)

    @property
    def management(self) -> str:
        return self.address(self.running.ports.management)

    @property
    def keys(self) -> Path:
        """The file with the tokens, which only its owner can read."""
        return self.running.folder / KEYS

    @property
    def token(self) -> str:
        return _tokens(self.keys)["inference"]

    @property
    def management_token(self) -> str:
        return _tokens(self.keys)["management"]

    @cached_property
    def workers(self) -> int:
        return sum(archive.workers(config(self.repository, model)) for model in self.models)

    def command(self, run: Run[Ports]) -> tuple[list[str], dict[str, str]]:
        java, home = find()
        store, settings, log4j = (run.folder / name for name in ("models", "config.properties", "log4j2.xml"))
        store.mkdir()
        for model in self.models:
            archive.write(self.repository, model, store)
        settings.write_text("".join(f"{key}={value}\n" for key, value in _settings(run.ports, store).items()))
        log4j.write_text(LOG4J)
        properties = {
            "java.io.tmpdir": run.folder,
            "log4j.configurationFile": log4j.as_uri(),
            "model_server_home": home,
        }
        jvm_options = [*(f"-D{key}={value}" for key, value in properties.items()), "-XX:-UsePerfData"]
        main_class = ["-cp", f"{home}/ts/frontend/*", "org.pytorch.serve.ModelServer"]
        arguments = ["--python", sys.executable, "-f", str(settings), "-s", str(store), "-ncs"]
        return [java, *jvm_options, *main_class, *arguments], _environment()

    def is_ready(self, run: Run[Ports]) -> bool:
        """TorchServe itself reports "Healthy" before any worker is up; but each worker that is up has a metric."""
        if failed := _worker_failure(run):
            raise failed
        metrics = run.get(run.ports.metrics, "/metrics") or b""
        if metrics.count(b"\nWorkerLoadTime{") < self.workers or not (keys := run.folder / KEYS).exists():
            return False
        return run.get(run.ports.http, "/ping", {"Authorization": f"Bearer {_tokens(keys)['inference']}"}) is not None

    def failure(self, run: Run[Ports]) -> ServerError | None:
        text = run.log.read_text(errors="replace")
        if "UnsupportedClassVersionError" in text:
            run.log.unlink(missing_ok=True)
            return ServerError(f"TorchServe needs {JAVA}; the one found is older")
        for name, port in vars(run.ports).items():
            if re.search(rf"Failed to bind to address:? \S*:{port}\b", text):
                run.log.unlink(missing_ok=True)
                return port_taken(name, port)
        return None


def _environment() -> dict[str, str]:
    """Our environment without variables that override these settings: TS_CONFIG_FILE takes precedence over `-f`."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(ITS_VARIABLES)}
    return ours | wheel.MALLOC


def _fit(repository: Path, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The models to serve, and why the others are left out. Raises RepositoryError for a named one that is unfit."""
    reasons = {name: archive.unfit(config(repository, name)) for name in servable(repository, names)}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    if left_out and (names or len(left_out) == len(reasons)):
        name, reason = next(iter(left_out.items()))
        raise RepositoryError(f"--model {name}: {reason}, so not served here; python -m serving.embedded serves it")
    return [name for name in reasons if name not in left_out], left_out


def _settings(ports: Ports, store: Path) -> dict[str, Any]:
    return {
        "inference_address": f"http://{LOOPBACK}:{ports.http}",
        "management_address": f"http://{LOOPBACK}:{ports.management}",
        "metrics_address": f"http://{LOOPBACK}:{ports.metrics}",
        "grpc_inference_address": LOOPBACK,
        "grpc_management_address": LOOPBACK,
        "grpc_inference_port": ports.grpc,
        "grpc_management_port": ports.management_grpc,
        "disable_token_authorization": "false",
        "token_expiration_min": TOKEN_LIFETIME_MIN,
        "enable_model_api": "false",
        "allowed_urls": "(?!)",  # a pattern that nothing matches
        "model_store": store,
        "load_models": "all",
        "number_of_gpu": 0,  # as in the embedded Triton, the graphs run on the CPU
        "max_request_size": MAX_MESSAGE_BYTES,
        "max_response_size": MAX_MESSAGE_BYTES,
        "metrics_mode": "prometheus",
        "disable_system_metrics": "true",  # they would start a Python process each minute
        "async_logging": "true",
    }


def find() -> tuple[str, Path]:
    """The path of Java, and the folder with TorchServe's package. Raises ServerError if something is not installed."""
    found = {name: importlib.util.find_spec(name) for name in PACKAGES}
    if missing := [PACKAGES[name] for name, spec in found.items() if spec is None]:
        raise ServerError(f"TorchServe needs {', '.join(missing)}, which is not installed: {NEXT_STEP}")
    home = os.environ.get("JAVA_HOME")
    java = shutil.which(f"{home}/bin/java" if home else "java")
    if java is None:
        raise ServerError(f"TorchServe needs {JAVA}")
    assert found["ts"] is not None
    assert found["ts"].origin is not None
    return java, Path(found["ts"].origin).parents[1]


def _tokens(keys: Path) -> dict[str, str]:
    return {name: entry["key"] for name, entry in json.loads(keys.read_text()).items()}


def _worker_failure(run: Run[Ports]) -> ServerError | None:
    """The error of a worker that could not load its model; TorchServe itself would retry for minutes."""
    match = WORKER_FAILURE.search(run.log.read_text(errors="replace"))
    if match is None:
        return None
    reason = re.sub(rf"{re.escape(str(run.folder))}/models/\w+/", "", match[1]).replace(MODEL_EXCEPTION, "")
    return ServerError(f"{reason}; {TorchServe.program}'s log: {run.log}")
