"""The measures tell good pictures from bad: each kind of bad generator fails the measure that is there to catch it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from training.data import lines
from training.data.corpus import Corpus, load
from training.models.wgan import evaluate as measures

COUNT = 400
SEED = 99  # of the pictures judged; neither the training set's nor the held-out ones'

# An eighth of the directions tells good from bad as well; the full number is for figures to quote.
evaluate = partial(measures.evaluate, projections=64)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load("lines", count=1000, seed=0)


def real(corpus: Corpus) -> np.ndarray:
    return lines.draw(COUNT, seed=SEED)


def noise(corpus: Corpus) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, 128, 128, 3), np.uint8)


def one_picture(corpus: Corpus) -> np.ndarray:
    return np.repeat(lines.draw(1, seed=SEED), COUNT, axis=0)


def ten_pictures(corpus: Corpus) -> np.ndarray:
    return np.tile(lines.draw(10, seed=SEED), (COUNT // 10, 1, 1, 1))


def training_pictures(corpus: Corpus) -> np.ndarray:
    return corpus.images[:COUNT]


def softened_copies(corpus: Corpus) -> np.ndarray:
    return gaussian_filter(corpus.images[:COUNT], (0, 0.6, 0.6, 0))


def blurred(corpus: Corpus) -> np.ndarray:
    return gaussian_filter(real(corpus), (0, 2, 2, 0))


def gray(corpus: Corpus) -> np.ndarray:
    return np.repeat(real(corpus).max(3, keepdims=True) // 3 * 2, 3, axis=3)


def one_color(corpus: Corpus) -> np.ndarray:
    positions, colors = lines.truth(COUNT, seed=SEED)
    return lines.paint(positions, np.full_like(colors, 2))


def black(corpus: Corpus) -> np.ndarray:
    return np.zeros((COUNT, 128, 128, 3), np.uint8)


def second_line_moved(corpus: Corpus) -> np.ndarray:
    positions, colors = lines.truth(COUNT, seed=SEED)
    return lines.paint(positions + np.array((0, 0, 6)), colors)


def in_the_middle(corpus: Corpus) -> np.ndarray:
    positions, colors = lines.truth(COUNT, seed=SEED)
    positions[:, :2] = 64 + (positions[:, :2] - 64) // 3
    return lines.paint(positions, colors)


def one_line_missing(corpus: Corpus) -> np.ndarray:
    positions, colors = lines.truth(COUNT, seed=SEED)
    positions[:, 1] = positions[:, 2]
    return lines.paint(positions, colors)


def one_line_too_many(corpus: Corpus) -> np.ndarray:
    pictures = real(corpus)
    positions, _ = lines.truth(COUNT, seed=SEED)
    # 30 columns to the right of the vertical, or to its left, where there is room
    extra = np.where(positions[:, 0] < 64, positions[:, 0] + 30, positions[:, 0] - 30)
    pictures.swapaxes(1, 2)[np.arange(COUNT)[:, None], extra[:, None] + np.arange(5)] = 255
    return pictures


def slanted(corpus: Corpus) -> np.ndarray:
    sheared = real(corpus)
    for row in range(128):  # 8 pixels to the side over the height
        sheared[:, row] = np.roll(sheared[:, row], row // 16, axis=1)
    return sheared


def half_lines(corpus: Corpus) -> np.ndarray:
    pictures = real(corpus)
    pictures[:, 64:] = 0
    return pictures


def dirty(corpus: Corpus) -> np.ndarray:
    pictures = real(corpus)
    pictures[:, ::8, ::8] = np.maximum(pictures[:, ::8, ::8], 80)  # a dot in every 64 pixels
    return pictures


@pytest.fixture(scope="module")
def scores(corpus: Corpus) -> Callable[[Callable[[Corpus], np.ndarray]], dict[str, float]]:
    known: dict[str, dict[str, float]] = {}

    def score(generator: Callable[[Corpus], np.ndarray]) -> dict[str, float]:
        if generator.__name__ not in known:
            known[generator.__name__] = evaluate(generator(corpus), corpus)
        return known[generator.__name__]

    return score


def test_real_pictures_score_well_on_everything(scores) -> None:
    """Pictures of the same program that no one trained on are as good as can be, on every measure."""
    good = scores(real)
    assert 0.75 < good["sliced_wasserstein_ratio"] < 1.35
    assert 0.9 < good["nearest_ratio"] < 1.1
    assert 0.9 < good["spread_ratio"] < 1.1
    assert good["structure"] >= 0.97
    assert good["structure_real"] >= 0.97
    assert good["palette"] == 1
    assert max(good["vertical_px"], good["free_px"]) < 4
    assert good["fixed_px"] < 0.3
    assert good["colors_tv"] < 0.08
    assert good["copies"] < 0.01
    assert good["copies_real"] < 0.01


@pytest.mark.parametrize(
    ("generator", "measure", "bad"),
    [
        (noise, "sliced_wasserstein_ratio", lambda x: x > 10),
        (noise, "structure", lambda x: x == 0),
        (noise, "palette", lambda x: x < 0.2),
        (noise, "vertical_px", lambda x: x == 128),
        (noise, "colors_tv", lambda x: x == 1),
        (one_picture, "sliced_wasserstein_ratio", lambda x: x > 8),
        (one_picture, "spread_ratio", lambda x: x < 0.01),
        (one_picture, "vertical_px", lambda x: x > 20),
        (one_picture, "colors_tv", lambda x: x > 0.6),
        (ten_pictures, "sliced_wasserstein_ratio", lambda x: x > 2),
        (ten_pictures, "spread_ratio", lambda x: x < 0.01),
        (training_pictures, "nearest_ratio", lambda x: x < 0.01),
        (training_pictures, "copies", lambda x: x == 1),
        (softened_copies, "copies", lambda x: x > 0.95),
        (softened_copies, "nearest_ratio", lambda x: x < 0.5),
        (blurred, "sliced_wasserstein_ratio", lambda x: x > 2),
        (blurred, "structure", lambda x: x < 0.3),
        (blurred, "palette", lambda x: x < 0.5),
        (gray, "sliced_wasserstein_ratio", lambda x: x > 1.8),
        (gray, "palette", lambda x: x < 0.05),
        (one_color, "sliced_wasserstein_ratio", lambda x: x > 3),
        (one_color, "colors_tv", lambda x: 0.7 < x < 0.8),
        (black, "sliced_wasserstein_ratio", lambda x: x > 8),
        (black, "structure", lambda x: x == 0),
        (black, "palette", lambda x: x == 0),
        (second_line_moved, "fixed_px", lambda x: x > 4),
        (second_line_moved, "sliced_wasserstein_ratio", lambda x: x > 3),
        (in_the_middle, "vertical_px", lambda x: x > 10),
        (in_the_middle, "free_px", lambda x: x > 10),
        (one_line_missing, "structure", lambda x: x == 0),
        (one_line_too_many, "structure", lambda x: x == 0),
        (slanted, "structure", lambda x: x == 0),
        (half_lines, "structure", lambda x: x == 0),
        (dirty, "structure", lambda x: x == 0),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", "").replace("<lambda>", "bad"),
)
def test_a_bad_generator_fails_what_should_catch_it(scores, generator, measure: str, bad) -> None:
    """Far from what real pictures score on the same measure."""
    assert bad(scores(generator)[measure]), (measure, scores(generator))


@pytest.mark.parametrize("generator", [real, noise, black, one_picture])
def test_scores_are_finite_and_fit_in_a_card(scores, generator) -> None:
    """JSON has no NaN and no infinity; the names don't depend on the pictures."""
    score = scores(generator)
    assert all(math.isfinite(value) for value in score.values())
    assert json.loads(json.dumps(score, allow_nan=False)) == score
    assert score.keys() == scores(real).keys()


def test_the_same_pictures_score_the_same(scores, corpus: Corpus) -> None:
    """Chance in the measures has a fixed seed."""
    assert evaluate(real(corpus), corpus) == scores(real)


def test_the_finder_finds_what_was_drawn() -> None:
    """Where it sees three lines, positions and colours are the drawn ones, overlaps included."""
    (positions, colors), images = lines.truth(3000, seed=5), lines.draw(3000, seed=5)
    seen = measures.find_lines(images)
    # It sees all but those whose horizontals lie exactly behind one another.
    assert np.array_equal(seen.found, positions[:, 1] != positions[:, 2])
    overlapping = seen.found & (np.abs(positions[:, 1] - positions[:, 2]) <= 5)
    assert overlapping.sum() > 100
    # "fixed" is whichever is nearer to 48: sort both truths that way; of two equally near the upper one is taken
    swap = np.abs(positions[:, 1] - 48) < np.abs(positions[:, 2] - 48)
    tie = np.abs(positions[:, 1] - 48) == np.abs(positions[:, 2] - 48)
    order = np.where(swap[:, None], [0, 2, 1], [0, 1, 2])
    sure = seen.found & ~tie
    assert np.array_equal(seen.positions[sure], np.take_along_axis(positions, order, 1)[sure])
    assert np.array_equal(seen.colors[sure], np.take_along_axis(colors, order, 1)[sure])


@pytest.mark.parametrize("apart", [1, 2, 3, 4, 5, 6, 9])
def test_two_horizontals_are_two_however_close(apart: int) -> None:
    """One or more rows apart, of one colour or of two, they count as two lines."""
    colors = np.array([(0, a, b) for a in range(4) for b in range(4)])
    images = lines.paint(np.tile([60, 70, 70 + apart], (16, 1)), colors)
    seen = measures.find_lines(images)
    assert seen.found.all()
    assert {tuple(sorted(p[1:])) for p in seen.positions} == {(70, 70 + apart)}


def test_a_corpus_without_a_known_truth_gets_the_measures_that_need_none() -> None:
    """For Schotter: real is good, noise and copies are bad, and nothing is said of lines."""
    corpus = load("schotter", count=200, seed=0)
    good = evaluate(load("schotter", count=100, seed=1).images, corpus)
    assert good.keys() == {"sliced_wasserstein_ratio", "nearest_ratio", "spread_ratio"}
    assert good["sliced_wasserstein_ratio"] < 1.6
    assert 0.9 < good["nearest_ratio"] < 1.1
    assert 0.9 < good["spread_ratio"] < 1.1
    assert evaluate(corpus.images[:100], corpus)["nearest_ratio"] < 0.01
    assert evaluate(noise(corpus)[:100], corpus)["sliced_wasserstein_ratio"] > 10


def test_a_corpus_of_one_repeated_picture_still_has_finite_scores() -> None:
    """A user's folder of equal pictures divides by nothing."""
    picture = lines.draw(1, seed=0)
    corpus = Corpus("mine", np.repeat(picture, 20, axis=0), np.repeat(picture, 5, axis=0), sha256="")
    assert all(math.isfinite(value) for value in evaluate(real(corpus)[:20], corpus).values())


@pytest.mark.parametrize("name", ["lines", "cubic_limit"])
def test_the_report_is_a_picture_and_replaces_the_one_before(name: str, tmp_path: Path) -> None:
    """Of a corpus with known truth and of one without; nothing else is left in the run directory."""
    corpus = load(name, count=60, seed=0)
    for generated in (corpus.held_out, np.zeros_like(corpus.held_out)):
        measures.report(generated, corpus, tmp_path / "report.png")
        with Image.open(tmp_path / "report.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 20
    assert [file.name for file in tmp_path.iterdir()] == ["report.png"]
