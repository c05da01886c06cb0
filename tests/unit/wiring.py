"""Whether the manifests of one composition fit together: what the API server takes as they come and nobody would notice
until a pod hangs, a Service has no endpoints, or a rolling update drops requests. Each check returns what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pod_security import pods

Manifest = dict[str, Any]
Manifests = list[Manifest]

# What a reader makes by hand, as the component's kustomization.yaml says.
MADE_BY_HAND = {("Secret", "atelier-s3"), ("Secret", "atelier-triton-tls")}
SCALERS = {"HorizontalPodAutoscaler", "ScaledObject"}
WORKLOADS = ("Deployment", "Job")


def of_kind(manifests: Manifests, *kinds: str) -> Manifests:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def pod(manifest: Manifest) -> Manifest:
    (spec,) = pods(manifest)
    return spec


def containers(manifests: Manifests) -> Iterator[tuple[str, Manifest]]:
    """Every container, the initial ones included, and where it is."""
    for workload in of_kind(manifests, *WORKLOADS):
        for container in [*pod(workload).get("initContainers", []), *pod(workload)["containers"]]:
            yield f"{workload['metadata']['name']}/{container['name']}", container


def unselected(manifests: Manifests) -> list[str]:
    """Selectors of one object that select no pod."""
    return [
        f"{manifest['kind']} {manifest['metadata']['name']} selects nothing"
        for manifest in manifests
        for selector in _selectors(manifest)
        if not _selected(manifests, selector)
    ]


def _selectors(manifest: Manifest) -> Iterator[Manifest]:
    spec = manifest.get("spec", {})
    match manifest["kind"]:
        case "Service":
            yield {"matchLabels": spec["selector"]}
        case "PodDisruptionBudget" | "PodMonitor":
            yield spec["selector"]
        case "Deployment":
            yield spec["selector"]
            yield from (each["labelSelector"] for each in pod(manifest).get("topologySpreadConstraints", []))
        case "NetworkPolicy":
            yield spec["podSelector"]
            rules = [*spec.get("ingress", []), *spec.get("egress", [])]
            peers = [peer for rule in rules for peer in (*rule.get("from", []), *rule.get("to", []))]
            yield from (peer["podSelector"] for peer in peers if "podSelector" in peer)


def _selected(manifests: Manifests, selector: Manifest) -> Manifests:
    """The workloads whose pods it selects."""
    return [each for each in of_kind(manifests, *WORKLOADS) if matches(selector, each["spec"]["template"])]


def matches(selector: Manifest, template: Manifest) -> bool:
    labels = template["metadata"]["labels"]
    given = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return given and all(
        (labels.get(each["key"]) in each["values"]) == (each["operator"] == "In")
        for each in selector.get("matchExpressions", [])
    )


def unselective(manifests: Manifests) -> list[str]:
    """Deployments that would take each other's pods for their own."""
    return [
        f"Deployment {each['metadata']['name']} also selects pods of another"
        for each in of_kind(manifests, "Deployment")
        if len(_selected(of_kind(manifests, "Deployment"), each["spec"]["selector"])) > 1
    ]


def unknown_ports(manifests: Manifests) -> list[str]:
    """Ports that are called by a name which no container behind them has."""
    return [
        f"{manifest['kind']} {manifest['metadata']['name']}: no port {port}"
        for manifest in manifests
        for selector, port in _named_ports(manifest)
        for workload in _selected(manifests, selector)
        if port not in _ports(workload)
    ]


def _ports(workload: Manifest) -> set[str]:
    return {port["name"] for container in pod(workload)["containers"] for port in container.get("ports", [])}


def _named_ports(manifest: Manifest) -> Iterator[tuple[Manifest, str]]:
    spec = manifest.get("spec", {})
    match manifest["kind"]:
        case "Service":
            yield from (({"matchLabels": spec["selector"]}, port["targetPort"]) for port in spec["ports"])
        case "PodMonitor":
            yield from ((spec["selector"], endpoint["port"]) for endpoint in spec["podMetricsEndpoints"])
        case "NetworkPolicy":
            ports = [port for rule in spec.get("ingress", []) for port in rule.get("ports", [])]
            yield from ((spec["podSelector"], port["port"]) for port in ports)
        case "Deployment":
            for container in pod(manifest)["containers"]:
                probes = [probe for name, probe in container.items() if name.endswith("Probe")]
                yield from ((spec["selector"], probe["httpGet"]["port"]) for probe in probes if "httpGet" in probe)


def missing(manifests: Manifests) -> list[str]:
    """What is named but neither there nor said to be made by hand."""
    there = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests} | MADE_BY_HAND
    made = {("Secret", each["spec"]["secretName"]) for each in of_kind(manifests, "Certificate")}
    return [
        f"{manifest['metadata']['name']}: no {kind} {name}"
        for manifest in manifests
        for kind, name in _named(manifest)
        if (kind, name) not in there | made
    ]


def _named(manifest: Manifest) -> Iterator[tuple[str, str]]:
    spec = manifest.get("spec", {})
    match manifest["kind"]:
        case "HorizontalPodAutoscaler" | "ScaledObject":
            yield spec["scaleTargetRef"].get("kind", "Deployment"), spec["scaleTargetRef"]["name"]
        case "Certificate":
            yield spec["issuerRef"]["kind"], spec["issuerRef"]["name"]
        case "Issuer" if "ca" in spec:
            yield "Secret", spec["ca"]["secretName"]
        case "LocalQueue":
            yield "ClusterQueue", spec["clusterQueue"]
        case "ClusterQueue":
            flavors = [flavor for group in spec["resourceGroups"] for flavor in group["flavors"]]
            yield from (("ResourceFlavor", flavor["name"]) for flavor in flavors)
        case "Deployment":  # a Job's file is whole by itself, see test_manifests.py
            yield "ServiceAccount", pod(manifest)["serviceAccountName"]
            yield from _named_by_pod(manifest)


def _named_by_pod(workload: Manifest) -> Iterator[tuple[str, str]]:
    for volume in pod(workload)["volumes"]:
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
    for _, container in containers([workload]):
        for source in container.get("envFrom", []):
            kind = "ConfigMap" if "configMapRef" in source else "Secret"
            yield kind, source[f"{kind[0].lower()}{kind[1:]}Ref"]["name"]


def unmounted(manifests: Manifests) -> list[str]:
    """Mounts without a volume and volumes without a mount; a root that can be written; no /tmp on it."""
    found = []
    for workload in of_kind(manifests, *WORKLOADS):
        name, volumes = workload["metadata"]["name"], {volume["name"] for volume in pod(workload)["volumes"]}
        mounts = [mount for _, each in containers([workload]) for mount in each.get("volumeMounts", [])]
        if {mount["name"] for mount in mounts} != volumes:
            found.append(f"{name}: volumes and mounts differ")
    for where, container in containers(manifests):
        if container["securityContext"].get("readOnlyRootFilesystem") is not True:
            found.append(f"{where}: its root can be written")
        if not {"/tmp"} <= writable(container):
            found.append(f"{where}: no /tmp")
    return found


def writable(container: Manifest) -> set[str]:
    return {mount["mountPath"] for mount in container.get("volumeMounts", []) if not mount.get("readOnly")}


def unbounded(manifests: Manifests) -> list[str]:
    """Containers that a namespace with a quota would refuse: it asks for requests and limits of both."""
    return [
        f"{where}: {kind} without {resource}"
        for where, container in containers(of_kind(manifests, "Deployment"))
        for kind in ("requests", "limits")
        for resource in ("cpu", "memory")
        if resource not in container.get("resources", {}).get(kind, {})
    ]


def unprobed(manifests: Manifests) -> list[str]:
    """Deployments that Kubernetes can't tell a hanging pod of, or one that is not ready and is in a Service."""
    found = []
    services = [{"matchLabels": service["spec"]["selector"]} for service in of_kind(manifests, "Service")]
    for workload in of_kind(manifests, "Deployment"):
        called = any(matches(selector, workload["spec"]["template"]) for selector in services)
        wanted = {"livenessProbe", "readinessProbe", "startupProbe"} if called else {"livenessProbe"}
        for container in pod(workload)["containers"]:
            if lacking := wanted - container.keys():
                found.append(f"{workload['metadata']['name']}: no {', '.join(sorted(lacking))}")
    return found


def scaled_twice(manifests: Manifests) -> list[str]:
    """Two that set one number: replicas in the Deployment, and each autoscaler."""
    scalers = of_kind(manifests, *SCALERS)
    targets = [scaler["spec"]["scaleTargetRef"]["name"] for scaler in scalers]
    fixed = [each["metadata"]["name"] for each in of_kind(manifests, "Deployment") if "replicas" in each["spec"]]
    return [f"{name} is scaled twice" for name in {*targets, *fixed} if (targets + fixed).count(name) > 1]


def scattered(manifests: Manifests) -> list[str]:
    """Deployments that mount a claim which one node at a time can mount, and might miss one another. The one that asks
    for most chooses the node: it looks for all that mount the claim, itself included (its first pod finds no other),
    and for nobody else, as a Job that waits for the volume elsewhere would draw it there. The others go where that one
    is, and may."""
    found = []
    for claim in of_kind(manifests, "PersistentVolumeClaim"):
        name = claim["metadata"]["name"]
        mounting = [
            each for each in of_kind(manifests, "Deployment") if ("PersistentVolumeClaim", name) in _named_by_pod(each)
        ]
        first = max(mounting, key=_cpus, default=None)
        for deployment in mounting if "ReadWriteOnce" in claim["spec"]["accessModes"] else []:
            sought = [_selected(manifests, selector) for selector in _nearby(deployment)]
            beside = sought == [mounting if deployment is first else [first]]
            if not beside or pod(deployment).get("tolerations") != pod(first).get("tolerations"):
                found.append(f"Deployment {deployment['metadata']['name']}: not on the node of {name}")
    return found


def _cpus(manifest: Manifest) -> float:
    asked = (str(container["resources"]["requests"]["cpu"]) for container in pod(manifest)["containers"])
    return sum(float(cpus.replace("m", "e-3")) for cpus in asked)


def _nearby(manifest: Manifest) -> list[Manifest]:
    """Selectors of the pods beside which, on one node, its own must be."""
    terms = (
        pod(manifest)
        .get("affinity", {})
        .get("podAffinity", {})
        .get("requiredDuringSchedulingIgnoredDuringExecution", [])
    )
    return [term["labelSelector"] for term in terms if term["topologyKey"] == "kubernetes.io/hostname"]


CHECKS: tuple[Callable[[Manifests], list[str]], ...] = (
    unselected, unselective, unknown_ports, missing, unmounted, unbounded, unprobed, scaled_twice, scattered,
)  # fmt: skip
