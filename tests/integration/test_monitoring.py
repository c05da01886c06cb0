"""A real Prometheus scrapes two Tritons under load, a reloader and a training run, and every question has an answer."""

from __future__ import annotations

import concurrent.futures
import contextlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import prometheus
import pytest
import scripts
import stand_in
import tritonclient.grpc as triton
import yaml
from conftest import need_tritonserver
from prometheus import NAMESPACE, Manifest, Pod, Prometheus

from serving import pbtxt
from serving.embedded import Embedded

BUSY, CALM = "atelier-triton-busy", "atelier-triton-calm"
OF_EACH_REPLICA = ("pod_model:atelier_requests:rate5m", "pod:atelier_queue_seconds:per_request2m")
CALLERS = 6
CROWD = 100
"""Callers at once, more than style's queue holds."""
NOT_HERE = {
    "kube_": "kube-state-metrics watches an API server, and there is none",
    "kubelet_": "the kubelet counts what is on volumes, and there is none",
    "nv_gpu_": "Triton counts what GPUs do, and there is none",
}
"""Metrics that only a cluster has."""


def elsewhere(query: str) -> bool:
    return any(prefix in query for prefix in NOT_HERE)


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    return prometheus.rendered(tmp_path_factory.mktemp("overlay"))


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, monitored: list[Manifest]) -> Iterator[Prometheus]:
    """The Prometheus of a small cluster: its calm replica has not taken version 2 of the classifier yet."""
    need_tritonserver()
    prometheus.need_prometheus()
    folder = tmp_path_factory.mktemp("monitoring")
    with contextlib.ExitStack() as held:
        busy, calm = (
            held.enter_context(Embedded(stand_in.repository(folder / name, versions, stand_in.CLASSIFIER)))
            for name, versions in ((BUSY, (1, 2)), (CALM, (1,)))
        )
        metrics = {name: f"127.0.0.1:{scripts.free_port()}" for name in ("reload", "train")}
        held.enter_context(_reloading(folder / BUSY, busy.grpc, metrics["reload"]))
        held.enter_context(_training(folder, metrics["train"]))
        templates = _templates((*monitored, *yaml.safe_load_all((prometheus.DEPLOY / "train-wgan.yaml").read_text())))
        pods = [
            Pod(BUSY, templates["atelier-triton"], {"metrics": busy.metrics}),
            Pod(CALM, templates["atelier-triton"], {"metrics": calm.metrics}),
            Pod("atelier-reload-x", templates["atelier-reload"], {"metrics": metrics["reload"]}),
            Pod("train-wgan-x", templates["train-wgan"], {"metrics": metrics["train"]}),
        ]
        scrapes = prometheus.scrape_configs(prometheus.of_kind(monitored, "PodMonitor"), pods)
        held.enter_context(_load(busy.grpc, CALLERS))
        held.enter_context(_load(calm.grpc, 1))
        found = held.enter_context(prometheus.running(folder, scrapes, prometheus.groups(monitored)))
        for rule in OF_EACH_REPLICA:  # a busy one may miss its first scrapes
            found.wait(f"count(count by (pod) ({rule})) == 2")
        yield found


def _templates(manifests: Iterable[Manifest]) -> dict[str, Manifest]:
    """Of the pods of each Deployment and Job."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]
        for each in manifests
        if each["kind"] in ("Deployment", "Job")
    }


@contextlib.contextmanager
def _running(*command: object) -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, "-m", *map(str, command)], cwd=scripts.ROOT, stdout=subprocess.DEVNULL
    ) as it:
        try:
            yield
        finally:
            it.terminate()


def _reloading(repository: Path, server: str, metrics: str) -> contextlib.AbstractContextManager[None]:
    port = metrics.rpartition(":")[2]
    return _running(
        "serving.reload", "--watch", "--repository", repository, "--servers", server, "--metrics-port", port
    )


def _training(folder: Path, metrics: str) -> contextlib.AbstractContextManager[None]:
    """A run that goes on until it is stopped."""
    port = metrics.rpartition(":")[2]
    endless = ("--steps", 100000, "--samples-every", 100000)
    places = ("--runs", folder / "runs", "--publish", folder / "published", "--metrics-port", port)
    return _running("training.run", "wgan", "--preset", "tiny", *endless, *places)


@contextlib.contextmanager
def _load(server: str, callers: int) -> Iterator[None]:
    """Callers that ask the classifier, each for itself; every tenth request of theirs may not wait at all."""
    stop = threading.Event()
    threads = [threading.Thread(target=_ask, args=(server, stop)) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _ask(server: str, stop: threading.Event) -> None:
    picture = triton.InferInput("image", [1, 28, 28, 1], "UINT8")
    picture.set_data_from_numpy(np.zeros((1, 28, 28, 1), np.uint8))
    with triton.InferenceServerClient(server) as client:
        asked = 0
        while not stop.wait(0.002):
            asked += 1
            with contextlib.suppress(triton.InferenceServerException):  # shed
                client.infer("classifier", [picture], timeout=1 if asked % 10 == 0 else None)


def test_every_target_answers(watched):
    """The PodMonitors find each pod by its labels and port, each once, under the job that rules name."""
    watched.wait("count(up == 1) == 4")
    assert watched.values("up", "job", "namespace", "pod", "container") == {
        ("atelier-triton", NAMESPACE, BUSY, "triton"): 1,
        ("atelier-triton", NAMESPACE, CALM, "triton"): 1,
        ("atelier-reload", NAMESPACE, "atelier-reload-x", "reload"): 1,
        ("atelier-training", NAMESPACE, "train-wgan-x", "train"): 1,
    }


def test_every_rule_has_an_answer(watched, monitored):
    """Each recorded series is there, with a number for the model that is asked."""
    for rule in (rule for group in prometheus.groups(monitored) for rule in group["rules"] if "record" in rule):
        assert not elsewhere(rule["expr"])
        watched.wait(f"{rule['record']} >= 0")


def test_every_alert_looks_at_series_that_exist(watched, monitored):
    """Each metric that an alert names is there, but for what a cluster alone has and what a Pushgateway adds."""
    alerts = [rule for group in prometheus.groups(monitored) for rule in group["rules"] if "alert" in rule]
    named = {name for rule in alerts for name in _metrics(rule["expr"]) if not elsewhere(name)}
    assert len(named) > 8
    for name in named - {"push_time_seconds"}:
        watched.wait(name)


def _metrics(expression: str) -> set[str]:
    """Names of series in it."""
    return set(re.findall(r"\b(?:[a-z_]+:)?(?:up|(?:nv|kube|kubelet|atelier|push)_\w+)(?::\w+)?", expression))


def test_every_panel_has_an_answer(watched, monitored):
    """Each query of each dashboard is answered, but for those of metrics that only a cluster has."""
    boards = prometheus.dashboards(monitored)
    assert set(boards) == {"atelier-serving.json", "atelier-training.json"}
    unanswered = []
    for board in boards.values():
        for title, query in prometheus.asked(board):
            if elsewhere(query):
                unanswered.append(title)
            else:
                watched.wait(query)
    assert sorted(set(unanswered)) == ["Autoscaler", "GPU memory", "GPU utilisation", "Volumes, free"]


def test_every_variable_has_values(watched, monitored):
    """What dashboards can be narrowed to is found by their own queries."""
    for board in prometheus.dashboards(monitored).values():
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
                query = re.sub(r"\$\w+", ".*", series)
                assert all(label in each["metric"] for each in watched.wait(query)), variable["name"]


def test_numbers_are_of_each_replica(watched):
    """Shares of what is asked: the busy replica answers more, and a shed request is neither answered nor an error."""
    watched.wait('model:atelier_shed:ratio5m{model="classifier"} > 0')
    requests = watched.values("pod_model:atelier_requests:rate5m", "namespace", "pod", "model")
    assert set(requests) == {(NAMESPACE, pod, "classifier") for pod in (BUSY, CALM)}
    assert requests[NAMESPACE, BUSY, "classifier"] > requests[NAMESPACE, CALM, "classifier"] > 0
    ratios = [f"model:atelier_{what}:ratio5m" for what in ("shed", "errors", "goodput")]
    # The rules go on meanwhile: all three are asked for as one evaluation left them.
    at_s = min(float(each["value"][1]) for ratio in ratios for each in watched.wait(f"timestamp({ratio})"))
    (shed,), (errors,), (goodput,) = (watched.values(ratio, at_s=at_s).values() for ratio in ratios)
    assert errors == 0
    assert goodput + shed == pytest.approx(1)


def test_versions_that_differ_are_seen(watched, monitored):
    """Version 2 is on one replica of two: what AtelierVersionsDiffer asks for is there while that lasts."""
    (alert,) = [
        rule
        for group in prometheus.groups(monitored)
        for rule in group["rules"]
        if rule.get("alert") == "AtelierVersionsDiffer"
    ]
    watched.wait(alert["expr"])
    assert watched.values(alert["expr"], "model", "version") == {("classifier", "2"): 1}


def test_the_p99_is_a_bound(watched):
    """The one of a model is the largest of its replicas' and versions'."""
    watched.wait("model:atelier_request_seconds:p99_bound > 0")
    agree = 'nv_inference_request_summary_us{quantile="0.99"} / 1e6 <= on (namespace, model) group_left () '
    assert watched.ask(agree + "model:atelier_request_seconds:p99_bound")


def test_quantiles_of_parts_are_dropped(watched):
    """What nothing here asks for is not stored; what is asked for is."""
    watched.wait('nv_inference_request_summary_us{quantile="0.5"}')
    assert watched.ask('{__name__=~"nv_inference_compute_.+_summary_us.*"}') == []


def test_the_autoscaler_gets_its_metric(watched, monitored):
    """What the adapter would ask for each pod has one answer for each, under the name that the autoscaler knows."""
    values = yaml.safe_load((prometheus.DEPLOY / "components/monitoring/prometheus-adapter-values.yaml").read_text())
    (rule,) = values["rules"]["custom"]
    (autoscaler,) = prometheus.of_kind(monitored, "HorizontalPodAutoscaler")
    (metric,) = autoscaler["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    (found, *_) = watched.wait(rule["seriesQuery"])
    assert {"namespace", "pod"} <= set(found["metric"])
    query = (
        rule["metricsQuery"]
        .replace("<<.Series>>", found["metric"]["__name__"])
        .replace("<<.LabelMatchers>>", f'namespace="{NAMESPACE}",pod=~"{BUSY}|{CALM}"')
        .replace("<<.GroupBy>>", "pod")
    )
    waits = watched.values(query, "pod")
    assert set(waits) == {(BUSY,), (CALM,)}
    assert all(0 <= wait < 10 for wait in waits.values())


def test_kedas_query_has_an_answer(watched):
    """The component keda asks the same Prometheus, by the job that the PodMonitor sets."""
    (scaled,) = yaml.safe_load_all((prometheus.DEPLOY / "components/keda/scaledobject.yaml").read_text())
    (trigger,) = scaled["spec"]["triggers"]
    assert len(watched.wait(trigger["metadata"]["query"])) == 1


# --- a full queue, which Triton counts nowhere


SLOW = """
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.05)
        tensors = [pb_utils.get_input_tensor_by_name(request, "number").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("same", tensor)]) for tensor in tensors]
"""


def _slow_model(folder: Path) -> Path:
    """A repository whose `style` has the queue of the real one, and takes its time."""
    (folder / "style" / "1").mkdir(parents=True)
    (folder / "style" / "1" / "model.py").write_text(SLOW)
    policy = pbtxt.config(stand_in.STYLE).dynamic_batching.default_queue_policy
    (folder / "style" / "config.pbtxt").write_text(
        "name: 'style' backend: 'python' max_batch_size: 4 instance_group { kind: KIND_CPU }\n"
        "input { name: 'number' data_type: TYPE_FP32 dims: 1 } output { name: 'same' data_type: TYPE_FP32 dims: 1 }\n"
        f"dynamic_batching {{ preferred_batch_size: 1 default_queue_policy {{ {policy} }} }}"
    )
    return folder


@contextlib.contextmanager
def _crowd(server: str) -> Iterator[list[str]]:
    """Callers of style, who come again when they are answered, and later when they are not. Yields the reasons why."""
    stop, refusals = threading.Event(), list[str]()
    number = triton.InferInput("number", [1, 1], "FP32")
    number.set_data_from_numpy(np.zeros((1, 1), np.float32))

    def call(client: triton.InferenceServerClient) -> None:
        while not stop.is_set():
            try:
                client.infer("style", [number])
            except triton.InferenceServerException as refusal:
                refusals.append(refusal.message())
                stop.wait(0.2)

    with triton.InferenceServerClient(server) as client, concurrent.futures.ThreadPoolExecutor(CROWD) as threads:
        callers = [threads.submit(call, client) for _ in range(CROWD)]
        try:
            yield refusals
        finally:
            stop.set()
        for caller in callers:
            caller.result()


def test_a_full_queue_is_seen(tmp_path, monitored):
    """Callers are turned away, which no failure metric counts; but scrapes find the queue full, as the alert asks."""
    need_tritonserver()
    prometheus.need_prometheus()
    with contextlib.ExitStack() as held:
        server = held.enter_context(Embedded(_slow_model(tmp_path / "models")))
        refusals = held.enter_context(_crowd(server.grpc))
        pod = Pod("atelier-triton-x", _templates(monitored)["atelier-triton"], {"metrics": server.metrics})
        scrapes = prometheus.scrape_configs(prometheus.of_kind(monitored, "PodMonitor"), [pod])
        found = held.enter_context(prometheus.running(tmp_path, scrapes, prometheus.groups(monitored)))
        (alert,) = (
            rule
            for group in prometheus.groups(monitored)
            for rule in group["rules"]
            if rule.get("alert") == "AtelierShedding"
        )
        assert len(found.wait(alert["expr"])) == 1
        assert found.values(alert["expr"], "namespace", "model").keys() == {(NAMESPACE, "style")}
        counted = found.values('nv_inference_request_failure{model="style"}', "reason")
    full = [refusal for refusal in refusals if "Exceeds maximum queue size" in refusal]
    assert len(full) > 100
    # On a busy machine something else may befall a request, and that is counted.
    assert counted
    assert sum(counted.values()) <= len(refusals) - len(full), set(refusals)
