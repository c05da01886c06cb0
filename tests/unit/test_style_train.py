"""The recipe of styles: paintings by name, resuming, a style added to a network, and wrong options in one line."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import gallery
import numpy as np
import pytest
import torch
from gallery import asked
from PIL import Image

from training import run
from training.errors import BadInput, Unreachable
from training.models.features.net import Vgg
from training.models.style import train as recipe
from training.models.style.spec import SPEC
from training.models.style.train import PRESETS, Gallery
from training.rundir import RunDir


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gallery.pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny preset, unbroken."""
    runs = tmp_path_factory.mktemp("runs")
    assert run.main(asked(pictures, "--runs", str(runs))) == 0
    return runs / "style"


def test_a_run_leaves_a_candidate_whose_card_names_its_styles(trained: Path) -> None:
    """In the order of their weights, after the paintings' files, with a measure of each."""
    card = json.loads((trained / "candidate/card.json").read_text())
    assert card["members"] == {"style_weights": ["pa-0", "pa-1"]}
    assert {"content", "style", "objective", "recognised", "style_pa_0", "style_pa_1"} <= card["metrics"].keys()
    with Image.open(trained / "styles.png") as sheet:
        assert sheet.size == (3 * 34 + 2, 5 * 34 + 2)
    assert (trained / "samples/000004.png").is_file()


def test_a_resumed_run_ends_in_the_same_bits(pictures: Path, trained: Path, tmp_path: Path) -> None:
    """Stopped after its first step and resumed, against unbroken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "terminated", property(lambda self: True))
        assert run.main(asked(pictures, "--runs", str(tmp_path))) == 143
    assert run.main(asked(pictures, "--runs", str(tmp_path), "--resume")) == 0
    whole, resumed = (torch.load(path / "checkpoints/last.pt") for path in (trained, tmp_path / "style"))
    for key, tensor in whole["net"].items():
        assert torch.equal(tensor, resumed["net"][key]), key


def test_adding_a_style_trains_nothing_but_its_own(pictures: Path, trained: Path, tmp_path: Path) -> None:
    """The styles there were stay as they were to the bit, and the new one is no longer their mean."""
    init = trained / "checkpoints/last.pt"
    command = asked(pictures, "--runs", str(tmp_path), "--add-style", str(pictures / "more/mo_0.png"))
    command[command.index("--styles") : command.index("--styles") + 2] = ["--init", str(init)]
    assert run.main(command) == 0
    before, after = torch.load(init), torch.load(tmp_path / "style/checkpoints/last.pt")
    assert after["names"] == ["pa-0", "pa-1", "mo-0"]
    metrics = json.loads((tmp_path / "style/candidate/card.json").read_text())["metrics"]
    assert "recognised" not in metrics  # of one painting it would always be 1
    assert {"content", "style", "photos_style", "style_mo_0"} <= metrics.keys()
    moved = 0
    for key, tensor in before["net"].items():
        now = after["net"][key]
        if key.endswith((".scale", ".shift")):
            assert torch.equal(tensor, now[:2]), key
            moved += not torch.equal(tensor.mean(0), now[2])
        else:
            assert torch.equal(tensor, now), key
    assert moved


@pytest.fixture(scope="module")
def extended(pictures: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A checkpoint of three styles, the last of them added, and what asks for it to be gone on with, with all three."""
    folder = tmp_path_factory.mktemp("extended")
    (folder / "three").mkdir()
    for painting in [*(pictures / "paintings").iterdir(), *(pictures / "more").iterdir()]:
        shutil.copy(painting, folder / "three")
    add = ["--add-style", str(pictures / "more/mo_0.png"), "--init", str(trained / "checkpoints/last.pt")]
    content = ["style", "--preset", "tiny", "--content", str(pictures / "photos"), "--runs"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "terminated", property(lambda self: True))
        assert run.main([*content, str(folder), *add]) == 143
    init = folder / "style/checkpoints/last.pt"
    assert torch.load(init)["names"] == ["pa-0", "pa-1", "mo-0"]
    return [*content[:-1], "--styles", str(folder / "three"), "--init", str(init)]


def test_a_network_with_a_style_added_can_be_trained_further(
    extended: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all of its styles, in its own order, in which the paintings' files are not: what each style learns from is
    its own painting, before and after a stop."""
    seen, grams_of = [], recipe.grams_of

    def noted(vgg: Vgg, paintings: list[np.ndarray], *more: Any) -> dict[str, torch.Tensor]:
        # gallery's are of bytes from 100 to 154, and the one beside them from 200 to 254.
        seen.append([int(each.mean()) // 50 * 50 for each in paintings])
        return grams_of(vgg, paintings, *more)

    monkeypatch.setattr(recipe, "grams_of", noted)
    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "terminated", property(lambda self: True))
        assert run.main([*extended, "--runs", str(tmp_path)]) == 143
        assert run.main([*extended, "--runs", str(tmp_path), "--resume"]) == 143
    assert seen == [[100, 100, 200]] * 2
    assert torch.load(tmp_path / "style/checkpoints/last.pt")["names"] == ["pa-0", "pa-1", "mo-0"]


def test_a_run_that_goes_on_keeps_the_names_of_its_styles(pictures: Path, trained: Path, tmp_path: Path) -> None:
    """Those of its own checkpoint, whatever the one that it started from has become since."""
    init = tmp_path / "init.pt"
    shutil.copy(trained / "checkpoints/last.pt", init)
    add = ["--add-style", str(pictures / "more/mo_0.png"), "--init", str(init), "--runs", str(tmp_path)]
    asked_for = ["style", "--preset", "tiny", "--content", str(pictures / "photos"), *add]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "terminated", property(lambda self: True))
        assert run.main(asked_for) == 143
        torch.save({**torch.load(init), "names": ["xx", "yy"]}, init)
        assert run.main([*asked_for, "--resume"]) == 143
    state = torch.load(tmp_path / "style/checkpoints/last.pt")
    assert (state["step"], state["names"]) == (2, ["pa-0", "pa-1", "mo-0"])


def test_styles_are_added_one_by_one(pictures: Path) -> None:
    """A folder of two is told before anything is trained."""
    folder = str(pictures / "paintings")
    with pytest.raises(BadInput, match=r"^--add-style: 2 paintings in .*; name one"):
        recipe.load_corpus(options(pictures, styles="", add_style=folder, init="last.pt"))


@pytest.mark.parametrize("flag", ["--content-layers", "--style-layers"])
@pytest.mark.parametrize("layers", [(), ("conv2_1", "conv9_1")], ids=str)
def test_layers_that_the_backbone_has_not_are_named(flag: str, layers: tuple[str, ...]) -> None:
    """Beside those that there are."""
    asked_for = dataclasses.replace(PRESETS["tiny"], **{flag.strip("-").replace("-", "_"): layers})
    with pytest.raises(BadInput, match=f"^{flag}: no {layers[-1] if layers else 'layers'}; there are conv1_1, "):
        recipe.load_vgg(asked_for)


def test_paintings_that_a_network_does_not_know_are_not_judged(pictures: Path, trained: Path, tmp_path: Path) -> None:
    """By --evaluate with another folder's: both are named."""
    corpus = recipe.load_corpus(options(pictures, styles=str(pictures / "more")))
    net = recipe.load_net(trained / "checkpoints/last.pt")
    with pytest.raises(BadInput, match=r"^--styles: the network knows pa-0, pa-1, not mo-0; name its own"):
        recipe.evaluate(net, corpus, out=tmp_path)


def test_photographs_that_can_not_be_fetched_name_their_flag(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is not every model's --corpus."""
    monkeypatch.setenv("ATELIER_DATA", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(recipe.natural, "ADDRESS", "http://127.0.0.1:9/")
    with pytest.raises(Unreachable, match=r"^--content: .*; try again, or name a folder of your own"):
        recipe.load_corpus(options(pictures, content=""))


def options(pictures: Path, **changes: object) -> recipe.Options:
    base = {"styles": str(pictures / "paintings"), "content": str(pictures / "photos"), **changes}
    return dataclasses.replace(PRESETS["tiny"], **base)  # type: ignore[arg-type]


def test_the_same_pictures_are_the_same_corpus(pictures: Path) -> None:
    """Its checksum follows photographs and paintings, and held-out photographs are none of those to train on."""
    one = recipe.load_corpus(options(pictures))
    assert one.sha256 == recipe.load_corpus(options(pictures)).sha256
    assert one.sha256 != recipe.load_corpus(options(pictures, style_size=40)).sha256
    assert one.sha256 != recipe.load_corpus(options(pictures, size=36)).sha256
    assert len(one.images) + len(one.held_out) == 20
    assert not {picture.tobytes() for picture in one.images} & {picture.tobytes() for picture in one.held_out}


def test_huber_loss_is_the_objective_that_is_evaluated_until_it_is_far() -> None:
    """The relative error, squared, up to 1; from there linear, without a jump or a bend."""
    target = torch.full((1, 4), 2.0)
    for share, expected in [(0.0, 0.0), (0.5, 0.25), (1.0, 1.0), (3.0, 5.0)]:
        x = (target * (1 + share)).requires_grad_()
        loss = recipe.huber_loss(x, target)
        assert loss.item() == pytest.approx(expected, abs=1e-6)
        (slope,) = torch.autograd.grad(loss, x)
        assert (slope * target).sum().item() == pytest.approx(2 * min(share, 1), abs=1e-5)


def test_style_comes_in_slowly_where_it_is_new() -> None:
    """Over the first tenth of the steps, for a network or a style that begins; one that goes on has it all at once."""
    begins = dataclasses.replace(PRESETS["tiny"], styles="paintings", steps=100)
    added = dataclasses.replace(begins, styles="", add_style="one.png", init="last.pt")
    assert [recipe.style_warm_up(step, begins) for step in (0, 4, 9, 50)] == [0.1, 0.5, 1, 1]
    assert recipe.style_warm_up(0, added) == 0.1
    assert recipe.style_warm_up(0, dataclasses.replace(begins, init="last.pt")) == 1


@pytest.mark.parametrize("folder", ["", "/"])
def test_init_that_is_not_there_is_named(
    pictures: Path, tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bare file name, too, and one at the root, which have no run's folder around them."""
    monkeypatch.chdir(tmp_path)
    assert run.main([*asked(pictures, "--runs", str(tmp_path)), "--init", f"{folder}nowhere.pt"]) == 2
    assert f"checkpoint {folder}nowhere.pt: no such file" in capsys.readouterr().err


def test_golden_styles_go_with_their_photographs(pictures: Path, trained: Path) -> None:
    """The last one is a mixture, and weights need not add up to 1."""
    corpus: Gallery = recipe.load_corpus(options(pictures))
    golden = recipe.golden(recipe.load_net(trained / "checkpoints/last.pt"), corpus)
    assert golden["style_weights"].tolist() == [[1, 0], [0, 1], [1, 0], [1, 1]]
    assert golden["content"].shape == golden["image"].shape


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"styles": ""}, "--styles: name a folder of paintings"),
        ({"styles": "nowhere"}, "--styles: nowhere is not there"),
        ({"styles": "", "add_style": "x.png"}, "--add-style: needs --init"),
        ({"styles": "", "add_style": "nowhere.png", "init": "x.pt"}, "--add-style: nowhere.png is not there"),
        ({"content": "nowhere"}, "--content: nowhere is not there"),
        ({"photos": 3}, "--content: 3 pictures in .* are too few"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_missing_is_named(pictures: Path, changes: dict[str, object], says: str) -> None:
    """By its flag."""
    with pytest.raises(BadInput, match=f"^{says}"):
        recipe.load_corpus(options(pictures, **changes))


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("broken.png", "can't be decoded"),
        ("line.png", "is too narrow, 400 x 4"),
        ("PA 0.png", "two paintings in .* are called pa-0"),
        ("星月夜.png", "gives its style no name; rename it"),
    ],
)
def test_a_painting_that_can_not_be_used_is_named(tmp_path: Path, file: str, says: str) -> None:
    """In one line with its file."""
    Image.new("RGB", (60, 60), "red").save(tmp_path / "pa_0.png")
    if file == "broken.png":
        (tmp_path / file).write_bytes(b"not a picture")
    else:
        Image.new("RGB", (400, 4) if file == "line.png" else (60, 60)).save(tmp_path / file)
    with pytest.raises(BadInput, match=f"--styles: .*{says}"):
        recipe.load_paintings(tmp_path, side=384)


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("pa_0", "pa-0"),
        ("J.M.W. Turner", "j-m-w-turner"),
        ("Café Terrace (1888)", "cafe-terrace-1888"),
        ("O'Keeffe", "o-keeffe"),
        ("--Ølga--", "lga"),
    ],
)
def test_any_file_name_makes_a_name_of_a_style(stem: str, name: str) -> None:
    """One that what is served may be called, or publishing fails after all the training."""
    assert recipe.style_name(stem) == name
    SPEC.with_members({"style_weights": [name]})


@pytest.mark.parametrize(
    "changes",
    [{"lr": 0.0}, {"style_weight": -1.0}, {"tv_weight": float("nan")}, {"outer": 4}, {"steps": 0}, {"seed": 2**64},
     {"seed": -(2**63) - 1}],
    ids=str,
)  # fmt: skip
def test_options_out_of_range_name_their_flag(changes: dict[str, float]) -> None:
    """As the command line writes it."""
    with pytest.raises(BadInput, match=f"--{next(iter(changes)).replace('_', '-')}"):
        dataclasses.replace(PRESETS["tiny"], **changes)  # type: ignore[arg-type]


def test_a_network_of_other_styles_is_not_gone_on_with(pictures: Path, trained: Path, tmp_path: Path) -> None:
    """--init says whose styles it knows."""
    init = str(trained / "checkpoints/last.pt")
    corpus = recipe.load_corpus(options(pictures, styles=str(pictures / "more")))
    with pytest.raises(BadInput, match=r"--init: .* knows pa-0, pa-1, not mo-0"):
        recipe.build_net(options(pictures, init=init), corpus)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"widths": (8, 8, 8)}, r"--widths: \[8, 8, 8\], but the network of .*last\.pt has \[4, 8, 8\]; give that"),
        ({"outer": 5}, r"--outer: 5, but the network of .*last\.pt has 3; give that"),
    ],
    ids=["widths", "outer"],
)
@pytest.mark.parametrize("added", [False, True], ids=["as it is", "with a style more"])
def test_a_network_of_another_size_is_not_gone_on_with(
    added: bool, changes: dict[str, object], says: str, pictures: Path, trained: Path
) -> None:
    """Its options would tell of a network that was not trained."""
    of = {"styles": "", "add_style": str(pictures / "more/mo_0.png")} if added else {}
    asked_for = options(pictures, init=str(trained / "checkpoints/last.pt"), **of, **changes)
    with pytest.raises(BadInput, match=f"^{says}"):
        recipe.build_net(asked_for, recipe.load_corpus(asked_for))
