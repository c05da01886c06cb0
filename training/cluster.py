"""The Kubernetes API as training.submit needs it. Every failure is one line that names the next step.

Objects are plain JSON in both directions: a manifest reaches the cluster unchanged, and the answer of a newer cluster
doesn't break an older client. Only credentials and transport come from the `kubernetes` package.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.config import ConfigException

TIMEOUT_S = 30.0
LOG_READ_TIMEOUT_S = 300.0
"""A log that is silent for this long is requested again, because its connection may be dead."""
POD_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
PATHS = {
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "PersistentVolumeClaim": "/api/v1/namespaces/{}/persistentvolumeclaims",
    "Service": "/api/v1/namespaces/{}/services",
    "Pod": "/api/v1/namespaces/{}/pods",
    "Event": "/api/v1/namespaces/{}/events",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
}

Json = dict[str, Any]


class ClusterError(Exception):
    """The cluster refused a request, or can't be reached."""


class Unreachable(ClusterError):
    """No answer, or a broken one; a retry may succeed."""


class NotFound(ClusterError):
    """The object doesn't exist, or no longer does."""


class AlreadyExists(ClusterError):
    """There is already an object of that name."""


@dataclass(frozen=True)
class Cluster:
    """One namespace of one cluster, with the caller's credentials."""

    api: client.ApiClient
    namespace: str

    def create(self, manifest: Json) -> str:
        """Returns the object's name, which the server generates if there is a generateName. Raises AlreadyExists."""
        made = self._json("POST", manifest["kind"], body=manifest, query={"fieldValidation": "Strict"})
        name: str = made["metadata"]["name"]
        return name

    def read(self, kind: str, name: str) -> Json:
        return self._json("GET", kind, name)

    def list(self, kind: str, **query: str) -> list[Json]:
        """The objects that `query` selects, by labelSelector or fieldSelector."""
        items: list[Json] = self._json("GET", kind, query=query)["items"]
        return items

    def delete(self, kind: str, name: str) -> None:
        """Deletes it and, in the background, its dependents: a Job's pods get their grace period to end."""
        self._json("DELETE", kind, name, query={"propagationPolicy": "Background"})

    def log(self, pod: str, container: str) -> Iterator[tuple[str, str]]:
        """Streams (time, line) from the log's beginning until the container ends. Raises Unreachable."""
        query = {"container": container, "follow": "true", "timestamps": "true"}
        with self._request("GET", "Pod", f"{pod}/log", query=query, timeout_s=LOG_READ_TIMEOUT_S) as answer:
            for line in answer:
                time, _, text = line.decode(errors="replace").rstrip("\n").partition(" ")
                yield time, text

    def _json(
        self,
        method: str,
        kind: str,
        name: str = "",
        *,
        body: Json | None = None,
        query: Mapping[str, str] = MappingProxyType({}),
    ) -> Json:
        with self._request(method, kind, name, body=body, query=query, timeout_s=TIMEOUT_S) as answer:
            text = answer.read()
        with suppress(ValueError):
            read = json.loads(text)
            if isinstance(read, dict) and "kind" in read:
                return read
        raise ClusterError(
            f"{self.api.configuration.host} answers, but not as a Kubernetes API does; "
            "check the server in your kubeconfig"
        )

    @contextmanager
    def _request(
        self,
        method: str,
        kind: str,
        name: str,
        *,
        body: Json | None = None,
        query: Mapping[str, str],
        timeout_s: float,
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """The response, with its body unread. Failures to request or to read it become ClusterErrors."""
        path = PATHS[kind].format(self.namespace) + (f"/{name}" if name else "")
        headers = {"Accept": "application/json, */*", "Content-Type": "application/json"}
        what = f"{kind} {name or (body or {}).get('metadata', {}).get('name', '')}".strip()
        try:
            # Renews credentials that have run out.
            request = self.api.param_serialize(
                method, path, None, [*query.items()], headers, body, auth_settings=["BearerToken"]
            )
            answer = self.api.call_api(*request, _request_timeout=(TIMEOUT_S, timeout_s)).response
            try:
                if answer.status >= 400:
                    raise self._refusal(answer, what)
                yield answer
            finally:
                answer.close()
        except (urllib3.exceptions.HTTPError, client.ApiException, ConfigException) as error:
            raise Unreachable(
                f"cannot reach the Kubernetes API at {self.api.configuration.host} ({_reason(error)}); "
                "`kubectl cluster-info` shows whether kubectl can"
            ) from error

    def _refusal(self, answer: urllib3.BaseHTTPResponse, what: str) -> ClusterError:
        host, said = self.api.configuration.host, _message(answer)
        match answer.status:
            case 401:
                return ClusterError(f"{host} does not accept your credentials ({said}); log in to the cluster again")
            case 403:
                return ClusterError(f"{said}; ask for that right, or choose another --namespace")
            case 404 if said.startswith("namespaces "):
                return ClusterError(f"--namespace: {said}; `kubectl create namespace {self.namespace}` makes it")
            case 404:
                return NotFound(f"{what}: {said}")
            case 409 if "already exists" in said:
                return AlreadyExists(f"{what}: {said}")
            case 409 | 429 | 500 | 502 | 503 | 504 as status:  # also 409 if a quota changed meanwhile
                return Unreachable(f"{host} answers with status {status} ({said}); try again later")
            case status:
                return ClusterError(f"{what}: refused with status {status}: {said}")


def connect(*, namespace: str | None, context: str | None) -> Cluster:
    """Connects with the kubeconfig ($KUBECONFIG or ~/.kube/config) or, in a pod without one, its service account."""
    kubeconfig = os.environ.get("KUBECONFIG")
    path = kubeconfig or "~/.kube/config"  # evaluated now; the package's default is fixed at import
    loader: Any = config  # the package leaves it untyped
    configuration = client.Configuration()
    configuration.retries = False  # training.submit reports failures, and retries where that helps
    try:
        none = kubeconfig is None and not Path(path).expanduser().exists()
        if none and context is None and POD_TOKEN.exists():
            loader.load_incluster_config(client_configuration=configuration)
            own = POD_TOKEN.with_name("namespace").read_text()
        else:
            loader.load_kube_config(path, context=context, client_configuration=configuration)
            contexts, active = loader.list_kube_config_contexts(path)
            chosen = next(c for c in contexts if c["name"] == context) if context else active
            own = chosen["context"].get("namespace", "default")
    except Exception as error:  # ConfigException, or whatever a file that isn't a kubeconfig causes
        where = f"KUBECONFIG={kubeconfig}" if kubeconfig else "~/.kube/config"
        flag = f"--context {context}, " if context else ""
        why = " ".join(str(error).split()) if isinstance(error, ConfigException) else "not a kubeconfig"
        raise ClusterError(f"{flag}{where}: {why.rstrip('.')}; set KUBECONFIG to a cluster's kubeconfig") from error
    return Cluster(client.ApiClient(configuration), namespace or own)


def _message(answer: urllib3.BaseHTTPResponse) -> str:
    """The server's reason for a refusal: the message of a Status object, or the text of a proxy's response."""
    text = answer.read().decode(errors="replace")
    with suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["message"]
    return " ".join(text.split())[:500] or str(answer.reason)


def _reason(error: Exception) -> str:
    """The end of "HTTPConnection(host=…): Failed to establish …: [Errno 111] Connection refused"."""
    text = " ".join(str(getattr(error, "reason", None) or error).split())
    return text.rpartition("] ")[2] or type(error).__name__
