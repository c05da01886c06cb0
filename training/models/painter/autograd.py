"""The painter's objective as autograd has it: what offline painting minimises, and what the served graph must equal."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from serving.backends.painter import painting
from serving.backends.painter.knobs import Knobs
from training.models.features.net import Vgg, gram, relative_error, total_variation
from training.models.painter.spec import CONTENT_LAYERS, STYLE_LAYERS


class Targets(NamedTuple):
    """By layer: the photograph's activations, and the painting's Gram matrices."""

    content: dict[str, Tensor]
    grams: dict[str, Tensor]


@torch.no_grad()
def targets_of(vgg: Vgg, photo: Tensor, painted: Tensor) -> Targets:
    """For a canvas of the photograph's size; both pictures (1, 3, H, W)."""
    style = vgg(painted, STYLE_LAYERS)
    return Targets(vgg(photo, CONTENT_LAYERS), {layer: gram(style[layer]) for layer in STYLE_LAYERS})


def losses(vgg: Vgg, canvas: Tensor, targets: Targets, knobs: Knobs) -> Tensor:
    """Content, style and total variation of a canvas (1, 3, H, W), unweighted: (3,)."""
    activations = vgg(canvas, {*CONTENT_LAYERS, *STYLE_LAYERS})
    content, style = torch.zeros(1, device=canvas.device), torch.zeros(1, device=canvas.device)
    for layer, weight in zip(CONTENT_LAYERS, knobs.content_layers, strict=True):
        content = content + weight * relative_error(activations[layer], targets.content[layer])
    for layer, weight in zip(STYLE_LAYERS, knobs.style_layers, strict=True):
        style = style + weight * relative_error(gram(activations[layer]), targets.grams[layer])
    return torch.cat([content, style, total_variation(canvas)])


class Closure:
    """What torch's optimizers call for a canvas's objective and gradient. It remembers the last canvas, which line
    searches come back to."""

    losses: Tensor
    """(3,), of the last canvas"""

    def __init__(self, vgg: Vgg, canvas: Tensor, targets: Targets, knobs: Knobs) -> None:
        self._vgg, self._canvas, self._targets, self._knobs = vgg, canvas, targets, knobs
        self._weights = torch.tensor([knobs.content_weight, knobs.style_weight, knobs.tv_weight], device=canvas.device)
        self._last_canvas = torch.empty(0, device=canvas.device)
        self.evaluations = 0

    def __call__(self) -> float:
        """The objective; its gradient goes to canvas.grad, where torch's optimizers look for it."""
        if not torch.equal(self._last_canvas, self._canvas):
            self._last_canvas = self._canvas.detach().clone()
            losses_now = losses(self._vgg, self._canvas, self._targets, self._knobs)
            objective = (losses_now * self._weights).sum()
            (self._gradient,) = torch.autograd.grad(objective, self._canvas)
            self.losses, self._objective = losses_now.detach(), objective.item()
            self.evaluations += 1
        self._canvas.grad = self._gradient.clone()
        return self._objective


def make_optimizer(canvas: Tensor, name: str) -> torch.optim.Optimizer:
    """Of a canvas (1, 3, H, W); each of its steps is an iteration. As the served painter's, but in torch."""
    if name == "adam":
        return torch.optim.Adam([canvas], painting.ADAM_LR, betas=painting.ADAM_BETAS)
    return torch.optim.LBFGS(
        [canvas], max_iter=1, max_eval=25, history_size=painting.LBFGS_MEMORY, line_search_fn="strong_wolfe",
        tolerance_grad=0, tolerance_change=0,
    )  # fmt: skip
