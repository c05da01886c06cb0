"""The recipe of the colorizer: both stages, resuming inside either, pictures to evaluate on, wrong options."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from serving import tensorrt
from training import catalog, export, run
from training.errors import BadInput
from training.models.colorizer import train as recipe
from training.models.colorizer.train import PRESETS
from training.models.features import resnet
from training.rundir import RunDir

import onnxruntime


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures of no particular size, and 3 to evaluate on."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, count in [("fields", 40), ("test", 3)]:
        (root / name).mkdir()
        for k in range(count):
            pixels = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((70, 50)).save(root / name / f"{name}_{k}.png")
    return root


def asked(pictures: Path, *more: str) -> list[str]:
    return ["colorizer", "--preset", "tiny", "--corpus", str(pictures / "fields"), *more]


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny preset, unbroken."""
    runs = tmp_path_factory.mktemp("runs")
    assert run.main(asked(pictures, "--runs", str(runs))) == 0
    return runs / "colorizer"


def options(folder: Path, **changes: object) -> recipe.Options:
    return dataclasses.replace(PRESETS["tiny"], **{"corpus": str(folder / "fields"), **changes})  # type: ignore[arg-type]


def test_a_run_leaves_a_candidate_of_both_stages(trained: Path) -> None:
    """Its card measures both and the baselines, and says what the encoder was; a sheet shows them."""
    card = json.loads((trained / "candidate/card.json").read_text())
    assert {"ciede2000", "stage1_ciede2000", "gray_psnr", "mean_ssim", "nearest_psnr"} <= card["metrics"].keys()
    assert card["backbone"] == {"name": "random"}
    for picture in ("colorized.png", "samples/000003.png", "samples/000006.png", "convergence.png", "critic.png"):
        with Image.open(trained / picture) as sheet:
            assert min(sheet.size) > 100


def test_the_second_stage_trains_nothing_of_the_first(trained: Path, pictures: Path, tmp_path: Path) -> None:
    """What ends with the first stage goes into the candidate as it is: only the second decoder goes on. Where there is
    no second stage, it is as the first."""
    assert run.main(asked(pictures, "--runs", str(tmp_path), "--refine-steps", "0")) == 0
    first, both = (torch.load(path / "checkpoints/last.pt")["net"] for path in (tmp_path / "colorizer", trained))
    for key, tensor in first.items():
        if not key.startswith("decoders.1."):
            assert torch.equal(tensor, both[key]), key
        else:
            assert torch.equal(tensor, first[key.replace("decoders.1.", "decoders.0.")]), key
    weight = "blocks.0.convolution.weight"
    assert not torch.equal(both[f"decoders.0.{weight}"], both[f"decoders.1.{weight}"])


@pytest.mark.parametrize(
    ("run_of", "frozen"),
    [("trained", tuple(f"features.{k}." for k in (0, 2, 5, 7))), ("of_resnet", ("conv1.", "bn1.", "layer1."))],
    ids=["vgg", "resnet"],
)
def test_the_first_blocks_stay_as_they_were(
    run_of: str, frozen: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    """Edges and textures are taken over, with their norms; what lies behind them learns."""
    state = torch.load(request.getfixturevalue(run_of) / "checkpoints/last.pt")
    before = recipe.pretrained(state["features"])
    for key, parameter in before.named_parameters():
        after = state["net"][f"encoder.backbone.{key}"]
        assert torch.equal(after, parameter) == key.startswith(frozen), key


@pytest.mark.parametrize("stops", [1, 4], ids=["in the first stage", "in the second"])
def test_a_resumed_run_ends_in_the_same_bits(stops: int, pictures: Path, trained: Path, tmp_path: Path) -> None:
    """Stopped inside either stage and resumed, against unbroken."""
    steps = iter(range(1, 100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "terminated", property(lambda self: next(steps) == stops))
        assert run.main(asked(pictures, "--runs", str(tmp_path))) == 143
    assert torch.load(tmp_path / "colorizer/checkpoints/last.pt")["step"] == stops
    assert run.main(asked(pictures, "--runs", str(tmp_path), "--resume")) == 0
    whole, resumed = (torch.load(path / "checkpoints/last.pt") for path in (trained, tmp_path / "colorizer"))
    for part in ("net", "critic"):
        for key, tensor in whole[part].items():
            assert torch.equal(tensor, resumed[part][key]), key


def test_pictures_to_judge_by_are_not_trained_on(pictures: Path) -> None:
    """Named, or one in ten of the corpus; its checksum follows both."""
    named = recipe.load_corpus(options(pictures, test=str(pictures / "test")))
    assert (len(named.images), len(named.held_out), named.name) == (40, 3, "fields; test: test")
    taken = recipe.load_corpus(options(pictures))
    assert (len(taken.images), len(taken.held_out), taken.name) == (36, 4, "fields")
    assert named.images.shape[1:] == (36, 36, 3)
    assert taken.held_out.shape[1:] == (recipe.TEST_SIZE, recipe.TEST_SIZE, 3)
    assert named.sha256 != taken.sha256
    assert taken.sha256 == recipe.load_corpus(options(pictures)).sha256
    judged_by_others = recipe.load_corpus(options(pictures, test=str(pictures / "fields")))
    assert np.array_equal(judged_by_others.images, named.images)
    assert judged_by_others.sha256 != named.sha256


@pytest.mark.parametrize("size", [(16, 16), (37, 53), (200, 90)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_says_what_the_eager_model_says(trained: Path, size: tuple[int, int], batch: int) -> None:
    """Without its integers, at several sizes and batches, within what rounding makes of the last bits; its weights take
    two bytes each."""
    graph = trained / "candidate/model.onnx"
    rng = np.random.default_rng(0)
    gray, stage = rng.integers(0, 256, (batch, *size, 1), np.uint8), rng.uniform(1, 2, (batch, 1)).astype(np.float32)
    floats = tensorrt.for_gpus(onnx.load(graph)).SerializeToString()
    session = onnxruntime.InferenceSession(floats, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"gray": gray, "stage": stage})
    net = recipe.load_net(trained / "checkpoints/last.pt")
    truth = net(torch.from_numpy(gray), torch.from_numpy(stage)).numpy()
    assert np.abs(answer.astype(int) - truth).max() <= 2
    large = [w for w in onnx.load(graph).graph.initializer if np.prod(w.dims) >= 1024]
    assert large
    assert {w.data_type for w in large} <= {onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT}
    assert sum(w.data_type == onnx.TensorProto.FLOAT16 for w in large) > len(large) / 2


def test_the_candidate_passes_what_does_not_ask_for_quality(trained: Path) -> None:
    """Parity and the graph: names, types, free sizes, operators that the cluster has."""
    spec = catalog.spec("colorizer")
    assert export.parity_reasons(trained / "candidate", spec) == []
    assert export.graph_reasons(trained / "candidate/model.onnx", spec) == []


def test_the_sources_network_gives_all_of_rgb(pictures: Path, tmp_path: Path) -> None:
    """Preset seed, made small: RGB at the size of the picture, and it is served in the same way."""
    small = ["--widths", "8", "8", "8", "--size", "32", "--features", "random", "--steps", "2", "--refine-steps", "1"]
    command = ["colorizer", "--preset", "seed", "--corpus", str(pictures / "fields"), "--batch", "2", *small]
    assert run.main([*command, "--runs", str(tmp_path)]) == 0
    net = recipe.load_net(tmp_path / "colorizer/checkpoints/last.pt")
    assert net.net.color == "rgb"
    assert net(torch.zeros(1, 40, 24, 1, dtype=torch.uint8), torch.ones(1, 1)).shape == (1, 40, 24, 3)


@pytest.fixture(scope="module")
def of_resnet(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose encoder is a file in torchvision's form, which is known by what is in it."""
    runs = tmp_path_factory.mktemp("of_resnet")
    theirs = resnet.ResNet18()
    theirs.bn1.running_mean = torch.linspace(-1, 1, 64)
    torch.save({**theirs.state_dict(), "fc.weight": torch.zeros(1000, 512)}, runs / "theirs.pth")
    assert run.main(asked(pictures, "--features", str(runs / "theirs.pth"), "--runs", str(runs))) == 0
    return runs / "colorizer"


def test_a_resnet_is_an_encoder_too(of_resnet: Path) -> None:
    """Its norms keep what they have measured."""
    net = recipe.load_net(of_resnet / "checkpoints/last.pt").net
    assert isinstance(net.encoder.backbone, resnet.ResNet18)
    assert torch.equal(net.encoder.backbone.bn1.running_mean, torch.linspace(-1, 1, 64))
    assert [block.convolution.in_channels for block in net.decoders[0].blocks] == [512 + 256, 8 + 128, 8 + 64, 8 + 64]


def test_a_run_can_start_from_learnt_weights(trained: Path, pictures: Path) -> None:
    """--init: the network of the checkpoint and its encoder's name, whatever the options say of them."""
    init = str(trained / "checkpoints/last.pt")
    net, encoder = recipe.build_net(options(pictures, init=init, widths=(16, 16, 16), features="vgg16-half"))
    before = torch.load(init)["net"]
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
    assert encoder == "random"


def test_what_starts_from_learnt_weights_is_trained_at_their_size(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At which it is served: another one is refused, before a picture is read."""
    init = trained / "checkpoints/last.pt"
    asked_for = ["colorizer", "--preset", "tiny", "--init", str(init), "--size", "64", "--corpus", "nowhere"]
    assert run.main([*asked_for, "--runs", str(tmp_path)]) == 2
    says = f"training.run: --size: 64, but the network of {init} sees 32 pixels; give that\n"
    assert capsys.readouterr().err == says
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes",
    [{"lr": 0.0}, {"encoder_lr": -1.0}, {"critic_weight": float("nan")}, {"size": 48}, {"color": "hsv"},
     {"widths": (8, 8)}, {"batch": 1}, {"steps": 0}, {"refine_steps": -1}, {"seed": 2**64}, {"seed": -(2**63) - 1}],
    ids=str,
)  # fmt: skip
def test_options_out_of_range_name_their_flag(changes: dict[str, object]) -> None:
    """As the command line writes it."""
    with pytest.raises(BadInput, match=f"--{next(iter(changes)).replace('_', '-')}"):
        dataclasses.replace(PRESETS["tiny"], **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"corpus": "nowhere"}, "--corpus: nowhere is not there"),
        ({"pictures": 12}, "--corpus: 11 pictures in .* are too few"),
        ({"pictures": 1}, "--corpus: 0 pictures in .* are too few"),
        ({"test": "nowhere"}, "--test: nowhere is not there"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_missing_is_named(pictures: Path, changes: dict[str, object], says: str) -> None:
    """By its flag."""
    with pytest.raises(BadInput, match=f"^{says}"):
        recipe.load_corpus(options(pictures, **changes))


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    """In one line that says what writes the right ones."""
    torch.save({"net": {}, "step": 1}, tmp_path / "other.pt")
    with pytest.raises(BadInput, match=r"other.pt: not colorizer's; `training.run colorizer` writes those"):
        recipe.load_net(tmp_path / "other.pt")
