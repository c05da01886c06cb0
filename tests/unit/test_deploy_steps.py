"""The steps of deploy/README.md, in their order, and what the cluster that it makes asks of others."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml
from pod_security import violations
from test_kustomize import rendered, triton
from test_manifests import DEPLOY, VERSIONS
from wiring import of_kind

from training import catalog, jobs

README = (DEPLOY / "README.md").read_text()
FETCHED = [job for name in catalog.trained() for job in catalog.jobs(name) if job.fetched_from]


def manifests(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / path).read_text()))


def block(containing: str) -> list[str]:
    """The commands of the README's block with this one."""
    (found,) = (
        text for text in re.findall(r"^```\w*\n(.*?)^```$", README, re.DOTALL | re.MULTILINE) if containing in text
    )
    return found.splitlines()


def test_the_overlay_in_the_readme(tmp_path):
    """The overlay that a reader is shown renders, with the reader's namespace and registry."""
    (shown,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    mine = tmp_path / "deploy" / "overlays" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(shown)
    manifests = rendered(mine)
    assert {m["metadata"].get("namespace") for m in manifests} == {"art"}
    assert triton(manifests)[1]["image"].startswith("registry.example/atelier-serving:")


def test_the_namespace_is_made_before_anything_is_put_into_it():
    """The overlay's own, which the commands after it mean, too."""
    (name,) = re.findall(r"^namespace: (\w+)$", README, re.MULTILINE)
    made, applied = block("kubectl apply -k deploy/overlays/mine")
    assert made == f"kubectl create namespace {name} && kubectl config set-context --current --namespace {name}"
    assert applied == "kubectl apply -k deploy/overlays/mine"
    assert README.index(made) < README.index("\nkubectl apply -f deploy/train-wgan.yaml\n")


def test_pictures_are_copied_into_a_pod_that_runs():
    """Its claim is made first, and nothing but claims with it."""
    claims, run, *_, wait, copy, delete = block("kubectl run fill")
    path, key, value = re.fullmatch(r"kubectl apply -f deploy/(\S+) --selector (\S+)=(\S+)", claims).groups()
    made = [each for each in manifests(path) if each["metadata"]["labels"].get(key) == value]
    assert {each["kind"] for each in made} == {"PersistentVolumeClaim"}
    (overrides,) = re.findall(r"--overrides '(.*?)'", README, re.DOTALL)
    mounted = {volume["persistentVolumeClaim"]["claimName"] for volume in json.loads(overrides)["spec"]["volumes"]}
    assert mounted <= {each["metadata"]["name"] for each in made}
    assert run.startswith("kubectl run fill ")
    assert wait.startswith("kubectl wait --for=condition=Ready pod/fill ")
    assert copy.startswith("kubectl cp styles fill:")
    assert delete == "kubectl delete pod fill"


def test_the_pod_in_the_readme():
    """The pod that copies pictures onto the volume is one that the namespace admits: restricted, and within a quota."""
    (overrides,) = re.findall(r"kubectl run fill .* --overrides '(.*?)'", README, re.DOTALL)
    spec = json.loads(overrides)["spec"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "fill"}, "spec": spec}
    kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)
    assert violations(spec) == []
    (container,) = spec["containers"]
    assert all(container["resources"][kind].keys() == {"cpu", "memory"} for kind in ("requests", "limits"))


def test_the_queue_in_the_readme():
    """The line that puts a Job into its queue does."""
    (line,) = re.findall(r"`(sed '.*) \| kubectl apply -f -`", README)
    done = subprocess.run(line, shell=True, cwd=jobs.ROOT, capture_output=True, text=True, check=True)
    (job,) = of_kind(list(yaml.safe_load_all(done.stdout)), "Job")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "atelier"


def test_kedas_missing_numbers_are_errors():
    """By default KEDA takes none for 0, by which it would take replicas away."""
    (scaled,) = manifests("components/keda/scaledobject.yaml")
    assert [trigger["metadata"]["ignoreNullValues"] for trigger in scaled["spec"]["triggers"]] == ["false"]


def test_keda_is_said_to_need_monitoring():
    """Wherever a reader meets it, as the job that its query names is set there alone."""
    (scaled,) = manifests("components/keda/scaledobject.yaml")
    (trigger,) = scaled["spec"]["triggers"]
    (job,) = set(re.findall(r'job="([\w-]+)"', trigger["metadata"]["query"]))
    monitors = manifests("components/monitoring/podmonitors.yaml")
    endpoints = [endpoint for monitor in monitors for endpoint in monitor["spec"]["podMetricsEndpoints"]]
    assert {"targetLabel": "job", "replacement": job} in [each["relabelings"][0] for each in endpoints]
    (row,) = re.findall(r"^\| `components/keda` \| .*$", README, re.MULTILINE)
    assert "`monitoring`, too" in row
    head = (DEPLOY / "components" / "keda" / "kustomization.yaml").read_text().partition("apiVersion")[0]
    assert "Beside components/monitoring" in head


@pytest.mark.parametrize("job", FETCHED, ids=lambda job: urlsplit(job.fetched_from[0]).hostname)
def test_a_corpus_is_first_asked_for_where_the_policy_lets_training_go(job):
    """Anywhere else a packet is dropped, and nothing says so."""
    (policy,) = (
        each for each in manifests("triton/networkpolicies.yaml") if each["metadata"]["name"] == "atelier-training"
    )
    outside = [rule for rule in policy["spec"]["egress"] if "ipBlock" in rule.get("to", [{}])[0]]
    ports = {port["port"] for rule in outside for port in rule["ports"]}
    first = urlsplit(job.fetched_from[0])
    assert (first.port or {"https": 443, "http": 80}[first.scheme]) in ports
