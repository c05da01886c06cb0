"""The networks of the WGAN: the ones that ship and the source's own. Only nn.Modules.

A latent is float (N, 100), normal(0, 1); a picture is float (N, 3, 128, 128) in [-1, 1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.wgan.spec import LATENT, SIZE

LEAK = 0.2


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, LEAK)


def he_initialise(net: nn.Module) -> None:
    """He et al. 2015: without normalization layers, the scale of the weights must keep the signal from vanishing."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, a=LEAK)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


# --- what ships: a trunk of 3x3 convolutions with two strips beside it ---
# A 3x3 convolution needs many layers to keep a line straight over 128 pixels. A strip is a feature map with one spatial
# dimension: one along the rows, one along the columns, added to every column or row of the trunk at each scale. This is
# strip pooling (Hou et al. 2020) inverted for a generator. What a strip draws is straight from the first training step,
# at 1/64 of the trunk's cost; the trunk is free to draw everything else.


class Draw(nn.Module):
    """Adds rows and columns (N, strip, S), each broadcast over the other dimension, to a trunk (N, C, S, S)."""

    def __init__(self, strip: int, channels: int) -> None:
        super().__init__()
        self.rows, self.columns = nn.Linear(strip, channels), nn.Linear(strip, channels)

    def forward(self, trunk: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        # Stay in channels-last memory, like the trunk: in any other order this addition is the slowest step of all.
        rows = self.rows(rows.transpose(1, 2)).unsqueeze(2).permute(0, 3, 1, 2)  # (N, C, S, 1)
        columns = self.columns(columns.transpose(1, 2)).unsqueeze(1).permute(0, 3, 1, 2)  # (N, C, 1, S)
        return trunk + rows + columns


class UpBlock(nn.Module):
    """Upsamples trunk (N, C, S, S), rows and columns (N, C, S) by 2, and draws the strips on the trunk."""

    def __init__(self, trunk_in: int, trunk_out: int, strip_in: int, strip_out: int) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(trunk_in, trunk_out, 3, padding=1)
        self.rows = nn.Conv1d(strip_in, strip_out, 5, padding=2)
        self.columns = nn.Conv1d(strip_in, strip_out, 5, padding=2)
        self.draw = Draw(strip_out, trunk_out)

    def forward(self, trunk: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = leaky(self.rows(F.interpolate(rows, scale_factor=2.0)))
        columns = leaky(self.columns(F.interpolate(columns, scale_factor=2.0)))
        trunk = self.draw(self.trunk(F.interpolate(trunk, scale_factor=2.0)), rows, columns)
        return leaky(trunk), rows, columns


class Generator(nn.Module):
    """Latent (N, 100) -> picture (N, 3, 128, 128) in [-1, 1]."""

    def __init__(
        self,
        trunk: tuple[int, ...] = (64, 96, 64, 32),  # channels at 8, 16, 32, 64 pixels
        strip: tuple[int, ...] = (128, 128, 96, 64),
        style: int = 192,
        last: int = 48,
    ) -> None:
        super().__init__()
        self.mapping = nn.Sequential(
            nn.Linear(LATENT, style), nn.LeakyReLU(LEAK), nn.Linear(style, style), nn.LeakyReLU(LEAK)
        )
        self.trunk_shape, self.strip_shape = (trunk[0], 8, 8), (strip[0], 8)
        self.trunk = nn.Linear(style, trunk[0] * 8 * 8)
        self.rows = nn.Linear(style, strip[0] * 8)
        self.columns = nn.Linear(style, strip[0] * 8)
        pairs = zip(trunk, trunk[1:], strip, strip[1:], strict=False)
        self.scales = nn.ModuleList(UpBlock(t0, t1, s0, s1) for t0, t1, s0, s1 in pairs)
        # The last upsampling is a pixel shuffle: at 128x128 every element-wise pass would cost four times as much, and
        # on a CPU these dominate, not the convolutions. Strips hold two sub-pixel phases instead.
        self.last_rows = nn.Conv1d(strip[-1], 2 * strip[-1], 5, padding=2)
        self.last_columns = nn.Conv1d(strip[-1], 2 * strip[-1], 5, padding=2)
        self.last_trunk = nn.Conv2d(trunk[-1], last, 3, padding=1)
        self.draw = Draw(2 * strip[-1], last)
        self.picture = nn.Conv2d(last, 3 * 4, 3, padding=1)
        he_initialise(self)
        nn.init.normal_(self.picture.weight, 0, 0.02)  # starts dark gray: tanh far from saturation

    def forward(self, latent: Tensor) -> Tensor:
        style = self.mapping(latent)
        trunk = leaky(self.trunk(style)).reshape(-1, *self.trunk_shape).contiguous(memory_format=torch.channels_last)
        rows = leaky(self.rows(style)).reshape(-1, *self.strip_shape)
        columns = leaky(self.columns(style)).reshape(-1, *self.strip_shape)
        for scale in self.scales:
            trunk, rows, columns = scale(trunk, rows, columns)
        rows, columns = leaky(self.last_rows(rows)), leaky(self.last_columns(columns))
        trunk = leaky(self.draw(self.last_trunk(trunk), rows, columns))
        return torch.tanh(F.pixel_shuffle(self.picture(trunk), 2))


class Critic(nn.Module):
    """Picture (N, 3, 128, 128) -> score (N,), unbounded. No norm, because the gradient penalty is per picture."""

    def __init__(self, trunk: tuple[int, ...] = (32, 64, 96, 128), strip: int = 64) -> None:
        super().__init__()
        channels = (3, *trunk)
        self.trunk = nn.ModuleList(
            nn.Conv2d(c0, c1, 5, stride=2, padding=2) for c0, c1 in zip(channels, trunk, strict=False)
        )
        # Strips again: the first features, averaged over each row and each column, capture whole lines at once.
        self.rows, self.columns = self._strip(trunk[0], strip), self._strip(trunk[0], strip)
        features = trunk[-1] * 8 * 8 + 2 * strip * 16
        self.score = nn.Sequential(nn.Linear(features, 256), nn.LeakyReLU(LEAK), nn.Linear(256, 1))
        he_initialise(self)

    @staticmethod
    def _strip(channels: int, width: int) -> nn.Sequential:
        """(N, channels, 64) -> (N, width, 16)"""
        return nn.Sequential(
            nn.Conv1d(channels, width, 5, padding=2),
            nn.LeakyReLU(LEAK),
            nn.Conv1d(width, width, 5, stride=2, padding=2),
            nn.LeakyReLU(LEAK),
            nn.Conv1d(width, width, 5, stride=2, padding=2),
            nn.LeakyReLU(LEAK),
        )

    def forward(self, picture: Tensor) -> Tensor:
        first = leaky(self.trunk[0](picture))  # (N, C, 64, 64)
        rows, columns = self.rows(first.mean(3)), self.columns(first.mean(2))
        trunk = first
        for layer in self.trunk[1:]:
            trunk = leaky(layer(trunk))
        return self.score(torch.cat([trunk.flatten(1), rows.flatten(1), columns.flatten(1)], 1)).squeeze(1)


# --- the source's networks, to the letter (preset `seed`) ---


def keras_initialise(net: nn.Module) -> None:
    """Normal(0, 0.02) weights, zero biases."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0, 0.02)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """The source's momentum of 0.9 weighs the old statistics, PyTorch's the new ones. Epsilon as in Keras."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=1 - 0.9)


class SourceGenerator(nn.Module):
    """Latent (N, 100) -> picture (N, 3, 128, 128) in [-1, 1]. 45,948,867 parameters, mostly in 10x10 kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(LATENT, 8 * 8 * 512)
        layers: list[nn.Module] = [batch_norm(512), nn.LeakyReLU(LEAK)]
        for c0, c1 in [(512, 512), (512, 256), (256, 128)]:
            # kernel 10, stride 2, padding 4: the size doubles exactly, as with Keras's padding="same"
            layers += [nn.ConvTranspose2d(c0, c1, 10, stride=2, padding=4), batch_norm(c1), nn.LeakyReLU(LEAK)]
        layers += [nn.ConvTranspose2d(128, 3, 10, stride=2, padding=4), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        keras_initialise(self)

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(self.dense(latent).reshape(-1, 512, 8, 8))


class SourceCritic(nn.Module):
    """Picture (N, 3, 128, 128) -> score (N,)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c0, c1 in [(3, 128), (128, 256), (256, 512), (512, 1024)]:
            # Keras's padding="same" at kernel 5, stride 2 pads one pixel before and two after
            layers += [nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(c0, c1, 5, stride=2), nn.LeakyReLU(LEAK)]
        self.layers = nn.Sequential(*layers)
        self.dense = nn.Linear(1024 * (SIZE // 16) ** 2, 1)
        keras_initialise(self)

    def forward(self, picture: Tensor) -> Tensor:
        return self.dense(self.layers(picture).flatten(1)).squeeze(1)


NETWORKS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "strips": (Generator, Critic),
    "source": (SourceGenerator, SourceCritic),
}


class Served(nn.Module):
    """The generator as it is served: latent float (N, 100) -> picture uint8 (N, 128, 128, 3)."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, latent: Tensor) -> Tensor:
        picture = self.generator(latent).permute(0, 2, 3, 1)  # [-1, 1] (N, 3, H, W) -> (N, H, W, 3)
        return ((picture + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
