"""ResNet-18, its activations by stage name, with torchvision's weights. Only nn.Modules and how to load them.

    backbone = resnet.load("resnet18")            fetched once; or a file in torchvision's format
    activations = backbone(picture, ("stem", "layer4"))

A picture is float (N, 3, H, W), RGB in [0, 1]. A stage's activations are taken after its last ReLU, at 1/2 of
the picture's size for the stem, 1/4 for layer1, and so on to 1/32 (He et al. 2016, "Deep Residual Learning").
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.errors import BadInput
from training.models.features.net import MEAN, STD, fetched, read

NAME = "resnet18"
# torchvision's, whose file name contains the beginning of its SHA-256.
OFFICIAL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
WIDTHS = (64, 64, 128, 256, 512)


class Block(nn.Module):
    """(N, C, H, W) -> (N, width, H / stride, W / stride). Two convolutions with a residual connection."""

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        # The shortcut must have the shape of what it is added to.
        self.downsample = (
            nn.Sequential(nn.Conv2d(c_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            if stride > 1 or c_in != width
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        inside = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inside)) + self.downsample(x))


class ResNet18(nn.Module):
    """The convolutions of ResNet-18. Its state has torchvision's keys: conv1.weight, layer1.0.bn1.running_mean, ..."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = stage(64, 64, stride=1)
        self.layer2 = stage(64, 128, stride=2)
        self.layer3 = stage(128, 256, stride=2)
        self.layer4 = stage(256, 512, stride=2)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, picture: Tensor, stages: Iterable[str]) -> dict[str, Tensor]:
        """The activations of `stages`, by name; stages after the last of them are not computed."""
        wanted = set(stages)
        assert set() < wanted <= set(STAGES), (wanted, STAGES)
        x = F.relu(self.bn1(self.conv1((picture - self.mean) / self.std)))
        activations = {"stem": x}
        x = self.maxpool(x)
        for name in STAGES[1:]:
            if wanted <= activations.keys():
                break
            x = activations[name] = self.get_submodule(name)(x)
        return {name: activation for name, activation in activations.items() if name in wanted}


def stage(c_in: int, width: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(c_in, width, stride), Block(width, width, 1))


# --- its weights ---


def load(name: str = NAME) -> ResNet18:
    """A frozen network: resnet18 (torchvision's, fetched once), or from a file.

    Raises BadInput for any other name, or a file that is not in torchvision's format.
    """
    if name == NAME:
        path = fetched(OFFICIAL)
    elif not (path := Path(name)).is_file():
        raise BadInput(f"--features: no {name!r}; there is {NAME}, or give a file in torchvision's form")
    return from_file(path).eval().requires_grad_(False)


def from_file(path: Path) -> ResNet18:
    """The network with the weights of a file in torchvision's format, without the classifier head."""
    weights = {key: value for key, value in read(path).items() if not key.startswith("fc.")}
    net = ResNet18()
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise BadInput(f"--features: {path} is not in the form of torchvision's {NAME}") from error
    return net
