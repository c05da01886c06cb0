"""Everything under deploy/: valid for every Kubernetes that is supported, restricted, and in step with the code."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import torch
import yaml
from conftest import need
from kubernetes_validate.utils import all_versions
from pod_security import pods, violations
from ruamel.yaml import YAML
from torch.distributed import run as torch_run

from training import catalog, errors, jobs, run

DEPLOY = jobs.ROOT / "deploy"
# What is applied by itself; what kustomizations are made of is tested in test_kustomize.py.
FILES = sorted(path for path in [*DEPLOY.glob("*.yaml"), *DEPLOY.glob("*/*/push.yaml")] if "kustom" not in path.name)
TRAIN = [jobs.ROOT / jobs.file(name, job) for name in catalog.names() for job in catalog.jobs(name)]
MULTINODE = [path for path in TRAIN if path.stem.endswith("-multinode")]
VERSIONS = [v for v in dict.fromkeys(all_versions()) if tuple(map(int, v.split(".")[:2])) >= (1, 30)]

of_each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
of_each_job = pytest.mark.parametrize("path", TRAIN, ids=lambda path: path.name)


def _manifests(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def _job(path: Path) -> dict[str, Any]:
    (job,) = (manifest for manifest in _manifests(path) if manifest["kind"] == "Job")
    return job


def _container(path: Path) -> dict[str, Any]:
    (container,) = _job(path)["spec"]["template"]["spec"]["containers"]
    return container


def _run_arguments(path: Path) -> list[str]:
    """training.run's, after torchrun's own if it is torchrun that starts it."""
    arguments: list[str] = _container(path)["args"]
    return arguments[arguments.index("training.run") + 1 :] if "training.run" in arguments else arguments


def _environment(path: Path) -> dict[str, str]:
    """The variables that are given a value outright."""
    return {variable["name"]: variable["value"] for variable in _container(path)["env"] if "value" in variable}


def _sorted(manifests: Iterable[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(manifest, sort_keys=True) for manifest in manifests)


# --- every file ---


@pytest.mark.parametrize("version", VERSIONS)
@of_each_file
def test_valid(path, version):
    """The API server of each version takes the file with strict field validation."""
    for manifest in _manifests(path):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_versions_reach_from_1_30():
    """The list of versions above is not empty by accident."""
    assert VERSIONS[0].startswith("1.30")
    assert len(VERSIONS) >= 8


@pytest.mark.parametrize("version", VERSIONS)
def test_a_typo_is_not_valid(version):
    """Strict validation finds a misspelt field deep in a pod, so the test above can fail."""
    manifest = _job(TRAIN[0])
    manifest["spec"]["template"]["spec"]["containers"][0]["readOnlyRootFileSystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_reader_of_yaml_sees_the_same(path):
    """YAML 1.1 (kubectl) and 1.2 differ on words such as no, on and 0777: none of them stands there unquoted."""
    assert list(YAML(typ="safe", pure=True).load_all(path.read_text())) == _manifests(path)


@of_each_file
def test_kustomize_takes_it(path, tmp_path):
    """kubectl's own reader, stricter than PyYAML, accepts the file as a resource."""
    need(shutil.which("kubectl"), "kubectl is not installed")
    shutil.copy(path, tmp_path / "manifest.yaml")
    (tmp_path / "kustomization.yaml").write_text("resources: [manifest.yaml]\n")
    done = subprocess.run(["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert _sorted(yaml.safe_load_all(done.stdout)) == _sorted(_manifests(path))


@of_each_file
def test_pods_are_restricted(path):
    """Pod Security `restricted` admits every pod."""
    for manifest in _manifests(path):
        for pod in pods(manifest):
            assert violations(pod) == []


def _at(*keys: Any) -> Callable[[dict[str, Any]], Any]:
    def find(pod: dict[str, Any]) -> Any:
        for key in keys:
            pod = pod[key]
        return pod

    return find


_SECURITY, _OWN = _at("securityContext"), _at("containers", 0, "securityContext")
LAPSES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "root user": lambda pod: _SECURITY(pod).update(runAsUser=0),
    "root allowed": lambda pod: _SECURITY(pod).pop("runAsNonRoot"),
    "root allowed in the container": lambda pod: _OWN(pod).update(runAsNonRoot=False),
    "no seccomp": lambda pod: _SECURITY(pod).pop("seccompProfile"),
    "seccomp off in the container": lambda pod: _OWN(pod).update(seccompProfile={"type": "Unconfined"}),
    "escalation": lambda pod: _OWN(pod).pop("allowPrivilegeEscalation"),
    "privileged": lambda pod: _OWN(pod).update(privileged=True),
    "capabilities kept": lambda pod: _OWN(pod).pop("capabilities"),
    "capability added": lambda pod: _OWN(pod)["capabilities"].update(add=["SYS_PTRACE"]),
    "host network": lambda pod: pod.update(hostNetwork=True),
    "host path": lambda pod: pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
    "host port": lambda pod: _at("containers", 0)(pod).update(ports=[{"containerPort": 1, "hostPort": 1}]),
    "sysctl": lambda pod: _SECURITY(pod).update(sysctls=[{"name": "kernel.msgmax", "value": "1"}]),
    "init container": lambda pod: pod.update(initContainers=[{"name": "seed", "image": "x"}]),
}


@pytest.mark.parametrize("lapse", LAPSES.values(), ids=LAPSES.keys())
def test_a_lapse_is_not_restricted(lapse):
    """The check above finds each thing that the standard forbids."""
    pod = copy.deepcopy(_job(TRAIN[0])["spec"]["template"]["spec"])
    lapse(pod)
    assert violations(pod)


# --- the training Jobs ---


def test_each_trained_model_has_its_file():
    """One file for each model with a job.py, and no others."""
    holding_a_job = {path for path in DEPLOY.glob("*.yaml") if any(m["kind"] == "Job" for m in _manifests(path))}
    assert holding_a_job == set(TRAIN)


@of_each_job
def test_the_run_understands_its_command(path, capsys):
    """What the container starts is a command line that training.run accepts."""
    module = "training.torchrun" if path in MULTINODE else "training.run"
    assert _container(path)["command"] == ["python", "-m", module]
    arguments = [argument.replace("$(JOB_NAME)", "a-job") for argument in _run_arguments(path)]
    assert run.main([*arguments, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)


@of_each_job
def test_reserved_exit_codes_end_the_job(path):
    """Bad options and a refusal fail the Job with the first pod; disruptions and SIGTERM count for nothing."""
    disrupted, stopped, failed = _job(path)["spec"]["podFailurePolicy"]["rules"]
    assert (disrupted["action"], disrupted["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert (stopped["action"], stopped["onExitCodes"]["values"]) == ("Ignore", [errors.STOPPED])
    assert (failed["action"], failed["onExitCodes"]["values"]) == ("FailJob", [errors.BAD_INPUT, errors.REFUSED])
    assert failed["onExitCodes"]["containerName"] == _container(path)["name"]
    assert _job(path)["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy asks for it


@of_each_job
def test_everything_it_writes_to_is_a_volume(path):
    """With a read-only root, each path the run writes to is mounted, and each mount is a volume of the pod."""
    container, pod = _container(path), _job(path)["spec"]["template"]["spec"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    written = {argument.partition("=")[2] for argument in container["args"] if re.match("--(runs|publish)=", argument)}
    shared = {"/dev/shm"} if "/models" in written else set()  # the gate's Triton needs it
    assert written | shared | {"/tmp"} == set(mounts)
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}


@of_each_job
def test_what_it_fetches_stays_on_the_volume(path):
    """A corpus that is fetched lands beside the runs, where no run's name can meet it, and the header says from where;
    a Job that fetches nothing is told of no place for it."""
    job = catalog.job(_run_arguments(path)[0])
    environment, comment = _environment(path), path.read_text().partition("apiVersion")[0]
    if not job.fetched_from:
        assert "ATELIER_DATA" not in environment
        assert "fetched" not in comment
        return
    runs, place = Path(environment["ATELIER_DATA"]).parent, Path(environment["ATELIER_DATA"]).name
    assert f"--runs={runs}" in _container(path)["args"]
    assert place.startswith(".")
    assert all(address in comment for address in job.fetched_from)
    assert environment["ATELIER_DATA"] in comment


@of_each_job
def test_a_missing_gpu_ends_the_job(path, monkeypatch, capsys):
    """A pod that got no GPU although its Job asks for one ends with the status that fails the Job, before it has
    made anything, with one line that says what is missing."""
    for name, value in _environment(path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.main([_run_arguments(path)[0], "--preset=tiny"]) == errors.BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("training.run: ATELIER_DEVICE: cuda was asked for")
    assert captured.err.count("\n") == 1


@of_each_job
def test_whole_by_itself(path):
    """Claims and account that the pod names are in the same file, and the account's token is not mounted."""
    manifests, pod = _manifests(path), _job(path)["spec"]["template"]["spec"]
    named = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    claims = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
    assert {("PersistentVolumeClaim", claim) for claim in claims} <= named
    assert ("ServiceAccount", pod["serviceAccountName"]) in named
    (account,) = (manifest for manifest in manifests if manifest["kind"] == "ServiceAccount")
    assert account["automountServiceAccountToken"] is False


def test_files_share_their_claims():
    """Applying a second file changes nothing that the first created; those of several nodes ask for another mode."""
    shared: dict[tuple[str, str], set[str]] = {}
    for path in TRAIN:
        for manifest in _manifests(path):
            if path in MULTINODE and manifest["kind"] == "PersistentVolumeClaim":
                assert manifest["spec"]["accessModes"] == ["ReadWriteMany"]
                manifest["spec"]["accessModes"] = ["ReadWriteOnce"]
            if manifest["kind"] != "Job":
                shared.setdefault((manifest["kind"], manifest["metadata"]["name"]), set()).add(json.dumps(manifest))
    assert {name: len(texts) for name, texts in shared.items()} == dict.fromkeys(shared, 1)


@of_each_job
def test_limits_reserve_and_name_the_gpu(path):
    """Memory and CPU are bounded; a GPU comes with the toleration that GPU nodes ask for, and is insisted on."""
    pod, limits = _job(path)["spec"]["template"]["spec"], _container(path)["resources"]["limits"]
    assert {"cpu", "memory"} <= limits.keys()
    assert (jobs.GPU in limits) == (jobs.GPU in [t["key"] for t in pod.get("tolerations", [])])
    assert (jobs.GPU in limits) == (jobs.DEVICE in _environment(path))


@of_each_job
def test_readable(path):
    """Flat and as if written by hand: comments at the top, no anchors, no long lines."""
    text = path.read_text()
    assert re.match("# (Trains|Paints with) ", text)
    assert "kubectl apply -f deploy/" in text.partition("apiVersion")[0]
    assert not re.search(r"[&*]id\d|!!", text)
    assert max(map(len, text.splitlines())) <= 120


def test_one_place_sets_the_tag():
    """Every image of this project under deploy/ has pyproject.toml's version, and so has what build.sh builds."""
    version = jobs.image("gpu").partition(":")[2].partition("-")[0]
    tags = {
        tag for path in DEPLOY.rglob("*.yaml") for tag in re.findall(r"image: atelier-\w+:([^\s-]+)", path.read_text())
    }
    assert tags == {version}
    line = next(line for line in (DEPLOY / "images" / "build.sh").read_text().splitlines() if "version=$(" in line)
    done = subprocess.run(["bash", "-c", f"{line}; echo $version"], cwd=jobs.ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == version


@pytest.mark.parametrize("path", MULTINODE, ids=lambda path: path.name)
def test_pods_of_several_nodes_find_each_other(path):
    """torchrun parses its options, which are those of the Job; the address that they meet at is a name that a headless
    Service of the same file gives the pod of index 0, ready or not, and whose selector finds the pods."""
    job, container = _job(path)["spec"], _container(path)
    assert (job["completionMode"], job["completions"]) == ("Indexed", job["parallelism"])
    assert job["backoffLimit"] % job["completions"] == 0
    options = {"$(JOB_NAME)": "a-job", "$(JOB_COMPLETION_INDEX)": "1"}
    arguments = container["args"]
    for variable, value in options.items():
        arguments = [argument.replace(variable, value) for argument in arguments]
    own, *torchruns = arguments
    assert own == "--unless=/runs/a-job/published.txt"
    asked = torch_run.parse_args(torchruns)
    config, _, command = torch_run.config_from_args(asked)
    assert (config.min_nodes, config.max_nodes, config.max_restarts) == (job["completions"], job["completions"], 0)
    assert config.nproc_per_node == max(1, container["resources"]["limits"].get(jobs.GPU, 0))
    assert config.rdzv_configs["rank"] == 1
    assert command[1:3] == ["-m", "training.run"]
    assert config.shutdown_timeout < job["template"]["spec"]["terminationGracePeriodSeconds"]

    (service,) = (manifest for manifest in _manifests(path) if manifest["kind"] == "Service")
    name, spec = service["metadata"]["name"], service["spec"]
    assert (spec["clusterIP"], spec["publishNotReadyAddresses"]) == ("None", True)
    assert spec["selector"].items() <= job["template"]["metadata"]["labels"].items()
    assert job["template"]["spec"]["subdomain"] == name
    assert config.rdzv_endpoint == f"a-job-0.{name}:{spec['ports'][0]['port']}"
    assert spec["ports"][0]["port"] in [port["containerPort"] for port in container["ports"]]


# --- a Job's facts ---


@pytest.mark.parametrize(
    "facts",
    [{"gpus": -1}, {"nodes": 0}, {"nodes": 2, "publishes": False}, {"cpus": 0}, {"memory": "8GB"}, {"deadline_h": 0}],
    ids=str,
)
def test_facts_that_no_cluster_can_give(facts):
    """A Job with impossible sizes can't be written down."""
    with pytest.raises(AssertionError):
        jobs.Job(corpus="none", **facts)


def test_a_job_without_gpus():
    """Neither the resource nor its toleration, no insisting on one, and the CPU image."""
    text = jobs.render(catalog.spec("wgan"), jobs.Job(corpus="none", gpus=0))
    body = text.partition("apiVersion")[2]
    assert jobs.GPU not in body
    assert jobs.DEVICE not in body
    assert jobs.image("cpu") in body


def test_names_fit_kubernetes():
    """A model's underscore becomes a dash in names, and stays in the command."""
    (*_, job) = jobs.manifests("wgan_x4", jobs.Job(corpus="none"))
    assert job["metadata"]["name"] == "train-wgan-x4"
    assert job["spec"]["template"]["spec"]["containers"][0]["args"][0] == "wgan_x4"
