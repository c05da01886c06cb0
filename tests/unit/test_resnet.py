"""ResNet-18 as a backbone: torchvision's form of weights, every tensor where the paper has it, errors of one line."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from serving import repository
from training.errors import BadInput
from training.models.features import net as features
from training.models.features import resnet

State = dict[str, torch.Tensor]

# Channels in and out, and stride, of the eight blocks (He et al. 2016, table 1 with 18 layers).
BLOCKS = {
    "layer1.0": (64, 64, 1), "layer1.1": (64, 64, 1),
    "layer2.0": (64, 128, 2), "layer2.1": (128, 128, 1),
    "layer3.0": (128, 256, 2), "layer3.1": (256, 256, 1),
    "layer4.0": (256, 512, 2), "layer4.1": (512, 512, 1),
}  # fmt: skip


def convolution(c_out: int, c_in: int, side: int) -> torch.Tensor:
    return torch.randn(c_out, c_in, side, side) * (2 / (side**2 * c_in)) ** 0.5


def norm(name: str, width: int) -> State:
    """One that has seen something, and no channel like another."""
    return {
        f"{name}.weight": 0.5 + torch.rand(width),
        f"{name}.bias": 0.1 * torch.randn(width),
        f"{name}.running_mean": 0.1 * torch.randn(width),
        f"{name}.running_var": 0.5 + torch.rand(width),
        f"{name}.num_batches_tracked": torch.tensor(7),
    }


def torchvision_state() -> State:
    """A file of torchvision's: 20 convolutions, 20 norms, and ImageNet's classifier."""
    state = {"conv1.weight": convolution(64, 3, 7), **norm("bn1", 64)}
    for name, (c_in, width, _) in BLOCKS.items():
        state |= {f"{name}.conv1.weight": convolution(width, c_in, 3), **norm(f"{name}.bn1", width)}
        state |= {f"{name}.conv2.weight": convolution(width, width, 3), **norm(f"{name}.bn2", width)}
        if c_in != width:
            state |= {f"{name}.downsample.0.weight": convolution(width, c_in, 1)}
            state |= norm(f"{name}.downsample.1", width)
    return state | {"fc.weight": torch.randn(1000, 512), "fc.bias": torch.randn(1000)}


def by_hand(state: State, picture: torch.Tensor) -> State:
    """The stages' activations, from the tensors of the file alone."""

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, weight, bias = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)

    x = (picture - torch.tensor(features.MEAN)[:, None, None]) / torch.tensor(features.STD)[:, None, None]
    activations = {"stem": F.relu(normed(F.conv2d(x, state["conv1.weight"], stride=2, padding=3), "bn1"))}
    x = F.max_pool2d(activations["stem"], 3, stride=2, padding=1)
    for name, (c_in, width, stride) in BLOCKS.items():
        inside = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
        inside = F.conv2d(F.relu(normed(inside, f"{name}.bn1")), state[f"{name}.conv2.weight"], padding=1)
        if c_in != width:
            x = normed(F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1")
        x = activations[name.partition(".")[0]] = F.relu(normed(inside, f"{name}.bn2") + x)
    return activations


@pytest.fixture
def state() -> State:
    torch.manual_seed(0)
    return torchvision_state()


def test_every_tensor_of_a_file_in_torchvisions_form_is_mapped(state: State, tmp_path: Path) -> None:
    """122 tensors, all but the classifier's two the network's; its activations are theirs, done by hand."""
    assert len(state) == 122
    torch.save(state, tmp_path / "weights.pth")

    net = resnet.load(str(tmp_path / "weights.pth"))

    loaded = net.state_dict()
    assert loaded.keys() == {key for key in state if not key.startswith("fc.")}
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.items())
    assert sum(parameter.numel() for parameter in net.parameters()) == 11_689_512 - 513_000  # torchvision's, less fc
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())
    picture = torch.rand(1, 3, 64, 96)
    expected = by_hand(state, picture)
    activations = net(picture, resnet.STAGES)
    assert tuple(activations) == resnet.STAGES
    for name, activation in activations.items():
        torch.testing.assert_close(activation, expected[name], msg=lambda said, name=name: f"{name}: {said}")


def test_older_files_and_halved_ones_load(state: State, tmp_path: Path) -> None:
    """torchvision's first ones count no batches; float16 halves any."""
    old = {key: tensor.half() for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    weight = resnet.load(str(tmp_path / "old.pth")).layer4[1].conv2.weight  # type: ignore[union-attr]
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, state["layer4.1.conv2.weight"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (50, 33)])
def test_each_stage_halves_the_size_of_the_one_before(height: int, width: int) -> None:
    """1/2 of the picture's size, 1/4 to 1/32, rounded up; as wide as WIDTHS says."""
    activations = resnet.ResNet18().eval()(torch.rand(2, 3, height, width), resnet.STAGES)
    for k, name in enumerate(resnet.STAGES):
        half = 2 ** (k + 1)
        assert activations[name].shape == (2, resnet.WIDTHS[k], -(-height // half), -(-width // half)), name


def test_stages_behind_the_last_wanted_are_not_computed() -> None:
    """Two early ones, asked for out of order, from a network whose third would fail."""
    net = resnet.ResNet18().eval()
    net.layer2 = None  # type: ignore[assignment]
    activations = net(torch.rand(1, 3, 32, 32), ("layer1", "stem"))
    assert {name: tuple(activation.shape) for name, activation in activations.items()} == {
        "stem": (1, 64, 16, 16),
        "layer1": (1, 64, 8, 8),
    }


def broken(path: Path, state: State) -> None:
    path.write_bytes(b"no weights")


def listed(path: Path, state: State) -> None:
    torch.save(list(state.values()), path)


def incomplete(path: Path, state: State) -> None:
    torch.save({key: tensor for key, tensor in state.items() if key != "layer3.1.bn2.bias"}, path)


def deeper(path: Path, state: State) -> None:
    torch.save(state | {"layer1.2.conv1.weight": torch.zeros(64, 64, 3, 3)}, path)


def narrower(path: Path, state: State) -> None:
    torch.save(state | {"layer4.0.conv1.weight": torch.zeros(512, 128, 3, 3)}, path)


def a_vgg(path: Path, state: State) -> None:
    torch.save(features.random_weights(seed=0).state_dict(), path)


@pytest.mark.parametrize("spoil", [broken, listed, incomplete, deeper, narrower, a_vgg])
def test_a_file_that_holds_no_resnet18_is_named_in_one_line(
    spoil: Callable[[Path, State], None], state: State, tmp_path: Path
) -> None:
    """Bytes that are no weights, tensors without keys, one too few, one too many, one of another shape, a VGG."""
    spoil(tmp_path / "weights.pth", state)
    with pytest.raises(BadInput, match=r"^--features: .*weights\.pth [^\n]+$"):
        resnet.load(str(tmp_path / "weights.pth"))


def test_an_unknown_name_says_what_there_is() -> None:
    """And that a file will do."""
    with pytest.raises(BadInput, match=r"^--features: no 'resnet50'; there is resnet18, or give a file [^\n]+$"):
        resnet.load("resnet50")


def test_official_weights_are_fetched_once_and_kept_only_with_the_checksum_of_their_name(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes with another one is refused and leaves nothing; what has it loads again when its source is gone."""
    assert re.fullmatch(r"https://download\.pytorch\.org/models/resnet18-[0-9a-f]{8}\.pth", resnet.OFFICIAL)
    monkeypatch.setenv("ATELIER_DATA", str(tmp_path / "data"))
    other = tmp_path / "resnet18-00000000.pth"
    torch.save(state, other)
    monkeypatch.setattr(resnet, "OFFICIAL", other.as_uri())
    with pytest.raises(BadInput, match=r"another checksum; or put the file there yourself: .*resnet18-00000000\.pth"):
        resnet.load("resnet18")
    assert not list((tmp_path / "data").rglob("*.pth"))

    named = other.rename(tmp_path / f"resnet18-{repository.sha256(other)[:8]}.pth")
    monkeypatch.setattr(resnet, "OFFICIAL", named.as_uri())
    resnet.load("resnet18")
    named.unlink()
    assert torch.equal(resnet.load("resnet18").conv1.weight, state["conv1.weight"])
