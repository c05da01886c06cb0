"""The recipe: options, penalty, average, learning rate, and a resume that changes nothing."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from training.data.corpus import Corpus
from training.errors import BadInput
from training.models.wgan import train as recipe
from training.models.wgan.train import PRESETS, Options
from training.rundir import RunDir, Stopped

SMALL = dataclasses.replace(PRESETS["tiny"], pictures=16, batch=2, rows=1, columns=2)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return recipe.load_corpus(SMALL)


def open_run(path: Path, options: Options, *, resume: bool = False) -> RunDir:
    return RunDir(path, model="wgan", preset="tiny", options=options, corpus={"name": "lines"}, resume=resume)


def fingerprint(checkpoint: Path) -> dict[str, str]:
    """A hash of every tensor in a checkpoint, by its place."""
    found: dict[str, str] = {}

    def walk(place: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{place}/{key}", inner)
        elif isinstance(value, list | tuple):
            for key, inner in enumerate(value):
                walk(f"{place}/{key}", inner)
        elif isinstance(value, torch.Tensor):
            found[place] = hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()

    walk("", torch.load(checkpoint, weights_only=True))
    return found


def test_resumed_run_equals_the_unbroken_one_bit_for_bit(corpus: Corpus, tmp_path: Path) -> None:
    """Stopped after a step and resumed it has the same weights, optimiser and random states, and the same figures."""
    options = dataclasses.replace(SMALL, steps=3)
    whole = open_run(tmp_path / "whole", options)
    recipe.train(options, whole, corpus)

    broken = open_run(tmp_path / "broken", options)
    broken.stop()
    with pytest.raises(Stopped):
        recipe.train(options, broken, corpus)
    broken.close()
    resumed = open_run(tmp_path / "broken", options, resume=True)
    recipe.train(options, resumed, corpus)

    assert fingerprint(resumed.last) == fingerprint(whole.last)
    assert resumed.stats() == whole.stats()
    assert [row["step"] for row in whole.stats()] == [0, 1, 2]
    whole.close()
    resumed.close()


def test_run_starts_from_learnt_weights(corpus: Corpus, tmp_path: Path) -> None:
    """--init takes every weight and optimiser state over, with the options' betas, counts its own steps, and tells the
    story in options.json."""
    first = open_run(tmp_path / "first", SMALL)
    recipe.train(SMALL, first, corpus)
    first.close()
    # A learning rate so small that one step moves nothing that float32 can hold.
    still = dataclasses.replace(
        SMALL, init=str(first.last), steps=1, generator_lr=1e-30, critic_lr=1e-30, ema=1.0, beta1=0.5, beta2=0.9
    )
    second = open_run(tmp_path / "second", still)
    recipe.train(still, second, corpus)
    second.close()
    before, after = fingerprint(first.last), fingerprint(second.last)
    weights = [place for place in before if place.startswith(("/generator/", "/critic/", "/average/"))]
    assert weights
    assert {place: before[place] for place in weights} == {place: after[place] for place in weights}
    assert second.made_by["started_from"]["options"]["steps"] == SMALL.steps
    assert len(second.stats()) == 1
    state = torch.load(second.last, weights_only=True)
    assert [state[f"{net}_adam"]["param_groups"][0]["betas"] for net in ("generator", "critic")] == [(0.5, 0.9)] * 2


def test_run_does_not_start_from_another_network(corpus: Corpus, tmp_path: Path) -> None:
    """--init names the network that the checkpoint is of."""
    torch.save({"network": "source", "average": {}}, tmp_path / "source.pt")
    options = dataclasses.replace(SMALL, init=str(tmp_path / "source.pt"))
    run = open_run(tmp_path / "run", options)
    with pytest.raises(BadInput, match="of the source network"):
        recipe.train(options, run, corpus)
    run.close()


@pytest.mark.parametrize("without", ["weight", "adam"])
def test_run_does_not_start_from_another_version_of_its_network(without: str, corpus: Corpus, tmp_path: Path) -> None:
    """One line names the checkpoint that lacks what this version has."""
    first = open_run(tmp_path / "first", SMALL)
    recipe.train(SMALL, first, corpus)
    first.close()
    state = torch.load(first.last, weights_only=True)
    del (state if without == "adam" else state["critic"])[{"adam": "critic_adam", "weight": "score.0.weight"}[without]]
    torch.save(state, tmp_path / "old.pt")
    options = dataclasses.replace(SMALL, init=str(tmp_path / "old.pt"))
    run = open_run(tmp_path / "run", options)
    with pytest.raises(BadInput, match=r"old\.pt: made by another version of the strips network; train anew"):
        recipe.train(options, run, corpus)
    run.close()


def test_run_leaves_what_the_reader_needs(corpus: Corpus, tmp_path: Path) -> None:
    """A finished run holds its options, a line per step, grids of the chosen size and a convergence plot."""
    from PIL import Image

    run = open_run(tmp_path / "run", SMALL)
    recipe.train(SMALL, run, corpus)
    run.close()
    assert {"step", "critic_loss", "real", "fake", "penalty", "generator_loss"} == set(run.stats()[0])
    assert [p.name for p in sorted((run.path / "samples").iterdir())] == ["000002.png", "000004.png"]
    with Image.open(run.path / "samples" / "000004.png") as grid:
        assert grid.size == (2 * 130 + 2, 130 + 2)
    with Image.open(run.path / "convergence.png") as plot:
        assert plot.width > 600


def test_penalty_is_zero_exactly_where_the_slope_is_one() -> None:
    """A critic that sums pixels, scaled to slope 1, pays nothing; at slope 3 it pays (3 - 1) squared."""

    class Slope(torch.nn.Module):
        def __init__(self, slope: float) -> None:
            super().__init__()
            self.slope = slope

        def forward(self, picture: torch.Tensor) -> torch.Tensor:
            flat = picture.flatten(1)
            return self.slope * flat.sum(1) / flat.shape[1] ** 0.5

    picture = torch.rand(4, 3, 8, 8)
    assert recipe.gradient_penalty(Slope(1.0), picture, bf16=False).item() == pytest.approx(0, abs=1e-10)
    assert recipe.gradient_penalty(Slope(3.0), picture, bf16=False).item() == pytest.approx(4, rel=1e-5)


def test_ema_moves_towards_weights_and_copies_buffers() -> None:
    """By 1 - decay of what is between; batch norm's statistics are the net's own at once."""
    net, ema = torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2)
    with torch.no_grad():
        net.weight.fill_(3.0)
        net.running_mean.fill_(5.0)
    recipe.update_ema(ema, net, decay=0.5)
    assert ema.weight.tolist() == [2.0, 2.0]
    assert ema.running_mean.tolist() == [5.0, 5.0]


def test_learning_rate_rises_holds_and_falls_to_nearly_nothing() -> None:
    """The default: warm-up over 20 steps, a plateau until half, a line towards zero. `seed` never changes it."""
    options = PRESETS["default"]
    rates = [recipe.lr_multiplier(step, options) for step in range(options.steps)]
    assert rates[0] == pytest.approx(1 / 20)
    assert set(rates[20 : options.steps // 2]) == {1.0}
    assert np.all(np.diff(rates[options.steps // 2 :]) < 0)
    assert 0 < rates[-1] < 0.01
    assert {recipe.lr_multiplier(step, PRESETS["seed"]) for step in range(1200)} == {1.0}


def test_seed_preset_is_the_sources() -> None:
    """The options that the source names, and none of ours."""
    seed = PRESETS["seed"]
    assert (seed.network, seed.batch, seed.critic_steps, seed.steps, seed.pictures) == ("source", 16, 5, 1200, 10_000)
    assert (seed.generator_lr, seed.critic_lr, seed.beta1, seed.gradient_penalty) == (2e-4, 2e-4, 0.5, 10.0)
    assert (seed.drift, seed.ema, seed.decay_from) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("batch", -1), ("columns", 0), ("network", "big"), ("ema", 1.5), ("generator_lr", float("nan")),
     ("seed", -1), ("seed", 2**64), ("beta1", 1.0), ("beta2", 1.0), ("drift", -5.0), ("drift", float("nan"))],
)  # fmt: skip
def test_options_that_cannot_be_name_their_flag(field: str, value: object) -> None:
    """Each refusal names the flag."""
    with pytest.raises(BadInput, match=f"--{field.replace('_', '-')}"):
        dataclasses.replace(PRESETS["tiny"], **{field: value})


def test_golden_batch_is_named_as_on_the_wire(corpus: Corpus) -> None:
    """The golden batch holds the spec's tensors and nothing else."""
    generator = recipe.NETWORKS["strips"][0]().eval()
    golden = recipe.golden(generator, corpus)
    assert {name: (array.dtype.name, array.shape) for name, array in golden.items()} == {
        "latent": ("float32", (4, 100)),
        "image": ("uint8", (4, 128, 128, 3)),
    }
