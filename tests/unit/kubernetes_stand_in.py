"""A stand-in for the Kubernetes API server, over real HTTP: no real one can run where these tests do.

It has the endpoints that training.submit uses. What is posted must pass Kubernetes' own schemas; refusals are the
Status objects of the real server; the Job's podFailurePolicy decides as it is written. A test scripts the pods.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import kubernetes_validate
import pytest

NAMESPACES = ("default", "art")
TOKEN = "a token"
KINDS = {
    "serviceaccounts": "ServiceAccount",
    "persistentvolumeclaims": "PersistentVolumeClaim",
    "services": "Service",
    "jobs": "Job",
}
ROUTE = re.compile(r"/(?:api|apis/batch)/v1/namespaces/([^/]+)/([a-z]+)(?:/([^/]+))?(/log)?")
REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "AlreadyExists",
    422: "Invalid",
}

UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        }
    ],
}
NOT_THERE = None


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    """A pod whose container waits."""
    state = {"waiting": {"reason": reason, "message": message}}
    return {"phase": "Pending", "containerStatuses": [{"name": "train", "state": state}]}


@dataclass
class Pod:
    """A pod's life: `first` is what one look after another shows before it runs; then its log, then its end."""

    log: list[str] = field(default_factory=list)
    exit_code: int = 0
    index: int | None = None
    """in an Indexed Job"""
    message: str = ""
    """of its end"""
    first: list[dict[str, Any] | None] = field(default_factory=list)
    log_breaks_after: int | None = None
    """lines; the connection breaks there, once"""
    kubelet_says: str = ""
    """in the log after its first line, once, and then no more of it"""
    lines_at_once: int = 1
    """that have the same time stamp, as CRI-O gives them"""
    log_stays_open: bool = False
    log_lost: bool = False
    collected_after_its_log: bool = False
    """the pod is not there any more once its log has broken off or ended"""
    name: str = ""
    ended: bool = False

    def status(self) -> dict[str, Any]:
        end = {"exitCode": self.exit_code, "message": self.message}
        state = {"terminated": end} if self.ended else {"running": {}}
        return {"phase": "Running", "containerStatuses": [{"name": "train", "state": state}]}


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class KubernetesStandIn:
    """`with KubernetesStandIn(Pod(log=["a line"])) as server:`; `server.kubeconfig(folder)` is the way to it."""

    def __init__(self, *pods: Pod) -> None:
        self.script = list(pods)
        self.pods: list[Pod] = []
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.requests: list[tuple[str, str]] = []
        self.refusals: dict[tuple[str, str], Refusal] = {}
        """by method and kind, for good"""
        self.away = 0
        """requests still to be answered with 503"""
        self.events: list[dict[str, Any]] = []
        self.closing = threading.Event()

    def __enter__(self) -> KubernetesStandIn:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"stand_in": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def kubeconfig(self, folder: Path, *, token: str = TOKEN) -> Path:
        return write_kubeconfig(folder, self.url, token=token)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [manifest for (this, _), manifest in self.objects.items() if this == kind]

    # --- answers ---

    def answer(self, method: str, kind: str, name: str | None, query: dict[str, str], body: Any) -> dict[str, Any]:
        if kind == "Pod":
            return self._pods(query["labelSelector"])
        if kind == "Event":
            return {"kind": "EventList", "items": self.events}
        if method == "POST":
            return self._create(kind, body)
        assert name is not None
        if (kind, name) not in self.objects:
            raise Refusal(404, f'{kind.lower()}s.batch "{name}" not found')
        if method == "DELETE":
            self.closing.set()  # its pods end, and their logs with them
            return self.objects.pop((kind, name))
        self._control(self.objects[kind, name])
        return self.objects[kind, name]

    def _create(self, kind: str, manifest: dict[str, Any]) -> dict[str, Any]:
        metadata = manifest["metadata"]
        if "name" not in metadata:
            metadata["name"] = f"{metadata['generateName']}{len(self.objects):05d}"
        if wrong := _schema_error(json.dumps({**manifest, "metadata": {**metadata, "name": "any"}})):
            raise Refusal(400, f"strict decoding error: {wrong}")
        if (kind, metadata["name"]) in self.objects:
            raise Refusal(409, f'{kind.lower()}s.batch "{metadata["name"]}" already exists')
        self.objects[kind, metadata["name"]] = manifest
        return manifest

    def _pods(self, selector: str) -> dict[str, Any]:
        """The list that one look shows; each look takes the script a step on."""
        label, _, job = selector.partition("=")
        assert label == "batch.kubernetes.io/job-name"
        self._control(self.objects["Job", job])
        shown = []
        for number, pod in enumerate(self.pods):
            pod.name = f"{job}-pod{number}"
            status = pod.first.pop(0) if pod.first else pod.status()
            if status is not NOT_THERE and not (pod.ended and pod.collected_after_its_log):
                metadata = {"name": pod.name, "creationTimestamp": f"2026-01-01T00:00:{number:02d}Z"}
                if pod.index is not None:
                    metadata["annotations"] = {"batch.kubernetes.io/job-completion-index": str(pod.index)}
                shown.append({"metadata": metadata, "spec": {"nodeName": "node-1"}, "status": status})
        return {"kind": "PodList", "items": shown[::-1]}

    def _control(self, job: dict[str, Any]) -> None:
        """The Job controller: the next pod, or the Job's end, as its podFailurePolicy says."""
        if "status" in job:
            return
        if self.pods and not self.pods[-1].ended:
            return
        code = self.pods[-1].exit_code if self.pods else None
        if code == 0:
            job["status"] = _ended("Complete", "CompletionsReached", "Reached expected number of succeeded pods")
        elif code is not None and self._action(job, code) == "FailJob":
            job["status"] = _ended("Failed", "PodFailurePolicy", f"Container train failed with exit code {code}")
        elif self.script:
            self.pods.append(self.script.pop(0))
        elif self.pods:
            job["status"] = _ended("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")

    @staticmethod
    def _action(job: dict[str, Any], code: int) -> str:
        for rule in job["spec"]["podFailurePolicy"]["rules"]:
            if code in rule.get("onExitCodes", {}).get("values", []):
                return str(rule["action"])
        return "Count"


@functools.cache
def _schema_error(manifest: str) -> str | None:
    try:
        kubernetes_validate.validate(json.loads(manifest), "1.30", strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return None


@contextlib.contextmanager
def stand_in_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *pods: Pod) -> Iterator[KubernetesStandIn]:
    """A stand-in that is the cluster of the test's kubeconfig."""
    with KubernetesStandIn(*pods) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
        yield server


def write_kubeconfig(folder: Path, url: str, *, token: str = TOKEN) -> Path:
    """As JSON, which is YAML, too."""
    path = folder / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": token}}],
    }
    path.write_text(json.dumps(config))
    return path


def _ended(kind: str, reason: str, message: str) -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": "True", "reason": reason, "message": message}]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stand_in: KubernetesStandIn

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        match = ROUTE.fullmatch(url.path)
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
        try:
            if match is None:
                raise Refusal(404, "the server could not find the requested resource")
            namespace, resource, name, log = match.groups()
            kind = KINDS.get(resource, resource.capitalize().removesuffix("s"))
            self._admit(namespace, kind)
            if log:
                return self._log(next(pod for pod in self.stand_in.pods if pod.name == name))
            self._send(200, self.stand_in.answer(self.command, kind, name, dict(parse_qsl(url.query)), body))
        except Refusal as refusal:
            status = {"kind": "Status", "status": "Failure", "code": refusal.status, "message": str(refusal)}
            self._send(refusal.status, {**status, "reason": REASONS.get(refusal.status, "")})
        return None

    do_POST = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def _admit(self, namespace: str, kind: str) -> None:
        self.stand_in.requests.append((self.command, kind))
        if self.stand_in.away:
            self.stand_in.away -= 1
            raise Refusal(503, "apiserver not ready")
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            raise Refusal(401, "Unauthorized")
        if refusal := self.stand_in.refusals.get((self.command, kind)):
            raise refusal
        if namespace not in NAMESPACES:
            raise Refusal(404, f'namespaces "{namespace}" not found')

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _log(self, pod: Pod) -> None:
        """The log with the kubelet's time stamps, chunk by chunk; at its end the pod ends."""
        if pod.log_lost:
            raise Refusal(500, 'Get "https://10.0.0.7:10250/containerLogs": no route to host')
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, line in enumerate(pod.log):
            if number == pod.log_breaks_after:
                pod.log_breaks_after = None
                self.close_connection = True
                pod.ended = pod.collected_after_its_log
                return
            if number and pod.kubelet_says:
                self._chunk(f"{pod.kubelet_says}\n".encode())
                self._chunk(b"")
                pod.kubelet_says = ""
                return
            moment = number // pod.lines_at_once
            self._chunk(f"2026-01-01T00:00:00.{moment:09d}Z {line}\n".encode())
        if pod.log_stays_open:
            self.stand_in.closing.wait()
        pod.ended = True
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()
