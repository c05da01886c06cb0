"""The classifier's networks against the source's description, and the one that ships against its contract."""

import numpy as np
import pytest
import torch
from torch import nn

from training.models.classifier.net import (
    NETWORKS,
    Cascade,
    Ensemble,
    FourConv,
    MirrorConvolution,
    OneConv,
    ResidualNet,
    Served,
    folded,
    pixels,
    shifted,
)
from training.models.classifier.spec import CLASSES, SPEC


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def shape(net: nn.Module) -> list[str]:
    """What each layer is, in the source's words."""
    words = []
    for layer in net.modules():
        match layer:
            case nn.Conv2d():
                words.append(f"conv {layer.out_channels} {layer.kernel_size[0]}x{layer.kernel_size[1]}")
            case nn.Linear():
                words.append(f"dense {layer.out_features}")
            case nn.Dropout():
                words.append(f"dropout {layer.p}")
            case nn.MaxPool2d():
                words.append(f"pool {layer.kernel_size}")
            case nn.BatchNorm2d() | nn.BatchNorm1d():
                words.append("norm")
    return words


def test_one_conv_is_the_sources_layer_by_layer() -> None:
    """conv 32 3x3, max-pool 2, dropout 0.2, dense 128, softmax 10."""
    net = OneConv()
    assert shape(net) == ["conv 32 3x3", "pool 2", "dropout 0.2", "dense 128", "dense 10"]
    assert parameters(net) == (9 * 32 + 32) + (32 * 13 * 13 * 128 + 128) + (128 * 10 + 10) == 693_962


def test_four_conv_is_the_sources_layer_by_layer() -> None:
    """Two blocks of two normalised convolutions, pool and dropout 0.25; dense 512 and 128 with norm and dropout 0.5."""
    net = FourConv()
    assert shape(net) == [
        "conv 32 3x3", "norm", "conv 32 3x3", "norm", "pool 2", "dropout 0.25",
        "conv 64 3x3", "norm", "conv 128 3x3", "norm", "pool 2", "dropout 0.25",
        "dense 512", "norm", "dropout 0.5", "dense 128", "norm", "dropout 0.5", "dense 10",
    ]  # fmt: skip
    convolutions = 9 * (32 + 32 * 32 + 32 * 64 + 64 * 128) + 32 + 32 + 64 + 128
    dense = 2048 * 512 + 512 + 512 * 128 + 128 + 128 * 10 + 10
    norms = 2 * (32 + 32 + 64 + 128 + 512 + 128)
    assert parameters(net) == convolutions + dense + norms


def test_source_weights_start_as_kerass() -> None:
    """Glorot uniform: within +-sqrt(6 / (in + out)), and biases of zero."""
    torch.manual_seed(0)
    dense = OneConv().layers[5]
    limit = (6 / (32 * 13 * 13 + 128)) ** 0.5
    assert isinstance(dense, nn.Linear)
    assert dense.weight.abs().max().item() == pytest.approx(limit, rel=1e-3)
    assert dense.bias.abs().max().item() == 0


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_map_pictures_to_logits(network: str) -> None:
    """(N, 1, 28, 28) to (N, 10), each picture on its own once in evaluation."""
    torch.manual_seed(0)
    net = NETWORKS[network]().eval()
    pictures = torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        together, alone = net(pictures), net(pictures[:1])
    assert together.shape == (3, len(CLASSES))
    assert torch.allclose(together[:1], alone, atol=1e-5)


def seen(net: nn.Module) -> nn.Module:
    """A net whose norms have seen pictures, and are not what they began as."""
    torch.manual_seed(0)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm1d):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
    for _ in range(3):
        net(torch.rand(64, 1, 28, 28))
    return net


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_to_what_ships_a_garment_is_what_its_mirror_image_is(training: bool) -> None:
    """The same logits for both, to rounding; others for a picture upside down."""
    net = seen(ResidualNet()).train(training)
    pictures = torch.rand(8, 1, 28, 28)
    with torch.no_grad():
        logits, mirrored, upside_down = (net(p) for p in (pictures, pictures.flip(3), pictures.flip(2)))
    assert torch.allclose(logits, mirrored, atol=1e-4 * logits.std().item())
    assert not torch.allclose(logits, upside_down, atol=1e-2 * logits.std().item())


def test_second_half_of_channels_is_the_first_of_the_mirror_image() -> None:
    """Layer by layer, which is what makes the whole indifferent, and leaves each half free to see what it will."""
    net = seen(ResidualNet()).eval()
    pictures = torch.rand(4, 1, 28, 28)
    assert isinstance(net, ResidualNet)
    with torch.no_grad():
        x, y = pictures, pictures.flip(3)
        for layer in net.features:
            x, y = layer(x), layer(y)
            first, second = x.chunk(2, 1)
            assert torch.allclose(torch.cat([second, first], 1), y.flip(3), atol=1e-4)
            assert not torch.allclose(first, second, atol=1e-2)


def test_folded_net_gives_the_same_answers() -> None:
    """What is served has ordinary convolutions, and no norms."""
    net = seen(ResidualNet()).eval()
    pictures = torch.rand(4, 1, 28, 28)
    with torch.no_grad():
        before = net(pictures)
        after = folded(net)(pictures)
    assert torch.allclose(before, after, atol=1e-4 * before.std().item())
    assert not any(isinstance(layer, MirrorConvolution | nn.BatchNorm1d) for layer in net.modules())


def test_what_ships_stays_below_8_megabytes() -> None:
    """Its float32 weights, which are nearly all of model.onnx."""
    assert 4 * parameters(ResidualNet()) < 8e6


def test_served_net_takes_bytes_and_gives_probabilities() -> None:
    """The spec's tensors: uint8 (N, 28, 28, 1) in; float (N, 10) out, positive, summing to 1."""
    net = Served(ResidualNet(), temperature=1.5).eval()
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, *SPEC.inputs[0].shape), np.uint8))
    with torch.no_grad():
        probabilities = net(images)
    assert probabilities.shape == (4, *SPEC.outputs[0].shape)
    assert probabilities.min() > 0
    assert torch.allclose(probabilities.sum(1), torch.ones(4), atol=1e-6)


def test_temperature_softens_without_changing_the_answer() -> None:
    """A higher temperature lowers the top probability of every picture and moves no maximum."""
    torch.manual_seed(0)
    net = ResidualNet()
    images = torch.randint(0, 256, (16, 28, 28, 1), dtype=torch.uint8)
    with torch.no_grad():
        sharp, soft = (Served(net, t).eval()(images) for t in (0.5, 2.0))
    assert (sharp.argmax(1) == soft.argmax(1)).all()
    assert (sharp.amax(1) > soft.amax(1)).all()


class Brightness(nn.Module):
    """Says the first class, and the surer the brighter the picture (N, 1, 28, 28) is."""

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return 20 * picture.mean((1, 2, 3))[:, None] * torch.eye(1, len(CLASSES))


class Last(nn.Module):
    """Says the last class of anything, and remembers of how many pictures it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(picture))
        return 40 * torch.eye(len(CLASSES))[-1:].expand(len(picture), -1)


@pytest.mark.parametrize(
    ("levels", "asked"),
    [([255, 0, 255, 128, 0], 2), ([0, 0], 2), ([255, 255, 255], 0), ([255], 0)],
    ids=["some", "all", "none", "not the only one"],
)
def test_cascade_asks_the_others_of_what_the_first_is_unsure_of(levels: list[int], asked: int) -> None:
    """Of bright pictures the first is sure; of the dark ones the answer is all nets' together, each in its place."""
    others = Last(), Last()
    ensemble = Ensemble([], "residual")
    ensemble.nets.extend([Brightness(), *others])
    images = torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 28, 28, 1)
    answers = Cascade(ensemble, 1.0)(images).argmax(1)
    assert answers.tolist() == [0 if level else len(CLASSES) - 1 for level in levels]
    assert [net.asked for net in others] == [[asked, 0], [asked, 0]]  # of none moved aside, as they are sure


def test_cascade_that_is_unsure_of_everything_is_the_ensemble() -> None:
    """Untrained nets are: all are asked of all pictures, moved aside as well."""
    torch.manual_seed(0)
    nets = [ResidualNet() for _ in range(3)]
    ensemble = Ensemble([net.state_dict() for net in nets], "residual").eval()
    images = torch.randint(0, 256, (5, 28, 28, 1), dtype=torch.uint8)
    with torch.no_grad():
        answers = [kind(ensemble, 1.0).eval()(images) for kind in (Served, Cascade)]
        of_three = torch.stack([net.eval()(pixels(images)) for net in nets]).mean(0).softmax(1)
    assert torch.allclose(*answers, atol=1e-6)
    assert (answers[0] - of_three).abs().max() > 1e-4


def test_pictures_move_aside_by_columns() -> None:
    """What was at the edge is there twice, and what leaves at the other is gone."""
    picture = torch.arange(28.0).expand(1, 1, 28, 28)
    assert shifted(picture, 1)[0, 0, 5].tolist() == [*range(1, 28), 27]
    assert shifted(picture, -1)[0, 0, 5].tolist() == [0, *range(27)]


def test_the_sources_networks_see_a_picture_once() -> None:
    one = OneConv()
    picture = torch.rand(2, 1, 28, 28)
    ensemble = Ensemble([one.state_dict()], "one-conv").eval()
    assert torch.equal(ensemble(picture), one.eval()(picture))
