"""The classifier's recipe: options, augmentation, temperature, and a resume that changes nothing."""

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from garment_files import TEST, TRAIN, official, same

from training.data import fashion_mnist
from training.data.fashion_mnist import Garments, Split
from training.errors import BadInput
from training.models.classifier import evaluate as measures
from training.models.classifier import train as recipe
from training.models.classifier.muon import Muon
from training.models.classifier.train import AUGMENTED, PRESETS, Options
from training.rundir import RunDir, Stopped

SMALL = dataclasses.replace(PRESETS["tiny"], epochs=2, batch=16)
PLAIN = dataclasses.replace(SMALL, crop=0, erase=0.0)


def garments(count: int, seed: int) -> Split:
    """Bright bars whose place is their label: something that can be learnt."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count).astype(np.uint8)
    images = rng.integers(0, 40, (count, 28, 28)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label + 4 : 2 * label + 6] = 255
    return Split(images, labels)


@pytest.fixture(scope="module")
def corpus() -> Garments:
    return Garments("bars", "0" * 64, garments(48, 0), garments(32, 1), garments(32, 2))


def open_run(path: Path, options: Options, *, resume: bool = False) -> RunDir:
    return RunDir(path, model="classifier", preset="tiny", options=options, corpus={"name": "bars"}, resume=resume)


@pytest.mark.parametrize("network", recipe.NETWORKS)
@pytest.mark.parametrize(
    "after", [1, 4, 6, 9, 12], ids=["within", "between steps", "at an epoch's end", "in the next", "at the end"]
)
def test_resumed_run_equals_the_unbroken_one_bit_for_bit(
    network: str, after: int, corpus: Garments, tmp_path: Path
) -> None:
    """Stopping after any step of any net and resuming gives the same weights, norms, dropout and figures."""
    options = dataclasses.replace(SMALL, network=network)
    whole = open_run(tmp_path / "whole", options)
    recipe.train(options, whole, corpus)

    broken = open_run(tmp_path / "broken", options)
    record = broken.record

    def stop_in_time(step: int, line: str, **stats: float) -> None:
        record(step, line, **stats)
        if step + 1 == after:
            broken.stop()

    broken.record = stop_in_time  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        recipe.train(options, broken, corpus)
    broken.close()
    resumed = open_run(tmp_path / "broken", options, resume=True)
    recipe.train(options, resumed, corpus)

    first, second = (torch.load(run.last, weights_only=True) for run in (whole, resumed))
    for one, other in zip(first["learners"], second["learners"], strict=True):
        of_one, of_other = ({name: v.numpy().tobytes() for name, v in each["net"].items()} for each in (one, other))
        assert of_one == of_other
    assert first["temperature"] == second["temperature"]
    assert resumed.stats() == whole.stats()
    assert [row["step"] for row in whole.stats()] == list(range(12))
    whole.close()
    resumed.close()


@pytest.mark.parametrize("network", recipe.NETWORKS)
def test_saving_on_the_way_changes_nothing(network: str, corpus: Garments, tmp_path: Path) -> None:
    """Checkpoints are of all nets after the same number of steps, and each net goes on as if there were none."""
    seldom = dataclasses.replace(SMALL, network=network, nets=3)
    learnt, saved = {}, []
    for name, minutes in (("seldom", 60.0), ("often", 1e-9)):
        options = dataclasses.replace(seldom, checkpoint_minutes=minutes)
        run = open_run(tmp_path / name, options)
        save = run.save

        def note(state: dict[str, Any], save: Callable[[dict[str, Any]], None] = save) -> None:
            saved.append(state["step"])
            save(state)

        run.save = note  # type: ignore[method-assign]
        recipe.train(options, run, corpus)
        run.close()
        learners = torch.load(run.last, weights_only=True)["learners"]
        learnt[name] = [{key: v.numpy().tobytes() for key, v in each["net"].items()} for each in learners]
    assert saved == [18, 18, 3, 6, 9, 12, 15, 18, 18]
    assert learnt["often"] == learnt["seldom"]


def test_what_stops_a_run_that_looks_for_its_temperature_costs_no_step(
    corpus: Garments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM after the last step: the checkpoint has them all, and what goes on from it finds the same temperature."""
    whole = open_run(tmp_path / "whole", SMALL)
    recipe.train(SMALL, whole, corpus)
    whole.close()
    broken = open_run(tmp_path / "broken", SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "best_temperature", lambda *_: sys.exit(143))
        with pytest.raises(SystemExit):
            recipe.train(SMALL, broken, corpus)
    broken.close()
    assert torch.load(broken.last, weights_only=True)["step"] == 12
    resumed = open_run(tmp_path / "broken", SMALL, resume=True)
    recipe.train(SMALL, resumed, corpus)
    resumed.close()
    first, second = (torch.load(run.last, weights_only=True)["temperature"] for run in (whole, resumed))
    assert first == second != 1
    assert resumed.stats() == whole.stats()


def test_run_of_another_version_is_not_resumed(corpus: Garments, tmp_path: Path) -> None:
    """Its checkpoint says nothing of learners: a line, where a Job would end in a traceback, try after try."""
    run = open_run(tmp_path / "run", SMALL)
    run.save({"step": 0, "net": {}, "finished": []})
    run.close()
    resumed = open_run(tmp_path / "run", SMALL, resume=True)
    with pytest.raises(BadInput, match=r"--resume: .*last\.pt was written by another version of the program"):
        recipe.train(SMALL, resumed, corpus)
    resumed.close()


def test_classifier_learns_what_can_be_learnt(corpus: Garments, tmp_path: Path) -> None:
    """On bars whose place is their label it is right nearly always; with labels at random, nearly never."""
    options = dataclasses.replace(PLAIN, nets=1, epochs=20, network="one-conv", lr=3e-3)
    shuffled = np.random.default_rng(3).permutation(corpus.train.labels)
    senseless = dataclasses.replace(corpus, train=Split(corpus.train.images, shuffled))
    accuracy = {}
    for name, taught in (("sense", corpus), ("nonsense", senseless)):
        run = open_run(tmp_path / name, options)
        recipe.train(options, run, taught)
        run.close()
        accuracy[name] = run.stats()[-1]["validation_accuracy"]
    assert accuracy["sense"] > 0.9
    assert accuracy["nonsense"] < 0.5


def test_nets_differ_and_answer_with_the_mean_of_their_logits(corpus: Garments, tmp_path: Path) -> None:
    """The second net of a run is the only one of a run with its seed; what is served is between both."""
    alone = dataclasses.replace(PLAIN, nets=1, seed=1)
    states = {}
    for name, options in (("both", PLAIN), ("alone", alone)):
        run = open_run(tmp_path / name, options)
        states[name] = torch.load(recipe.train(options, run, corpus), weights_only=True)
        run.close()
    first, second = (each["net"] for each in states["both"]["learners"])
    assert all(torch.equal(second[name], other) for name, other in states["alone"]["learners"][0]["net"].items())
    assert not torch.equal(first["logits.weight"], second["logits.weight"])
    one, other, both = (recipe.Ensemble(weights, "residual") for weights in ([first], [second], [first, second]))
    logits = [recipe.predict_logits(net, corpus.test) for net in (one, other, both)]
    assert torch.allclose((logits[0] + logits[1]) / 2, logits[2], atol=1e-5)


def test_run_leaves_curves_and_a_net_that_can_be_served(corpus: Garments, tmp_path: Path) -> None:
    """A finished run has its plot; its checkpoint evaluates on both sets, and its golden batch is the spec's."""
    run = open_run(tmp_path / "run", SMALL)
    checkpoint = recipe.train(SMALL, run, corpus)
    run.close()
    assert (run.path / "convergence.png").stat().st_size > 5_000
    net = recipe.load_net(checkpoint)
    metrics = recipe.evaluate(net, corpus, out=run.path)
    assert {"validation_accuracy", "test_accuracy", "test_ece", "test_loss"} <= metrics.keys()
    golden = recipe.golden(net, corpus)
    assert {name: (array.dtype.name, array.shape) for name, array in golden.items()} == {
        "image": ("uint8", (32, 28, 28, 1)),
        "probabilities": ("float32", (32, 10)),
    }


def test_figures_that_were_lost_leave_a_gap_in_the_curves(corpus: Garments, tmp_path: Path) -> None:
    """Each of the others stays with its epoch: here of the first net's second, and all of the second net's first."""
    run = open_run(tmp_path / "run", SMALL)
    recipe.train(SMALL, run, corpus)
    run.close()
    whole = recipe.by_epoch(run.stats(), 3, 2)
    rows = recipe.by_epoch([row for row in run.stats() if row["step"] not in (10, 1, 3, 5)], 3, 2)
    assert [row["epoch"] for row in rows] == [1, 2, 1, 2]
    assert [math.isnan(row["validation_accuracy"]) for row in rows] == [False, True, True, False]
    assert [math.isnan(row["train_loss"]) for row in rows] == [False, False, True, False]
    assert (rows[0], rows[3]) == (whole[0], whole[3])
    measures.save_curves(rows, tmp_path / "gap.png", title="a run")
    assert (tmp_path / "gap.png").stat().st_size > 5_000
    measures.save_curves(recipe.by_epoch([], 3, 2), tmp_path / "nothing.png", title="a run")  # nor does losing all
    assert (tmp_path / "nothing.png").is_file()


def test_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    """The message names the file."""
    torch.save({"network": "strips", "average": {}}, tmp_path / "wgan.pt")
    with pytest.raises(BadInput, match=r"wgan\.pt: not the classifier's"):
        recipe.load_net(tmp_path / "wgan.pt")


def test_checkpoint_of_before_is_refused(tmp_path: Path) -> None:
    """One of nets that were trained one after another."""
    torch.save({"network": "residual", "temperature": 1.0, "net": {}, "finished": []}, tmp_path / "last.pt")
    with pytest.raises(BadInput, match=r"last\.pt: made by another version of the residual network; train anew"):
        recipe.load_net(tmp_path / "last.pt")


def test_augmentation_switched_off_changes_nothing() -> None:
    """Byte for byte."""
    picture = torch.rand(4, 1, 28, 28)
    assert torch.equal(recipe.augment(picture, PLAIN, torch.Generator()), picture)


def test_augmentation_moves_within_its_bounds() -> None:
    """A shift of 0.1 moves a dot by up to 2.8 pixels and no further, and moves it differently in each picture."""
    options = dataclasses.replace(PLAIN, shift=0.1)
    picture = torch.zeros(500, 1, 28, 28)
    picture[:, :, 13:15, 13:15] = 1
    moved = recipe.augment(picture, options, torch.Generator().manual_seed(0))[:, 0]
    at = torch.arange(28) + 0.5
    place = (moved.sum(1) * at).sum(1) / moved.sum((1, 2))
    assert (place - 14).abs().max() <= 2.8 + 0.01
    assert (place - 14).abs().max() > 2.5
    assert place.std() == pytest.approx(2.8 / math.sqrt(3), rel=0.1)


def test_rotation_and_shear_keep_the_middle() -> None:
    """Both turn about the middle of the picture: what lies there stays, what lies at the edge moves."""
    options = dataclasses.replace(PLAIN, rotate_deg=20.0, shear_deg=10.0)
    ramp = torch.linspace(0, 1, 28).expand(64, 1, 28, 28)
    turned = recipe.augment(ramp, options, torch.Generator().manual_seed(0))
    assert (turned - ramp)[:, :, 13:15, 13:15].abs().max() < 0.02
    assert (turned - ramp)[:, :, 0].abs().max() > 0.1


def test_crop_moves_by_whole_pixels() -> None:
    """Every picture is the old one moved by -2 to 2 pixels each way, with its edge drawn out; all moves occur."""
    picture = torch.zeros(500, 1, 28, 28)
    picture[:, :, 14, 14] = 1
    moved = recipe.augment(picture, dataclasses.replace(PLAIN, crop=2), torch.Generator().manual_seed(0))
    assert (moved.sum((1, 2, 3)) == 1).all()
    places = {tuple(place.tolist()) for place in moved[:, 0].nonzero()[:, 1:]}
    assert places == {(y, x) for y in range(12, 17) for x in range(12, 17)}
    edge = torch.zeros(50, 1, 28, 28)
    edge[:, :, 0] = 1
    drawn_out = recipe.augment(edge, dataclasses.replace(PLAIN, crop=2), torch.Generator().manual_seed(0))
    assert set(drawn_out.sum((1, 2, 3)).tolist()) <= {0.0, 28.0, 56.0, 84.0}


def test_erasing_strikes_its_share_with_one_gray() -> None:
    """The share asked for loses a rectangle of 6 to 14 pixels a side, filled evenly."""
    picture = torch.full((400, 1, 28, 28), -1.0)
    seen = recipe.augment(picture, dataclasses.replace(PLAIN, erase=0.5), torch.Generator().manual_seed(0))
    holes = seen != -1
    struck = holes.any(3).any(2).any(1)
    assert 150 < struck.sum() < 250
    sizes = holes[struck].sum((1, 2, 3))
    assert (sizes >= 6 * 6).all()
    assert (sizes <= 14 * 14).all()
    assert all(len(image[hole].unique()) == 1 for image, hole in zip(seen[struck], holes[struck], strict=True))


def test_erasing_strikes_each_edge_as_often() -> None:
    """The net is made for pictures and their mirror images: row k and the k-th from below lose the same share, and so
    do columns, within four standard errors of their difference over the pictures."""
    picture = torch.full((20_000, 1, 28, 28), -1.0)
    seen = recipe.augment(picture, dataclasses.replace(PLAIN, erase=0.5), torch.Generator().manual_seed(0))
    holes = (seen[:, 0] != -1).float()
    for share in (holes.mean(2), holes.mean(1)):  # of each row, of each column: (N, 28)
        difference = (share - share.flip(1))[:, :14]
        assert (difference.mean(0).abs() <= 4 * difference.std(0) / len(share) ** 0.5).all(), difference.mean(0)
        assert share.mean(0).min() > 0


def test_temperature_undoes_overconfidence() -> None:
    """Logits that are three times too large get a temperature of three."""
    rng = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 10, generator=rng)
    labels = torch.multinomial(logits.softmax(1), 1, generator=rng)[:, 0].numpy()
    assert recipe.best_temperature(3 * logits, labels) == pytest.approx(3, rel=0.05)


def test_options_say_which_pictures_are_learnt_from(tmp_path: Path) -> None:
    """How many are held out, and from which test set the run is kept."""
    folder = official(tmp_path, TRAIN, TEST)
    corpora = {}
    for anew in (False, True):
        options = Options(corpus=str(folder), validation=0.1, part_anew=anew)
        corpora[anew] = recipe.load_corpus(options)
        assert same(corpora[anew], fashion_mnist.load(folder, validation=0.1, part_anew=anew))
    assert not same(*corpora.values())
    assert PRESETS["default"].part_anew is False


def test_muon_trains_the_kernels_that_see_more_than_the_picture() -> None:
    """All but the first, each once; AdamW has the rest, and everything where Muon's rate is 0."""
    for rate in (0.0, 0.01):
        net = recipe.NETWORKS["residual"]()
        optimizers = recipe.make_optimizers(net, dataclasses.replace(PLAIN, muon_lr=rate, lr=0.02))
        adams = {id(p) for group in optimizers["adam"].param_groups for p in group["params"]}
        kernels = {id(p) for p in net.parameters() if p.ndim == 4 and p.shape[1] > 1} if rate else set()
        assert adams == {id(p) for p in net.parameters()} - kernels
        assert {name: o.param_groups[0]["initial_lr"] for name, o in optimizers.items()} == (
            {"adam": 0.02, "muon": 0.01} if rate else {"adam": 0.02}
        )
        muon = optimizers.get("muon")
        assert {id(k) for k in (muon.kernels if isinstance(muon, Muon) else [])} == kernels


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_turns_a_kernels_step_into_an_orthogonal_matrix(layout: torch.memory_format) -> None:
    """As a matrix (c_out, the rest) the step's singular values are about equal, however unlike the gradient's are, and
    its elements are as large as 0.2 of the learning rate; weight decay takes its share off the kernel besides."""
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(8, 4, 3, 3).contiguous(memory_format=layout))
    before = kernel.detach().clone()
    scale = torch.logspace(0, -2, 8)[:, None, None, None]
    (kernel * torch.randn(8, 4, 3, 3) * scale).sum().backward()
    Muon([kernel], lr=0.1, weight_decay=0.5).step()
    step = before * (1 - 0.1 * 0.5) - kernel.detach()
    values = torch.linalg.svdvals(step.flatten(1))
    assert kernel.grad is not None
    gradients = torch.linalg.svdvals(kernel.grad.flatten(1))
    assert gradients.max() / gradients.min() > 20
    assert values.max() / values.min() < 3
    assert step.square().mean().sqrt() == pytest.approx(0.2 * 0.1, rel=0.2)
    assert (step * kernel.grad).sum() > 0  # downhill


def test_learning_rate_rises_and_falls_to_nearly_nothing() -> None:
    """A line up during the warm-up, then a cosine down; without warm-up it stays."""
    rates = [recipe.lr_multiplier(step, 1000, 0.2) for step in range(1000)]
    assert max(rates) == rates[199] == pytest.approx(1)
    assert np.all(np.diff(rates[:200]) > 0)
    assert np.all(np.diff(rates[199:]) < 0)
    assert rates[-1] == pytest.approx(0, abs=1e-9)
    assert {recipe.lr_multiplier(step, 10, 0.0) for step in range(10)} == {1.0}


@pytest.mark.parametrize(
    ("preset", "network", "epochs"), [("one-conv", "one-conv", 10), ("four-conv", "four-conv", 10)]
)
def test_source_presets_are_the_sources(preset: str, network: str, epochs: int) -> None:
    """Batches of 256, plain Adam, whose learning rate the source leaves open; its augmentation where that is asked
    for."""
    source, augmented = PRESETS[preset], PRESETS[f"{preset}-augmented"]
    assert (source.network, source.epochs, source.batch, source.nets) == (network, epochs, 256, 1)
    assert (source.weight_decay, source.label_smoothing, source.muon_lr) == (0, 0, 0)
    assert source.validation == 0.2
    assert not any((source.crop, source.rotate_deg, source.shift, source.shear_deg, source.zoom, source.erase))
    assert AUGMENTED == {"rotate_deg": 8.0, "shift": 0.08, "shear_deg": 0.3, "zoom": 0.08}
    assert augmented == dataclasses.replace(source, epochs=50, lr=augmented.lr, **AUGMENTED)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0), ("batch", 1), ("pictures", -1), ("network", "big"), ("lr", float("nan")), ("warm_up", 1.0),
        ("weight_decay", -1.0), ("muon_lr", float("inf")), ("rotate_deg", float("inf")), ("erase", 1.5),
        ("shift", float("nan")), ("validation", 0.0), ("validation", 1.0), ("validation", 2.0), ("seed", 2**64),
        ("seed", 2**63), ("seed", -(2**63)),
    ],
)  # fmt: skip
def test_options_that_cannot_be_name_their_flag(field: str, value: object) -> None:
    """Each refusal names the flag."""
    with pytest.raises(BadInput, match=f"--{field.replace('_', '-')}"):
        dataclasses.replace(PRESETS["tiny"], **{field: value})
