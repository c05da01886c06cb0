"""VGG by its layers' names, with official weights, with our own, or with none. Only nn.Modules and how to fill them.

    features = net.load("vgg16-half")             the backbone that this project trained and ships
    activations = features(picture, ("conv1_1", "conv4_2"))

A picture is float (N, 3, H, W), RGB in [0, 1]. A layer's activations are taken after its ReLU (Simonyan and
Zisserman 2015).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from training.data import files
from training.errors import BadInput

# Number of convolutions in each block, which a pooling ends.
BLOCKS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)
OWN = "vgg16-half"
OWN_WIDTHS = tuple(width // 2 for width in WIDTHS)
OWN_FILE = Path(__file__).parent / "weights" / f"{OWN}.pth"
# torchvision's weights, whose file names end in the first digits of their SHA-256.
OFFICIAL = {
    "vgg16": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "vgg19": "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
}
RANDOM = "random"
NAMES = (OWN, *OFFICIAL, RANDOM)
# ImageNet's, with which torchvision's weights were trained; ours use the same.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def layer_names(blocks: Iterable[int]) -> tuple[str, ...]:
    """(2, 2, 3, 3, 3) -> conv1_1, conv1_2, conv2_1, ..."""
    return tuple(f"conv{b}_{k}" for b, count in enumerate(blocks, 1) for k in range(1, count + 1))


class Vgg(nn.Module):
    """The convolutions of VGG-16 or VGG-19, of any width. The state dict has torchvision's keys: features.0.weight, ...

    Uses average pooling, which gives smoother paintings than max pooling (Gatys et al. 2015).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, blocks: tuple[int, ...], widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.blocks, self.widths, self.layers = blocks, widths, layer_names(blocks)
        layers: list[nn.Module] = []
        c_in = 3
        for count, width in zip(blocks, widths, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(c_in, width, 3, padding=1), nn.ReLU()]
                c_in = width
            layers.append(nn.AvgPool2d(2))
        self.features = nn.Sequential(*layers)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, picture: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """The activations of `layers`, by name; no layer after the last of them is computed."""
        wanted = set(layers)
        assert set() < wanted <= set(self.layers), (wanted, self.layers)
        x = (picture - self.mean) / self.std
        activations: dict[str, Tensor] = {}
        names = iter(self.layers)
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU) and (name := next(names)) in wanted:
                activations[name] = x
                if len(activations) == len(wanted):
                    break
        return activations

    @property
    def convolutions(self) -> dict[str, nn.Conv2d]:
        found = (layer for layer in self.features if isinstance(layer, nn.Conv2d))
        return dict(zip(self.layers, found, strict=True))


# --- its weights ---


def load(name: str = OWN) -> Vgg:
    """A frozen network: vgg16-half (ours), vgg16 or vgg19 (torchvision's, fetched once), random, or from a file.

    A file has torchvision's format, with any width. Raises BadInput for another name, or a file in another format.
    """
    if name == RANDOM:
        return frozen(random_weights(seed=0))
    if name == OWN:
        return frozen(from_file(OWN_FILE))
    if name in OFFICIAL:
        return frozen(from_file(fetched(OFFICIAL[name])))
    if not Path(name).is_file():
        raise BadInput(f"--features: no {name!r}; there are {', '.join(NAMES)}, or give a file in torchvision's form")
    return frozen(from_file(Path(name)))


def frozen(net: Vgg) -> Vgg:
    return net.eval().requires_grad_(False)


def check_layers(net: Vgg, layers: Iterable[str], *, flag: str) -> None:
    """Raises BadInput for layers that `net` doesn't have, or if there are none; the message begins with `flag`."""
    unknown = sorted(set(layers) - set(net.layers))
    if unknown or not set(layers):
        raise BadInput(f"{flag}: no {', '.join(unknown) or 'layers'}; there are {', '.join(net.layers)}")


def fetched(url: str) -> Path:
    """The file of an official URL, downloaded once into $ATELIER_DATA/weights."""
    path = files.home() / "weights" / url.rsplit("/", 1)[1]
    if not path.is_file():
        try:
            files.fetch((url,), path, sha256=path.stem.rsplit("-", 1)[1])
        except OSError as error:
            raise files.fault(error)(f"--features: {error}; or put the file there yourself: {path}") from error
    return path


def from_file(path: Path) -> Vgg:
    """The network with the weights of a file in torchvision's format; a classifier head's are ignored."""
    weights = {key: value for key, value in read(path).items() if key.startswith("features.")}
    net = shaped_as(weights)
    if net is None:
        raise BadInput(f"--features: {path} is not in the form of torchvision's vgg16 or vgg19")
    net.load_state_dict(weights)
    return net


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by their keys, in float32. Raises BadInput if it is not a file of weights."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key: value.float() for key, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:  # torch.load raises a dozen types for a file in another format
        raise BadInput(f"--features: {path} holds no weights ({type(error).__name__})") from error


def shaped_as(weights: Mapping[str, Tensor]) -> Vgg | None:
    """A network whose state dict has these keys and shapes; None if neither VGG has."""
    for blocks in BLOCKS.values():
        ends = [sum(blocks[: k + 1]) for k in range(len(blocks))]
        shapes = [tensor.shape for key, tensor in weights.items() if key.endswith("weight")]
        if len(shapes) == ends[-1]:
            net = Vgg(blocks, tuple(shapes[end - 1][0] for end in ends))
            here, there = ({k: t.shape for k, t in each.items()} for each in (net.state_dict(), weights))
            return net if here == there else None
    return None


def random_weights(*, seed: int) -> Vgg:
    """A network like ours with random orthogonal weights: the untrained baseline (He et al. 2016)."""
    net = Vgg(BLOCKS["vgg16"], OWN_WIDTHS)
    rng = torch.Generator().manual_seed(seed)
    for layer in net.convolutions.values():
        nn.init.orthogonal_(layer.weight, gain=nn.init.calculate_gain("relu"), generator=rng)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    return net


# --- for training: the same with batch norm and a classifier head ---


class VggClassifier(nn.Module):
    """Picture (N, 3, H, W) -> logits (N, classes). Batch norm makes it trainable, and is folded away at the end."""

    def __init__(self, classes: int, blocks: tuple[int, ...] = BLOCKS["vgg16"], widths: tuple[int, ...] = OWN_WIDTHS):
        super().__init__()
        self.vgg = Vgg(blocks, widths)
        self.norms = nn.ModuleList(nn.BatchNorm2d(layer.out_channels) for layer in self.vgg.convolutions.values())
        self.drop = nn.Dropout(0.3)
        self.logits = nn.Linear(widths[-1], classes)
        for layer in self.vgg.convolutions.values():
            layer.bias = None  # the norm has its own

    def forward(self, picture: Tensor) -> Tensor:
        x = (picture - self.vgg.mean) / self.vgg.std
        norms = iter(self.norms)
        for layer in list(self.vgg.features)[:-1]:
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                x = next(norms)(x)
        return self.logits(self.drop(x.mean((2, 3))))

    @torch.no_grad()
    def folded(self) -> Vgg:
        """In eval mode: the same network with each norm folded into its convolution."""
        net = Vgg(self.vgg.blocks, self.vgg.widths)
        for ours, learnt, norm in zip(
            net.convolutions.values(), self.vgg.convolutions.values(), self.norms, strict=True
        ):
            assert isinstance(norm, nn.BatchNorm2d)
            ours.load_state_dict(fuse_conv_bn_eval(learnt, norm).state_dict())
        return frozen(net)


# --- perceptual losses: content by activations, style by their Gram matrices (Gatys et al. 2015) ---


def gram(activation: Tensor) -> Tensor:
    """The Gram matrix of the channels, (N, C, H, W) -> (N, C, C): averaged over positions."""
    n, c, h, w = activation.shape
    flat = activation.reshape(n, c, h * w)
    return flat @ flat.transpose(1, 2) / (h * w)


def content_loss(activations: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """(N,): the relative error of the activations, summed over the layers of `targets`."""
    return _sum(relative_error(activations[name], target) for name, target in targets.items())


def style_loss(activations: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """(N,): the relative error of the Gram matrices, summed over the layers of `targets`, which holds such matrices."""
    return _sum(relative_error(gram(activations[name]), target) for name, target in targets.items())


def relative_error(x: Tensor, target: Tensor) -> Tensor:
    """(N, ...) and (N or 1, ...) -> (N,): the squared norm of the difference as a share of the target's.

    So every layer and every network has the same weight, whatever the scale of its activations.
    """
    return (x - target).square().flatten(1).sum(1) / target.square().flatten(1).sum(1).clamp_min(1e-12)


def _sum(losses: Iterable[Tensor]) -> Tensor:
    total: Any = sum(losses)
    assert isinstance(total, Tensor), "no layers"
    return total


def total_variation(picture: Tensor) -> Tensor:
    """(N,): mean squared difference of neighbouring pixels, horizontally plus vertically."""
    return picture.diff(dim=3).square().mean((1, 2, 3)) + picture.diff(dim=2).square().mean((1, 2, 3))
