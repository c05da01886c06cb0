"""Painting offline, what its run leaves, and the checks of the gate that need no server."""

import dataclasses
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from serving import repository
from serving.backends.painter import knobs
from training import export, run
from training.errors import BadInput, Refused
from training.models.features import net as features
from training.models.painter import train as recipe
from training.models.painter.autograd import Closure, make_optimizer, targets_of
from training.models.painter.spec import GRAPH, SPEC
from training.models.painter.train import PRESETS, Options
from training.rundir import RunDir


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny preset, unbroken."""
    runs = tmp_path_factory.mktemp("runs")
    assert run.main(["painter", "--preset", "tiny", "--runs", str(runs)]) == 0
    return runs / "painter"


@pytest.fixture
def candidate(painted: Path, tmp_path: Path) -> Path:
    """Its candidate, to be spoilt."""
    return shutil.copytree(painted / "candidate", tmp_path / "candidate")


# --- painting ---


def test_a_run_leaves_the_painting_and_how_it_came_to_be(painted: Path) -> None:
    """Samples from start to end, small ones at the coarse scale, all of them as a film; figures of every step."""
    assert [path.stem for path in sorted(painted.glob("samples/*.png"))] == ["000000", "000002", "000004"]
    for name, side in [("000000", 32), ("000002", 32), ("000004", 64)]:
        with Image.open(painted / "samples" / f"{name}.png") as sample:
            assert sample.size == (side, side)
    with Image.open(painted / "painting.png") as painting, Image.open(painted / "film.webp") as film:
        assert painting.size == film.size == (64, 64)
        assert film.n_frames == 3
    stats = [json.loads(line) for line in (painted / "stats.jsonl").read_text().splitlines()]
    assert [row["pixels"] for row in stats] == [32 * 32, 32 * 32, 64 * 64, 64 * 64]
    assert all(earlier["evaluations"] < later["evaluations"] for earlier, later in pairwise(stats))
    assert stats[1]["objective"] < stats[0]["objective"]
    assert stats[3]["objective"] < stats[2]["objective"]


@pytest.mark.parametrize("name", knobs.OPTIMIZERS)
@pytest.mark.parametrize("after", [1, 2, 3], ids=["within a scale", "between two scales", "in the last scale"])
def test_a_resumed_painting_is_the_same_to_the_bit(
    name: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped anywhere and resumed, against unbroken: canvas, optimizer and figures."""

    def paint(runs: str, *more: str) -> int:
        asked = ["painter", "--preset", "tiny", "--optimizer", name, "--no-film", *more]
        return run.main([*asked, "--runs", str(tmp_path / runs)])

    assert paint("whole") == 0
    record = RunDir.record

    def stop_in_time(self: RunDir, step: int, line: str, **stats: float) -> None:
        record(self, step, line, **stats)
        if step + 1 == after:
            self.stop()

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "record", stop_in_time)
        assert paint("broken") == 143
    assert paint("broken", "--resume") == 0
    whole, broken = (tmp_path / each / "painter" for each in ("whole", "broken"))
    first, second = (torch.load(each / "checkpoints" / "last.pt") for each in (whole, broken))
    assert torch.equal(first["canvas"], second["canvas"])
    for each in ("stats.jsonl", "painting.png"):
        assert (whole / each).read_bytes() == (broken / each).read_bytes()


def test_adam_keeps_to_what_can_be_shown(tmp_path: Path) -> None:
    """As the served painter's: what is measured is the picture that is saved."""
    asked = ["painter", "--preset", "tiny", "--optimizer", "adam", "--iterations", "8", "--no-film"]
    assert run.main([*asked, "--runs", str(tmp_path)]) == 0
    canvas = torch.load(tmp_path / "painter" / "checkpoints" / "last.pt")["canvas"]
    assert 0 <= canvas.min() <= canvas.max() <= 1


def test_a_line_search_that_comes_back_costs_nothing() -> None:
    """The same canvas again is answered from memory, and one that has moved is not."""
    rng = torch.Generator().manual_seed(0)
    canvas, photo, painting = (torch.rand(1, 3, 16, 20, generator=rng) for _ in range(3))
    vgg = features.frozen(features.Vgg(features.BLOCKS["vgg16"], (4, 4, 4, 4, 4)))
    canvas.requires_grad_()
    closure = Closure(vgg, canvas, targets_of(vgg, photo, painting), knobs.read({}))
    worth = closure()
    assert (closure(), closure.evaluations) == (worth, 1)
    make_optimizer(canvas, "adam").step(closure)
    assert closure() != worth
    assert closure.evaluations == 2


# --- the pictures ---


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_pictures_are_taken_as_they_are_shown(photo: Path, tmp_path: Path) -> None:
    """A gray painting gets colour channels, a photograph with alpha a ground, a turned one stands upright; the longer
    side is --size."""
    Image.new("L", (50, 30), 77).save(tmp_path / "gray.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)

    pictures = recipe.load_corpus(Options(content=str(photo), style=str(tmp_path / "gray.png"), size=30))
    assert pictures.content.shape == (20, 30, 3)
    assert pictures.style.shape == (30, 50, 3)
    assert (pictures.style == 77).all()
    assert pictures.name == "photo.png in the manner of gray.png"

    turned = Options(content=str(tmp_path / "turned.jpg"), style=str(photo), size=0)
    assert recipe.load_corpus(turned).content.shape == (30, 20, 3)
    assert recipe.load_corpus(turned).sha256 != pictures.sha256


def broken(folder: Path) -> Path:
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n, or not")
    return folder / "broken.png"


def tiny(folder: Path) -> Path:
    Image.new("RGB", (15, 40)).save(folder / "tiny.png")
    return folder / "tiny.png"


def line(folder: Path) -> Path:
    Image.new("RGB", (5000, 16)).save(folder / "line.png")
    return folder / "line.png"


def beyond_webp(folder: Path) -> Path:
    Image.new("RGB", (16_384, 16)).save(folder / "beyond.png")
    return folder / "beyond.png"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"content": ""}, r"--content: no picture ''; name a file, or one of lines"),
        ({"style": "nowhere.jpg"}, r"--style: no picture 'nowhere.jpg'"),
        ({"style": broken}, r"--style: .*broken\.png can't be decoded"),
        ({"content": tiny}, r"--content: .*tiny\.png is too small, 15 x 40; each side needs 16"),
        ({"size": 20}, r"--size: 20 leaves a side of .*photo\.png less than 16"),
        ({"content": line, "size": 100}, r"--size: 100 leaves a side of .*line\.png less than 16; give more"),
        ({"scales": 3, "size": 0}, r"--scales: 3 are too many for this photograph at its size; give 2 or less"),
        ({"content": beyond_webp, "size": 0, "film": True}, r"--film: WebP has 16383 pixels a side at most, not 16384"),
    ],
    ids=[
        "none", "not there", "broken", "too small", "made too small", "made to nothing", "too small for its scales",
        "too large for a film",
    ],
)  # fmt: skip
def test_a_picture_that_can_not_be_painted_is_named(
    changes: dict[str, object], says: str, photo: Path, tmp_path: Path
) -> None:
    """In one line, with its flag."""
    made = {name: str(value(tmp_path)) if callable(value) else value for name, value in changes.items()}
    asked = {"content": str(photo), "style": str(photo), **made}
    with pytest.raises(BadInput, match=says) as error:
        recipe.load_corpus(Options(**asked))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"content_weight": float("nan")}, "--content-weight: nan must be 0 to"),
        ({"style_weight": -1}, "--style-weight: -1 must be 0 to"),
        ({"content_weight": 0, "style_weight": 0}, "--content-weight, style-weight: both are 0"),
        ({"iterations": 2000}, "--iterations: 2000 must be 0 to 1000"),
        ({"iterations": 2**32 + 1}, "--iterations: 4.29497e+09 must be 0 to 1000"),
        ({"seed": 2**64}, "--seed: 1.84467e+19 must be 0 to"),
        ({"every": 0}, "--every: 0 must be 1 to"),
        ({"start": "chaos"}, "--start: no 'chaos'; there are noise, content"),
        ({"optimizer": "sgd"}, "--optimizer: no 'sgd'; there are l-bfgs, adam"),
        ({"size": 15}, "--size: 15 is too small; give 16 or more, or 0"),
        ({"checkpoint_minutes": 0}, "--checkpoint-minutes: 0 must be above 0"),
    ],
    ids=lambda value: ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_wrong_option_is_named(changes: dict[str, Any], says: str) -> None:
    """In one line, by its flag, before there is a run."""
    with pytest.raises(BadInput, match=re.escape(says)) as error:
        Options(**changes)
    assert "\n" not in str(error.value)


def test_an_unknown_backbone_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With those that there are."""
    assert run.main(["painter", "--preset", "tiny", "--runs", str(tmp_path), "--features", "alexnet"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("training.run: --features: no 'alexnet'; there are vgg16-half")
    assert said.count("\n") == 1


def test_defaults_are_the_served_painters() -> None:
    """Nothing is said twice: a request that leaves every knob out asks for what these options ask for."""
    assert PRESETS["default"].knobs == knobs.read({})


# --- what is served ---


def test_card_tells_the_error_and_the_backbone(painted: Path) -> None:
    """The gradient's error is far below the bound, and the backbone is told from another by its weights."""
    card = json.loads((painted / "candidate" / "card.json").read_text())
    assert 0 < card["metrics"]["gradient_error"] < 1e-5
    (threshold,) = SPEC.thresholds
    assert threshold.refusal(2e-4, None)
    other = recipe.Objective(features.frozen(features.random_weights(seed=1)), name="other")
    assert card["backbone"]["name"] == "random"
    assert recipe.backbone(other)["sha256"] != card["backbone"]["sha256"]


def test_golden_request_asks_for_no_iterations(painted: Path) -> None:
    """It holds every input and output of the spec in its type and shape, and noise as the painting's beginning."""
    golden = dict(np.load(painted / "candidate" / "golden.npz"))
    types = {"FP32": "float32", "INT32": "int32", "UINT8": "uint8"}
    for tensor in (*SPEC.inputs, *SPEC.outputs):
        array = golden[tensor.name]
        assert array.dtype == types[tensor.dtype], tensor.name
        assert array.ndim == len(tensor.shape), tensor.name
        assert all(there in (-1, here) for here, there in zip(array.shape, tensor.shape, strict=True)), tensor.name
    assert (golden["iterations"], golden["total"], golden["iteration"]) == (0, 0, 0)
    assert golden["image"].shape == golden["content"].shape != golden["style"].shape
    assert (golden["losses"] > 0).all()


def test_whole_graph_passes(candidate: Path) -> None:
    """Every tensor inside the model agrees with the eager one, and TensorRT knows every operator."""
    assert export.parity_reasons(candidate, SPEC) == []
    assert export.graph_reasons(candidate / repository.MODEL, SPEC) == []


def test_weights_lie_in_the_file_once(candidate: Path) -> None:
    """The backward pass takes them, too, turned round: that is left to where the file is loaded."""
    graph = onnx.load(candidate / repository.MODEL).graph
    kernels = [tensor for tensor in graph.initializer if len(tensor.dims) == 4]
    assert len(kernels) == len([node for node in graph.node if node.op_type == "Conv"]) / 2 == 12


@pytest.mark.parametrize("name", ["gradient", "losses", "answer_conv5_2", "own_gram_conv1_1"])
def test_a_tensor_inside_the_model_that_disagrees_is_refused(candidate: Path, name: str) -> None:
    """By a share of its largest number, however small that is: a gradient's numbers are about 1e-5."""
    golden = dict(np.load(candidate / export.GRAPH_GOLDEN))
    largest = np.unravel_index(np.abs(golden[name]).argmax(), golden[name].shape)
    golden[name][largest] *= 1.002
    np.savez(candidate / export.GRAPH_GOLDEN, **golden)
    (reason,) = export.parity_reasons(candidate, SPEC)
    assert reason.startswith(f"{name} differs from the eager model by")


@pytest.mark.parametrize("name", [export.GRAPH_GOLDEN, repository.GOLDEN])
@pytest.mark.parametrize("kept", [0, 1000], ids=["empty", "cut short"])
def test_a_damaged_golden_batch_is_a_reason(name: str, kept: int, candidate: Path, tmp_path: Path) -> None:
    """That of the graph, and that of the whole model, which the graph's checks don't ask."""
    (candidate / name).write_bytes((candidate / name).read_bytes()[:kept])
    with pytest.raises(Refused, match=rf"{candidate / name}: not a golden batch \("):
        export.publish("painter", candidate, tmp_path / "repository")
    assert name in (candidate / "refused.txt").read_text()


def test_graph_without_a_tensor_of_the_spec_is_refused(candidate: Path) -> None:
    """The backend would look for it in vain."""
    path = candidate / repository.MODEL
    model = onnx.load(path)
    model.graph.output[2].name = "slope"
    onnx.save(model, path)
    assert any("slope" in reason for reason in export.graph_reasons(path, SPEC))


def test_graph_with_other_channels_is_refused(candidate: Path) -> None:
    """Where the spec fixes a number, the graph must have the same."""
    darker = dataclasses.replace(GRAPH.inputs[0], shape=(1, 4, -1, -1))
    other = dataclasses.replace(SPEC, graph=dataclasses.replace(GRAPH, inputs=(darker, *GRAPH.inputs[1:])))
    (reason,) = export.graph_reasons(candidate / repository.MODEL, other)
    assert reason == "canvas: its shape is not (1, 4, -1, -1)"


def test_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    """The message names the file."""
    torch.save({"net": {}, "step": 3}, tmp_path / "style.pt")
    with pytest.raises(BadInput, match=r"style\.pt: not painter's"):
        recipe.load_net(tmp_path / "style.pt")
