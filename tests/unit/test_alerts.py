"""Prometheus takes the rules, and each alert fires when it should and only then."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import prometheus
import pytest
import yaml

from serving import pbtxt
from serving.spec import Ensemble
from training import catalog

CASES = Path(__file__).with_name("alerts.yaml")


Manifests = list[prometheus.Manifest]


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    return prometheus.rendered(tmp_path_factory.mktemp("overlay"))


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    prometheus.need_prometheus()
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=120)


def judged(manifests: Manifests, folder: Path) -> subprocess.CompletedProcess[str]:
    """`promtool test rules` on alerts.yaml. It compares all annotations, of which summaries are enough to hold."""
    for manifest in copy.deepcopy(prometheus.of_kind(manifests, "PrometheusRule")):
        for rule in (rule for group in manifest["spec"]["groups"] for rule in group["rules"] if "alert" in rule):
            rule["annotations"] = {"summary": rule["annotations"]["summary"]}
        name = manifest["metadata"]["name"].removeprefix("atelier-")
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(manifest["spec"]))
    shutil.copy(CASES, folder / "cases.yaml")
    return promtool("test", "rules", folder / "cases.yaml")


def alerts(manifests: Manifests) -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in prometheus.groups(manifests) for rule in group["rules"] if "alert" in rule}


def cases(alert: str) -> list[dict[str, Any]]:
    tests = yaml.safe_load(CASES.read_text())["tests"]
    return [case for test in tests for case in test.get("alert_rule_test", []) if case["alertname"] == alert]


def test_prometheus_takes_the_rules(monitored, tmp_path):
    """`promtool check rules` finds nothing, and as many rules as the manifests hold."""
    groups = prometheus.groups(monitored)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    done = promtool("check", "rules", "--lint-fatal", tmp_path / "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{sum(len(group['rules']) for group in groups)} rules found" in done.stdout


def test_alerts_fire_when_they_should(monitored, tmp_path):
    """alerts.yaml holds: labels and summaries of what fires, and silence else."""
    done = judged(monitored, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("was", "becomes"), [("for: 15m", "for: 0s"), ("> 0.01", "> 0"), (" offset 30m", "")])
def test_a_changed_alert_is_noticed(was, becomes, monitored, tmp_path):
    """The cases can fail: alerts without their patience, their thresholds or their memory don't pass."""
    text = yaml.safe_dump(monitored)
    assert was in text
    assert judged(yaml.safe_load(text.replace(was, becomes)), tmp_path).returncode == 1


def test_each_alert_has_a_case_of_either_kind(monitored):
    """Every alert is seen to fire, and seen to be silent while its series are there."""
    for alert in alerts(monitored):
        assert any(case.get("exp_alerts") for case in cases(alert)), f"{alert} is never seen to fire"
        assert any(not case.get("exp_alerts") for case in cases(alert)), f"{alert} is never seen to be silent"


def test_what_alerts_say_is_filled_in(monitored):
    """Every label that a summary or description names is one that the alert carries when it fires."""
    for name, alert in alerts(monitored).items():
        (labels, *_) = [set(each["exp_labels"]) for case in cases(name) for each in case.get("exp_alerts", [])]
        said = alert["annotations"]["summary"] + alert["annotations"]["description"]
        assert set(re.findall(r"\$labels\.(\w+)", said)) <= labels, name
        assert alert["labels"]["severity"] in ("critical", "warning")


def test_runbook_knows_each_alert(monitored):
    """The page that the annotation names has the heading, and under it a row for each alert, and for no other."""
    for name, alert in alerts(monitored).items():
        page, _, anchor = alert["annotations"]["runbook"].partition("#")
        text = (prometheus.DEPLOY.parent / page).read_text()
        heading = next((line for line in text.splitlines() if re.fullmatch(rf"#+ {anchor}", line, re.IGNORECASE)), None)
        assert heading, f"{page} has no heading {anchor}"
        section = text.partition(f"\n{heading}\n")[2].partition("\n#")[0]
        assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(alerts(monitored)), name


# --- what rules and panels say of the project


def test_rules_know_each_queues_limit(monitored):
    """Each model that has a queue, with its max_queue_size of config.pbtxt, and no other."""
    rules = [rule for group in prometheus.groups(monitored) for rule in group["rules"]]
    limits = [rule for rule in rules if rule.get("record") == "model:atelier_queue_limit:requests"]
    specs = [catalog.served(name) for name in catalog.names()]
    queues = {spec.name: pbtxt.config(spec).dynamic_batching.default_queue_policy.max_queue_size for spec in specs}
    assert {rule["labels"]["model"]: rule["expr"] for rule in limits} == {
        name: f"vector({size})" for name, size in queues.items() if size
    }


def test_rules_know_the_ensembles(monitored):
    """Those whose failures Triton counts twice, under OTHER."""
    (rule,) = (
        rule
        for group in prometheus.groups(monitored)
        for rule in group["rules"]
        if rule.get("record") == "model_reason:atelier_failures:rate5m"
    )
    ensembles = {name for name in catalog.names() if isinstance(catalog.served(name), Ensemble)}
    assert set(re.findall(r'model!?="([^"]+)"', rule["expr"])) == ensembles


def test_only_our_triton_is_looked_at(monitored):
    """Rules, panels and their variables ask for Triton's own metrics by the job that the PodMonitor sets."""
    asked = [rule["expr"] for group in prometheus.groups(monitored) for rule in group["rules"]]
    for board in prometheus.dashboards(monitored).values():
        asked += [query for _, query in prometheus.asked(board)]
        asked += [variable["query"]["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    selectors = [found for query in asked for found in re.findall(r"\bnv_\w+(?:\{[^}]*\})?", query)]
    assert len(selectors) > 20
    assert [found for found in selectors if 'job="atelier-triton"' not in found] == []


def test_alerts_look_at_deployments_that_are_there(monitored):
    """By the names that kube-state-metrics gives."""
    ours = {each["metadata"]["name"] for each in prometheus.of_kind(monitored, "Deployment")}
    asked = {name: re.findall(r'\bdeployment="([^"]+)"', alert["expr"]) for name, alert in alerts(monitored).items()}
    assert asked["AtelierServingDown"] == ["atelier-triton"]
    assert asked["AtelierHandoverStopped"] == ["atelier-reload"]
    assert {name for names in asked.values() for name in names} <= ours


def test_a_replica_and_its_certificate_are_known(monitored):
    """AtelierCertificateOld compares what cert-manager's component asks for with the container that reads it."""
    asked = dict(re.findall(r'\b(\w+)=~?"([^"]+)"', alerts(monitored)["AtelierCertificateOld"]["expr"]))
    certificate = yaml.safe_load((prometheus.DEPLOY / "components/tls/cert-manager/certificate.yaml").read_text())
    assert asked["name"] == certificate["metadata"]["name"]
    mounts = yaml.safe_load((prometheus.DEPLOY / "components/tls/certificate-mounts.yaml").read_text())
    pod = mounts["spec"]["template"]["spec"]
    assert certificate["spec"]["secretName"] in [volume["secret"]["secretName"] for volume in pod["volumes"]]
    assert asked["container"] in [container["name"] for container in pod["containers"]]
    assert re.fullmatch(asked["pod"], f"{mounts['metadata']['name']}-5d8f-x7k2p")


def test_every_job_is_known_as_ours(monitored):
    """AtelierJobFailed finds the pods of each file's Job: by their container and their claim."""
    expression = alerts(monitored)["AtelierJobFailed"]["expr"]
    known = dict(re.findall(r'\{(container|persistentvolumeclaim)="(.+?)"\}', expression))
    files = [yaml.safe_load_all(path.read_text()) for path in prometheus.DEPLOY.glob("*.yaml")]
    pods = [each["spec"]["template"]["spec"] for file in files for each in file if each["kind"] == "Job"]
    assert len(pods) > 5
    for pod in pods:
        assert known["container"] in [container["name"] for container in pod["containers"]]
        claims = [volume["persistentVolumeClaim"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
        assert known["persistentvolumeclaim"] in [claim["claimName"] for claim in claims]
