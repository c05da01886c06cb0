"""The steps of deploy/README.md, in their order, and what the cluster that it makes asks of others."""

from __future__ import annotations

import ipaddress
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml
from pod_security import violations
from test_kustomize import named, rendered, triton
from test_manifests import DEPLOY, VERSIONS
from wiring import Manifest, Manifests, containers, of_kind

from training import catalog, jobs

README = (DEPLOY / "README.md").read_text()
CHOICES = sorted(path.parent for path in DEPLOY.glob("*/*/**/kustomization.yaml"))
"""Every overlay and component."""
SHORT = {"HorizontalPodAutoscaler": "hpa"}
FETCHED = [job for name in catalog.trained() for job in catalog.jobs(name) if job.fetched_from]


def manifests(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / path).read_text()))


def block(containing: str) -> list[str]:
    """The commands of the README's block with this one."""
    (found,) = (
        text for text in re.findall(r"^```\w*\n(.*?)^```$", README, re.DOTALL | re.MULTILINE) if containing in text
    )
    return found.splitlines()


def triton_deployment(path: str) -> Manifest:
    return named(rendered(DEPLOY / path), "Deployment", "atelier-triton")


def overlay(folder: Path, text: str) -> Manifests:
    """What a reader's own renders, beside a copy of the others."""
    shutil.copytree(DEPLOY, folder / "deploy")
    mine = folder / "deploy" / "overlays" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(text)
    return rendered(mine)


def test_the_overlay_in_the_readme(tmp_path):
    """The overlay that a reader is shown renders, with the reader's namespace and registry."""
    (shown,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    manifests = overlay(tmp_path, shown)
    assert {m["metadata"].get("namespace") for m in manifests} == {"art"}
    assert triton(manifests)[1]["image"].startswith("registry.example/atelier-serving:")


def test_the_namespace_is_made_before_anything_is_put_into_it():
    """The overlay's own, which the commands after it mean, too."""
    (name,) = re.findall(r"^namespace: (\w+)$", README, re.MULTILINE)
    made, applied = block("kubectl apply -k deploy/overlays/mine")
    assert made == f"kubectl create namespace {name} && kubectl config set-context --current --namespace {name}"
    assert applied == "kubectl apply -k deploy/overlays/mine"
    assert README.index(made) < README.index("\nkubectl apply -f deploy/train-wgan.yaml\n")


@pytest.mark.parametrize("folder", CHOICES, ids=lambda folder: str(folder.relative_to(DEPLOY)))
def test_what_a_choice_leaves_out_is_deleted_before(folder, tmp_path):
    """`kubectl apply -k` over a running install removes nothing: its file and the README name each object of the base
    that it does without. The claim is kept, as it is the training Jobs', too."""
    path = folder.relative_to(DEPLOY)
    lists = "components: [{}]\nresources: [../../triton]\n" if path.parts[0] == "components" else "resources: [{}]\n"
    base, chosen = (
        {(each["kind"], each["metadata"]["name"]) for each in rendering}
        for rendering in (rendered(DEPLOY), overlay(tmp_path, lists.format(f"../../{path}")))
    )
    left_out = base - chosen - {("PersistentVolumeClaim", jobs.MODELS)}
    words = {f"{SHORT.get(kind, kind.lower())}/{name}" for kind, name in left_out}
    head = re.findall(r"^# .*, first: kubectl delete (.+)$", (folder / "kustomization.yaml").read_text(), re.MULTILINE)
    row = re.findall(rf"^\| to `{path}` \| `kubectl delete ([^`]+)`", README, re.MULTILINE)
    assert [set(line.split()) for line in (*head, *row)] == ([words, words] if words else [])


def test_without_an_autoscaler_one_replica_is_asked_for():
    """Deleting it leaves as many as it had, and the Deployment says nothing about how many."""
    scale = "kubectl scale deployment/atelier-triton --replicas=1"
    assert "replicas" not in triton_deployment("overlays/cpu")["spec"]
    assert scale in (DEPLOY / "overlays" / "cpu" / "kustomization.yaml").read_text()
    (row,) = re.findall(r"^\| to `overlays/cpu` \| .*$", README, re.MULTILINE)
    assert scale in row


def test_a_version_without_a_plan_is_said_to_wait_for_a_restart():
    """Whoever publishes for GPUs reads so there, as nothing but a replica's init container builds plans."""
    every = containers(rendered(DEPLOY / "overlays" / "gpu"))
    initial = triton_deployment("overlays/gpu")["spec"]["template"]["spec"]["initContainers"]
    building = [where for where, each in every if "serving.tensorrt" in str(each)]
    assert building == [f"atelier-triton/{each['name']}" for each in initial if "serving.tensorrt" in each["command"]]
    section = README.partition("\n## Publish")[2].partition("\n## ")[0]
    assert "`overlays/gpu`" in section
    assert "`kubectl rollout restart deployment/atelier-triton`" in section


def test_a_storage_class_is_said_to_go_into_the_jobs_files():
    """Wherever a reader is told to set one: the claim is in both, and `kubectl apply` of the other would unset it."""
    for name in ("README.md", "triton/claim.yaml", "components/rwx/kustomization.yaml"):
        text = (DEPLOY / name).read_text()
        assert re.search(r"storageClassName.{,300}Jobs?'s? files?\b", text, re.DOTALL)


def test_what_memory_an_idle_replica_takes_is_one_number():
    """In the README and where the limit is set."""
    said = [README, (DEPLOY / "triton" / "deployment.yaml").read_text()]
    numbers = [re.findall(r"([\d.]+) GB idle", text) for text in said]
    assert numbers[0] == numbers[1]
    assert len(numbers[0]) == 1


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


def test_the_adapter_asks_the_prometheus_that_keda_asks():
    """The chart's default is in a namespace where the operator has none, and the autoscaler then has no metric."""
    (values,) = manifests("components/monitoring/prometheus-adapter-values.yaml")
    (scaled,) = manifests("components/keda/scaledobject.yaml")
    (trigger,) = scaled["spec"]["triggers"]
    address = "{url}:{port}".format(**values["prometheus"])
    assert address == trigger["metadata"]["serverAddress"]


ROLES = {
    "bucket": ("203.0.113.7", 443, True),
    "pod identity": ("169.254.170.23", 80, True),
    "pod identity, IPv6": ("fd00:ec2::23", 80, True),
    "instance metadata": ("169.254.169.254", 80, False),
    "instance metadata, IPv6": ("fd00:ec2::254", 80, False),
    "the agent's other port": ("169.254.170.23", 2703, False),
}


@pytest.mark.parametrize(("address", "port", "reached"), ROLES.values(), ids=ROLES.keys())
def test_where_the_bucket_s_key_comes_from(address, port, reached):
    """A Secret, or a role that the cloud gives to the pods' accounts; never the one of their node."""
    (policy,) = manifests("components/s3/network.yaml")
    assert any(_lets_through(rule, address, port) for rule in policy["spec"]["egress"]) == reached


def _lets_through(rule: Manifest, address: str, port: int) -> bool:
    blocks = [ipaddress.ip_network(peer["ipBlock"]["cidr"]) for peer in rule.get("to", [])]
    anywhere = not blocks or any(ipaddress.ip_address(address) in block for block in blocks)
    return anywhere and port in [each["port"] for each in rule["ports"]]


def test_the_accounts_that_a_role_is_for():
    """settings.yaml names those of the pods that copy."""
    pods = [triton_deployment("triton"), *manifests("components/s3/push.yaml")]
    accounts = {pod["spec"]["template"]["spec"]["serviceAccountName"] for pod in pods}
    text = (DEPLOY / "components" / "s3" / "settings.yaml").read_text()
    assert set(re.findall(r"atelier-t\w+", text)) == accounts


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
