"""deploy/ as kubectl renders it: each overlay with components in many sets is valid, restricted, and fits together."""

from __future__ import annotations

import copy
import functools
import importlib
import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import wiring
import yaml
from cloudcoil.models.cert_manager import v1 as cert_manager
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus
from conftest import need, need_tritonserver
from pod_security import pods, violations
from test_manifests import DEPLOY, FILES, VERSIONS
from wiring import Manifest, Manifests, of_kind

from serving import embedded, keeper, reload, repository, verify, wheel
from serving.local import EVERY_INTERFACE
from training import jobs

OVERLAYS = ("triton", "overlays/cpu", "overlays/gpu")
ADDED = ("monitoring", "keda", "s3", "tls")
SETS = [parts for n in range(len(ADDED) + 1) for parts in itertools.combinations(ADDED, n)]
EVERYTHING = ("overlays/gpu", "monitoring", "keda", "kueue", "tls", "tls/cert-manager")
SEVERAL_NODES = ("overlays/gpu", "monitoring", "rwx", "tls")
CHOICES: list[list[set[str]]] = [
    [set(), {"monitoring"}],
    [set(), {"keda"}],
    [set(), {"kueue"}],
    [set(), {"rwx"}, {"s3"}],
    [set(), {"tls"}, {"tls", "tls/cert-manager"}],
]
"""What a reader chooses; s3 brings rwx."""
MEETING = [
    EVERYTHING[1:],
    ("kueue", "rwx"),
    ("monitoring", "kueue", "rwx", "tls"),
    ("keda", "rwx", "tls", "tls/cert-manager"),
    ("kueue", "s3", "tls", "tls/cert-manager"),
]
"""With SETS, every two choices meet. All 72 sets of them on each overlay would take kubectl alone about a minute."""
COMPOSITIONS = [*((overlay, *parts) for overlay in OVERLAYS for parts in [*SETS, *MEETING]), SEVERAL_NODES]
CUSTOM = (
    cert_manager.Certificate, cert_manager.Issuer, keda.ScaledObject, prometheus.PodMonitor, prometheus.PrometheusRule,
)  # fmt: skip
KUEUE = {
    "ResourceFlavor": set(),
    "ClusterQueue": {"namespaceSelector", "queueingStrategy", "resourceGroups"},
    "LocalQueue": {"clusterQueue"},
}
"""The fields that these manifests set, of Kueue's v1beta2, whose schema no package has."""

of_each = pytest.mark.parametrize("composition", COMPOSITIONS, ids="+".join)


def kustomize(folder: Path) -> subprocess.CompletedProcess[str]:
    need(shutil.which("kubectl"), "kubectl is not installed; it needs 1.32 or newer")
    return subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)


def rendered(folder: Path) -> Manifests:
    done = kustomize(folder)
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, yaml.CSafeLoader))  # a tenth of the time of safe_load_all


@pytest.fixture(scope="session")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Manifests]:
    """Renders an overlay as a reader makes one: in a folder of its own beside those of deploy/overlays."""
    deploy = tmp_path_factory.mktemp("compose") / "deploy"
    shutil.copytree(DEPLOY, deploy)
    mine = deploy / "overlays" / "mine"
    mine.mkdir()

    @functools.cache
    def composed(base: str, *components: str) -> Manifests:
        lists = {"resources": [f"../../{base}"], "components": [f"../../components/{name}" for name in components]}
        (mine / "kustomization.yaml").write_text(yaml.safe_dump(lists))
        return rendered(mine)

    return composed


@functools.cache
def trained() -> Manifests:
    """The Jobs beside the stack, whose pods it lets through the network and scrapes."""
    return [each for path in FILES for each in yaml.safe_load_all(path.read_text()) if each["kind"] == "Job"]


def named(manifests: Manifests, kind: str, name: str) -> Manifest:
    (found,) = (each for each in of_kind(manifests, kind) if each["metadata"]["name"] == name)
    return found


def triton(manifests: Manifests) -> tuple[Manifest, Manifest]:
    """Its pod and its container."""
    pod = wiring.pod(named(manifests, "Deployment", "atelier-triton"))
    (container,) = pod["containers"]
    return pod, container


# --- every composition ---


def test_deploy_is_the_base(compose):
    """kubectl apply -k deploy/ brings up deploy/triton."""
    assert rendered(DEPLOY) == compose("triton")


def test_every_file_is_used():
    """No file in a folder of kustomize's lies there unmentioned, and each folder is in a composition."""
    folders = {path.parent for path in DEPLOY.rglob("kustomization.yaml")} - {DEPLOY}
    parts = {part for composition in COMPOSITIONS for part in composition}
    assert folders == {DEPLOY / part if part in OVERLAYS else DEPLOY / "components" / part for part in parts}
    for folder in folders:
        text = (folder / "kustomization.yaml").read_text()
        assert all(path.name in text for path in folder.glob("*.yaml") if path.name != "kustomization.yaml"), folder


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_two_choices_meet(overlay):
    """Whatever else a reader chooses, any two choices are made together in some composition of each overlay."""
    made = [set(composition[1:]) for composition in COMPOSITIONS if composition[0] == overlay]
    for one, other in itertools.combinations(CHOICES, 2):
        met = [(parts & set().union(*one), parts & set().union(*other)) for parts in made]
        assert [pair for pair in itertools.product(one, other) if pair not in met] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_valid(compose, version):
    """The API server of each version takes what any composition renders, with strict field validation."""
    each = {json.dumps(m, sort_keys=True): m for composition in COMPOSITIONS for m in compose(*composition)}
    known = [manifest for manifest in each.values() if not custom(manifest)]
    assert len(known) > 20
    for manifest in known:
        kubernetes_validate.validate(manifest, version, strict=True)


def custom(manifest: Manifest) -> bool:
    """A kind that Kubernetes does not bring: its group has a domain, and is none of Kubernetes' own."""
    group = manifest["apiVersion"].rpartition("/")[0]
    return "." in group and (group.endswith(".x-k8s.io") or not group.endswith(".k8s.io"))


@of_each
def test_fits_together(compose, composition):
    """Selectors select, names lead somewhere, volumes are mounted, resources are bounded, probes are there."""
    passed_over = {"PodMonitor atelier-reload selects nothing"} if "s3" in composition else set()
    wrong = {each for check in wiring.CHECKS for each in check([*compose(*composition), *trained()])}
    assert wrong - passed_over == set()


@of_each
def test_pods_are_restricted(compose, composition):
    """Pod Security `restricted` admits every pod."""
    assert [why for manifest in compose(*composition) for pod in pods(manifest) for why in violations(pod)] == []


@of_each
def test_a_replica_leaves_in_order(compose, composition):
    """Before Triton is told to stop every connection has been renewed elsewhere, and after that there is time to end.

    gRPC lets a connection live up to a tenth longer than asked. 5 s are for the news that the pod leaves."""
    pod, container = triton(compose(*composition))
    (age,) = (int(a.partition("=")[2]) / 1000 for a in container["args"] if a.startswith("--grpc-max-connection-age="))
    wait = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert wait >= 1.1 * age + 5
    assert pod["terminationGracePeriodSeconds"] >= wait + keeper.GRACE_S + 5
    assert embedded.EXIT_TIMEOUT_S < keeper.GRACE_S


@of_each
def test_an_update_takes_no_replica_away(compose, composition):
    """A new replica is ready before an old one goes; a drained node takes one at a time."""
    deployment = named(compose(*composition), "Deployment", "atelier-triton")
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    (budget,) = of_kind(compose(*composition), "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1
    assert budget["spec"]["selector"] == deployment["spec"]["selector"]


@of_each
def test_who_writes_the_models(compose, composition):
    """Triton only reads the repository; whoever fills it can write; tensors pass through memory, not through a disk."""
    pod, container = triton(compose(*composition))
    assert wiring.writable(container) == {"/tmp", "/dev/shm"}
    (shm,) = (volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm")
    assert shm["medium"] == "Memory"
    writing = {where for where, each in wiring.containers(compose(*composition)) if "/models" in wiring.writable(each)}
    expected = {f"atelier-triton/{each['name']}" for each in pod["initContainers"]} - {"atelier-triton/fetch"}
    assert writing == expected | (set() if "s3" in composition else {"atelier-reload/reload"})


@of_each
def test_loading_models_takes_the_key(compose, composition):
    """Who can reach Triton can't replace what it serves: that takes the key, in either image."""
    _, container = triton(compose(*composition))
    if "gpu" not in composition[0]:
        assert "--guarded" in container["args"]
        return
    script = container["command"][2]
    rule = f'{embedded.RESTRICTED_APIS}:{repository.CONTROL_HEADER}="$key"'
    assert f"key=$(cat /models/{repository.KEY})" in script
    assert f"--grpc-restricted-protocol={rule}" in script
    assert f"--http-restricted-api={rule}" in script


@of_each
def test_commands_are_understood(compose, composition):
    """What each container and probe of ours starts is a command line that the module takes."""
    commands = [command for _, each in wiring.containers(compose(*composition)) for command in _commands(each)]
    ours = [command for command in commands if command[:2] == ["python3", "-m"]]
    for _, _, module, *arguments in ours:
        importlib.import_module(module)._parser().parse_args(arguments)
    assert {"serving.repository", "serving.verify"} <= {command[2] for command in ours}


def _commands(container: Manifest) -> list[list[str]]:
    probe = container.get("startupProbe", {}).get("exec", {}).get("command", [])
    return [[*container.get("command", []), *container.get("args", [])], probe]


def test_tritonserver_has_the_options(compose):
    """What is handed to tritonserver stands in the help of the wheel's, which is older than the image's."""
    need_tritonserver()
    found = wheel.find()
    command = [found.binary, "--help"]
    done = subprocess.run(command, env=found.environment(), capture_output=True, text=True, timeout=60)
    known = set(re.findall(r"^ +(--[a-z-]+)", done.stdout + done.stderr, re.MULTILINE))
    for overlay in OVERLAYS:
        _, container = triton(compose(overlay, "tls"))
        script, arguments = " ".join(container["command"]), container["args"]
        own = arguments[arguments.index("--") + 1 :] if "--" in arguments else arguments
        used = {option.partition("=")[0] for option in [*own, *re.findall(r"--[a-z-]+", script)]}
        assert len(used) >= 4
        assert used <= known


def test_the_gpu_serves_by_the_same_rules(compose):
    """What serving.embedded sets for clients and hand-overs, the official image is told as well."""
    _, container = triton(compose("overlays/gpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "servable", lambda *_: [])
        server = embedded.Embedded(Path("/models"))
    ours = embedded._arguments(server, embedded.Ports(), "id", Path("/backends"), Path("/models"))
    same = (
        "--model-control-mode=",
        "--strict-readiness=",
        "--exit-timeout-secs=",
        "--disable-auto",
        "--metrics-config=",
    )
    shared = [option for option in ours if option.startswith(same)]
    assert len(shared) == len(same)
    assert set(shared) <= set(container["args"])


@pytest.mark.parametrize("parts", [("monitoring", "keda"), ("s3", "tls"), ("tls", "tls/cert-manager")], ids="+".join)
def test_order_does_not_matter(compose, parts):
    """Components know nothing of each other: either order gives the same objects."""
    forwards, backwards = ([_unordered(m) for m in compose("overlays/gpu", *each)] for each in (parts, parts[::-1]))
    assert sorted(forwards) == sorted(backwards)


def _unordered(value: Any) -> str:
    """As text, in which the order of a list's items does not show."""
    if isinstance(value, dict):
        return str(sorted((key, _unordered(item)) for key, item in value.items()))
    return str(sorted(map(_unordered, value))) if isinstance(value, list) else repr(value)


# --- what each part is for ---


def test_base_has_its_objects(compose):
    """One of each that a service in earnest needs."""
    assert {(m["kind"], m["metadata"]["name"]) for m in compose("triton")} == {
        ("ServiceAccount", "atelier-triton"), ("PersistentVolumeClaim", "atelier-models"),
        ("Deployment", "atelier-triton"), ("Deployment", "atelier-reload"),
        ("Service", "atelier-triton"), ("Service", "atelier-triton-replicas"),
        ("PodDisruptionBudget", "atelier-triton"), ("HorizontalPodAutoscaler", "atelier-triton"),
        ("NetworkPolicy", "atelier-nothing"), ("NetworkPolicy", "atelier-triton"),
        ("NetworkPolicy", "atelier-reload"), ("NetworkPolicy", "atelier-training"),
    }  # fmt: skip


def test_the_reloader_is_reached(compose):
    """Its probe and Prometheus ask it from outside the pod, where its own default would not hear them."""
    container = dict(wiring.containers(compose("triton")))["atelier-reload/reload"]
    options = reload._parser().parse_args(container["args"])
    assert options.metrics_host == EVERY_INTERFACE
    assert [port["containerPort"] for port in container["ports"]] == [options.metrics_port]


def test_no_token_is_mounted(compose):
    """No pod calls the API."""
    (account,) = of_kind(compose("triton"), "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    for deployment in of_kind(compose("triton"), "Deployment"):
        assert wiring.pod(deployment)["automountServiceAccountToken"] is False


def test_the_claim_is_the_training_jobs(compose):
    """Applying the stack after a training Job, or before, changes nothing about the volume that they share."""
    theirs = list(yaml.safe_load_all((DEPLOY / "train-wgan.yaml").read_text()))
    ours = named(compose("triton"), "PersistentVolumeClaim", jobs.MODELS)
    assert ours == named(theirs, "PersistentVolumeClaim", jobs.MODELS)


def test_nothing_is_open_by_default(compose):
    """Every pod of Atelier's, training's included, begins with no traffic at all."""
    nothing = named(compose("triton"), "NetworkPolicy", "atelier-nothing")
    assert nothing["spec"].keys() == {"podSelector", "policyTypes"}
    assert set(nothing["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    for workload in [*of_kind(compose("triton"), "Deployment"), *trained()]:
        assert wiring.matches(nothing["spec"]["podSelector"], workload["spec"]["template"])


def test_overlay_cpu(compose):
    """One replica of the CPU image, less reserved, and no autoscaler."""
    assert not of_kind(compose("overlays/cpu"), "HorizontalPodAutoscaler")
    pod, container = triton(compose("overlays/cpu"))
    assert {c["image"] for c in (*pod["initContainers"], container)} == {_image("cpu")}
    assert container["resources"]["requests"] == {"cpu": "500m", "memory": "2Gi"}


def test_overlay_gpu(compose):
    """The official Triton's image, a GPU, and plans made before it starts, on a GPU as well."""
    pod, container = triton(compose("overlays/gpu"))
    assert {c["image"] for c in (*pod["initContainers"], container)} == {_image("gpu")}
    assert [c["name"] for c in pod["initContainers"]] == ["seed", "tensorrt"]
    assert [c["resources"]["limits"].get(jobs.GPU) for c in (*pod["initContainers"], container)] == [None, 1, 1]
    assert jobs.GPU in {toleration["key"] for toleration in pod["tolerations"]}
    assert "--model-config-name=tensorrt" in container["args"]


def _started(gpu: Manifests, models: Path) -> subprocess.CompletedProcess[str]:
    """The command of the official image over another folder, with a tritonserver that prints its options."""
    (models / "tritonserver").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (models / "tritonserver").chmod(0o755)
    _, container = triton(gpu)
    shell, flags, script, *rest = container["command"]
    command = [shell, flags, script.replace("/models", str(models)), *rest, *container["args"]]
    path = f"{models}:{os.environ['PATH']}"
    return subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, timeout=60)


def test_the_gpu_loads_models_and_nothing_else(compose, tmp_path):
    """As serving.embedded: a volume of ext4 has a folder lost+found, of which tritonserver's `*` makes a model."""
    for name in (f"wgan/{repository.CONFIG}", f"style/{repository.CONFIG}", "lost+found/found"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / repository.KEY).write_text("secret")
    options = _started(compose("overlays/gpu"), tmp_path).stdout.splitlines()
    loaded = [option for option in options if option.startswith("--load-model")]
    assert loaded == [f"--load-model={name}" for name in repository.models(tmp_path)]
    assert set(triton(compose("overlays/gpu"))[1]["args"]) <= set(options)
    assert [option.endswith(f":{repository.CONTROL_HEADER}=secret") for option in options].count(True) == 2


@pytest.mark.parametrize("key", [None, "\n"], ids=["no key", "an empty one"])
def test_the_gpu_is_guarded_or_not_started(compose, tmp_path, key):
    """Without a key to ask for it ends, and says why, as serving.embedded does."""
    if key:
        (tmp_path / repository.KEY).write_text(key)
    done = _started(compose("overlays/gpu"), tmp_path)
    assert (done.returncode != 0, done.stdout) == (True, "")
    assert repository.KEY in done.stderr


def _image(accelerator: str) -> str:
    return jobs.image(accelerator).replace("training", "serving")


def test_component_keda(compose):
    """KEDA's autoscaler stands in the place of ours."""
    manifests = compose("triton", "keda")
    assert not of_kind(manifests, "HorizontalPodAutoscaler")
    (scaled,) = of_kind(manifests, "ScaledObject")
    (version,) = re.findall(r"KEDA \((\d+)\.(\d+) or newer\)", (DEPLOY / "README.md").read_text())
    values = any(trigger.get("metricType") == "Value" for trigger in scaled["spec"]["triggers"])
    assert not (values and "fallback" in scaled["spec"]) or tuple(map(int, version)) >= (2, 18), "older ones refuse it"


def test_component_keda_has_the_bounds_of_ours(compose, tmp_path):
    """The base's as it comes; those of the GPUs' by the patch that its kustomization shows."""
    _, shown = (DEPLOY / "components" / "keda" / "kustomization.yaml").read_text().split("in your overlay:\n")
    patch = "".join(line.removeprefix("#   ") + "\n" for line in shown.splitlines() if line.startswith("#   "))
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    mine = tmp_path / "deploy" / "overlays" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(f"resources: [../gpu]\ncomponents: [../../components/keda]\n{patch}")
    for overlay, manifests in (("triton", compose("triton", "keda")), ("overlays/gpu", rendered(mine))):
        (ours,), (theirs,) = of_kind(compose(overlay), "HorizontalPodAutoscaler"), of_kind(manifests, "ScaledObject")
        bounds = theirs["spec"]["minReplicaCount"], theirs["spec"]["maxReplicaCount"]
        assert bounds == (ours["spec"]["minReplicas"], ours["spec"]["maxReplicas"])


def test_component_s3(compose):
    """A bucket in the place of the volume: fetched before the shipped models are looked at, and no hand-over."""
    manifests = compose("triton", "s3")
    pod, _ = triton(manifests)
    assert not of_kind(manifests, "PersistentVolumeClaim")
    assert [m["metadata"]["name"] for m in of_kind(manifests, "Deployment")] == ["atelier-triton"]
    fetch, seed = pod["initContainers"]
    assert (fetch["name"], seed["command"][-1]) == ("fetch", f"--first={fetch['args'][2]}")
    (models,) = (volume for volume in pod["volumes"] if volume["name"] == "models")
    assert models.keys() == {"name", "emptyDir"}
    assert_spread(manifests)


@pytest.mark.parametrize("parts", [("rwx",), ("rwx", "s3"), ("s3", "rwx")], ids="+".join)
def test_component_rwx(compose, parts):
    """A volume that several nodes mount, and replicas on as many as there are; or a bucket, in either order."""
    manifests = compose("triton", *parts)
    modes = [claim["spec"]["accessModes"] for claim in of_kind(manifests, "PersistentVolumeClaim")]
    assert modes == ([] if "s3" in parts else [["ReadWriteMany"]])
    assert_spread(manifests)


def assert_spread(manifests: Manifests) -> None:
    """Replicas wish to be on different nodes and in different zones, and nothing keeps them together."""
    assert not any("affinity" in wiring.pod(deployment) for deployment in of_kind(manifests, "Deployment"))
    spread = {each["topologyKey"] for each in triton(manifests)[0]["topologySpreadConstraints"]}
    assert spread == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}


def test_a_volume_of_one_node_has_all_its_pods_there(compose):
    """No wish to be elsewhere is left beside the rule."""
    assert "topologySpreadConstraints" not in triton(compose("triton"))[0]
    assert len(of_kind(compose("triton"), "Deployment")) == 2


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_component_tls(compose, overlay):
    """Triton's gRPC is encrypted, its plain HTTP can't be reached, and who verifies it knows whom to trust."""
    manifests = compose(overlay, "tls")
    _, container = triton(manifests)
    files = ["--grpc-server-cert=/tls/tls.crt", "--grpc-server-key=/tls/tls.key"]
    assert container["args"][-3:] == ["--grpc-use-ssl=true", *files]
    ports = [port for service in of_kind(manifests, "Service") for port in service["spec"]["ports"]]
    assert {port["name"] for port in ports} == {"grpc"}
    assert not any("appProtocol" in port for port in ports), "h2c is HTTP/2 in clear"
    policy = named(manifests, "NetworkPolicy", "atelier-triton")
    assert [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]] == ["grpc", "metrics"]
    for where in ("atelier-triton/triton", "atelier-reload/reload"):
        environment = {v["name"]: v["value"] for v in dict(wiring.containers(manifests))[where]["env"]}
        roots = {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": "/tls/ca.crt"}
        assert environment == {verify.TLS_NAME: "atelier-triton", **roots}


def test_the_certificate_has_the_name(compose):
    """The name that replicas are verified by is in the certificate that cert-manager makes."""
    (certificate,) = (c for c in of_kind(compose(*EVERYTHING), "Certificate") if not c["spec"].get("isCA"))
    assert "atelier-triton" in certificate["spec"]["dnsNames"]


def test_component_kueue(tmp_path):
    """A Job in the composition waits for its queue; the label is the one that stands in each file as a comment."""
    shutil.copytree(DEPLOY / "components", tmp_path / "components")
    shutil.copy(DEPLOY / "train-wgan.yaml", tmp_path)
    (tmp_path / "kustomization.yaml").write_text("resources: [train-wgan.yaml]\ncomponents: [components/kueue]\n")
    manifests = rendered(tmp_path)
    (job,) = of_kind(manifests, "Job")
    queue = job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert job["spec"]["suspend"] is True
    assert queue in {m["metadata"]["name"] for m in of_kind(manifests, "LocalQueue")}
    assert f"# kueue.x-k8s.io/queue-name: {queue}\n" in (DEPLOY / "train-wgan.yaml").read_text()
    (cluster_queue,) = of_kind(manifests, "ClusterQueue")
    (container,) = wiring.pod(job)["containers"]
    (group,) = cluster_queue["spec"]["resourceGroups"]
    assert container["resources"]["limits"].keys() <= set(group["coveredResources"])


def test_the_image_that_kind_is_given_in_the_readme(compose):
    """It is loaded under the name that a node looks for when a manifest names no registry."""
    (walkthrough,) = re.findall(r"```\n(kind create cluster.*?)```", (DEPLOY / "README.md").read_text(), re.DOTALL)
    image = triton(compose("overlays/cpu"))[1]["image"]
    meant = f"docker.io/library/{image}"
    assert f"podman tag {image} {meant}\n" in walkthrough
    assert f"podman save {meant} -o serving.tar && kind load image-archive serving.tar\n" in walkthrough


# --- custom resources ---


@of_each
def test_custom_resources(compose, composition):
    """Each has the fields of its published schema and no others: what the schema's model reads and writes is all of it.
    Kueue's have only the fields that are named above."""
    kinds: dict[str, Any] = {model.__name__: model for model in CUSTOM}
    for manifest in filter(custom, compose(*composition)):
        if manifest["kind"] in KUEUE:
            assert manifest["apiVersion"] == "kueue.x-k8s.io/v1beta2"
            assert manifest.get("spec", {}).keys() == KUEUE[manifest["kind"]]
        else:
            read = kinds[manifest["kind"]].model_validate(manifest)
            assert read.model_dump(mode="json", by_alias=True, exclude_unset=True) == manifest


def test_a_typo_in_a_custom_resource(compose):
    """The check above can fail."""
    (scaled,) = of_kind(compose("triton", "keda"), "ScaledObject")
    wrong = copy.deepcopy(scaled)
    wrong["spec"]["minReplicas"] = wrong["spec"].pop("minReplicaCount")
    assert keda.ScaledObject.model_validate(wrong).model_dump(mode="json", by_alias=True, exclude_unset=True) != wrong


# --- the checks of wiring.py find what they are for ---


def _of(kind: str, name: str) -> Callable[[Manifests], Manifest]:
    return lambda manifests: named(manifests, kind, name)


_DEPLOYMENT, _SERVICE = _of("Deployment", "atelier-triton"), _of("Service", "atelier-triton")
_RELOAD, _HPA = _of("Deployment", "atelier-reload"), _of("HorizontalPodAutoscaler", "atelier-triton")
_BUDGET, _POLICY = _of("PodDisruptionBudget", "atelier-triton"), _of("NetworkPolicy", "atelier-triton")
_NAME = "app.kubernetes.io/name"


def _triton(manifests: Manifests) -> Manifest:
    return triton(manifests)[1]


def _beside(deployment: Manifest) -> Manifest:
    """The labels that its pods look for before they go to a node."""
    (term,) = wiring.pod(deployment)["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    labels: Manifest = term["labelSelector"]["matchLabels"]
    return labels


LAPSES: dict[str, tuple[Callable[[Manifests], list[str]], Callable[[Manifests], Any]]] = {
    "service": (wiring.unselected, lambda m: _SERVICE(m)["spec"].update(selector={"app": "triton"})),
    "budget": (wiring.unselected, lambda m: _BUDGET(m)["spec"]["selector"]["matchLabels"].update({"a": "b"})),
    "policy": (wiring.unselected, lambda m: _POLICY(m)["spec"].update(podSelector={"matchLabels": {"a": "b"}})),
    "greedy": (wiring.unselective, lambda m: _RELOAD(m)["spec"]["selector"]["matchLabels"].pop(_NAME)),
    "target port": (wiring.unknown_ports, lambda m: _SERVICE(m)["spec"]["ports"][0].update(targetPort="web")),
    "probe's port": (wiring.unknown_ports, lambda m: _triton(m)["livenessProbe"]["httpGet"].update(port="web")),
    "policy's port": (wiring.unknown_ports, lambda m: _triton(m)["ports"][2].update(name="prometheus")),
    "account": (wiring.missing, lambda m: wiring.pod(_RELOAD(m)).update(serviceAccountName="reload")),
    "claim": (wiring.missing, lambda m: m.remove(_of("PersistentVolumeClaim", "atelier-models")(m))),
    "scaled": (wiring.missing, lambda m: _HPA(m)["spec"]["scaleTargetRef"].update(name="triton")),
    "config map": (wiring.missing, lambda m: _triton(m).update(envFrom=[{"configMapRef": {"name": "absent"}}])),
    "secret": (wiring.missing, lambda m: _triton(m).update(envFrom=[{"secretRef": {"name": "absent"}}])),
    "volume": (wiring.unmounted, lambda m: wiring.pod(_DEPLOYMENT(m))["volumes"].pop()),
    "root": (wiring.unmounted, lambda m: _triton(m)["securityContext"].pop("readOnlyRootFilesystem")),
    "tmp": (wiring.unmounted, lambda m: _triton(m)["volumeMounts"][1].update(readOnly=True)),
    "limit": (wiring.unbounded, lambda m: _triton(m)["resources"]["limits"].pop("memory")),
    "probe": (wiring.unprobed, lambda m: _triton(m).pop("startupProbe")),
    "liveness": (wiring.unprobed, lambda m: wiring.pod(_RELOAD(m))["containers"][0].pop("livenessProbe")),
    "elsewhere": (wiring.scattered, lambda m: wiring.pod(_RELOAD(m)).pop("affinity")),
    "not by itself": (wiring.scattered, lambda m: _beside(_DEPLOYMENT(m)).update({_NAME: "reload"})),
    "beside a Job": (wiring.scattered, lambda m: _beside(_DEPLOYMENT(m)).pop("app.kubernetes.io/component")),
    "the smaller first": (
        wiring.scattered, lambda m: wiring.pod(_RELOAD(m)).update(affinity=wiring.pod(_DEPLOYMENT(m))["affinity"])
    ),
    "kept away": (wiring.scattered, lambda m: wiring.pod(_DEPLOYMENT(m)).update(tolerations=[{"operator": "Exists"}])),
    "replicas": (wiring.scaled_twice, lambda m: _DEPLOYMENT(m)["spec"].update(replicas=2)),
}  # fmt: skip


@pytest.mark.parametrize(("check", "lapse"), LAPSES.values(), ids=LAPSES.keys())
def test_a_lapse_is_found(compose, check, lapse):
    """Each check finds what it is there for."""
    manifests = copy.deepcopy(compose("triton"))
    assert check([*manifests, *trained()]) == []
    lapse(manifests)
    assert check([*manifests, *trained()])
