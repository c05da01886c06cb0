"""The CPU images, built and run by a real engine: a Job trains into a volume, Triton serves it, a third walks.

What each container runs is taken from the manifests; tests/containers.py stands in for the kubelet.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import scripts
import yaml
from conftest import need
from containers import Done, Engine, need_engine, pod_run

from serving.repository import REPOSITORY, versions
from training import jobs
from training.errors import BAD_INPUT, REFUSED

TAG = jobs.image("cpu").partition(":")[2]
TRAINING, SERVING, CLIENTS = (f"atelier-{name}:{TAG}" for name in ("training", "serving", "clients"))
RUN = "train-wgan"
SECURITY = {"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
PUBLISH = f"""
from pathlib import Path
from serving import pbtxt, repository
from training import catalog
beside = pbtxt.files(catalog.spec("wgan"))
print(repository.publish(Path("/runs/{RUN}/candidate"), Path("/models"), "wgan", beside=beside))
"""
"""What a person does who wants a candidate served that the gate refused, as it must refuse four steps' work."""
LEGS, STEPS = 4, 6  # walk.py's, and what it is asked for


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    need_engine()
    need(shutil.which("kubectl"), "kubectl is not installed")
    engine = Engine(Path(tempfile.mkdtemp(prefix="podman-")))  # podman takes paths of 50 characters at most
    try:
        engine.install()
        yield engine
    finally:
        engine.remove()


@pytest.fixture(scope="module")
def built(engine: Engine) -> str:
    """What `make images` printed."""
    return engine.build()


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders in the place of the claims, their group that of the pods, as a kubelet makes it."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("models", "runs")}
    for path in made.values():
        os.chown(path, jobs.UID, jobs.UID)
    return made


@pytest.fixture(scope="module")
def job(engine: Engine, built: str, volumes: dict[str, Path]) -> Callable[..., Done]:
    """Runs the Job's container with further arguments; returns how it ended."""
    (*_, manifest) = yaml.safe_load_all((jobs.ROOT / "deploy" / f"{RUN}.yaml").read_text())
    (one,) = manifest["spec"]["template"]["spec"]["containers"]
    filled_in = {"JOB_NAME": RUN, "OMP_NUM_THREADS": "1", jobs.DEVICE: "cpu"}
    return functools.partial(_run, engine, one, image=TRAINING, volumes=volumes, filled_in=filled_in)


@pytest.fixture(scope="module")
def trained(job: Callable[..., Done], engine: Engine, volumes: dict[str, Path]) -> Path:
    """The run of a Job with preset tiny; the volume has its candidate as wgan 1, which the gate had refused."""
    done = job("--preset=tiny")
    assert done.returncode == REFUSED, done
    assert "step 4/4" in done.stdout + done.stderr
    assert "refused, kept in /runs" in done.stderr
    assert not versions(volumes["models"], "wgan")

    published = _run(engine, _by_hand("python", "-c", PUBLISH, mounts=volumes), image=TRAINING, volumes=volumes)
    assert (published.returncode, published.stdout) == (0, "1\n"), published
    return volumes["runs"] / RUN


@pytest.fixture(scope="module")
def pod(engine: Engine, trained: Path, volumes: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """The base Deployment's pod, running: its init containers one after another, then Triton, named `triton`."""
    spec = _pod("atelier-triton")
    for one in spec["initContainers"]:
        done = _run(engine, one, image=SERVING, volumes=volumes)
        assert done.returncode == 0, done
    (triton,) = spec["containers"]
    begun = _run(engine, triton, image=SERVING, volumes=volumes, options=("--detach", "--name", "triton"))
    assert begun.returncode == 0, begun
    yield triton
    engine.call("rm", "--force", "triton")


@pytest.fixture(scope="module")
def started(engine: Engine, pod: dict[str, Any]) -> Done:
    """How the startup probe ended when it passed."""
    probe = pod["startupProbe"]["exec"]["command"]
    for _ in range(pod["startupProbe"]["failureThreshold"]):
        done = engine.call("exec", "triton", *probe)
        if done.returncode == 0:
            return done
    raise AssertionError((done, engine.call("logs", "triton")))


def test_make_images_says_how_large_they_are(built):
    """One line for each image, under the tags that the manifests name."""
    lines = re.findall(r"^images: (\S+), (\d+) MB$", built, re.MULTILINE)
    assert [name for name, _ in lines] == [TRAINING, SERVING, CLIENTS]
    assert all(int(size) > 100 for _, size in lines)


@pytest.mark.parametrize("image", [TRAINING, SERVING, CLIENTS])
def test_images_hold_no_tools(image, built, engine):
    """They run as the user that the manifests name, and hold no compiler and no pip."""
    assert engine.inspect(f"localhost/{image}")["Config"]["User"] == str(jobs.UID)
    find = "id -u; for tool in gcc cc make git pip pip3; do command -v $tool; done; python -c 'import pip'"
    done = engine.run("--rm", "--network", "none", "--entrypoint", "sh", f"localhost/{image}", "-c", find)
    assert (done.returncode, done.stdout) == (1, f"{jobs.UID}\n"), done
    assert "No module named 'pip'" in done.stderr


def test_the_job_refuses_bad_options(job):
    """Status 2, which fails the Job at once, and one line that says which."""
    done = job("--preset=tiny", "--steps=none")
    assert done.returncode == BAD_INPUT
    assert done.stderr.count("\n") == 1
    assert "--steps" in done.stderr


def test_the_job_trains_into_the_volume(trained):
    """Its run lies there whole, its card names the commit that the image was built from."""
    assert {"candidate", "checkpoints", "samples", "stats.jsonl", "options.json"} <= scripts.names(trained)
    card = json.loads((trained / "candidate" / "card.json").read_text())
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=jobs.ROOT, capture_output=True, text=True).stdout.strip()
    assert card["commit"].removesuffix("-dirty") == commit


def test_triton_serves_what_the_job_made(started, volumes):
    """The seed leaves the Job's wgan alone and adds the other models; all answer as their golden batches say."""
    assert sorted(re.findall(r"^(\w+) 1\b", started.stdout, re.MULTILINE)) == sorted(
        path.parent.name for path in REPOSITORY.glob("*/config.pbtxt")
    )
    ours, shipped = (folder / "wgan/1/model.onnx" for folder in (volumes["models"], REPOSITORY))
    assert ours.read_bytes() != shipped.read_bytes()


def test_a_walk_from_a_third_container(started, engine, tmp_path):
    """The clients' image, beside Triton, renders what that wgan draws: frames that change and are no single colour."""
    os.chown(tmp_path, jobs.UID, jobs.UID)
    walk = ("clients/walk.py", "--url", "127.0.0.1:8001", "--steps", str(STEPS), "--out", "/out/walk.gif")
    done = _run(
        engine,
        _by_hand("python", *walk, mounts=["out"]),
        image=CLIENTS,
        volumes={"out": tmp_path},
        options=("--rm", "--network", "container:triton"),
    )
    assert done.returncode == 0, done
    frames = scripts.frames(tmp_path / "walk.gif")
    assert frames.shape == (LEGS * STEPS, 128, 128, 3)
    assert frames.std(axis=(1, 2, 3)).min() > 0
    assert (frames[0] != frames[STEPS // 2]).any()


def test_triton_ends_in_order(started, engine, pod):
    """SIGTERM ends it with status 0, well within a pod's patience; its log is what kubectl logs shows."""
    assert engine.call("stop", "--time", "40", "triton").returncode == 0
    state = json.loads(engine.call("container", "inspect", "--format", "{{json .State}}", "triton").stdout)
    assert state["ExitCode"] == 0
    log = engine.call("logs", "triton")
    assert "wgan" in log.stdout + log.stderr


def _pod(deployment: str) -> dict[str, Any]:
    """The pod of a Deployment as `kubectl apply -k deploy/` would create it."""
    done = subprocess.run(["kubectl", "kustomize", jobs.ROOT / "deploy"], capture_output=True, text=True, check=True)
    (found,) = (
        one
        for one in yaml.safe_load_all(done.stdout)
        if (one["kind"], one["metadata"]["name"]) == ("Deployment", deployment)
    )
    spec: dict[str, Any] = found["spec"]["template"]["spec"]
    return spec


def _by_hand(*command: str, mounts: Iterable[str]) -> dict[str, Any]:
    """A container as restricted as those of the manifests, with each volume at its own name."""
    where = [{"name": name, "mountPath": f"/{name}"} for name in (*mounts, "tmp")]
    return {"command": command, "securityContext": SECURITY, "volumeMounts": where}


def _run(
    engine: Engine,
    one: Mapping[str, Any],
    *more: str,
    image: str,
    volumes: Mapping[str, Path],
    filled_in: Mapping[str, str] = MappingProxyType({}),
    options: tuple[str, ...] = ("--rm",),
) -> Done:
    """Without a network, unless `options` name one: what a container needs, it holds."""
    alone = () if "--network" in options else ("--network", "none")
    return engine.run(*options, *alone, *pod_run(one, *more, image=image, volumes=volumes, filled_in=filled_in))
