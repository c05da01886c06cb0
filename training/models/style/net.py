"""The network of fast neural style: one for many styles. Only nn.Modules.

A picture is float (N, 3, H, W), RGB in [0, 1], with sides of 16 or more; `weights` (N, S) are the styles' shares.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Scale of the sigmoid's input: at this one, the sigmoid maps [0, 1], centred, to [0.08, 0.92].
CONTRAST = 5.0

# Activations of residual blocks are clamped to this many standard deviations from their channel's mean. Unclamped, one
# spot of a smooth area grows from block to block until it dominates the statistics, and ends as a pale blot: the
# droplets of Karras et al. 2020. About 99 % of activations lie within the limit anyway.
LIMIT = 3.0


class ConditionalNorm(nn.Module):
    """Conditional instance norm: scale and shift are a style's own, or a mixture of several (Dumoulin et al. 2017).

    Normalised activations are clamped to `limit`, in standard deviations.
    """

    def __init__(self, styles: int, channels: int, limit: float = math.inf) -> None:
        super().__init__()
        self.limit = limit
        self.scale = nn.Parameter(torch.ones(styles, channels))
        self.shift = nn.Parameter(torch.zeros(styles, channels))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        scale, shift = weights @ self.scale, weights @ self.shift  # (N, S) @ (S, C)
        # Not F.instance_norm, which checks sizes that are unknown while the graph is exported.
        x = torch.instance_norm(x, None, None, None, None, True, 0.0, 1e-5, False)
        if self.limit < math.inf:
            x = x.clamp(-self.limit, self.limit)
        return x * scale[:, :, None, None] + shift[:, :, None, None]


class Palette(nn.Module):
    """An affine map of colours for each style: photograph (N, 3, H, W) in [0, 1] -> (N, 3, H, W) around 0.

    Starts as the photograph itself. Quickly learns the largest difference between a photograph and a painting.
    """

    def __init__(self, styles: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(CONTRAST * torch.eye(3).flatten().repeat(styles, 1))
        self.shift = nn.Parameter(torch.zeros(styles, 3))

    def forward(self, picture: Tensor, weights: Tensor) -> Tensor:
        mix = (weights @ self.scale).reshape(-1, 3, 3)
        colors = mix @ (picture - 0.5).flatten(2)  # (N, 3, 3) @ (N, 3, H * W)
        return colors.reshape(picture.shape) + (weights @ self.shift)[:, :, None, None]


class Convolution(nn.Module):
    """Reflection padding, convolution, norm, and a ReLU unless it is the last of a residual block."""

    def __init__(
        self, styles: int, c_in: int, c_out: int, kernel: int, *,
        stride: int = 1, relu: bool = True, limit: float = math.inf,
    ) -> None:  # fmt: skip
        super().__init__()
        self.pad = nn.ReflectionPad2d(kernel // 2)
        self.convolution = nn.Conv2d(c_in, c_out, kernel, stride, bias=False)  # the norm has its own
        self.norm = ConditionalNorm(styles, c_out, limit)
        self.relu = relu

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        x = self.norm(self.convolution(self.pad(x)), weights)
        return F.relu(x) if self.relu else x


class Residual(nn.Module):
    def __init__(self, styles: int, channels: int) -> None:
        super().__init__()
        self.first = Convolution(styles, channels, channels, 3, limit=LIMIT)
        self.second = Convolution(styles, channels, channels, 3, relu=False, limit=LIMIT)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return x + self.second(self.first(x, weights), weights)


class StyleNet(nn.Module):
    """Picture (N, 3, H, W) and weights (N, S), which add up to 1 -> picture (N, 3, H, W). After Johnson et al. 2016.

    Upsamples by nearest neighbour and a convolution, because transposed convolutions leave a checkerboard. `outer` is
    the kernel size of the last layer, and of the first if above 5: the paper's are 9, with which the last one, of 3
    channels, is slow.
    """

    def __init__(self, styles: int, widths: tuple[int, int, int] = (24, 48, 96), blocks: int = 5, outer: int = 3):
        super().__init__()
        self.options = {"styles": styles, "widths": list(widths), "blocks": blocks, "outer": outer}
        full, half, quarter = widths
        self.down = nn.ModuleList([
            Convolution(styles, 3, full, max(5, outer)),
            Convolution(styles, full, half, 3, stride=2),
            Convolution(styles, half, quarter, 3, stride=2),
        ])  # fmt: skip
        self.middle = nn.ModuleList(Residual(styles, quarter) for _ in range(blocks))
        self.up = nn.ModuleList([Convolution(styles, quarter, half, 3), Convolution(styles, half, full, 3)])
        self.palette = Palette(styles)
        last = nn.Conv2d(full, 3, outer)
        nn.init.zeros_(last.weight)
        self.last = nn.Sequential(nn.ReflectionPad2d(outer // 2), last)

    def forward(self, picture: Tensor, weights: Tensor) -> Tensor:
        x = 2 * picture - 1
        for layer in (*self.down, *self.middle):
            x = layer(x, weights)
        for layer in self.up:
            x = layer(F.interpolate(x, scale_factor=2.0, mode="nearest"), weights)
        # Halving rounds up, so the output is as large as the input or up to three pixels larger.
        x = x[:, :, : picture.shape[2], : picture.shape[3]]
        # The network learns the difference: untrained, it returns the photograph, a little paler. Without this, it
        # learnt ten styles' colours and one pattern of tiles in 600 steps, and nothing of any photograph.
        return torch.sigmoid(self.last(x) + self.palette(picture, weights))

    @property
    def styles(self) -> int:
        return int(self.options["styles"])  # type: ignore[call-overload]

    @torch.no_grad()
    def with_another(self) -> StyleNet:
        """A copy of the network with one more style, initialized to the mean of the others."""
        more = StyleNet(**{**self.options, "styles": self.styles + 1})  # type: ignore[arg-type]
        state = self.state_dict()
        for key in state:
            if key.endswith((".scale", ".shift")):
                state[key] = torch.cat([state[key], state[key].mean(0, keepdim=True)])
        more.load_state_dict(state)
        return more


class Served(nn.Module):
    """The network as served: content uint8 (N, H, W, 3), weights (N, S) of any sum -> image uint8 (N, H, W, 3)."""

    def __init__(self, net: StyleNet, names: tuple[str, ...], objective: dict[str, Any]) -> None:
        super().__init__()
        self.net, self.names, self.objective = net, names, objective

    def forward(self, content: Tensor, style_weights: Tensor) -> Tensor:
        picture = content.float().permute(0, 3, 1, 2) / 255  # uint8 (N, H, W, 3) -> [0, 1] (N, 3, H, W)
        painted = self.net(picture, style_weights / style_weights.sum(1, keepdim=True))
        return (painted * 255).round().permute(0, 2, 3, 1).to(torch.uint8)
