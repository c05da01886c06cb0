"""training.submit against a stand-in for the API server, through the real client over real HTTP."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from kubernetes_stand_in import KubernetesStandIn, Refusal, stand_in_cluster, write_kubeconfig
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from training import catalog, cluster, jobs, run, submit

MANIFESTS = list(yaml.safe_load_all((jobs.ROOT / "deploy" / "train-wgan.yaml").read_text()))


def _one_line(captured: pytest.CaptureResult[str]) -> str:
    assert captured.out == ""
    assert captured.err.startswith("training.submit: "), captured.err
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


# --- creating ---


def test_submit_creates_what_the_file_holds(tmp_path, monkeypatch, capsys):
    """The cluster gets the file's manifests, numbers as numbers, with nothing changed but the Job's name."""
    with stand_in_cluster(tmp_path, monkeypatch) as server:
        assert submit.main(["wgan"]) == 0
    (job,) = server.of_kind("Job")
    assert job["metadata"].pop("name") in capsys.readouterr().out
    assert job["metadata"].pop("generateName") == "train-wgan-"
    expected = json.loads(json.dumps(MANIFESTS))
    assert expected[-1]["metadata"].pop("name") == "train-wgan"
    assert [*server.of_kind("ServiceAccount"), *server.of_kind("PersistentVolumeClaim"), job] == expected


def test_submit_again_keeps_what_is_there(tmp_path, monkeypatch, capsys):
    """A second Job has a name of its own; claims that exist stay as their owner left them."""
    with stand_in_cluster(tmp_path, monkeypatch) as server:
        assert submit.main(["wgan"]) == 0
        (claim, *_) = server.of_kind("PersistentVolumeClaim")
        claim["spec"]["resources"]["requests"]["storage"] = "1Ti"
        assert submit.main(["wgan"]) == 0
    assert len(server.of_kind("Job")) == 2
    assert claim["spec"]["resources"]["requests"]["storage"] == "1Ti"
    assert claim in server.of_kind("PersistentVolumeClaim")


def test_submit_asks_for_what_was_set(tmp_path, monkeypatch):
    """Options, image, namespace and name reach the cluster."""
    asked = ["wgan", "--namespace", "art", "--name", "lines", "--image", "here/image:1", "--set", "steps=7"]
    with stand_in_cluster(tmp_path, monkeypatch) as server:
        assert submit.main(asked) == 0
    (job,) = server.of_kind("Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert job["metadata"]["name"] == "lines"
    assert container["image"] == "here/image:1"
    assert container["args"][-1] == "--steps=7"


def test_submit_for_cpu_asks_for_no_gpu(tmp_path, monkeypatch):
    """--cpu leaves neither a GPU to wait for, nor one to insist on, nor the image that needs one."""
    with stand_in_cluster(tmp_path, monkeypatch) as server:
        assert submit.main(["wgan", "--cpu"]) == 0
    (job,) = server.of_kind("Job")
    assert "nvidia.com/gpu" not in json.dumps(job)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == jobs.image("cpu")
    assert {"name": jobs.DEVICE, "value": "cpu"} in container["env"]


def test_a_kubeconfig_goes_before_the_account_of_the_pod_one_is_in(tmp_path, monkeypatch):
    """As in a notebook's pod, whose user has one for the cluster with the GPUs."""
    token = tmp_path / "token"
    token.write_text("of the pod")
    monkeypatch.setattr(cluster, "POD_TOKEN", token)
    monkeypatch.setenv("HOME", str(tmp_path))
    with stand_in_cluster(tmp_path, monkeypatch) as server:
        (tmp_path / ".kube").mkdir()
        shutil.copy(os.environ["KUBECONFIG"], tmp_path / ".kube" / "config")
        monkeypatch.delenv("KUBECONFIG")
        assert submit.main(["wgan"]) == 0
    assert len(server.of_kind("Job")) == 1


def test_cpu_leaves_an_image_of_one_s_own_alone(tmp_path, monkeypatch):
    """As the file's header says, a reader may have put another into it."""
    shutil.copytree(jobs.ROOT / "deploy", tmp_path / "deploy")
    path = tmp_path / "deploy" / "train-wgan.yaml"
    path.write_text(path.read_text().replace(jobs.image("gpu"), "registry.example/train:v3"))
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    with stand_in_cluster(tmp_path, monkeypatch) as server:
        assert submit.main(["wgan", "--cpu"]) == 0
    (job,) = server.of_kind("Job")
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.example/train:v3"


def test_submit_on_several_nodes(tmp_path, monkeypatch):
    """As many pods as were asked for, of the file for several; each crash still counts once, and torchrun is told."""
    with stand_in_cluster(tmp_path, monkeypatch) as server:
        assert submit.main(["style", "--nodes", "4"]) == 0
    (job,), (service,) = server.of_kind("Job"), server.of_kind("Service")
    spec = job["spec"]
    assert (spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (4, 4, 4 * jobs.RETRIES)
    assert "--nnodes=4" in spec["template"]["spec"]["containers"][0]["args"]
    assert service["metadata"]["name"] == spec["template"]["spec"]["subdomain"]


@pytest.mark.parametrize("model", [name for name in catalog.trained() if catalog.multinode(name)])
def test_the_batch_that_nodes_share_is_the_recipe_s(model):
    """job.py gives the number, as it can be read without torch; training takes it from the options' default."""
    assert catalog.multinode(model).batch == catalog.recipe(model).PRESETS["default"].batch


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ([], ["--nodes", "3", "--set", "batch=6"]),
        (["--batch=6"], ["--nodes", "3"]),
        (["--batch", "6"], ["--nodes", "3"]),
        (["--batch=2"], ["--nodes", "3", "--set", "batch=9"]),
        (["--batch=6"], ["--nodes", "3", "--preset", "tiny"]),
        ([], ["--nodes", "2", "--preset", "tiny"]),
    ],
    ids=str,
)
def test_a_batch_of_one_s_own_is_the_one_that_nodes_share(written, asked, tmp_path, monkeypatch, capsys):
    """Whether it is asked for or written into the file: the last one counts, as in training.run."""
    _write_options(tmp_path, monkeypatch, written)
    assert submit.main(["style", "--dry-run", *asked]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("written", "asked", "said"),
    [
        ([], ["--nodes", "3"], "3 workers can't share a batch of 4 evenly; give another number, or --set batch=6"),
        ([], ["--nodes", "8"], "8 workers can't share a batch of 4 evenly; give another number, or --set batch=8"),
        ([], ["--nodes", "4", "--preset", "tiny"], "4 workers can't share a batch of 2 evenly"),
        ([], ["--nodes", "2", "--set", "batch=3"], "2 workers can't share a batch of 3 evenly"),
        (["--batch=6"], ["--nodes", "4"], "4 workers can't share a batch of 6 evenly"),
        (["--preset=tiny"], ["--nodes", "4"], "4 workers can't share a batch of 2 evenly"),
        (["--nproc-per-node=3"], ["--nodes", "2"], "6 workers can't share a batch of 4 evenly"),
    ],
    ids=str,
)
def test_a_batch_that_nodes_cannot_share_starts_nothing(written, asked, said, tmp_path, monkeypatch, capsys):
    """Training would end with it, but only when every pod has got its node."""
    _write_options(tmp_path, monkeypatch, written)
    with stand_in_cluster(tmp_path, monkeypatch) as server:
        assert submit.main(["style", *asked]) == 2
    assert f"--nodes: {said}" in _one_line(capsys.readouterr())
    assert server.requests == []


def _write_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    """Into the file for several nodes, as its reader may."""
    path = tmp_path / jobs.file("style", catalog.multinode("style"))
    shutil.copytree(jobs.ROOT / "deploy", path.parent)
    manifests = jobs.load(path)
    manifests[-1]["spec"]["template"]["spec"]["containers"][0]["args"] += options
    path.write_text(jobs.dump(manifests))
    monkeypatch.setattr(jobs, "ROOT", tmp_path)


@pytest.mark.parametrize(
    ("nodes", "target"),
    [("1", "job/dots"), ("2", "-l job-name=dots,batch.kubernetes.io/job-completion-index=0 --tail=-1")],
    ids=["one pod", "the leader"],
)
@pytest.mark.parametrize("follow", [[], ["--follow"]], ids=["created", "left running"])
def test_the_log_it_names_is_the_run_s(follow, nodes, target, tmp_path, monkeypatch, capsys):
    """Of several pods kubectl would take any; the leader's log is the one with the steps."""

    class Interrupted:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def run(self) -> bool:
            raise KeyboardInterrupt

    monkeypatch.setattr(submit, "Follower", Interrupted)
    with stand_in_cluster(tmp_path, monkeypatch):
        submit.main(["style", "--name", "dots", "--nodes", nodes, *follow])
    said = "".join(capsys.readouterr())
    assert f"kubectl logs --namespace default --follow {target}" in said


def test_several_nodes_do_not_wait_for_a_claim_of_one(tmp_path, monkeypatch, capsys):
    """A claim that is there as ReadWriteOnce is named, before a Job waits for its volume for ever."""
    with stand_in_cluster(tmp_path, monkeypatch) as server:
        assert submit.main(["style"]) == 0
        capsys.readouterr()
        assert submit.main(["style", "--nodes", "2"]) == 2
    assert "--nodes: the claim atelier-models is ReadWriteOnce" in _one_line(capsys.readouterr())
    assert len(server.of_kind("Job")) == 1


def test_dry_run_prints_valid_manifests(capsys):
    """--dry-run needs no cluster, and prints what kubectl could create."""
    assert submit.main(["wgan", "--dry-run", "--set", "steps=7", "--name", "lines"]) == 0
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    for document in documents:
        kubernetes_validate.validate(document, "1.30", strict=True)
    assert documents[-1]["metadata"]["name"] == "lines"


@pytest.mark.parametrize(
    "settings",
    [
        ["steps=7"],
        ["steps=7", "bf16=false", "ema=0.5"],
        ["bf16=true", "corpus=a folder", "critic-steps=1", "generator_lr=1e-05"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("preset", [None, "tiny"])
def test_the_run_understands_what_was_set(preset, settings, capsys):
    """training.run parses submit's arguments to the very values that were set."""
    arguments = submit.training_arguments("wgan", preset, settings)
    assert run.main(["wgan", "--dry-run", *arguments]) == 0
    resolved = json.loads(capsys.readouterr().out)
    for setting in settings:
        key, _, value = setting.partition("=")
        assert str(resolved[key.replace("-", "_")]).lower() == value
    assert resolved["pictures"] == (256 if preset == "tiny" else 10_000)


def test_several_values_reach_the_run(capsys):
    """What is separated by commas is parsed to as many values."""
    arguments = submit.training_arguments("painter", "tiny", ["content_layers=0,0.5,1,0"])
    assert run.main(["painter", "--dry-run", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["content_layers"] == [0, 0.5, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["wgn"], "MODEL: no 'wgn'; there are classifier, colorizer, painter, style, upscaler, wgan"),
        (["wgan", "--set", "steps"], "--set steps: give it as KEY=VALUE"),
        (["wgan", "--set", "stps=1"], "--set stps=1: wgan has no option 'stps'; it has corpus, "),
        (["wgan", "--set", "steps=many"], "--set steps=many: 'many' is no int"),
        (["wgan", "--set", "bf16=perhaps"], "--set bf16=perhaps: 'perhaps' is no bool"),
        (["wgan", "--set", "steps=0"], "--set: --steps: 0 is too few"),
        (["painter", "--set", "style_layers=1,2"], "--set: --style-layers: has 2 numbers, and must have 5"),
        (["style", "--set", "widths=24,48"], "--set: --widths: has 2 numbers, and must have 3"),
        (["style", "--set", "widths=24,48,96,"], "--set: --widths: has 4 numbers, and must have 3"),
        (["wgan", "--nodes", "2"], "--nodes: 2 can't train wgan; on 2 or more style and upscaler can be trained"),
        (["style", "--nodes", "0"], "--nodes: 0 can't train style"),
        (["wgan", "--preset", "huge"], "--preset: no 'huge'; wgan has default, seed, tiny"),
        (["wgan", "--name", "A B"], "--name: 'A B' can't name a Job; give at most 63 of a-z, 0-9 and -"),
        (["wgan", "--name", ""], "--name: '' can't name a Job"),
        (["wgan", "--name", "a-"], "--name: 'a-' can't name a Job"),
        (["wgan", "--name", "a" * 64], "give at most 63 of a-z"),
        (["style", "--nodes", "12", "--set", "batch=12", "--name", "a" * 61], "give at most 60 of a-z"),
        (["wgan", "--image", ""], "--image: is empty; give the image's address, or leave it out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_start_nothing(arguments, said, tmp_path, monkeypatch, capsys):
    """What training.run would refuse is refused here, in one line, before the cluster hears of it."""
    with stand_in_cluster(tmp_path, monkeypatch) as server:
        assert submit.main(arguments) == 2
    assert said in _one_line(capsys.readouterr())
    assert server.requests == []


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "No such file"), ("- [", "not one Job"), ("kind: Job\n", "not one Job"), ("kind: Pod\n", "not one Job")],
    ids=["missing", "not YAML", "empty Job", "no Job"],
)
def test_a_broken_file_is_named(text, said, tmp_path, monkeypatch, capsys):
    """A file that was edited away is told apart from a cluster's refusal, with what writes it anew."""
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    if text is not None:
        (tmp_path / "deploy").mkdir()
        (tmp_path / "deploy" / "train-wgan.yaml").write_text(text)
    assert submit.main(["wgan", "--dry-run"]) == 2
    line = _one_line(capsys.readouterr())
    assert f"deploy/train-wgan.yaml: {said}" in line
    assert "make generate" in line


# --- clusters that refuse, or are not there ---


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (Refusal(403, 'jobs.batch is forbidden: User "eve" cannot create resource "jobs"'), 'User "eve" cannot create'),
        (Refusal(422, "Job is invalid: metadata.name:\n too long"), "metadata.name: too long"),
        (Refusal(500, "etcd is full"), "answers with status 500 (etcd is full); try again later"),
        (Refusal(409, 'resourcequotas "all": the object has been modified'), "has been modified); try again later"),
    ],
    ids=["forbidden", "invalid", "broken", "busy quota"],
)
def test_a_refusal_is_one_line(refusal, said, tmp_path, monkeypatch, capsys):
    """The server's own reason reaches the user."""
    with stand_in_cluster(tmp_path, monkeypatch) as server:
        server.refusals["POST", "Job"] = refusal
        for name in ("atelier-training", "atelier-models", "atelier-runs"):
            manifest = next(m for m in MANIFESTS if m["metadata"]["name"] == name)
            server.objects[manifest["kind"], name] = manifest
        assert submit.main(["wgan", "--follow"]) == 2
    assert said in _one_line(capsys.readouterr())


def test_wrong_credentials(tmp_path, monkeypatch, capsys):
    """A token that the server does not know: log in again."""
    with KubernetesStandIn() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path, token="old")))
        assert submit.main(["wgan"]) == 2
    assert "does not accept your credentials" in _one_line(capsys.readouterr())


def test_missing_namespace(tmp_path, monkeypatch, capsys):
    """--namespace is named, with the command that makes one."""
    with stand_in_cluster(tmp_path, monkeypatch):
        assert submit.main(["wgan", "--namespace", "nowhere"]) == 2
    line = _one_line(capsys.readouterr())
    assert '--namespace: namespaces "nowhere" not found; `kubectl create namespace nowhere`' in line


def test_name_exists(tmp_path, monkeypatch, capsys):
    """A second Job of one name is refused; the first stays."""
    with stand_in_cluster(tmp_path, monkeypatch) as server:
        assert submit.main(["wgan", "--name", "lines"]) == 0
        capsys.readouterr()
        assert submit.main(["wgan", "--name", "lines"]) == 2
    assert '--name: Job lines: jobs.batch "lines" already exists; choose another' in _one_line(capsys.readouterr())
    assert len(server.of_kind("Job")) == 1


def test_unreachable(tmp_path, monkeypatch, capsys):
    """Nothing listens there: the address and the reason."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path, url)))
        assert submit.main(["wgan"]) == 2
    assert f"cannot reach the Kubernetes API at {url} (Connection refused)" in _one_line(capsys.readouterr())


def test_something_else_answers(tmp_path, monkeypatch, capsys):
    """A web server that answers everything is not taken for a cluster."""

    class Page(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<h1>Welcome</h1>")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path, url)))
        assert submit.main(["wgan"]) == 2
        thread.join()
    assert f"{url} answers, but not as a Kubernetes API does" in _one_line(capsys.readouterr())


@pytest.mark.parametrize(
    "text", [None, "no kubeconfig", "a: [", "apiVersion: v1\n"], ids=["missing", "text", "yaml", "empty"]
)
def test_no_usable_kubeconfig(text, tmp_path, monkeypatch, capsys):
    """The file is named, and the variable that names another."""
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert submit.main(["wgan"]) == 2
    line = _one_line(capsys.readouterr())
    assert f"KUBECONFIG={path}: " in line
    assert "set KUBECONFIG" in line


def test_unknown_context(tmp_path, monkeypatch, capsys):
    """--context is named if the kubeconfig has none of that name."""
    with stand_in_cluster(tmp_path, monkeypatch):
        assert submit.main(["wgan", "--context", "there"]) == 2
    assert "--context there" in _one_line(capsys.readouterr())


# --- with the cluster extra alone ---


@pytest.fixture(scope="module")
def others() -> set[str]:
    """What can be imported here, and could not after `pip install '.[cluster]'`."""
    project = tomllib.loads((jobs.ROOT / "pyproject.toml").read_text())["project"]
    wanted, brought = [*project["dependencies"], *project["optional-dependencies"]["cluster"]], set()
    while wanted:
        requirement = Requirement(wanted.pop())
        name = canonicalize_name(requirement.name)
        if name not in brought and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            brought.add(name)
            wanted += metadata.requires(name) or []
    found = metadata.packages_distributions().items()
    return {module for module, packages in found if brought.isdisjoint(map(canonicalize_name, packages))}


def _submit_without(modules: set[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(modules)})); "
        "from training.submit import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=jobs.ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], "classifier, colorizer, painter, style, upscaler, wgan"),
        (["wgan", "--dry-run"], "app.kubernetes.io/name: wgan"),
        (["style", "--nodes", "2", "--dry-run"], "--nnodes=2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_submit_needs_the_cluster_extra_alone(arguments, said, others):
    """A platform engineer installs that, and neither torch nor what serves."""
    assert {"torch", "tritonclient", "scipy", "onnx", "onnxruntime", "tyro"} <= others
    done = _submit_without(others, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout


def test_set_without_torch_says_what_to_install(others):
    """Options are checked against the model's code; where that can't be imported, nothing is submitted unchecked."""
    done = _submit_without(others, "wgan", "--dry-run", "--set", "steps=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert re.search(r"which needs \w+: pip install '\.\[training\]'", done.stderr)
