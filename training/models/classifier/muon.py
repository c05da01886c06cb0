"""Muon for convolutions (Jordan et al. 2024): a kernel's update is replaced by the nearest orthogonal matrix."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Muon(torch.optim.Muon):
    """torch's Muon, which takes only matrices, for kernels (c_out, c_in, h, w), each viewed as (c_out, c_in h w).

    With `match_rms_adamw` its steps are as long as AdamW's would be at the same learning rate (Liu et al. 2025).
    """

    def __init__(self, kernels: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        self.kernels = list(kernels)
        # The matrices share the kernels' memory, so a step on them updates the kernels.
        self.matrices = [nn.Parameter(flat(kernel.detach(), kernel)) for kernel in self.kernels]
        assert all(m.data_ptr() == k.data_ptr() for m, k in zip(self.matrices, self.kernels, strict=True))
        super().__init__(self.matrices, lr, weight_decay, adjust_lr_fn="match_rms_adamw")

    def step(self) -> None:  # type: ignore[override]  # no closure: nothing here evaluates a loss twice
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            assert kernel.grad is not None
            matrix.grad = flat(kernel.grad, kernel)
        super().step()


def flat(tensor: Tensor, kernel: Tensor) -> Tensor:
    """(c_out, c_in, h, w) -> (c_out, c_in h w), each row in the kernel's memory order."""
    return (tensor if kernel.is_contiguous() else tensor.movedim(1, -1)).flatten(1)
