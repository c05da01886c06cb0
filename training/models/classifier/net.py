"""The networks of the classifier: the one that ships and the source's two. Only nn.Modules.

A picture is float (N, 1, 28, 28) in [0, 1], white garment on black; the answer is float (N, 10), logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.classifier.spec import CLASSES, SIZE

# --- what ships: a residual network for a CPU ---
# One wide convolution halves the side at once, and all depth lies at 14x14 and 7x7. Twice as wide, with three times the
# multiplications (36 million), it takes a core 0.87 ms a picture instead of 0.23. A net of those 36 million that begins
# with two 3x3 convolutions at 28x28 took 1.7 times as long to train, and no less to answer.


def convolution(c_in: int, c_out: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU. The norm folds into the convolution when the graph is exported."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
    )


class Residual(nn.Module):
    """(N, C, H, W) -> the same. He et al. 2016."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(convolution(channels, channels), convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ResidualNet(nn.Module):
    """Picture (N, 1, 28, 28) -> logits (N, 10); in evaluation the mean of its own and of its mirror image's."""

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 64), blocks: tuple[int, int] = (1, 2)) -> None:
        super().__init__()
        stem, middle, last = widths
        self.features = nn.Sequential(
            convolution(1, stem, kernel=5, stride=2),  # 14x14
            convolution(stem, middle),
            *(Residual(middle) for _ in range(blocks[0])),
            nn.MaxPool2d(2),  # 7x7
            convolution(middle, last),
            *(Residual(last) for _ in range(blocks[1])),
        )
        self.logits = nn.Linear(2 * last, len(CLASSES))

    def forward(self, picture: Tensor) -> Tensor:
        if self.training:
            return self._one_way(picture)
        # A garment is what its mirror image is. Both together are right of three or four pictures more in a thousand.
        both = torch.stack([picture, picture.flip(3)], 1).reshape(-1, 1, SIZE, SIZE)
        return self._one_way(both).reshape(-1, 2, len(CLASSES)).mean(1)

    def _one_way(self, picture: Tensor) -> Tensor:
        x = self.features(picture)
        # The mean says what a garment is made of, the maximum whether a detail is there at all: a buckle, a strap.
        return self.logits(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))


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


class Served(nn.Module):
    """The network as it is served: image uint8 (N, 28, 28, 1) -> probabilities float (N, 10) that sum to 1.

    Logits are divided by a temperature first (Guo et al. 2017), so that what is called 80 % is right 80 times in 100.
    """

    def __init__(self, net: nn.Module, temperature: float) -> None:
        super().__init__()
        self.net, self.temperature = net, temperature

    def forward(self, image: Tensor) -> Tensor:
        picture = image.float().permute(0, 3, 1, 2) / 255  # uint8 (N, 28, 28, 1) -> [0, 1] (N, 1, 28, 28)
        return F.softmax(self.net(picture) / self.temperature, 1)
