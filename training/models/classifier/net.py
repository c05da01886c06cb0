"""The networks of the classifier: the one that ships and the source's two. Only nn.Modules.

A picture is float (N, 1, 28, 28) in [0, 1], white garment on black; the output is float (N, 10), logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.classifier.spec import CLASSES, SIZE

# --- what ships: a residual network for a CPU, invariant to mirroring ---
# One wide convolution downsamples at once, so that all depth is at 14x14 and 7x7.


class MirrorConvolution(nn.Module):
    """(N, c_in, H, W) -> (N, c_out, H', W'): convolution, batch norm, ReLU, equivariant to mirroring.

    The channels form two halves: the second half for a picture is the first half for its mirror image, mirrored. So
    only half of the kernels are learned; the others are derived from them (Cohen and Welling 2016). With stride 2 the
    kernel's side must be even, as H and W are; otherwise it would sample other pixels of the mirror image.
    """

    def __init__(self, c_in: int, c_out: int, *, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        assert kernel % 2 == stride % 2, (kernel, stride)
        self.stride, self.padding = stride, (kernel - 1) // 2
        self.weight = nn.Parameter(torch.empty(c_out // 2, c_in, kernel, kernel))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # nn.Conv2d's initialization
        self.norm = nn.BatchNorm1d(c_out // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernels(), None, self.stride, self.padding)
        # Both halves share one norm, so that equivariance holds: (N, C, H, W) -> (N H W 2, C / 2), which is a view in
        # channels-last memory.
        last = x.movedim(1, -1)
        return F.relu(self.norm(last.reshape(-1, len(self.weight))).reshape(last.shape).movedim(-1, 1))

    def kernels(self) -> Tensor:
        """(c_out, c_in, kernel, kernel). A picture (c_in = 1) has no halves to swap."""
        mirrored = self.weight.flip(3)
        return torch.cat([self.weight, mirrored.roll(mirrored.shape[1] // 2, 1)])

    def folded(self) -> nn.Sequential:
        """The equivalent in eval mode: an ordinary convolution with biases, with the norm folded into it."""
        c_out, c_in, side, _ = self.kernels().shape
        plain = nn.Conv2d(c_in, c_out, side, self.stride, self.padding)
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        with torch.no_grad():
            plain.weight.copy_(self.kernels() * scale.repeat(2)[:, None, None, None])
            assert plain.bias is not None
            plain.bias.copy_((self.norm.bias - self.norm.running_mean * scale).repeat(2))
        return nn.Sequential(plain, nn.ReLU())


class Residual(nn.Module):
    """(N, C, H, W) -> the same shape (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(MirrorConvolution(channels, channels), MirrorConvolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ResidualNet(nn.Module):
    """Picture (N, 1, 28, 28) -> logits (N, 10), invariant to mirroring."""

    def __init__(self, widths: tuple[int, int, int] = (32, 48, 96), blocks: tuple[int, int] = (1, 2)) -> None:
        super().__init__()
        stem, middle, last = widths
        self.features = nn.Sequential(
            MirrorConvolution(1, stem, kernel=6, stride=2),  # 14x14
            MirrorConvolution(stem, middle),
            *(Residual(middle) for _ in range(blocks[0])),
            nn.MaxPool2d(2),  # 7x7
            MirrorConvolution(middle, last),
            *(Residual(last) for _ in range(blocks[1])),
        )
        self.logits = nn.Linear(last, len(CLASSES))

    def forward(self, picture: Tensor) -> Tensor:
        # The mean tells what a garment is made of, the maximum whether a detail such as a buckle or a strap is present.
        # Both also pool over the two halves of (N, C, 7, 7), because mirroring swaps these.
        x = self.features(picture)
        half = self.logits.in_features // 2
        mean, most = (both.reshape(-1, 2, half) for both in (x.mean((2, 3)), x.amax((2, 3))))
        return self.logits(torch.cat([mean.mean(1), most.amax(1)], 1))


def folded(net: nn.Module) -> nn.Module:
    """Replaces each MirrorConvolution in `net` by its folded form, in place, and returns `net` in eval mode."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, MirrorConvolution):
                setattr(module, name, child.folded())
    return net.eval()


# --- the source's networks, to the letter (presets `one-conv` and `four-conv`) ---


def keras_initialise(net: nn.Module) -> None:
    """Glorot uniform weights, zero biases."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


class OneConv(nn.Module):
    """Picture (N, 1, 28, 28) -> logits (N, 10). 693,962 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2),
            nn.Flatten(), nn.Linear(32 * 13 * 13, 128), nn.ReLU(), nn.Linear(128, len(CLASSES)),
        )  # fmt: skip
        keras_initialise(self)

    def forward(self, picture: Tensor) -> Tensor:
        return self.layers(picture)


class FourConv(nn.Module):
    """Picture (N, 1, 28, 28) -> logits (N, 10). Batch norm with Keras's momentum of 0.99 and epsilon."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out, ends_block in [(1, 32, False), (32, 32, True), (32, 64, False), (64, 128, True)]:
            layers += [nn.Conv2d(c_in, c_out, 3), nn.ReLU(), nn.BatchNorm2d(c_out, eps=1e-3, momentum=1 - 0.99)]
            layers += [nn.MaxPool2d(2), nn.Dropout(0.25)] if ends_block else []
        layers += [nn.Flatten()]
        for width_in, width in [(128 * 4 * 4, 512), (512, 128)]:
            layers += [nn.Linear(width_in, width), nn.ReLU()]
            layers += [nn.BatchNorm1d(width, eps=1e-3, momentum=1 - 0.99), nn.Dropout(0.5)]
        self.layers = nn.Sequential(*layers, nn.Linear(128, len(CLASSES)))
        keras_initialise(self)

    def forward(self, picture: Tensor) -> Tensor:
        return self.layers(picture)


NETWORKS: dict[str, type[nn.Module]] = {"residual": ResidualNet, "one-conv": OneConv, "four-conv": FourConv}


SHIFTS = (-1, 1)
"""horizontal shifts, in columns, for test-time augmentation of the net that ships; vertical ones gained nothing"""
SURE = 0.95, 0.7
"""a Cascade's confidence thresholds: its first net's, which one picture in five misses, and all nets', one in 17

On 3,000 held-out pictures, accuracy is the same as if all nets ran on all pictures and their shifted copies, 0.950, and
the loss is 0.136 instead of 0.131: means over three runs of three nets, each of which came first in turn. Without
shifts, accuracy is 0.948.
"""


class Ensemble(nn.Module):
    """Picture (N, 1, 28, 28) -> the mean of the logits (N, 10) of nets trained from different seeds.

    Where one errs by chance, the others outvote it (Lakshminarayanan et al. 2017). The net that ships also averages
    over shifted copies of each picture, of which its stride of two samples other pixels. `weights` has one state dict
    per net. Raises RuntimeError for those of another network.
    """

    def __init__(self, weights: Sequence[dict[str, Tensor]], network: str) -> None:
        super().__init__()
        self.shifts = SHIFTS if network == "residual" else ()
        self.nets = nn.ModuleList(NETWORKS[network]() for _ in weights)
        for net, each in zip(self.nets, weights, strict=True):
            net.load_state_dict(each)

    def forward(self, picture: Tensor) -> Tensor:
        return self.with_shifted(picture, torch.stack([net(picture) for net in self.nets]).mean(0))

    def with_shifted(self, picture: Tensor, logits: Tensor) -> Tensor:
        """The mean of `logits`, the nets' mean for `picture`, and their mean logits for each of its shifted copies."""
        if not self.shifts:
            return logits
        moved = torch.cat([shifted(picture, by) for by in self.shifts])
        of_moved = torch.stack([net(moved) for net in self.nets]).mean(0).reshape(len(self.shifts), -1, len(CLASSES))
        return (logits + of_moved.sum(0)) / (1 + len(self.shifts))


def shifted(picture: Tensor, by: int) -> Tensor:
    """(N, 1, 28, 28): column k of the result is column k + by of the picture; edges are replicated."""
    return picture[..., (torch.arange(SIZE, device=picture.device) + by).clamp(0, SIZE - 1)]


class Served(nn.Module):
    """The network as it is served: image uint8 (N, 28, 28, 1) -> probabilities float (N, 10) that sum to 1.

    Divides the logits by a temperature first (Guo et al. 2017), so that answers at 80 % are right 80 times in 100.
    """

    def __init__(self, net: nn.Module, temperature: float) -> None:
        super().__init__()
        self.net, self.temperature = net, temperature

    def forward(self, image: Tensor) -> Tensor:
        return self.probabilities(self.net(pixels(image)))

    def probabilities(self, logits: Tensor) -> Tensor:
        return F.softmax(logits / self.temperature, 1)


class Cascade(Served):
    """An ensemble as a CPU computes it, in a fifth of the time (Wang et al. 2018).

    The other nets run only on pictures of which the first is unsure, and the shifted copies only where all nets
    together are unsure. serving.tensorrt.for_gpus() removes this selection from the graph.
    """

    def forward(self, image: Tensor) -> Tensor:
        assert isinstance(self.net, Ensemble)
        first, *others = self.net.nets
        picture = pixels(image)
        of_first = first(picture)
        unsure = self.unsure(of_first, SURE[0])
        rest = picture[unsure]
        of_all = torch.stack([of_first[unsure], *(net(rest) for net in others)]).mean(0)
        still_unsure = self.unsure(of_all, SURE[1])
        of_shifted = self.net.with_shifted(rest[still_unsure], of_all[still_unsure])
        of_all = of_all.index_put((still_unsure,), of_shifted)
        return self.probabilities(of_first.index_put((unsure,), of_all))

    def unsure(self, logits: Tensor, sure: float) -> Tensor:
        """The indices of the pictures whose confidence is below `sure`, int64 (n,)."""
        return (self.probabilities(logits).amax(1) < sure).nonzero()[:, 0]

    def margins(self, image: Tensor) -> Tensor:
        """(N,): the distance of each picture's confidence from the nearer threshold, in probability."""
        assert isinstance(self.net, Ensemble)
        logits = torch.stack([net(pixels(image)) for net in self.net.nets])
        confidences = [self.probabilities(each).amax(1) for each in (logits[0], logits.mean(0))]
        return torch.stack([(each - sure).abs() for each, sure in zip(confidences, SURE, strict=True)]).amin(0)


def pixels(image: Tensor) -> Tensor:
    """uint8 (N, 28, 28, 1) -> [0, 1] (N, 1, 28, 28)"""
    return image.float().permute(0, 3, 1, 2) / 255
