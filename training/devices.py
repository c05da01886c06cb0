"""Where and how a recipe computes: the device, the precision, and what the C library does with freed memory."""

from __future__ import annotations

import ctypes
import sys
from contextlib import AbstractContextManager

import torch


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager[None]:
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def keep_freed_memory() -> None:
    """Tell glibc not to give freed memory back to the kernel: each step would fault the same pages in again."""
    if sys.platform != "linux":
        return
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not in musl
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
