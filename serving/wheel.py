"""The tritonserver inside the nvidia-pytriton wheel: where its files are, and the environment they need."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from serving.errors import ServerError

BACKENDS = Path(__file__).parent / "backends"
LIBRARY_MISSING = 127
"""The dynamic loader's exit status if a shared library is missing."""
NEXT_STEP = "run `make setup`, or `pip install '.[serving]'`"
# With these, glibc keeps freed memory instead of returning it to the kernel and faulting it in again for each batch.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}


@dataclass(frozen=True)
class Wheel:
    """`root` is pytriton/tritonserver in site-packages, `libraries` the wheel's own shared libraries."""

    root: Path
    libraries: Path

    @property
    def binary(self) -> Path:
        return self.root / "bin" / "tritonserver"

    @property
    def stub(self) -> Path:
        """The program that runs a model in its own process; it embeds the version of Python that is running here."""
        version = sysconfig.get_python_version()
        return self.root / "python_backend_stubs" / version / "triton_python_backend_stub"

    def assemble(self, folder: Path) -> Path:
        """Fills and returns the folder for --backend-directory. Triton's Python backend is copied (3 MB), as
        tritonserver rejects links that lead out of a backend."""
        python = folder / "python"
        python.mkdir(parents=True)
        shutil.copy(self.stub, python)
        for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
            shutil.copy(self.root / "backends" / "python" / name, python)
        for model in BACKENDS.glob("*/model.py"):
            (folder / model.parent.name).symlink_to(model.parent)
        return folder

    def environment(self) -> dict[str, str]:
        """The server's environment variables.

        A model's process ignores PYTHONPATH: its packages are those of the first `python3` on PATH.
        """
        libraries = [
            str(self.libraries),
            sysconfig.get_config_var("LIBDIR"),
            os.environ.get("LD_LIBRARY_PATH"),
        ]
        return {
            **os.environ,
            **MALLOC,
            "CUDA_VISIBLE_DEVICES": "",  # KIND_AUTO in config.pbtxt then means the CPU, whatever the machine has
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        }


def find() -> Wheel:
    """The installed wheel. Raises ServerError if there is none, or none for this machine or Python."""
    machine = f"{platform.system()} {platform.machine()}"
    if machine != "Linux x86_64":
        raise ServerError(f"tritonserver runs on Linux x86_64, and this is {machine}: use a server elsewhere (--url)")
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ServerError(f"nvidia-pytriton, which holds tritonserver, is not installed: {NEXT_STEP}")
    package = Path(spec.origin).parent
    wheel = Wheel(package / "tritonserver", package.parent / "nvidia_pytriton.libs")
    if not wheel.stub.exists():
        have = ", ".join(sorted(p.name for p in wheel.stub.parent.parent.glob("3.*")))
        raise ServerError(f"Python {platform.python_version()}: this tritonserver serves with Python {have} only")
    _check_libraries(wheel)
    return wheel


def _check_libraries(wheel: Wheel) -> None:
    """Raises ServerError if a library of the stub is missing, as no model would ever load then. Runs the stub without
    arguments, with which it exits at once (5 ms)."""
    done = subprocess.run([wheel.stub], env=wheel.environment(), capture_output=True, text=True, check=False)
    if done.returncode == LIBRARY_MISSING:
        reason = done.stderr.strip().rpartition("libraries: ")[2]
        raise ServerError(
            f"tritonserver needs Python's shared library ({reason}): "
            f"`apt install libpython{sysconfig.get_python_version()}`, or use a Python built with --enable-shared"
        )
