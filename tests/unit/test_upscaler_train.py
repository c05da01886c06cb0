"""The recipe of the upscaler: a candidate and its card, resuming, what it learns from, and wrong options by name."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training import run
from training.data import computer_art, corpus
from training.data.degradations import BICUBIC, BOX, reduced
from training.errors import BadInput
from training.models.upscaler import train as recipe
from training.models.upscaler.train import PRESETS, Options
from training.rundir import RunDir
from training.schedules import warm_up_cosine


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 photographs of 56 x 41 pixels, which is no multiple of 4, and one too small to cut a patch from."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for k in range(20):
        Image.fromarray(rng.integers(0, 255, (41, 56, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    Image.new("RGB", (200, 31)).save(folder / "narrow.png")
    return folder


def asked(photos: Path, *more: str) -> list[str]:
    return ["upscaler", "--preset", "tiny", "--corpus", str(photos), *more]


def options(source: Path, /, **changes: object) -> Options:
    return dataclasses.replace(PRESETS["tiny"], **{"corpus": str(source), **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny preset, unbroken."""
    runs = tmp_path_factory.mktemp("runs")
    assert run.main(asked(photos, "--runs", str(runs))) == 0
    return runs / "upscaler"


def test_a_run_leaves_a_candidate_that_is_measured_beside_bicubic(trained: Path) -> None:
    """On photographs, on lines and on plotter drawings; with a sheet to judge by."""
    metrics = json.loads((trained / "candidate/card.json").read_text())["metrics"]
    for name in ("photos", "lines", "drawings"):
        gain = metrics[f"{name}_psnr"] - metrics[f"{name}_bicubic_psnr"]
        assert metrics[f"{name}_gain_db"] == pytest.approx(gain)
        assert 0 < metrics[f"{name}_bicubic_ssim"] < 1
    assert (trained / "samples/000004.png").is_file()
    assert (trained / "upscaled.png").is_file()
    assert (trained / "convergence.png").is_file()


def test_a_resumed_run_ends_in_the_same_bits(photos: Path, trained: Path, tmp_path: Path) -> None:
    """Stopped after its first step and resumed, against unbroken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "terminated", property(lambda self: True))
        assert run.main(asked(photos, "--runs", str(tmp_path))) == 143
    assert run.main(asked(photos, "--runs", str(tmp_path), "--resume")) == 0
    whole, resumed = (torch.load(path / "checkpoints/last.pt") for path in (trained, tmp_path / "upscaler"))
    for weights in ("net", "average"):
        for key, tensor in whole[weights].items():
            assert torch.equal(tensor, resumed[weights][key]), key
    assert whole["net"]["last.weight"].abs().max() > 0  # something was learnt that could differ


def test_a_run_can_begin_with_what_another_learnt(photos: Path, trained: Path, tmp_path: Path) -> None:
    """With the perceptual loss too, whose figure is recorded; the network keeps its size."""
    init = ["--init", str(trained / "checkpoints/last.pt"), "--perceptual", "0.1", "--lr", "1e-9", "--layers", "5"]
    assert run.main(asked(photos, "--runs", str(tmp_path), *init)) == 0
    before, after = (recipe.load_net(path / "checkpoints/last.pt").net for path in (trained, tmp_path / "upscaler"))
    assert after.options == before.options == {"channels": 4, "layers": 2}
    for key, tensor in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[key], tensor, atol=1e-6, rtol=0)
    figures = [json.loads(line) for line in (tmp_path / "upscaler/stats.jsonl").read_text().splitlines()]
    assert all(0 < each["perceptual"] < 100 for each in figures)
    assert "perceptual" not in (trained / "stats.jsonl").read_text()


def test_a_run_that_diverges_is_not_tried_again(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate far too high: status 2, for which a Job gives up, in one line, with what may mend it."""
    assert run.main(asked(photos, "--lr", "1e30", "--runs", str(tmp_path))) == 2
    *_, told = capsys.readouterr().err.splitlines()
    assert told == "training.run: step 3: l1 is nan, the run has diverged; begin another --name with a lower --lr"


@pytest.mark.parametrize("layers", [(), ("conv2_1", "conv9_1")], ids=str)
def test_layers_that_the_backbone_has_not_are_named(photos: Path, layers: tuple[str, ...]) -> None:
    """Beside those that there are."""
    missing = layers[-1] if layers else "layers"
    with pytest.raises(BadInput, match=f"^--feature-layers: no {missing}; there are conv1_1, "):
        recipe.load_vgg(options(photos, feature_layers=layers))


# --- what it learns from ---


def test_the_same_pictures_are_the_same_corpus(photos: Path) -> None:
    """Its checksum follows photographs, their sizes, drawings and what is held out."""
    once = recipe.load_corpus(options(photos))
    assert once.sha256 == recipe.load_corpus(options(photos)).sha256
    for changes in ({"side": 48}, {"sizes": 1}, {"drawings": 1}, {"test": str(photos)}, {"seed": 1}):
        assert once.sha256 != recipe.load_corpus(options(photos, **changes)).sha256, changes


def test_one_photograph_in_ten_is_held_out_whole(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In its own shape, cropped to a multiple of 4, and learnt from in none of its sizes; a narrow one is left out."""
    pictures = recipe.load_corpus(options(photos, sizes=1))
    assert "--corpus: left out 1 photographs smaller than 32 pixels" in capsys.readouterr().err
    held, learnt = ({high.tobytes() for _, high in pairs} for pairs in (pictures.held_out["photos"], pictures.photos))
    assert not held & learnt
    assert len(held) in (2, 3)  # of 21
    assert len(held) + len(learnt) == 20
    assert {high.shape for _, high in pictures.held_out["photos"]} == {(40, 56, 3)}


def test_help_says_how_many_are_held_out_at_most(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which are fewer than one in ten of a large corpus."""
    with pytest.raises(SystemExit):
        run.main(["upscaler", "--help"])
    assert f"one in ten of the corpus, {recipe.HELD_OUT} at most" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(recipe, "HELD_OUT", 1)
    pictures = recipe.load_corpus(options(photos, sizes=1))
    assert (len(pictures.held_out["photos"]), len(pictures.photos)) == (1, 19)


def test_photographs_to_judge_by_can_be_given(photos: Path, tmp_path: Path) -> None:
    """Then all of the corpus is learnt from."""
    Image.new("RGB", (70, 50), "teal").save(tmp_path / "a.png")
    pictures = recipe.load_corpus(options(photos, test=str(tmp_path), sizes=1))
    assert [high.shape for _, high in pictures.held_out["photos"]] == [(48, 68, 3)]
    assert len(pictures.photos) == 20
    assert pictures.name == f"{photos.name}; computer art; test: {tmp_path.name}"


def test_photographs_come_in_several_sizes(tmp_path: Path) -> None:
    """Down to a half, as long as a patch can be cut from them, and in proportion."""
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 255, (100, 300, 3), dtype=np.uint8)
    sizes = [each.shape[:2] for each in recipe.in_sizes(photo, options(tmp_path, sizes=60), rng)]
    assert sizes[0] == (100, 300)
    heights = [height for height, _ in sizes]
    assert 50 <= min(heights) < 55
    assert 95 < max(heights[1:]) <= 100
    assert all(width == pytest.approx(3 * height, abs=3) for height, width in sizes)
    smallest = recipe.in_sizes(photo, options(tmp_path, sizes=60, size=96), rng)
    assert min(each.shape[0] for each in smallest) >= 96


def test_large_drawings_are_the_small_ones_drawn_finer() -> None:
    """Reduced by the box, they are the same drawings; lines to the byte."""
    large = recipe.draw_large(1, seed=5)
    names = [*computer_art.CORPORA, *corpus.THREE_LINES]
    assert len(large) == len(names)
    for name, picture in zip(names, large, strict=True):
        (small,) = corpus.DRAWN[name](1, seed=5)
        again = reduced(picture, 4, BOX)
        assert picture.shape == (512, 512, 3)
        if name in corpus.THREE_LINES:
            assert np.array_equal(again, small), name
        else:  # a pen of 12 pixels on 2048 is no more than about as wide as one of 3 on 512
            likeness = np.corrcoef(again.ravel(), small.ravel())[0, 1]
            assert likeness > 0.9, (name, likeness)


def test_patches_are_the_same_place_in_both_sizes(photos: Path) -> None:
    """Turned and mirrored alike: of what is not degraded, the large one reduced is the small one, but for its borders,
    where what lay beyond was seen."""
    pictures = recipe.load_corpus(options(photos, test=str(photos)))
    asked_for = options(photos, degraded=0.0, woven=0.0, batch=64)
    low, high = recipe.sample_batch(pictures, asked_for, np.random.default_rng(0))
    assert (low.shape, high.shape) == ((64, 8, 8, 3), (64, 32, 32, 3))
    for small, large in zip(low, high, strict=True):
        kernels = [np.abs(reduced(large, 4, kernel).astype(int) - small)[2:-2, 2:-2].max() for kernel in (BICUBIC, BOX)]
        assert min(kernels) <= 1
    again = recipe.sample_batch(pictures, asked_for, np.random.default_rng(0))
    assert np.array_equal(low, again[0])
    assert np.array_equal(high, again[1])


@pytest.mark.parametrize(
    ("drawn", "degraded", "woven"),
    [(0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.5, 0.0, 0.0), (1.0, 0.0, 0.5), (1.0, 0.0, 1.0)],
)
def test_shares_are_of_the_patches(photos: Path, drawn: float, degraded: float, woven: float) -> None:
    """Photographs here are noise, of which every patch has many colours and no drawing has as many."""
    pictures = recipe.load_corpus(options(photos))
    asked_for = options(photos, drawn=drawn, degraded=degraded, woven=woven, batch=200)
    low, high = recipe.sample_batch(pictures, asked_for, np.random.default_rng(1))
    drawings = np.mean([len(np.unique(each.reshape(-1, 3), axis=0)) < 600 for each in high])
    assert drawings == pytest.approx(drawn, abs=0.12)
    away = [
        min(np.abs(reduced(b, 4, kernel).astype(int) - a)[2:-2, 2:-2].max() for kernel in (BICUBIC, BOX))
        for a, b in zip(low, high, strict=True)
    ]
    spoilt = np.mean(np.array(away) > 1)
    if drawn:  # of drawings some patches are black, and stay so
        assert 0.8 * woven * drawn - 0.08 <= spoilt <= woven * drawn + 0.08
    else:
        assert spoilt == pytest.approx(0.9 * degraded, abs=0.08)  # some chance of each spares one in ten


def test_the_rate_rises_and_falls() -> None:
    """Over the first 2 % of the steps, then along half a cosine to nothing."""
    rates = [warm_up_cosine(done, 0.02) for done in (0.01, 0.02, 0.51, 1.0)]
    assert rates == pytest.approx([0.5, 1.0, 0.5, 0.0])


# --- what is asked of a recipe ---


def test_golden_pictures_are_drawn_and_go_with_their_enlargements(photos: Path, trained: Path) -> None:
    """Named as on the wire, of no round size."""
    golden = recipe.golden(recipe.load_net(trained / "checkpoints/last.pt"), recipe.load_corpus(options(photos)))
    assert golden["low_res"].shape == (3, 61, 83, 3)
    assert golden["image"].shape == (3, 244, 332, 3)
    assert golden["image"].dtype == np.uint8


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"corpus": "nowhere"}, "--corpus: nowhere is not there"),
        ({"test": "nowhere"}, "--test: nowhere is not there"),
        ({"photos": 12}, "--corpus: 10 photographs of .* to learn from and 2 to evaluate on are too few"),
        ({"size": 64, "side": 64}, "--corpus: 0 photographs"),
    ],
    ids=str,
)
def test_what_is_missing_is_named(photos: Path, changes: dict[str, object], says: str) -> None:
    """By its flag."""
    with pytest.raises(BadInput, match=f"^{says}"):
        recipe.load_corpus(options(photos, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 0.0}, {"lr": float("nan")}, {"seed": -1}, {"drawn": 1.5}, {"degraded": -0.1}, {"ema": 2.0}, {"steps": 0},
        {"layers": 15}, {"size": 30}, {"size": 130}, {"side": 20}, {"sizes": 0}, {"sample_every": 0},
        {"perceptual": -1.0}, {"perceptual": float("inf")}, {"seed": 2**64},
    ],
    ids=str,
)  # fmt: skip
def test_options_out_of_range_name_their_flag(changes: dict[str, float]) -> None:
    """As the command line writes it."""
    with pytest.raises(BadInput, match=f"^--{next(iter(changes)).replace('_', '-')}: "):
        dataclasses.replace(PRESETS["tiny"], **changes)  # type: ignore[arg-type]


def test_a_run_without_pictures_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, and nothing is written."""
    assert run.main(asked(tmp_path / "nowhere", "--runs", str(tmp_path / "runs"))) == 2
    said = capsys.readouterr().err
    assert said.startswith("training.run: --corpus: ")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    """By what wrote it."""
    torch.save({"net": {}, "step": 1}, tmp_path / "last.pt")
    with pytest.raises(BadInput, match=r"not upscaler's; `training.run upscaler` writes those"):
        recipe.load_net(tmp_path / "last.pt")
