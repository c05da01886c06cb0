"""The backbone: VGG by layer names, torchvision's form of weights, what its training leaves."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from training import catalog, export, jobs, run
from training.data import natural
from training.errors import BadInput
from training.models.features import net as features
from training.models.features import train as recipe


def torchvision_state(blocks: tuple[int, ...], widths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """A file of torchvision's: the convolutions by their place among ReLUs and poolings, then a classifier's."""
    state, place, c_in = {}, 0, 3
    for count, width in zip(blocks, widths, strict=True):
        for _ in range(count):
            state[f"features.{place}.weight"] = torch.randn(width, c_in, 3, 3) * (2 / (9 * c_in)) ** 0.5
            state[f"features.{place}.bias"] = 0.1 * torch.randn(width)
            place, c_in = place + 2, width
        place += 1
    return state | {"classifier.0.weight": torch.zeros(7, 7), "classifier.0.bias": torch.zeros(7)}


@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
@pytest.mark.parametrize("narrower", [1, 16])
def test_every_layer_of_a_file_in_torchvisions_form_is_mapped(name: str, narrower: int, tmp_path: Path) -> None:
    """Each named layer's activations are those of the file's convolutions, done one after the other by hand."""
    torch.manual_seed(0)
    blocks, widths = features.BLOCKS[name], tuple(width // narrower for width in features.WIDTHS)
    state = torchvision_state(blocks, widths)
    torch.save(state, tmp_path / "weights.pth")

    net = features.load(str(tmp_path / "weights.pth"))

    picture = torch.rand(1, 3, 32, 32)
    activations = net(picture, net.layers)
    x = (picture - torch.tensor(features.MEAN)[:, None, None]) / torch.tensor(features.STD)[:, None, None]
    weights = iter(value for key, value in state.items() if key.startswith("features."))
    seen = []
    for block, count in enumerate(blocks, 1):
        for k in range(1, count + 1):
            x = F.relu(F.conv2d(x, next(weights), next(weights), padding=1))
            seen.append(f"conv{block}_{k}")
            torch.testing.assert_close(activations[seen[-1]], x)
        x = F.avg_pool2d(x, 2)
    assert tuple(seen) == net.layers == tuple(activations)
    assert net.layers[-1] == {"vgg16": "conv5_3", "vgg19": "conv5_4"}[name]


def test_layers_behind_the_last_wanted_are_not_computed() -> None:
    """The activations of an early layer, of a picture too small for the late ones."""
    activations = features.random_weights(seed=0)(torch.rand(2, 3, 4, 4), ("conv2_2",))
    assert {name: tuple(activation.shape) for name, activation in activations.items()} == {"conv2_2": (2, 64, 2, 2)}


def broken(path: Path) -> None:
    path.write_bytes(b"no weights")


def foreign(path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(4, 3, 3, 3)}, path)


def half_there(path: Path) -> None:
    state = torchvision_state(features.BLOCKS["vgg16"], (4, 4, 4, 4, 4))
    state["features.5.weight"] = state["features.5.weight"][:, :2]
    torch.save(state, path)


@pytest.mark.parametrize("spoil", [broken, foreign, half_there])
def test_a_file_that_holds_no_vgg_is_named_in_one_line(spoil, tmp_path: Path) -> None:
    """Bytes that are no weights, another network's, and one with a layer of another shape."""
    spoil(tmp_path / "weights.pth")
    with pytest.raises(BadInput, match=r"^--features: .*weights\.pth [^\n]+$"):
        features.load(str(tmp_path / "weights.pth"))


def test_an_unknown_name_lists_those_there_are() -> None:
    """And says that a file will do."""
    with pytest.raises(BadInput, match=r"no 'vgg11'; there are vgg16-half, vgg16, vgg19, random, or give a file"):
        features.load("vgg11")


def test_official_weights_are_kept_only_with_the_checksum_of_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes with another one is refused, and nothing stays of it."""
    (tmp_path / "vgg16-397923af.pth").write_bytes(b"not they")
    monkeypatch.setenv("ATELIER_DATA", str(tmp_path / "data"))
    monkeypatch.setitem(features.OFFICIAL, "vgg16", (tmp_path / "vgg16-397923af.pth").as_uri())
    with pytest.raises(BadInput, match=r"another checksum; or put the file there yourself: .*vgg16-397923af\.pth"):
        features.load("vgg16")
    assert not list((tmp_path / "data").rglob("*.pth"))


def test_folding_leaves_what_the_network_sees_as_it_was() -> None:
    """The folded network's last activations are the trained one's, after norms that have seen something."""
    torch.manual_seed(0)
    trained = features.VggClassifier(3, widths=(4, 6, 8, 8, 8))
    for norm in trained.norms:
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
        norm.running_mean = torch.randn(norm.num_features)
        norm.running_var = torch.rand(norm.num_features) + 0.5
    trained.eval()
    picture = torch.rand(2, 3, 32, 32)
    last = trained.folded()(picture, ("conv5_3",))["conv5_3"]
    torch.testing.assert_close(trained.logits(last.mean((2, 3))), trained(picture), rtol=1e-4, atol=1e-5)


def test_losses_are_shares_and_keep_to_no_scale() -> None:
    """Zeros cost 1 a layer, the targets themselves 0, and activations ten times as large cost the same."""
    activations = {"conv1_1": torch.rand(2, 4, 5, 6), "conv2_1": torch.rand(2, 8, 3, 3)}
    nothing = {name: torch.zeros_like(activation) for name, activation in activations.items()}
    others = {name: torch.rand_like(activation) for name, activation in activations.items()}
    grams = {name: features.gram(activation) for name, activation in activations.items()}
    torch.testing.assert_close(features.content_loss(nothing, activations), torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(features.style_loss(nothing, grams), torch.tensor([2.0, 2.0]))
    assert features.content_loss(activations, activations).eq(0).all()
    assert features.style_loss(activations, grams).eq(0).all()
    ten = [{name: 10 * activation for name, activation in each.items()} for each in (others, activations)]
    torch.testing.assert_close(features.content_loss(*ten), features.content_loss(others, activations))


def test_a_gram_matrix_is_a_mean_over_places() -> None:
    """Of activations repeated it is their own."""
    activation = torch.rand(1, 3, 2, 2)
    torch.testing.assert_close(features.gram(activation.repeat(1, 1, 4, 5)), features.gram(activation))
    one = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(features.gram(one), torch.tensor([[[1.0, 2.0], [2.0, 4.0]]]))


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two classes of 20 small pictures: dark ones and bright ones."""
    rng = np.random.default_rng(0)
    for name, low in [("dark", 0), ("bright", 128)]:
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for k in range(20):
            pixels = rng.integers(low, low + 127, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{k}.png")
    return tmp_path / "pictures"


def test_a_run_leaves_weights_that_load_by_their_path(classes: Path, tmp_path: Path) -> None:
    """With a card that names the corpus, its checksum and the measures beside those of random weights."""
    asked = ["features", "--preset", "tiny", "--corpus", str(classes), "--runs", str(tmp_path)]
    assert run.main(asked) == 0
    candidate = tmp_path / "features" / "candidate"
    net = features.load(str(candidate / "weights.pth"))
    assert (net.blocks, net.widths) == (features.BLOCKS["vgg16"], features.OWN_WIDTHS)
    card = json.loads((candidate / "card.json").read_text())
    assert card["metrics"].keys() == {"held_out_accuracy", "halves_matched", "halves_matched_by_random"}
    assert card["corpus"]["name"] == "pictures"


def test_the_backbone_is_trained_and_not_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--publish says so before anything is trained, and of what was."""
    assert "features" in catalog.trained()
    assert "features" not in catalog.names()
    assert run.main(["features", "--publish", str(tmp_path), "--corpus", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("training.run: --publish: features is not served; ")
    assert not list(tmp_path.iterdir())
    card = tmp_path / "run/candidate/card.json"
    card.parent.mkdir(parents=True)
    shipped = (jobs.ROOT / "training/models/features/weights/card.json").read_text()
    card.write_text(shipped)
    command = ["export", str(tmp_path / "run"), "--publish", str(tmp_path / "models"), "--note", "more"]
    monkeypatch.setattr("sys.argv", command)
    assert export.main() == 2
    said = f"training.export: RUN: features is not served; its weights stay in {card.parent}\n"
    assert capsys.readouterr().err == said
    assert card.read_text() == shipped


def test_a_folder_without_classes_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that says what it must hold."""
    Image.new("RGB", (32, 32)).save(tmp_path / "one.png")
    assert run.main(["features", "--corpus", str(tmp_path), "--runs", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"--corpus: {tmp_path} must hold folders of pictures" in said


@pytest.mark.parametrize(
    ("sides", "size"), [((32, 112), 128), ((64, 160), 160), ((144, 96), 144)], ids=["default", "last", "first"]
)
def test_pictures_are_as_large_as_what_is_cut_from_them(sides: tuple[int, int], size: int, classes: Path) -> None:
    """Larger crops would be of enlarged pictures, which show nothing more."""
    asked = dataclasses.replace(recipe.PRESETS["tiny"], corpus=str(classes), first_size=sides[0], last_size=sides[1])
    corpus = recipe.load_corpus(asked)
    assert corpus.images.shape[1:] == corpus.held_out.shape[1:] == (size, size, 3)


def test_too_few_pictures_name_their_flag(classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder has enough."""
    asked = ["features", "--preset", "tiny", "--corpus", str(classes), "--runs", str(tmp_path / "runs")]
    assert run.main([*asked, "--pictures", "5"]) == 2
    says = "--pictures: 5 are too few to tell classes apart by; give more, at least 10"
    assert capsys.readouterr().err == f"training.run: {says}\n"


@pytest.mark.parametrize("count", [1, 5, 12])
def test_the_command_writes_as_few_pictures_as_are_asked_for(
    count: int, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of how many classes they are makes no difference to who looks at them."""
    asked = ["--corpus", str(classes), "--out", str(tmp_path / "out"), "--count", str(count)]
    monkeypatch.setattr("sys.argv", ["natural", *asked])
    natural.main()
    assert len(list((tmp_path / "out").glob("picture-*.png"))) == count


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("first_size", 16), ("lr", 0.0), ("warm_up", 1.0), ("seed", 2**64), ("seed", -(2**63) - 1)],
)
def test_options_out_of_range_name_their_flag(field: str, value: float) -> None:
    """As the command line writes it."""
    with pytest.raises(BadInput, match=f"^--{field.replace('_', '-')}: "):
        dataclasses.replace(recipe.PRESETS["tiny"], **{field: value})


def test_a_resumed_run_ends_in_the_same_bits(classes: Path, tmp_path: Path) -> None:
    """Stopped after its first step and resumed, against unbroken."""
    asked = ["features", "--preset", "tiny", "--corpus", str(classes), "--batch", "8", "--runs"]
    assert run.main([*asked, str(tmp_path / "unbroken")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        from training.rundir import RunDir

        patch.setattr(RunDir, "terminated", property(lambda self: True))
        assert run.main([*asked, str(tmp_path / "broken")]) == 143
    assert run.main([*asked, str(tmp_path / "broken"), "--resume"]) == 0
    states = [torch.load(tmp_path / name / "features/checkpoints/last.pt") for name in ("unbroken", "broken")]
    for key, tensor in states[0]["net"].items():
        assert torch.equal(tensor, states[1]["net"][key]), key
