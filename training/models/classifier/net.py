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
# One wide convolution halves the side at once, and all depth lies at 14x14 and 7x7.


class MirrorConvolution(nn.Module):
    """(N, c_in, H, W) -> (N, c_out, H', W'): convolution, batch norm, ReLU, equivariant to mirroring.

    Channels lie in two halves: the second says of a picture what the first says of its mirror image, mirrored. So half
    of the kernels are learnt, and the others follow (Cohen and Welling 2016). With stride 2 the kernel's side has to be
    even, as H and W are, or it would look at other pixels of the mirror image.
    """

    def __init__(self, c_in: int, c_out: int, *, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        assert kernel % 2 == stride % 2, (kernel, stride)
        self.stride, self.padding = stride, (kernel - 1) // 2
        self.weight = nn.Parameter(torch.empty(c_out // 2, c_in, kernel, kernel))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Conv2d begins
        self.norm = nn.BatchNorm1d(c_out // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernels(), None, self.stride, self.padding)
        # Both halves have one norm, so that they stay alike: (N, C, H, W) -> (N H W 2, C / 2), which is how it lies in
        # channels-last memory.
        last = x.movedim(1, -1)
        return F.relu(self.norm(last.reshape(-1, len(self.weight))).reshape(last.shape).movedim(-1, 1))

    def kernels(self) -> Tensor:
        """(c_out, c_in, kernel, kernel). A picture (c_in = 1) has no halves that would change places."""
        mirrored = self.weight.flip(3)
        return torch.cat([self.weight, mirrored.roll(mirrored.shape[1] // 2, 1)])

    def folded(self) -> nn.Sequential:
        """The same in evaluation, as an ordinary convolution with biases."""
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
    """(N, C, H, W) -> the same. He et al. 2016."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(MirrorConvolution(channels, channels), MirrorConvolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ResidualNet(nn.Module):
    """Picture (N, 1, 28, 28) -> logits (N, 10), the same as for its mirror image."""

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
        # The mean says what a garment is made of, the maximum whether a detail is there at all: a buckle, a strap.
        # Of both halves of (N, C, 7, 7) together, as neither comes first.
        x = self.features(picture)
        half = self.logits.in_features // 2
        mean, most = (both.reshape(-1, 2, half) for both in (x.mean((2, 3)), x.amax((2, 3))))
        return self.logits(torch.cat([mean.mean(1), most.amax(1)], 1))


def folded(net: nn.Module) -> nn.Module:
    """The net itself, in evaluation, after what is only there for training was replaced in it."""
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
"""columns by which a picture is moved aside for the net that ships, to be seen anew; up and down gained nothing"""
SURE = 0.95, 0.7
"""what a Cascade takes for sure: of its first net, where one picture in five falls short, and of all of them, one in 17

Of 3,000 pictures held out as many are named right as if all nets were asked of all pictures, moved as well, 0.950, and
the loss is 0.136 instead of 0.131: means over three runs of three nets, of which each came first in turn. Of none moved
0.948 are right.
"""


class Ensemble(nn.Module):
    """Picture (N, 1, 28, 28) -> the mean of the logits (N, 10) of nets that were trained from different seeds.

    Where one errs by chance, the others outvote it (Lakshminarayanan et al. 2017). The net that ships looks at each
    picture moved aside, too: its stride of two makes it see other pixels then. `weights` has a state dict of each;
    RuntimeError for another network's.
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
        """The mean of logits, which all nets gave a picture, and of what they give it when it is moved."""
        if not self.shifts:
            return logits
        moved = torch.cat([shifted(picture, by) for by in self.shifts])
        of_moved = torch.stack([net(moved) for net in self.nets]).mean(0).reshape(len(self.shifts), -1, len(CLASSES))
        return (logits + of_moved.sum(0)) / (1 + len(self.shifts))


def shifted(picture: Tensor, by: int) -> Tensor:
    """(N, 1, 28, 28): column k of the result is column k + by of the picture; outside it, as at its edge."""
    return picture[..., (torch.arange(SIZE, device=picture.device) + by).clamp(0, SIZE - 1)]


class Served(nn.Module):
    """The network as it is served: image uint8 (N, 28, 28, 1) -> probabilities float (N, 10) that sum to 1.

    Logits are divided by a temperature first (Guo et al. 2017), so that what is called 80 % is right 80 times in 100.
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

    All nets are asked only of pictures that the first is unsure of, and of those moved aside only where all of them are
    unsure. serving.tensorrt.for_gpus() undoes it in the graph.
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
        """Which of the pictures, int64 (n,)."""
        return (self.probabilities(logits).amax(1) < sure).nonzero()[:, 0]

    def margins(self, image: Tensor) -> Tensor:
        """(N,): how far a picture is from being judged otherwise, in probability."""
        assert isinstance(self.net, Ensemble)
        logits = torch.stack([net(pixels(image)) for net in self.net.nets])
        confidences = [self.probabilities(each).amax(1) for each in (logits[0], logits.mean(0))]
        return torch.stack([(each - sure).abs() for each, sure in zip(confidences, SURE, strict=True)]).amin(0)


def pixels(image: Tensor) -> Tensor:
    """uint8 (N, 28, 28, 1) -> [0, 1] (N, 1, 28, 28)"""
    return image.float().permute(0, 3, 1, 2) / 255
