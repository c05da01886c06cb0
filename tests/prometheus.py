"""Debian's Prometheus, and what deploy/components/monitoring asks of it, with the pods' addresses given outright."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scripts
import yaml
from conftest import need
from waiting import until

DEPLOY = scripts.ROOT / "deploy"
NAMESPACE = "art"
PATIENCE_S = 60.0

Manifest = dict[str, Any]


def need_prometheus() -> None:
    """It comes with promtool."""
    need(shutil.which("prometheus") and shutil.which("promtool"), "`apt install prometheus` for these tests")


# --- what is applied


def rendered(folder: Path) -> list[Manifest]:
    """What `kubectl apply -k` would create of deploy/triton with the component monitoring; `folder` is the overlay."""
    need(shutil.which("kubectl"), "kubectl is not installed")
    (folder / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "resources": [os.path.relpath(DEPLOY / "triton", folder)],
                "components": [os.path.relpath(DEPLOY / "components" / "monitoring", folder)],
            }
        )
    )
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(manifests: Iterable[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def groups(manifests: Iterable[Manifest]) -> list[dict[str, Any]]:
    """The groups of all PrometheusRules, as a rules file has them."""
    return [group for rule in of_kind(manifests, "PrometheusRule") for group in rule["spec"]["groups"]]


def dashboards(manifests: Iterable[Manifest]) -> dict[str, dict[str, Any]]:
    """By file name, as Grafana's sidecar finds them."""
    found = {}
    for manifest in of_kind(manifests, "ConfigMap"):
        if "grafana_dashboard" in manifest["metadata"].get("labels", {}):
            found |= {name: json.loads(text) for name, text in manifest["data"].items()}
    return found


def asked(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    """The panels' titles and queries, with the variables at "All" and an interval for one-second scrapes."""
    return [
        (panel["title"], re.sub(r"\$(namespace|model|run)\b", ".*", target["expr"]).replace("$__rate_interval", "1m"))
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]


# --- what is scraped


@dataclass(frozen=True)
class Pod:
    """A pod of a rendered Deployment or Job; `addresses` says where its named ports are on this machine."""

    name: str
    template: Mapping[str, Any]
    addresses: Mapping[str, str]


def scrape_configs(monitors: Iterable[Manifest], pods: Iterable[Pod]) -> list[dict[str, Any]]:
    """What the operator makes of PodMonitors, but for the discovery, which would ask a cluster for its pods."""
    found = [target for pod in pods for target in _targets(pod)]
    return [
        _scrape_config(monitor, number, endpoint, found)
        for monitor in monitors
        for number, endpoint in enumerate(monitor["spec"]["podMetricsEndpoints"])
    ]


def _targets(pod: Pod) -> Iterator[dict[str, Any]]:
    labels = {f"__meta_kubernetes_pod_label_{_plain(k)}": v for k, v in pod.template["metadata"]["labels"].items()}
    for container in pod.template["spec"]["containers"]:
        for port in container["ports"]:
            yield {
                "targets": [pod.addresses.get(port["name"], "127.0.0.1:1")],
                "labels": {
                    "__meta_kubernetes_namespace": NAMESPACE,
                    "__meta_kubernetes_pod_name": pod.name,
                    "__meta_kubernetes_pod_container_name": container["name"],
                    "__meta_kubernetes_pod_container_port_name": port["name"],
                    **labels,
                },
            }


def _scrape_config(
    monitor: Manifest, number: int, endpoint: dict[str, Any], targets: list[dict[str, Any]]
) -> dict[str, Any]:
    name = f"{NAMESPACE}/{monitor['metadata']['name']}"
    selected = [
        _keep(f"pod_label_{_plain(key)}", value) for key, value in monitor["spec"]["selector"]["matchLabels"].items()
    ]
    named = [
        {"source_labels": [f"__meta_kubernetes_{source}"], "target_label": target}
        for source, target in (("namespace", "namespace"), ("pod_container_name", "container"), ("pod_name", "pod"))
    ]
    return {
        "job_name": f"podMonitor/{name}/{number}",
        "scrape_interval": "1s",
        "scrape_timeout": "1s",
        "static_configs": targets,
        "relabel_configs": [
            *selected,
            _keep("pod_container_port_name", endpoint["port"]),
            *named,
            {"target_label": "job", "replacement": name},
            {"target_label": "endpoint", "replacement": endpoint["port"]},
            *map(_relabelling, endpoint.get("relabelings", [])),
        ],
        "metric_relabel_configs": [_relabelling(each) for each in endpoint.get("metricRelabelings", [])],
    }


def _keep(label: str, value: str) -> dict[str, Any]:
    return {"action": "keep", "source_labels": [f"__meta_kubernetes_{label}"], "regex": re.escape(value)}


def _relabelling(given: dict[str, Any]) -> dict[str, Any]:
    """sourceLabels of the operator is source_labels of Prometheus."""
    return {re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", key): value for key, value in given.items()}


def _plain(label: str) -> str:
    return re.sub(r"\W", "_", label)


# --- the server


@dataclass(frozen=True)
class Prometheus:
    address: str

    def ask(self, query: str, at_s: float | None = None) -> list[dict[str, Any]]:
        """The samples of an instant query, each with `metric` and `value`: those of now, or of a moment before."""
        moment = {} if at_s is None else {"time": f"{at_s:.3f}"}
        return list(self._get("query", query=query, **moment)["result"])

    def values(self, query: str, *labels: str, at_s: float | None = None) -> dict[tuple[str, ...], float]:
        """The samples' values by those of their labels."""
        return {
            tuple(each["metric"].get(label, "") for label in labels): float(each["value"][1])
            for each in self.ask(query, at_s)
        }

    def wait(self, query: str) -> list[dict[str, Any]]:
        """The samples, as soon as there are some; fails the test if there never are."""
        return until(lambda: self.ask(query), lambda: f"no answer: {query}; targets: {self.down()}", pause_s=0.2)

    def down(self) -> list[str]:
        """Why targets are not scraped."""
        return [each["lastError"] for each in self._get("targets")["activeTargets"] if each["health"] != "up"]

    def _get(self, what: str, **parameters: str) -> dict[str, Any]:
        url = f"http://{self.address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            return dict(json.load(answer)["data"])


@contextlib.contextmanager
def running(folder: Path, scrapes: list[dict[str, Any]], rules: list[dict[str, Any]]) -> Iterator[Prometheus]:
    """A Prometheus of the test's own, which applies the rules every second."""
    hasty = [group | {"interval": "1s"} for group in rules]
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": hasty}))
    (folder / "prometheus.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "scrape_configs": scrapes}))
    address = f"127.0.0.1:{scripts.free_port()}"
    command = [
        "prometheus", f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'series'}",
        f"--web.listen-address={address}", "--log.level=warn",
    ]  # fmt: skip
    with (folder / "log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            _wait_until_ready(address, process, folder / "log")
            yield Prometheus(address)
        finally:
            process.terminate()


def _wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/-/ready", timeout=1):
            return True
        return False

    until(ready, log.read_text)
