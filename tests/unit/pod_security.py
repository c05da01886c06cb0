"""The Pod Security Standard `restricted`, as the admission controller of Kubernetes 1.30 and later reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
SECCOMP = {"RuntimeDefault", "Localhost"}
SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}  # fmt: skip


def pods(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The spec of every pod that a manifest makes."""
    match manifest["kind"]:
        case "Pod":
            yield manifest["spec"]
        case "CronJob":
            yield manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        case "Job" | "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet":
            yield manifest["spec"]["template"]["spec"]


def violations(pod: dict[str, Any]) -> list[str]:
    """Why the admission controller would refuse a pod; empty if it would not."""
    return [*_of_pod(pod), *(f"{c['name']}: {why}" for c in _containers(pod) for why in _of_container(c, pod))]


def _containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"], *pod.get("ephemeralContainers", [])]


def _of_pod(pod: dict[str, Any]) -> Iterator[str]:
    security = pod.get("securityContext", {})
    for flag in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(flag):
            yield flag
    for volume in pod.get("volumes", []):
        if kinds := volume.keys() - {"name"} - VOLUMES:
            yield f"volume {volume['name']}: {', '.join(kinds)}"
    for sysctl in security.get("sysctls", []):
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    yield from _of_both(security)


def _of_container(container: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    own, inherited = container.get("securityContext", {}), pod.get("securityContext", {})
    capabilities = own.get("capabilities", {})
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if "ALL" not in capabilities.get("drop", []):
        yield "does not drop ALL capabilities"
    if added := set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"adds {', '.join(added)}"
    if own.get("runAsNonRoot", inherited.get("runAsNonRoot")) is not True:
        yield "runAsNonRoot is not true"
    if own.get("seccompProfile", inherited.get("seccompProfile", {})).get("type") not in SECCOMP:
        yield "no seccompProfile"
    if own.get("procMount", "Default") != "Default":
        yield "procMount"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "hostPort"
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        if container.get(probe, {}).get("httpGet", {}).get("host"):
            yield f"{probe} to another host"
    yield from _of_both(own)


def _of_both(security: dict[str, Any]) -> Iterator[str]:
    """What a pod and a container may not say."""
    if security.get("runAsUser") == 0:
        yield "runAsUser 0"
    if security.get("appArmorProfile", {}).get("type") == "Unconfined":
        yield "AppArmor unconfined"
    selinux = security.get("seLinuxOptions", {})
    if selinux.get("type", "") not in SELINUX or selinux.get("user") or selinux.get("role"):
        yield "seLinuxOptions"
    if security.get("windowsOptions", {}).get("hostProcess"):
        yield "hostProcess"
