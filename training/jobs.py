"""What a model's training needs from a cluster, and the Job that requests it. Torch-free.

`python -m training.generate` writes the Job to deploy/train-<model>.yaml, or deploy/<name>.yaml if it has a name of its
own; `python -m training.submit` creates it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from serving.spec import ModelSpec
from training.errors import BAD_INPUT, REFUSED, STOPPED

ROOT = Path(__file__).parents[1]

ACCOUNT = "atelier-training"
MODELS, RUNS = "atelier-models", "atelier-runs"
"""The volume claims for the model repository, which Triton serves, and the run directories. All Jobs share both."""
CONTAINER = "train"
GPU = "nvidia.com/gpu"
UID = 1000
"""The user that deploy/images/*.Dockerfile create."""
METRICS_PORT = 8000
RENDEZVOUS_PORT = 29400
RETRIES = 4
DEVICE = "ATELIER_DEVICE"
"""The environment variable that tells training.devices which device to use."""
DATA = "/runs/.data"
"""Where fetched corpora are kept, beside the runs. No Job's name begins with a dot, so none clashes."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model's training on a cluster. `memory` is a Kubernetes quantity, both request and limit.

    `corpus` describes the pictures to the reader of the manifest; if they are downloaded, it is from the first address
    of `fetched_from` that answers. `deadline_h` ends a Job that hangs, with time to spare for one that does not.
    `options` are passed to training.run unchanged. A Job whose result is its run, not a new version, doesn't publish,
    and has a `name` of its own that says what it `does`. `gpus`, `cpus` and `memory` are per node. `batch` is the batch
    size that several `nodes` share: the default of the model's own options, repeated here as their module needs torch.
    """

    corpus: str
    name: str = ""
    does: str = "Trains"
    publishes: bool = True
    fetched_from: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    nodes: int = 1
    batch: int = 0
    gpus: int = 1
    cpus: int = 4
    memory: str = "8Gi"
    deadline_h: int = 24

    def __post_init__(self) -> None:
        assert self.gpus >= 0, f"gpus {self.gpus}: 0 or more"
        for field in ("nodes", "cpus", "deadline_h"):
            assert getattr(self, field) > 0, f"{field} {getattr(self, field)}: 1 or more"
        shared = self.batch > 0 and self.batch % (self.nodes * self.workers) == 0
        assert self.nodes == 1 or shared, f"batch {self.batch}: for {self.nodes} x {self.workers} workers to share"
        assert self.nodes == 1 or self.publishes, "nodes: a pod knows by what was published that its group is done"
        assert re.fullmatch(r"\d+[GM]i", self.memory), f"memory {self.memory!r}: such as 8Gi or 512Mi"

    @property
    def workers(self) -> int:
        """Workers per node."""
        return max(1, self.gpus)


def image(accelerator: str) -> str:
    """The training image for "gpu" or "cpu". pyproject.toml's version is the one place that sets the tag."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return f"atelier-training:{project['version']}-{accelerator}"


def file(model: str, job: Job) -> Path:
    """The path of the file with the text of `render`, relative to the root of the repository."""
    return Path("deploy", f"{_name(model, job)}.yaml")


def render(spec: ModelSpec, job: Job) -> str:
    """The text of `file`."""
    header = _header(spec, job).splitlines()
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header)
    return comment + dump([_yaml(manifest) for manifest in manifests(spec.name, job)])


def dump(manifests: list[Any]) -> str:
    """Manifests as the text of one YAML file."""
    text = StringIO()
    _yaml_emitter().dump_all(manifests, text)
    return text.getvalue()


def load(path: Path) -> list[Any]:
    """The manifests of a YAML file; `dump` writes them back with their comments."""
    return list(_yaml_emitter().load_all(path.read_text()))


def manifests(model: str, job: Job) -> list[dict[str, Any]]:
    """The manifests in the file. A tuple is written on one line; a `Note` becomes a comment above its value."""
    models = [_volume_claim(MODELS, "5Gi", job)] if job.publishes else []
    service = [_service()] if job.nodes > 1 else []
    return [_service_account(), *models, _volume_claim(RUNS, "20Gi", job), *service, _job(model, job)]


class Note(NamedTuple):
    text: str
    value: Any


def _service_account() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": ACCOUNT, "labels": _labels("training")},
        "automountServiceAccountToken": False,
    }


def _volume_claim(name: str, storage: str, job: Job) -> dict[str, Any]:
    mode = "ReadWriteMany" if job.nodes > 1 else "ReadWriteOnce"
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "labels": _labels("storage")},
        "spec": {"accessModes": (mode,), "resources": {"requests": {"storage": storage}}},
    }


def _service() -> dict[str, Any]:
    """One Service for all Jobs of several pods: it gives their pods DNS names, which begin with the Job's name."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": ACCOUNT, "labels": _labels("training")},
        "spec": {
            "clusterIP": Note("Headless: it gives each pod a name, <job>-<index>.atelier-training.", "None"),
            "publishNotReadyAddresses": True,
            "selector": _labels("training"),
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT}],
        },
    }


def _labels(component: str) -> dict[str, Any]:
    return {"app.kubernetes.io/part-of": "atelier", "app.kubernetes.io/component": component}


def _job(model: str, job: Job) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": _kubernetes_name(model), **_labels("training")}
    queue = "With Kueue, the queue that admits this Job:\nkueue.x-k8s.io/queue-name: atelier"
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": _name(model, job),
            "labels": {"app.kubernetes.io/name": Note(queue, _kubernetes_name(model)), **_labels("training")},
        },
        "spec": {
            **_completions(job),
            "activeDeadlineSeconds": Note(
                f"{job.deadline_h} hours in all; time spent waiting for a node counts.", job.deadline_h * 3600
            ),
            "ttlSecondsAfterFinished": 24 * 3600,
            "podFailurePolicy": {"rules": _failure_rules()},
            "template": {"metadata": {"labels": labels}, "spec": _pod(model, job)},
        },
    }


def _completions(job: Job) -> dict[str, Any]:
    if job.nodes == 1:
        return {"backoffLimit": RETRIES}
    return {
        "completionMode": "Indexed",
        "completions": job.nodes,
        "parallelism": Note("The same: none trains without the others.", job.nodes),
        "backoffLimit": Note(
            f"When one pod crashes, all end and begin again from the checkpoint: {RETRIES} such times.",
            RETRIES * job.nodes,
        ),
    }


def _failure_rules() -> list[Any]:
    def on_exit(*codes: int) -> dict[str, Any]:
        return {"containerName": CONTAINER, "operator": "In", "values": codes}

    return [
        Note(
            "A drained, preempted or evicted pod resumes elsewhere and does not count against backoffLimit.",
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        ),
        Note(
            "Nor does one that was told to stop and wrote its checkpoint first.",
            {"action": "Ignore", "onExitCodes": on_exit(STOPPED)},
        ),
        Note(
            f"{BAD_INPUT}: bad options or data. {REFUSED}: refused by the gate. Neither gets better by trying again.",
            {"action": "FailJob", "onExitCodes": on_exit(BAD_INPUT, REFUSED)},
        ),
    ]


def _pod(model: str, job: Job) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "serviceAccountName": ACCOUNT,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": Note("Time to finish a step and write a checkpoint.", 120),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "runAsGroup": UID,
            "fsGroup": UID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if job.gpus:
        pod["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    if job.nodes > 1:
        pod["subdomain"] = ACCOUNT
    return pod | {"containers": [_container(model, job)], "volumes": _volumes(job)}


def _container(model: str, job: Job) -> dict[str, Any]:
    resources: dict[str, Any] = {"cpu": job.cpus, "memory": job.memory}
    if job.gpus:
        resources[GPU] = job.gpus
    return {
        "name": CONTAINER,
        "image": image("gpu" if job.gpus else "cpu"),
        "command": ("python", "-m", "training.torchrun" if job.nodes > 1 else "training.run"),
        "args": [
            *(_torchrun(job) if job.nodes > 1 else []),
            model,
            "--runs=/runs",
            Note(
                "A pod that takes over from another goes on with its run, which has the Job's name.",
                "--name=$(JOB_NAME)",
            ),
            "--resume",
            *(["--publish=/models"] if job.publishes else []),
            f"--metrics-port={METRICS_PORT}",
            *job.options,
        ],
        "env": _environment(job),
        "ports": [
            {"name": "metrics", "containerPort": METRICS_PORT},
            *([{"name": "rendezvous", "containerPort": RENDEZVOUS_PORT}] if job.nodes > 1 else []),
        ],
        "resources": {"limits": Note("No requests are given: they default to these.", resources)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ("ALL",)},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            *([{"name": "models", "mountPath": "/models"}] if job.publishes else []),
            {"name": "runs", "mountPath": "/runs"},
            {"name": "tmp", "mountPath": "/tmp"},
            *([{"name": "shm", "mountPath": "/dev/shm"}] if job.publishes else []),
        ],
    }


def _torchrun(job: Job) -> list[Any]:
    """How the pods find one another. The rendezvous is static, because only that lets the completion index be the rank:
    the pod of index 0 leads, and its log is the run's."""
    return [
        Note(
            "A pod that comes back when the others are done has nothing to do, and nobody to meet.",
            "--unless=/runs/$(JOB_NAME)/published.txt",
        ),
        f"--nnodes={job.nodes}",
        f"--nproc-per-node={job.workers}",
        "--node-rank=$(JOB_COMPLETION_INDEX)",
        f"--master-addr=$(JOB_NAME)-0.{ACCOUNT}",
        f"--master-port={RENDEZVOUS_PORT}",
        Note("Seconds that a pod waits for the others to be scheduled.", "--rdzv-conf=timeout=3600"),
        Note("Of the grace period, for workers to finish a step and write a checkpoint.", "--shutdown-timeout=90"),
        "-m",
        "training.run",
    ]


def _environment(job: Job) -> list[Any]:
    environment: list[Any] = [
        {
            "name": "JOB_NAME",
            "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-name']"}},
        },
        Note(
            "As many threads as the container has CPUs, not as the node has.",
            {"name": "OMP_NUM_THREADS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        ),
    ]
    if job.gpus:
        note = "With cuda a run that finds no GPU fails at once, instead of training on the CPU."
        environment.append(Note(note, {"name": DEVICE, "value": "cuda"}))
    if job.fetched_from:
        note = "On the volume, so that the corpus is fetched once and not by every pod."
        environment.append(Note(note, {"name": "ATELIER_DATA", "value": DATA}))
    return environment


def _volumes(job: Job) -> list[Any]:
    models = {"name": "models", "persistentVolumeClaim": {"claimName": MODELS}}
    shm = Note(
        "The gate's Triton passes tensors through it. Counts as memory of the container.",
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
    )
    return [
        *([models] if job.publishes else []),
        {"name": "runs", "persistentVolumeClaim": {"claimName": RUNS}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "4Gi"}},
        *([shm] if job.publishes else []),
    ]


def _header(spec: ModelSpec, job: Job) -> str:
    name = _name(spec.name, job)
    result = f"What it makes is in the folder {name} of the volume {RUNS}."
    lost = f"the volume {RUNS}, and every run on it"
    if job.publishes:
        result = f"A run that passes its gate is published to the volume {MODELS}, where Triton finds it."
        lost = "the volumes, and every model and run on them"
    return f"""\
{job.does} {spec.name}: {spec.summary}.
Its corpus: {job.corpus}.
{result}

  kubectl apply -f {file(spec.name, job)}
  kubectl logs -f {log_target(name, job.nodes)}
{_multinode_note(job)}
What to change for your cluster:
- image: `deploy/images/build.sh training-gpu` builds it. Push it where the cluster can pull it, and name that here.
- {GPU}: without GPUs delete it and the toleration, take the -cpu image, and set {DEVICE} to cpu.
{_cluster_notes(job)}
- storageClassName: not set, so the cluster's default is used.
{_corpus_note(job)}
A Job is applied once. After a change: kubectl delete job {name}, then apply: it goes on.
For a new run give the Job a new name, as `{_submit_command(spec.name, job)}` does for you.
Never `kubectl delete -f` this file: that deletes {lost}.

Generated by `python -m training.generate` from training/models/{spec.name}/ and training/jobs.py.
"""


def log_target(name: str, nodes: int) -> str:
    """The arguments with which `kubectl logs` shows a Job's log: that of its pod or, of several, of the leader. With a
    selector it would show only the last ten lines, hence --tail."""
    if nodes == 1:
        return f"job/{name}"
    return f"-l job-name={name},batch.kubernetes.io/job-completion-index=0 --tail=-1"


def _submit_command(model: str, job: Job) -> str:
    nodes = f" --nodes {job.nodes}" if job.nodes > 1 else ""
    return f"python -m training.submit {model}{nodes} --follow"


def _multinode_note(job: Job) -> str:
    if job.nodes == 1:
        return ""
    return f"""
{job.nodes} pods share every batch and average their gradients, so that the run is that of one pod, sooner.
The pod of index 0 leads: it alone writes the run, evaluates and publishes. When one is drained or crashes, all
end, and begin again together from its last checkpoint.
"""


def _cluster_notes(job: Job) -> str:
    if job.nodes == 1:
        return "- accessModes: ReadWriteMany where Triton, or another Job, runs on another node than this Job."
    return """\
- accessModes: pods on several nodes need ReadWriteMany, and a StorageClass that can (NFS, CephFS, EFS, Filestore).
  A claim's mode can't be changed: where the claims are there already as ReadWriteOnce, this Job can't run.
- network: the pods reach one another on every port, which a NetworkPolicy must allow.
- nodes: completions, parallelism and --nnodes are one number, of which --batch is a multiple."""


def _corpus_note(job: Job) -> str:
    if not job.fetched_from:
        return ""
    addresses = "".join(f"    {address}\n" for address in job.fetched_from)
    return f"""\
- network: the corpus is fetched once, into {DATA} on {RUNS}, from the first of these that answers.
  Behind a proxy, add http_proxy, https_proxy and, for a Pushgateway, no_proxy to env.
{addresses}"""


def _name(model: str, job: Job) -> str:
    return job.name or f"train-{_kubernetes_name(model)}"


def _kubernetes_name(model: str) -> str:
    """The model's name in Kubernetes, which allows no underscores."""
    return model.replace("_", "-")


def _yaml_emitter() -> YAML:
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 200
    return yaml


def _yaml(value: Any, column: int = 0) -> Any:
    """`value` as ruamel nodes whose first key or dash is at `column`; Notes become comments."""
    if isinstance(value, Mapping):
        node: Any = CommentedMap()
        for key, item in value.items():
            _add(node, key, item, column)
        return node
    if isinstance(value, list | tuple):
        node = CommentedSeq([None] * len(value))
        for index, item in enumerate(value):
            _add(node, index, item, column)
        if isinstance(value, tuple):
            node.fa.set_flow_style()
        return node
    return value


def _add(node: Any, key: Any, item: Any, column: int) -> None:
    text, value = item if isinstance(item, Note) else ("", item)
    node[key] = _yaml(value, column + 2)
    if text:
        node.yaml_set_comment_before_after_key(key, before=text, indent=column)
