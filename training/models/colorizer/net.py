"""The colorizer's networks, and how chroma joins the luminance of a picture of any size. Only nn.Modules.

Lab is CIE L*a*b* (D65): L in [0, 100], a and b about [-100, 100]. Gray is the sRGB level g, in [0, 1], of the same
luminance: (g, g, g) is the colour with that L and no chroma.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrizations import spectral_norm

from training.models.features import net as features
from training.models.features import resnet

# One unit of the network's output, in units of a and b.
CHROMA = 100.0


# --- colour (IEC 61966-2-1, CIE 15) ---

# Linear sRGB -> X, Y, Z, each relative to white.
TO_XYZ = torch.tensor(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
    dtype=torch.float64,
)
TO_XYZ = TO_XYZ / TO_XYZ.sum(1, keepdim=True)
TO_RGB = torch.linalg.inv(TO_XYZ)
DELTA = 6 / 29


def mixed(matrix: Tensor, picture: Tensor) -> Tensor:
    """Applies a matrix (M, K) to every pixel: (N, K, H, W) -> (N, M, H, W)."""
    return F.conv2d(picture, matrix[:, :, None, None].to(picture))


def linear(level: Tensor) -> Tensor:
    """sRGB levels -> linear light, both in [0, 1]."""
    return torch.where(level > 0.04045, ((level + 0.055) / 1.055).clamp_min(1e-4) ** 2.4, level / 12.92)


def level(linear: Tensor) -> Tensor:
    """Linear light -> sRGB levels, both in [0, 1]."""
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp_min(1e-4) ** (1 / 2.4) - 0.055, 12.92 * linear)


def lightness(linear: Tensor) -> Tensor:
    """Lab's function f of linear light in [0, 1]: of Y, it is (L + 16) / 116."""
    return torch.where(linear > DELTA**3, linear.clamp_min(1e-4) ** (1 / 3), linear / (3 * DELTA**2) + 4 / 29)


def inverse_lightness(f: Tensor) -> Tensor:
    """The inverse of `lightness`: back to linear light in [0, 1]."""
    return torch.where(f > DELTA, f * f * f, 3 * DELTA**2 * (f - 4 / 29))


def lab(picture: Tensor) -> Tensor:
    """RGB (N, 3, H, W) in [0, 1] -> L, a, b (N, 3, H, W)."""
    x, y, z = lightness(mixed(TO_XYZ, linear(picture))).split(1, 1)
    return torch.cat([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def gray_of(picture: Tensor) -> Tensor:
    """RGB (N, 3, H, W) in [0, 1] -> gray levels (N, 1, H, W) of the same luminance."""
    return level(mixed(TO_XYZ[1:2], linear(picture)).clamp(0, 1))


def rgb(y: Tensor, f: Tensor, chroma: Tensor) -> Tensor:
    """Luminance `y` (N, 1, H, W), `f` = lightness(y), and a, b (N, 2, H, W) -> RGB (N, 3, H, W) in [0, 1].

    A colour outside sRGB's gamut is mixed with gray until it is inside; its luminance stays as it is.
    """
    a, b = chroma[:, :1], chroma[:, 1:]
    xyz = torch.cat([inverse_lightness(f + a / 500), y, inverse_lightness(f - b / 200)], 1)
    light = mixed(TO_RGB, xyz)
    over, under = light.amax(1, keepdim=True) - y, y - light.amin(1, keepdim=True)
    room = torch.minimum((1 - y) / over.clamp_min(1e-6), y / under.clamp_min(1e-6)).clamp(0, 1)
    return level((y + room * (light - y)).clamp(0, 1))


# --- sizes ---


def resize_matrix(rows: int, out: int, like: Tensor) -> Tensor:
    """(out, rows): the matrix that resizes `rows` to `out` rows as Pillow's BILINEAR does, by a triangle filter, which
    is wider when downsampling, so that nothing aliases. Resizing is two matrix products in any runtime."""
    there = torch.arange(rows, device=like.device).to(like.dtype) + 0.5
    here = torch.arange(out, device=like.device).to(like.dtype) + 0.5
    scale = like.new_ones(()) * rows / out
    distance = (there[None, :] - here[:, None] * scale) / scale.clamp_min(1.0)
    weights = F.relu(1 - distance.abs())
    return weights / weights.sum(1, keepdim=True)


def resized(picture: Tensor, height: int, width: int) -> Tensor:
    """(N, C, H, W) -> (N, C, height, width)."""
    down = resize_matrix(picture.shape[2], height, picture)
    across = resize_matrix(picture.shape[3], width, picture)
    return down @ picture @ across.T


# --- the network that guesses ---


class Encoder(nn.Module):
    """A pretrained network's activations for gray (N, 1, S, S) in [0, 1], at 1/2 of its size, 1/4, and so on."""

    def __init__(self, backbone: features.Vgg | resnet.ResNet18) -> None:
        super().__init__()
        self.backbone = backbone
        self.taps: tuple[str, ...]
        self.widths: tuple[int, ...]
        # The first layers' edges and textures suit colours as they are, and training them would take half of the time.
        if isinstance(backbone, resnet.ResNet18):
            self.taps, self.widths = resnet.STAGES, resnet.WIDTHS
            self.frozen: list[nn.Module] = [backbone.conv1, backbone.bn1, backbone.layer1]
        else:
            # The last layer of each block but the first.
            self.taps = tuple(f"conv{b}_{count}" for b, count in enumerate(backbone.blocks, 1))[1:]
            self.widths = backbone.widths[1:]
            self.frozen = [layer for name, layer in backbone.convolutions.items() if name < "conv3"]

    def forward(self, gray: Tensor) -> list[Tensor]:
        activations = self.backbone(gray.expand(-1, 3, -1, -1), self.taps)
        return [activations[name] for name in self.taps]

    def train(self, mode: bool = True) -> Encoder:
        """Keeps the batch norms' pretrained statistics in either mode: batches here are too small for better ones."""
        return super().train(False)


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.convolution(x)))

    def fuse(self) -> None:
        """Folds the norm into the convolution. Only in eval mode."""
        assert isinstance(self.norm, nn.BatchNorm2d)
        self.convolution, self.norm = fuse_conv_bn_eval(self.convolution, self.norm), nn.Identity()


class Decoder(nn.Module):
    """The encoder's activations -> `channels` at half the picture's size, or at its full size if `whole`: the expanding
    half of a U-Net (Ronneberger et al. 2015)."""

    def __init__(
        self, encoder: tuple[int, ...], widths: tuple[int, ...], channels: int, *, gray: float, whole: bool
    ) -> None:
        super().__init__()
        skips = [*reversed(encoder[:-1]), *([1] if whole else [])]
        # A deeper encoder's coarsest stages share the first width, and a stage at full size repeats the last one.
        widths = (*widths[:1] * (len(encoder) - 1 - len(widths)), *widths, *widths[-1:] * whole)
        c_in = encoder[-1]
        self.blocks = nn.ModuleList()
        for skip, width in zip(skips, widths, strict=True):
            self.blocks.append(Block(c_in + skip, width))
            c_in = width
        self.smooth = Block(c_in, c_in)
        self.last = nn.Conv2d(c_in, channels, 1)
        nn.init.zeros_(self.last.weight)
        self.last.bias = nn.Parameter(torch.full((channels,), gray))

    def forward(self, gray: Tensor, activations: list[Tensor]) -> Tensor:
        *finer, x = activations
        skips = [*reversed(finer), gray][: len(self.blocks)]
        for block, skip in zip(self.blocks, skips, strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], 1))
        return self.last(self.smooth(x))


class Colorizer(nn.Module):
    """One encoder and two decoders: the first stage's, trained by regression, and the second's, which refines it.

    Gray (N, 1, S, S) in [0, 1] -> `color`: "lab" is a and b, in units of CHROMA; "rgb" is RGB, not clamped to [0, 1].
    """

    def __init__(self, encoder: Encoder, widths: tuple[int, ...], *, color: str, whole: bool, size: int) -> None:
        super().__init__()
        self.options: Mapping[str, Any] = {"widths": list(widths), "color": color, "whole": whole, "size": size}
        self.encoder = encoder
        self.color, self.size, self.stride = color, size, 1 if whole else 2
        channels, gray = {"lab": (2, 0.0), "rgb": (3, 0.5)}[color]
        self.decoders = nn.ModuleList(
            Decoder(encoder.widths, widths, channels, gray=gray, whole=whole) for _ in range(2)
        )

    def forward(self, gray: Tensor, stage: int) -> Tensor:
        predicted: Tensor = self.decoders[stage - 1](gray, self.encoder(gray))
        return predicted

    def chroma(self, predicted: Tensor) -> Tensor:
        """a and b of a decoder's output."""
        return CHROMA * predicted if self.color == "lab" else lab(predicted.clamp(0, 1))[:, 1:]


class Critic(nn.Module):
    """Gray and colours, concatenated, (N, C, S, S) -> a score for each 30 x 30 patch (Isola et al. 2017).

    Spectral norm (Miyato et al. 2018) instead of batch or instance norm, which would remove what it should judge: how
    strong the colours are.
    """

    def __init__(self, c_in: int, width: int = 48) -> None:
        super().__init__()
        widths = (c_in, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for (c, c_out), stride in zip(pairwise(widths), (2, 2, 1), strict=True):
            layers += [spectral_norm(nn.Conv2d(c, c_out, 4, stride=stride, padding=1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(widths[3], 1, 3, padding=1)))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x)
        return scores


# --- what is served ---


class Served(nn.Module):
    """Gray uint8 (N, H, W, 1), 16 x 16 or more, and stage (N, 1) -> uint8 (N, H, W, 3) of the same size and luminance.

    The network sees the picture resized to a fixed size. The guided filter (He et al. 2013) upsamples its chroma to the
    picture's size: within each neighbourhood chroma is a linear function of luminance, so that its edges are the
    picture's, however large that is. `radius` is in pixels of the network's chroma; `edge`, in units of L, is the
    contrast above which an edge is kept, the square root of the paper's epsilon.
    """

    levels: Tensor

    def __init__(self, net: Colorizer, *, features: str = "", radius: int = 1, edge: float = 8.0) -> None:
        super().__init__()
        self.features, self.radius, self.edge = features, radius, edge
        self.net = net
        light = linear(torch.arange(256) / 255)
        self.register_buffer("levels", torch.stack([light, lightness(light)]), persistent=False)
        self.eval()

    @torch.no_grad()
    def packed(self) -> Served:
        """Prepares it for export, in place: folds the norms, and rounds the weights to half precision."""
        for block in self.modules():
            if isinstance(block, Block):
                block.fuse()
        for parameter in self.parameters():
            parameter.copy_(parameter.half())
        return self.requires_grad_(False)

    def forward(self, gray: Tensor, stage: Tensor) -> Tensor:
        gray = gray.float().permute(0, 3, 1, 2)
        height, width = gray.shape[2], gray.shape[3]
        y, f = self.levels[0][gray.long()], self.levels[1][gray.long()]
        seen = resized(gray / 255, self.net.size, self.net.size)
        activations = self.net.encoder(seen)
        first, second = (self.net.chroma(decoder(seen, activations)) for decoder in self.net.decoders)
        chroma = first + (stage[:, :, None, None] - 1) * (second - first)
        picture = rgb(y, f, self.guided_filter(chroma, 116 * f - 16, height, width))
        return (picture * 255).round().permute(0, 2, 3, 1).to(torch.uint8)

    def guided_filter(self, chroma: Tensor, lightness: Tensor, height: int, width: int) -> Tensor:
        side = self.net.size // self.net.stride
        guide = resized(lightness, side, side)
        mean, of_guide = self.box_filter(chroma), self.box_filter(guide)
        slope = self.box_filter(chroma * guide) - mean * of_guide
        slope = slope / (self.box_filter(guide * guide) - of_guide * of_guide + self.edge**2)
        offset = mean - slope * of_guide
        slope, offset = (resized(self.box_filter(each), height, width) for each in (slope, offset))
        return slope * lightness + offset

    def box_filter(self, x: Tensor) -> Tensor:
        """The mean of each neighbourhood."""
        side = 2 * self.radius + 1
        return F.avg_pool2d(F.pad(x, (self.radius,) * 4, mode="replicate"), side, stride=1)
