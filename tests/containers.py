"""Containers of the images in deploy/images, built and run with the real podman as a pod's would be."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from conftest import need

ROOT = Path(__file__).parents[1]
BUILD_TIMEOUT_S = 1800
RUN_TIMEOUT_S = 300
BASE = "docker.io/library/debian:bookworm-slim"
"""What the images are built from. No registry is asked for it: debootstrap makes it."""
ULIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096")
CERTIFICATE = "/etc/pip-cert.pem"

Done = subprocess.CompletedProcess[str]


def need_engine() -> None:
    for tool, package in {"podman": "podman", "runc": "runc", "debootstrap": "debootstrap"}.items():
        need(shutil.which(tool), f"no {tool}: apt install --no-install-recommends {package}")
    need(os.geteuid() == 0, "images are built as root here: run the tests as root")


@dataclass(frozen=True)
class Engine:
    """podman with a store of its own under `folder`, which `remove` takes away."""

    folder: Path

    @property
    def program(self) -> Path:
        """What ENGINE names for deploy/images/build.sh."""
        return self.folder / "podman"

    def install(self) -> None:
        """Makes the store, with a Debian base in it."""
        stores = f"--root {self.folder / 'store'} --runroot {self.folder / 'run'}"
        self.program.write_text(f'#!/bin/sh\nexec podman {stores} --runtime runc "$@"\n')
        self.program.chmod(0o755)
        base = self.folder / "base"
        _checked(["debootstrap", "--variant=minbase", "bookworm", base])
        archive = self.folder / "base.tar"
        _checked(["tar", "-C", base, "-cf", archive, "."])
        _checked([self.program, "import", archive, BASE])
        shutil.rmtree(base)
        archive.unlink()

    def build(self, *images: str) -> str:
        """`make images`; returns what it prints."""
        mounts, pip = _pip()
        flags = ["--isolation", "chroot", "--network", "host", *ULIMITS, *mounts]
        environment = {**os.environ, **pip, "ENGINE": str(self.program), "IMAGE_BUILD_FLAGS": " ".join(flags)}
        return _checked([ROOT / "deploy" / "images" / "build.sh", *images], environment).stdout

    def call(self, *arguments: object, timeout_s: float = RUN_TIMEOUT_S) -> Done:
        command = [self.program, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)

    def run(self, *arguments: object) -> Done:
        return self.call("run", *ULIMITS, *arguments)

    def inspect(self, image: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = yaml.safe_load(_checked([self.program, "image", "inspect", image]).stdout)
        return found[0]

    def remove(self) -> None:
        self.call("rm", "--all", "--force", "--time", "0")
        self.call("rmi", "--all", "--force")
        shutil.rmtree(self.folder, ignore_errors=True)


def pod_run(
    manifest: Mapping[str, Any], *more: str, image: str, volumes: Mapping[str, Path], filled_in: Mapping[str, str]
) -> list[str]:
    """Arguments of `Engine.run`, from the options on, for one container of a pod; `more` come after its own.

    `volumes` are the folders that stand in for its claims; what is not among them is an emptyDir, in memory.
    `filled_in` are the variables that a cluster would set.
    """
    environment = {one["name"]: one.get("value", "") for one in manifest.get("env", [])} | filled_in
    command = [*manifest["command"], *manifest.get("args", []), *more]
    return [
        *_security(manifest["securityContext"]),
        *(word for name, value in environment.items() for word in ("--env", f"{name}={value}")),
        *(word for mount in manifest.get("volumeMounts", []) for word in _mount(mount, volumes)),
        *("--entrypoint", ""),
        f"localhost/{image}",
        *(re.sub(r"\$\((\w+)\)", lambda name: environment[name[1]], word) for word in command),
    ]


def _security(context: Mapping[str, Any]) -> list[str]:
    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]
    assert context["capabilities"]["drop"] == ["ALL"]
    return ["--user", "1000:1000", "--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges"]


def _mount(mount: Mapping[str, Any], volumes: Mapping[str, Path]) -> tuple[str, str]:
    where = mount["mountPath"]
    if where == "/dev/shm":
        return "--shm-size", "1g"
    if mount["name"] not in volumes:
        return "--tmpfs", f"{where}:mode=1777"
    return "--volume", f"{volumes[mount['name']]}:{where}{':ro' if mount.get('readOnly') else ''}"


def _pip() -> tuple[list[str], dict[str, str]]:
    """What pip needs in a build to reach what it reaches here: its certificates, and folders of wheels."""
    mounts: list[str] = []
    environment = {}
    for bundle in _pip_setting("cert"):
        mounts += ["--volume", f"{bundle}:{CERTIFICATE}:ro"]
        environment["PIP_CERT"] = CERTIFICATE
    if folders := [each for each in _pip_setting("find-links") if Path(each).is_dir()]:
        mounts += [word for folder in folders for word in ("--volume", f"{folder}:{folder}:ro")]
        environment |= {"PIP_FIND_LINKS": " ".join(folders), "TORCH_INDEX": ""}  # the wheels at hand come first
    return mounts, environment


def _pip_setting(name: str) -> list[str]:
    """Of pip's environment, which comes first in its list, or else of its files."""
    told = _checked([sys.executable, "-m", "pip", "config", "list"]).stdout
    found = re.findall(rf"^[\w:]+\.{name}='(.*)'$", told, re.MULTILINE)
    return found[0].replace("\\n", " ").split() if found else []


def _checked(command: list[Any], environment: Mapping[str, str] | None = None) -> Done:
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S
    )
    assert done.returncode == 0, (done.args, done.stdout[-3000:], done.stderr[-3000:])
    return done
