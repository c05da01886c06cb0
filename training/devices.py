"""Where and how a recipe computes: the device, the precision, seeds, what dropout draws from, and what the C library
does with freed memory."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from training.errors import BadInput

SEEDS = range(-(2**63), 2**64)
"""What torch takes."""


def pick_device() -> torch.device:
    """A GPU where there is one, else the CPU, unless ATELIER_DEVICE says cuda or cpu. BadInput for a GPU that is not
    there: a Job that asked for one would train for days on the CPU. Each of torchrun's workers on a node needs its own.
    """
    asked, found = os.environ.get("ATELIER_DEVICE", ""), torch.cuda.is_available()
    if asked not in ("", "cuda", "cpu"):
        raise BadInput(f"ATELIER_DEVICE: no {asked!r}; give cuda or cpu, or leave it out")
    if asked == "cuda" and not found:
        built = torch.version.cuda is not None
        why = "no GPU is to be seen; check the driver and, on a cluster, the limit nvidia.com/gpu"
        without = "this torch is built for the CPU; take the image that ends in -gpu"
        raise BadInput(f"ATELIER_DEVICE: cuda was asked for, but {why if built else without}")
    device = torch.device(asked or ("cuda" if found else "cpu"))
    wanted = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device.type == "cuda" and wanted > (there := torch.cuda.device_count()):
        raise BadInput(f"--nproc-per-node: {wanted} workers, but {there} GPUs are to be seen; give no more than that")
    return device


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager[None]:
    """Convolutions and products in bfloat16 if `bf16` and if `device` has instructions for it, else in float32; and in
    TF32, as torch has it, what convolves on NVIDIA's GPUs from Ampere on.

    Without them it is emulated. On a CPU, and most laptops' are such, that takes ten times as long as float32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16 and computes_bf16(device))


def computes_bf16(device: torch.device) -> bool:
    """Whether its instructions take bfloat16: a CPU's AVX-512, AMX or ARM's, a GPU's from NVIDIA's Ampere on."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def check_seed(seed: int, *derived: int) -> None:
    """Raises BadInput for a --seed that torch would refuse, or from which a recipe derives numbers that it would."""
    if any(number not in SEEDS for number in (seed, *derived)):
        raise BadInput(f"--seed: {seed} is beyond what torch takes; give one of fewer digits")


def dropout_state(device: torch.device) -> dict[str, Tensor]:
    """For a checkpoint: the state of torch's own generators, from which dropout draws on its device."""
    state = {"dropout": torch.get_rng_state()}
    return state | {"dropout_gpu": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def restore_dropout(state: Mapping[str, Any], device: torch.device) -> None:
    """As a checkpoint has it. One that was written on a CPU says nothing of a GPU's."""
    torch.set_rng_state(state["dropout"])
    if device.type == "cuda" and "dropout_gpu" in state:
        torch.cuda.set_rng_state(state["dropout_gpu"], device)


def keep_freed_memory() -> None:
    """Tell glibc not to give freed memory back to the kernel: each step would fault the same pages in again."""
    if sys.platform != "linux":
        return
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not in musl
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
