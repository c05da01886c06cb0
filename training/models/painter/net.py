"""The painter's objective and its gradient, both of them forward, so that an ONNX graph holds them. Only nn.Modules.

    objective = net.Objective(features.load("vgg16-half"), name="vgg16-half")
    losses, total, gradient, *activations_and_grams = objective(canvas, *targets, content_layers, style_layers, weights)

Gatys et al. 2015: the backbone is frozen, and the canvas is optimized. What autograd would do is written out: the
backward pass of a convolution is a convolution with its weights flipped, that of a ReLU a mask, that of an average
pooling an equal share to each place. ONNX Runtime takes two thirds of autograd's time: 160 instead of 245 ms on one
core, at 256 x 256.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.features.net import Vgg, gram, relative_error
from training.models.painter.spec import CONTENT_LAYERS, STYLE_LAYERS


class Objective(nn.Module):
    """Its inputs and outputs are those of spec.GRAPH, in that order. `features` names the backbone, for the card."""

    mean: Tensor
    std: Tensor

    def __init__(self, vgg: Vgg, *, name: str) -> None:
        super().__init__()
        self.features = name
        deepest = max(vgg.layers.index(layer) for layer in (*CONTENT_LAYERS, *STYLE_LAYERS))
        self.layers = vgg.layers[: deepest + 1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layer in self.layers:
            convolution = vgg.convolutions[layer]
            assert convolution.bias is not None
            self.weights.append(nn.Parameter(_half_if_exact(convolution.weight.detach()), requires_grad=False))
            self.biases.append(nn.Parameter(convolution.bias.detach().clone(), requires_grad=False))
        self.register_buffer("mean", vgg.mean.clone())
        self.register_buffer("std", vgg.std.clone())

    def forward(self, canvas: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        """Canvas (1, 3, H, W), RGB in [0, 1], H and W 16 or more."""
        *targets, content_layers, style_layers, weights = given
        content_targets = dict(zip(CONTENT_LAYERS, targets[: len(CONTENT_LAYERS)], strict=True))
        gram_targets = dict(zip(STYLE_LAYERS, targets[len(CONTENT_LAYERS) :], strict=True))
        content_weight, style_weight, tv_weight = weights.unbind(1)  # (1,) each

        activations = self.activations(canvas)
        grams = {layer: gram(activations[layer]) for layer in STYLE_LAYERS}

        # --- the losses: relative errors, each layer with its own weight ---
        content = torch.stack([relative_error(activations[layer], t) for layer, t in content_targets.items()], 1)
        style = torch.stack([relative_error(grams[layer], t) for layer, t in gram_targets.items()], 1)
        across, down = differences(canvas)
        tv = across.square().mean((1, 2, 3)) + down.square().mean((1, 2, 3))
        losses = torch.stack([(content * content_layers).sum(1), (style * style_layers).sum(1), tv], 1)
        objective = (losses * weights).sum(1, keepdim=True)

        # --- their gradients with respect to the activations ---
        gradients: dict[str, Tensor] = {}
        for k, (layer, target) in enumerate(content_targets.items()):
            scale = content_weight * content_layers[:, k] * 2 / squared_norm(target)
            gradients[layer] = (activations[layer] - target) * scale
        for k, (layer, target) in enumerate(gram_targets.items()):
            n, c, h, w = activations[layer].shape
            # A Gram matrix is symmetric, so its two factors have the same gradient: 4, not 2.
            scale = style_weight * style_layers[:, k] * 4 / (squared_norm(target) * (h * w))
            at_gram = (grams[layer] - target) * scale
            gradients[layer] = (at_gram @ activations[layer].reshape(n, c, h * w)).reshape(n, c, h, w)

        # --- and, back through the network, with respect to the canvas ---
        gradient = self.backward(activations, gradients) / self.std + tv_weight * tv_gradient(canvas)
        return losses, objective, gradient, *(activations[layer] for layer in CONTENT_LAYERS), *grams.values()

    def targets(self, photo: Tensor, painted: Tensor) -> tuple[Tensor, ...]:
        """The photograph's activations, and the painting's Gram matrices. Both pictures are (1, 3, H, W)."""
        content, style = self.activations(photo), self.activations(painted)
        return *(content[layer] for layer in CONTENT_LAYERS), *(gram(style[layer]) for layer in STYLE_LAYERS)

    def activations(self, canvas: Tensor) -> dict[str, Tensor]:
        """The activations by layer, each after its ReLU."""
        x = (canvas - self.mean) / self.std
        activations: dict[str, Tensor] = {}
        for layer, weight, bias in zip(self.layers, self.weights, self.biases, strict=True):
            if activations and _opens_block(layer):
                x = F.avg_pool2d(x, 2)
            x = activations[layer] = F.relu(F.conv2d(x, weight.float(), bias, padding=1))
        return activations

    def backward(self, activations: dict[str, Tensor], gradients: dict[str, Tensor]) -> Tensor:
        """Backpropagates the losses' gradients from the activations to the normalised canvas, (1, 3, H, W)."""
        gradient = gradients[self.layers[-1]]
        for k in reversed(range(len(self.layers))):
            layer = self.layers[k]
            # Flipped weights are a constant expression: the file stores them once, and loading it computes the flip.
            weight = self.weights[k].float().flip(2, 3).transpose(0, 1)
            # The ReLU's mask by comparison: in ONNX Runtime, Sign takes seven times as long as Greater.
            gradient = gradient * (activations[layer] > 0)
            if k == 0:
                return F.conv2d(gradient, weight, padding=1)
            before = self.layers[k - 1]
            if _opens_block(layer):
                gradient = unpooled(F.conv2d(gradient, weight / 4, padding=1), like=activations[before])
            else:
                gradient = F.conv2d(gradient, weight, padding=1)
            if before in gradients:
                gradient = gradient + gradients[before]
        raise AssertionError("a backbone without layers")


def _half_if_exact(weight: Tensor) -> Tensor:
    """Converts to half precision if that is lossless, as it is for our own backbone, which is stored so."""
    half = weight.half()
    return half if torch.equal(half.float(), weight) else weight.clone()


def _opens_block(layer: str) -> bool:
    return layer.endswith("_1")


def squared_norm(target: Tensor) -> Tensor:
    """(1,): the denominator of features.net.relative_error."""
    return target.square().flatten(1).sum(1).clamp_min(1e-12)


def unpooled(pooled: Tensor, *, like: Tensor) -> Tensor:
    """Copies each value to the four places whose mean it was; zeros where pooling dropped the last row or column of an
    odd side. `backward` divides by four."""
    wide = F.interpolate(pooled, scale_factor=2.0, mode="nearest")
    return F.pad(wide, (0, like.shape[3] - wide.shape[3], 0, like.shape[2] - wide.shape[2]))


def differences(canvas: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbours, across and down. ONNX has no diff."""
    return canvas[:, :, :, 1:] - canvas[:, :, :, :-1], canvas[:, :, 1:] - canvas[:, :, :-1]


def tv_gradient(canvas: Tensor) -> Tensor:
    """The gradient of the total variation: each squared difference acts on both neighbours, with opposite signs."""
    across, down = differences(canvas)
    _, c, h, w = canvas.shape
    from_across = F.pad(across, (1, 0)) - F.pad(across, (0, 1))
    from_down = F.pad(down, (0, 0, 1, 0)) - F.pad(down, (0, 0, 0, 1))
    return from_across * 2 / (c * h * (w - 1)) + from_down * 2 / (c * (h - 1) * w)
