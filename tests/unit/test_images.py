"""deploy/images: what the Dockerfiles promise, and how build.sh calls an engine. Building them is `make images`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from conftest import need

from serving import repository
from training import jobs

IMAGES = jobs.ROOT / "deploy" / "images"
IGNORE = jobs.ROOT / ".dockerignore"
DOCKERFILES = sorted(IMAGES.glob("*.Dockerfile"))
ALL = ["training-cpu", "serving-cpu", "clients-cpu", "training-gpu", "serving-gpu"]

of_each = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


def _stages(path: Path) -> dict[str, list[str]]:
    """The instructions of each stage, those of its base included."""
    text = re.sub(r"\\\n(\s*#.*\n)*", " ", path.read_text())
    stages: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in (line.strip() for line in text.splitlines()):
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            lines = stages.setdefault(match[2], [*stages.get(match[1], [])])
        elif line and not line.startswith("#"):
            lines.append(line)
    return stages


def _images() -> list[tuple[str, Path]]:
    return [(name.rpartition("-")[0], IMAGES / f"{name.rpartition('-')[2]}.Dockerfile") for name in ALL]


@pytest.mark.parametrize(("target", "path"), _images(), ids=ALL)
def test_images_do_not_run_as_root(target, path):
    """The user is a number, so that the cluster can see that it is not root, and the one that the Jobs name."""
    users = [line.split()[1] for line in _stages(path)[target] if line.startswith("USER ")]
    assert users[-1] == str(jobs.UID)


@of_each
def test_what_is_copied_exists(path):
    """Every COPY from the repository finds its source, and .dockerignore lets it through."""
    allowed = [line[1:] for line in IGNORE.read_text().splitlines() if line.startswith("!")]
    copies = [line.split()[1:-1] for line in path.read_text().splitlines() if line.startswith("COPY ")]
    sources = [each for copy in copies for each in copy if not (copy[0].startswith("--from") or each.startswith("--"))]
    assert sources
    for source in sources:
        assert list(jobs.ROOT.glob(source)), source
        assert any(source == top or source.startswith(f"{top}/") for top in allowed), source


def _git(*arguments: str, given: str = "") -> list[str]:
    command = ["git", "-C", str(jobs.ROOT), *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)
    need(done.returncode == 0, f"git knows this folder only where it is a checkout: {done.stderr.strip()}")
    return done.stdout.splitlines()


def _meant(line: str, tops: list[str]) -> list[str]:
    """Files that a line of .gitignore means: with an x for each star, and, if it names folders, in one of them."""
    path = line.replace("*", "x") + ("file" if line.endswith("/") else "")
    return [path.lstrip("/")] if "/" in line[:-1] else [f"{top}/{deep}{path}" for top in tops for deep in ("", "x/x/")]


def test_what_git_ignores_is_no_part_of_an_image(tmp_path):
    """Of the folders that .dockerignore lets through an engine is given what git tracks, and nothing that git ignores:
    no key to a running server, no lock, no plan for another's GPU."""
    need(shutil.which("podman") and os.geteuid() == 0, "no podman, or not root: apt install podman")
    tops = re.findall(r"^!(\w+)$", IGNORE.read_text(), re.MULTILINE)
    tracked = _git("ls-files", "--", *tops, "pyproject.toml")
    lines = [line for line in (jobs.ROOT / ".gitignore").read_text().split("\n") if line and not line.startswith("#")]
    ignored = [file for line in lines for file in _meant(line, tops) if file.partition("/")[0] in tops]
    said = _git("check-ignore", "--no-index", "--stdin", given="\n".join(ignored))
    assert said == ignored, "a line means something else to git"
    aside = [f"serving/model_repository/wgan/{repository.WITHDRAWN}1/{repository.MODEL}"]
    context, image = tmp_path / "context", tmp_path / "image"
    for file in [*tracked, *ignored, *aside, "README.md", ".env"]:
        (context / file).parent.mkdir(parents=True, exist_ok=True)
        (context / file).touch()
    shutil.copy(IGNORE, context)
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    build = ["build", "--isolation", "chroot", "--file", tmp_path / "Dockerfile", "--output", image, context]
    with tempfile.TemporaryDirectory() as run:  # its path has to be a short one
        store = ["--root", tmp_path / "store", "--runroot", run, "--storage-driver", "vfs"]
        done = subprocess.run(["podman", *store, *build], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    copied = {str(path.relative_to(image)) for path in image.rglob("*") if path.is_file()}
    assert copied - set(tracked) == set()
    assert set(tracked) - copied == set()


@pytest.mark.parametrize(("target", "path"), _images(), ids=ALL)
def test_what_is_copied_is_its_user_s(target, path):
    """COPY keeps files' modes and makes them root's: of a checkout with umask 077 nobody else could read them."""
    copies = [line for line in _stages(path)[target] if line.startswith("COPY ") and "--from=" not in line]
    assert copies
    assert all(line.startswith(f"COPY --chown={jobs.UID}:{jobs.UID} ") for line in copies), copies


def test_a_corpus_can_be_fetched_over_https():
    """The slim base has no certificates, without which every https address is refused."""
    assert any("ca-certificates" in line for line in _stages(IMAGES / "cpu.Dockerfile")["training"])


@pytest.mark.parametrize("image", ["training-cpu", "serving-cpu", "training-gpu"])
def test_the_embedded_triton_has_its_python(image):
    """Its models' processes need Python's shared library, which few bases have: it is installed, or looked for."""
    target, _, accelerator = image.rpartition("-")
    lines = _stages(IMAGES / f"{accelerator}.Dockerfile")[target]
    assert any("libpython3" in line or "wheel.find()" in line for line in lines if line.startswith("RUN"))


def _bases(path: Path) -> list[str]:
    """The images that its stages begin with, by the names that an engine is given unless told otherwise."""
    text = path.read_text()
    defaults = dict(re.findall(r"^ARG (\w+)=(\S*)$", text.partition("\nFROM ")[0], re.MULTILINE))
    found, stages = [], set()
    for line in re.findall(r"^FROM .*", text, re.MULTILINE | re.IGNORECASE):
        image, *name = [word for word in line.split()[1:] if not word.startswith("--")]
        if image not in stages:
            found.append(re.sub(r"\$\{?(\w+)\}?", lambda arg: defaults[arg[1]], image))
        stages.update(name[1:])
    return found


@of_each
def test_bases_are_pinned(path):
    """No base moves by itself beyond a release: none is `latest`, or without a tag."""
    bases = _bases(path)
    assert bases
    for base in bases:
        assert re.search(r":[a-z0-9.-]*\d|:bookworm", base.rpartition("/")[2]), base
        assert ":latest" not in base


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A program in an engine's place that notes how it is called: what is built is not tested here."""
    path = tmp_path / "engine"
    path.write_text('#!/bin/sh\necho "$@" >> "$0.calls"\n[ "$1" = build ] || echo 1458000000\n')
    path.chmod(0o755)
    return path


def _build(*images: str, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "TORCH_", "IMAGE_"))}
    return subprocess.run(
        [IMAGES / "build.sh", *images], env={**plain, **environment}, capture_output=True, text=True, timeout=60
    )


def test_build_tags_what_the_manifests_name(engine):
    """`make images` builds, under the tag of deploy/, the image that the Jobs ask for; and says how large it is."""
    done = _build("training-gpu", ENGINE=str(engine))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"images: {jobs.image('gpu')}, 1458 MB\n"
    call = Path(f"{engine}.calls").read_text().splitlines()[0]
    assert f"--file deploy/images/gpu.Dockerfile --target training --tag {jobs.image('gpu')} ." in call


def test_build_hands_pip_and_engine_their_settings(engine):
    """A mirror and an engine's own flags come from outside; what is not set is not handed in."""
    done = _build(
        "serving-cpu", ENGINE=str(engine), IMAGE_BUILD_FLAGS="--network host", PIP_INDEX_URL="https://mirror/simple a"
    )
    assert done.returncode == 0, done.stderr
    call = Path(f"{engine}.calls").read_text().splitlines()[0]
    assert call.startswith("build --network host --build-arg COMMIT=")
    assert "--build-arg PIP_INDEX_URL=https://mirror/simple a " in call
    assert "PIP_FIND_LINKS" not in call


def test_build_without_names_builds_the_cpu_images(engine):
    """The images that any machine can build are the default."""
    assert _build(ENGINE=str(engine)).returncode == 0
    tags = re.findall(r"--tag (\S+)", Path(f"{engine}.calls").read_text())
    assert [tag.split(":")[0] for tag in tags] == ["atelier-training", "atelier-serving", "atelier-clients"]


@pytest.mark.parametrize("name", ["training", "clients-gpu", "training-tpu", "../x-cpu"])
def test_build_refuses_an_unknown_image(name, engine):
    """One line with the names that there are."""
    done = _build(name, ENGINE=str(engine))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"images: no {name}; there are {', '.join(ALL)}\n"


def test_build_without_an_engine(tmp_path):
    """One line with what to install."""
    for tool in ("bash", "dirname", "env"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    done = _build(PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "images: found neither podman nor docker; install one, or name an engine with ENGINE=\n"
