"""Stand-ins for a GPU and for TensorRT, neither of which tests can have: an `nvidia-smi` that names a GPU, and a
`trtexec` that notes what it was asked and writes a "plan". TensorRT itself starts nowhere without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

VERSION = "11.1.0.106"
L4, H100 = "NVIDIA L4, 8.9", "NVIDIA H100 80GB HBM3, 9.0"
_ARGUMENTS = """\
for each in "$@"; do
  case $each in
    --onnx=*) graph=${each#*=};; --saveEngine=*) plan=${each#*=};; --timingCacheFile=*) timings=${each#*=};;
  esac
done
echo "$@" >> "${0%/*}/orders"
"""
WORKS = f"{_ARGUMENTS}sha256sum < $graph > $plan; echo measured >> $timings"
NO_TIMINGS = f"{_ARGUMENTS}sha256sum < $graph > $plan"
REFUSES = """\
echo '[11/27/2026-10:00:00] [I] === Model Options ==='
echo '[11/27/2026-10:00:01] [E] [TRT] ModelImporter.cpp:949: In node 3 (GridSample): unsupported' >&2
echo '[11/27/2026-10:00:01] [E] Failed to parse onnx file' >&2
exit 1"""
CRASHES = f"{_ARGUMENTS}echo half > $plan; echo half > $timings; kill -SEGV $$"
HANGS = "exec sleep 60"


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *, gpu: str = L4, trtexec: str = WORKS) -> None:
    """Puts them on the PATH, with no other TensorRT; a second call changes them."""
    folder.mkdir(exist_ok=True)
    for name, script in (("nvidia-smi", f"echo '{gpu}'"), ("trtexec", trtexec)):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("TRT_VERSION", VERSION)
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", None)


def orders(folder: Path) -> list[list[str]]:
    """The arguments of each trtexec that was started there."""
    path = folder / "orders"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []
