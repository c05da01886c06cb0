"""Whether the gradient that was written by hand is the one that autograd finds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from serving.backends.painter import painting
from serving.backends.painter.knobs import Knobs, read
from training.models.features.net import Vgg
from training.models.painter.autograd import Closure, targets_of
from training.models.painter.net import Objective

# Round and odd ones, and one so small that a single place is left at the deepest layer.
SIZES = ((64, 64), (61, 83), (95, 46), (16, 17))


def gradient_error(net: Objective, vgg: Vgg, content: np.ndarray, style: np.ndarray) -> float:
    """The largest relative error over SIZES, with every loss and layer weighted. Pictures are uint8 (H, W, 3)."""
    knobs = replace(
        read({}),
        start="noise",
        content_layers=(0.5, 1.0, 1.0, 2.0),
        style_layers=(1.0, 2.0, 1.0, 0.5, 1.0),
        tv_weight=5.0,
    )
    errors = []
    for size in SIZES:
        photo, painted = (painting.planes(painting.resized(each, size)) for each in (content, style))
        canvas = painting.initial_canvas(photo, knobs)
        with torch.no_grad():
            gradient = net(*inputs(net, canvas, photo, painted, knobs))[2]
        variable = torch.from_numpy(canvas)[None].requires_grad_()
        targets = targets_of(vgg, torch.from_numpy(photo)[None], torch.from_numpy(painted)[None])
        Closure(vgg, variable, targets, knobs)()
        truth = variable.grad
        assert truth is not None
        errors.append(((gradient - truth).norm() / truth.norm()).item())
    return max(errors)


@torch.no_grad()
def inputs(
    net: Objective, canvas: np.ndarray, photo: np.ndarray, painted: np.ndarray, knobs: Knobs
) -> tuple[Tensor, ...]:
    """The graph's inputs, in spec.GRAPH's order. Pictures are float (3, H, W)."""
    targets = net.targets(*(torch.from_numpy(each)[None] for each in (photo, painted)))
    weights = (knobs.content_weight, knobs.style_weight, knobs.tv_weight)
    numbers = (torch.tensor([each]) for each in (knobs.content_layers, knobs.style_layers, weights))
    return torch.from_numpy(canvas)[None], *targets, *numbers
