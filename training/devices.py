"""Where and how a recipe computes: device, precision, seeds, the RNG state behind dropout, and what the C library does
with freed memory."""

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
"""The seeds that torch accepts."""


def pick_device() -> torch.device:
    """A GPU if there is one, else the CPU; ATELIER_DEVICE (cuda or cpu) overrides this. Raises BadInput if a requested
    GPU is missing, because a Job that asked for one would train for days on the CPU, or if a node has fewer GPUs than
    torchrun has workers on it: each needs its own.
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
    """bfloat16 autocast if `bf16` is asked for and `device` supports it natively; otherwise float32 (on NVIDIA GPUs
    from Ampere on, torch's default runs convolutions in TF32).

    Without native support, as on most laptops' CPUs, bfloat16 is emulated: on a CPU ten times as slow as float32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16 and computes_bf16(device))


def computes_bf16(device: torch.device) -> bool:
    """Whether `device` has native bfloat16: a CPU's AVX-512, AMX or ARM instructions, an NVIDIA GPU from Ampere on."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def check_seed(seed: int, *derived: int) -> None:
    """Raises BadInput if torch would refuse this --seed or one of the seeds that a recipe derives from it."""
    if any(number not in SEEDS for number in (seed, *derived)):
        raise BadInput(f"--seed: {seed} is beyond what torch takes; give one of fewer digits")


def dropout_state(device: torch.device) -> dict[str, Tensor]:
    """For a checkpoint: the state of torch's global RNGs (the CPU's and `device`'s), from which dropout draws."""
    state = {"dropout": torch.get_rng_state()}
    return state | {"dropout_gpu": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def restore_dropout(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore the RNG state from a checkpoint. One that was written on a CPU has none for a GPU."""
    torch.set_rng_state(state["dropout"])
    if device.type == "cuda" and "dropout_gpu" in state:
        torch.cuda.set_rng_state(state["dropout_gpu"], device)


def keep_freed_memory() -> None:
    """Tell glibc not to return freed memory to the kernel: each step would page-fault the same memory in again."""
    if sys.platform != "linux":
        return
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not in musl
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
