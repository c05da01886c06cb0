"""The network that enlarges by 4. Only nn.Modules.

A picture is float (N, 3, H, W), RGB in [0, 1], of any size; the output is (N, 3, 4H, 4W).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.upscaler.spec import SCALE


class Upscaler(nn.Module):
    """3x3 convolutions at low resolution, and one pixel shuffle at the end (Shi et al. 2016).

    Learns the residual to a bilinear enlargement of the picture. Padding is zero, so that a tile of a picture is
    enlarged like the whole, except for `radius` pixels at the tile's own borders.
    """

    def __init__(self, channels: int = 48, layers: int = 12) -> None:
        super().__init__()
        self.options = {"channels": channels, "layers": layers}
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.middle = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(layers))
        self.last = nn.Conv2d(channels, 3 * SCALE**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    @property
    def radius(self) -> int:
        """The receptive field's radius: an output pixel depends on that many input pixels to each side."""
        return len(self.middle) + 2  # one for each convolution; the bilinear enlargement needs just one

    def forward(self, picture: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(picture), 0.1)
        for layer in self.middle:
            x = x + F.leaky_relu(layer(x), 0.1)
        # In float32 even if the convolutions are in bfloat16, which distinguishes all 256 gray levels only in darks.
        enlarged = F.interpolate(picture, scale_factor=float(SCALE), mode="bilinear", align_corners=False)
        return enlarged + F.pixel_shuffle(self.last(x), SCALE)


class Served(nn.Module):
    """The network as it is served: low_res uint8 (N, H, W, 3) -> image uint8 (N, 4H, 4W, 3)."""

    def __init__(self, net: Upscaler) -> None:
        super().__init__()
        self.net = net

    def forward(self, low_res: Tensor) -> Tensor:
        picture = low_res.float().permute(0, 3, 1, 2) / 255  # uint8 (N, H, W, 3) -> [0, 1] (N, 3, H, W)
        image = self.net(picture).clamp(0, 1)
        return (image * 255).round().permute(0, 2, 3, 1).to(torch.uint8)
