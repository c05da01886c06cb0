"""The classifier's measures on cases worked out by hand, and the pictures that a run leaves behind."""

from __future__ import annotations

import json
import math
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from training import plots
from training.models.classifier import evaluate as measures
from training.models.classifier.evaluate import measure
from training.models.classifier.spec import CLASSES


def sure(of: list[int], by: list[float]) -> np.ndarray:
    """Answers that give a class a probability, and the other nine equal parts of the rest."""
    probabilities = np.repeat((1 - np.array(by))[:, None] / 9, 10, axis=1)
    probabilities[np.arange(len(of)), of] = by
    return probabilities


def answers(count: int, *, seed: int = 0, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, 10) and labels drawn by just these; a temperature below 1 then makes them too sure."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, 10))

    def softmax(z: np.ndarray) -> np.ndarray:
        return np.exp(z) / np.exp(z).sum(1, keepdims=True)

    labels = (softmax(logits).cumsum(1) > rng.random((count, 1))).argmax(1)
    return softmax(logits / temperature), labels


# --- measures ------------------------------------------------------------------------------------------


def test_accuracy_is_the_share_of_right_answers_in_all_and_by_class() -> None:
    """Three of four: both shirts right, one bag of two; of the classes that are not there nothing is said."""
    metrics = measure(sure([6, 6, 8, 0], [0.9, 0.6, 0.8, 0.7]), np.array([6, 6, 8, 8]))
    shares = {name: value for name, value in metrics.items() if name.startswith("accuracy")}
    assert shares == {"accuracy": 0.75, "accuracy_shirt": 1.0, "accuracy_bag": 0.5}


def test_every_class_has_a_name_of_its_own() -> None:
    """Names that do in JSON, on a command line and in a query: small letters and underscores."""
    metrics = measure(*answers(1000))
    assert list(metrics) == [
        "accuracy", "loss", "ece", "accuracy_t_shirt_top", "accuracy_trouser", "accuracy_pullover", "accuracy_dress",
        "accuracy_coat", "accuracy_sandal", "accuracy_shirt", "accuracy_sneaker", "accuracy_bag", "accuracy_ankle_boot",
    ]  # fmt: skip
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_loss_is_the_mean_cross_entropy_of_the_truth() -> None:
    """-log of what the right class was given, averaged."""
    metrics = measure(sure([3, 3], [0.5, 0.25]), np.array([3, 3]))
    assert metrics["loss"] == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_a_truth_held_impossible_costs_much_but_not_infinitely() -> None:
    """As Keras has it, 0 counts as 1e-7."""
    assert measure(sure([3], [1.0]), np.array([4]))["loss"] == pytest.approx(-math.log(1e-7))


@pytest.mark.parametrize(
    ("of", "by", "labels", "expected"),
    [
        pytest.param([1, 2, 3], [1.0, 1.0, 1.0], [1, 2, 3], 0.0, id="sure and right"),
        pytest.param([1, 2, 3], [1.0, 1.0, 1.0], [2, 3, 4], 1.0, id="sure and wrong"),
        pytest.param([1] * 5, [0.8] * 5, [1, 1, 1, 1, 2], 0.0, id="80% sure, 4 of 5 right"),
        pytest.param([1] * 4, [0.9] * 4, [1, 1, 2, 2], 0.4, id="90% sure, half right"),
        pytest.param([1] * 4, [0.3] * 4, [1, 1, 1, 2], 0.45, id="30% sure, 3 of 4 right"),
        # two bins: 4 answers 0.5 off, 1 answer 0.3 off
        pytest.param([1] * 5, [1.0] * 4 + [0.3], [1, 1, 2, 2, 2], (4 * 0.5 + 0.3) / 5, id="weighted by answers"),
        # one bin, (14/15, 1]: 0.98 and 0.94 are 0.96 on average, which is 0.46 above a half
        pytest.param([1, 1], [0.98, 0.94], [1, 2], 0.46, id="averaged within a bin"),
        # two bins, either side of 14/15: 0.03 under, 0.93 over
        pytest.param([1, 1], [0.97, 0.93], [1, 2], (0.03 + 0.93) / 2, id="not across bins"),
    ],
)
def test_calibration_error_by_hand(of: list[int], by: list[float], labels: list[int], expected: float) -> None:
    """Within each fifteenth, how far mean sureness is from the share of right answers; averaged over answers."""
    assert measure(sure(of, by), np.array(labels))["ece"] == pytest.approx(expected)


@pytest.mark.parametrize("step", range(2, 16))
def test_a_bin_has_its_upper_edge_and_not_its_lower(step: int) -> None:
    """(m/15, (m+1)/15], as in the paper: exactly m/15 belongs to the bin below."""
    probabilities = np.zeros((1, 10))
    probabilities[0, 0] = np.linspace(0, 1, 16)[step]
    bins = measures.reliability(probabilities, np.array([0]))
    assert bins.counts.argmax() == step - 1


def test_labels_drawn_by_the_probabilities_are_calibrated_and_sharper_ones_are_not() -> None:
    """What is as sure as right is within chance of 0; the same answers at half the temperature are too sure by far."""
    assert measure(*answers(40_000))["ece"] < 0.01
    sharp = measure(*answers(40_000, temperature=0.5))
    assert sharp["ece"] > 0.1
    assert sharp["accuracy"] == measure(*answers(40_000))["accuracy"]


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Any probabilities, zeros and ties among them, with any labels; in the precision that is served, or in double."""
    count = draw(st.integers(1, 30))
    weights = draw(arrays.arrays(np.float64, (count, 10), elements=st.sampled_from([0.0, 1e-9, 0.1, 0.5, 1.0, 7.0])))
    weights[weights.sum(1) == 0, 3] = 1
    probabilities = (weights / weights.sum(1, keepdims=True)).astype(draw(st.sampled_from([np.float32, np.float64])))
    return probabilities, draw(arrays.arrays(np.uint8, count, elements=st.integers(0, 9)))


@given(cases())
@settings(max_examples=100, deadline=None)
def test_measures_stay_within_their_ranges(case: tuple[np.ndarray, np.ndarray]) -> None:
    """Shares within 0 and 1, loss from 0 to -log 1e-7; accuracy is the mean of its classes, weighted."""
    probabilities, labels = case
    metrics = measure(probabilities, labels)
    assert 0 <= metrics["loss"] <= -math.log(1e-7) + 1e-9
    shares = {name: value for name, value in metrics.items() if name != "loss"}
    assert all(0 <= value <= 1 + 1e-6 for value in shares.values())
    counts = np.bincount(labels, minlength=10)
    parts = [n * metrics[f"accuracy_{measures.slug(c)}"] for n, c in zip(counts, CLASSES, strict=True) if n]
    assert sum(parts) / len(labels) == pytest.approx(metrics["accuracy"])
    # No binning can be further off than sureness and accuracy are from one another in all.
    assert metrics["ece"] >= abs(float(probabilities.max(1).mean()) - metrics["accuracy"]) - 1e-5


@given(cases(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_the_pictures_does_not_matter(case: tuple[np.ndarray, np.ndarray], random: object) -> None:
    """Answers in another order, or all of them twice, measure the same."""
    probabilities, labels = case
    order = np.random.default_rng(random.randrange(1 << 30)).permutation(len(labels))  # type: ignore[attr-defined]
    expected = pytest.approx(measure(probabilities, labels), abs=1e-6)
    assert measure(probabilities[order], labels[order]) == expected
    assert measure(np.repeat(probabilities, 2, axis=0), np.repeat(labels, 2)) == expected


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        pytest.param(np.zeros((0, 10)), np.zeros(0, int), id="nothing"),
        pytest.param(sure([1, 2], [0.9, 0.9]), np.array([1]), id="one label for two"),
        pytest.param(np.full((2, 9), 1 / 9), np.array([1, 2]), id="nine classes"),
        pytest.param(np.log(sure([1, 2], [0.9, 0.9])), np.array([1, 2]), id="logarithms"),
        pytest.param(np.full((1, 10), math.nan), np.array([1]), id="not a number"),
    ],
)
def test_what_are_no_probabilities_is_not_measured(probabilities: np.ndarray, labels: np.ndarray) -> None:
    """A wrong shape, logits for probabilities or NaN stop at once, rather than give figures that mean nothing."""
    with pytest.raises(AssertionError):
        measure(probabilities, labels)


def test_wilsons_interval_holds_the_share_and_stays_within_0_and_1() -> None:
    """Wilson's interval: for 8 of 10 known values; for none or all right still a range; tighter with more answers."""
    right, count = np.array([8.0, 0, 3, 800]), np.array([10.0, 4, 3, 1000])
    low, high = measures.wilson_interval(right, count)
    assert (low[0], high[0]) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert np.all((low >= -1e-12) & (low <= right / count + 1e-12))
    assert np.all((right / count - 1e-12 <= high) & (high <= 1 + 1e-12))
    assert high[3] - low[3] < 0.06 < 0.4 < high[1] - low[1]


def test_the_confusion_matrix_counts_what_is_taken_for_what() -> None:
    """Rows are what it is, columns what the model says; also for labels of a byte."""
    counts = measures.confusion(np.array([9, 9, 9, 0], np.uint8), sure([9, 7, 7, 0], [0.9] * 4))
    assert (counts[9, 9], counts[9, 7], counts[0, 0], counts.sum()) == (1, 2, 1, 4)


# --- pictures ------------------------------------------------------------------------------------------

REPORT = ("calibration.png", "confusion.png", "mistakes.png")


def widths(folder: Path) -> dict[str, tuple[int, int]]:
    sizes = {}
    for path in folder.iterdir():
        with Image.open(path) as picture:
            picture.load()
            sizes[path.name] = picture.size
    return sizes


@pytest.mark.parametrize(
    "count",
    [pytest.param(1, id="one picture"), pytest.param(300, id="300 pictures")],
)
@pytest.mark.parametrize("right", [pytest.param(True, id="all right"), pytest.param(False, id="many wrong")])
def test_a_report_is_three_pictures(count: int, right: bool, tmp_path: Path) -> None:
    """Legible PNG files under their names and nothing beside, also of one answer, and where there is no mistake."""
    probabilities, labels = answers(count, seed=1)
    if right:
        labels = probabilities.argmax(1)
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
    measures.report(images, labels.astype(np.uint8), probabilities.astype(np.float32), tmp_path)
    sizes = widths(tmp_path)
    assert sorted(sizes) == sorted(REPORT)
    assert min(width for width, _ in sizes.values()) > 700


def texts(figure: object) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda part: hasattr(part, "get_text"))]  # type: ignore[attr-defined]


def test_the_surest_mistakes_come_first() -> None:
    """Each with what it is, what the model says and how sure, never 100%; right answers are left out."""
    probabilities = sure([0, 1, 2, 3, 4], [0.6, 0.99999, 0.9, 0.8, 0.995])
    labels = np.array([5, 6, 2, 7, 8])
    images = np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((28, 28), np.uint8)
    figure = measures.draw_mistakes(images, labels, probabilities, columns=2, rows=2)
    (axes,) = figure.axes
    sheet = np.asarray(axes.images[0].get_array())
    assert [[int(sheet[y, x]) for x in (15, 45)] for y in (25, 64)] == [[1, 4], [3, 0]]
    assert all((sheet == k).sum() == 28 * 28 for k in (0, 1, 3, 4))
    assert [text.get_text() for text in axes.texts] == [
        "Shirt", "Trouser >99.9%", "Bag", "Coat 99.5%", "Sneaker", "Dress 80.0%", "Sandal", "T-shirt/top 60.0%",
    ]  # fmt: skip
    assert "the surest of 4 mistakes among 5 pictures" in figure.get_suptitle()


def test_the_confusion_picture_says_what_the_matrix_says() -> None:
    """Shares of each row; nothing where nothing is; 100 only where it is all of them."""
    labels = np.repeat([0, 1, 2], [1000, 200, 10])
    said = labels.copy()
    said[:3], said[1000:1024] = 6, 3
    shown = texts(measures.draw_confusion(labels, sure(said.tolist(), [0.9] * len(said))))
    assert {"99.7", "0.3", "88", "12", "100"} <= set(shown)
    assert "97.77% of 1,210 right; in % of each row" in shown
    assert not {"0", "0.0", "nan"} & set(shown)


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    """A file is written whole or not at all, and in the old one's place only when it is: here room runs out."""
    (tmp_path / "confusion.png").write_bytes(b"the old one")
    figure = measures.draw_confusion(*reversed(answers(100)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            plots.save(figure, tmp_path / "confusion.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]
    assert (tmp_path / "confusion.png").read_bytes() == b"the old one"


def epochs(count: int, *, diverges: bool = False) -> list[dict[str, float]]:
    row = {"train_accuracy": 0.9, "train_loss": 0.3, "validation_accuracy": 0.92, "validation_loss": 0.25}
    rows = [{"epoch": k + 1, **{name: value - 0.2 / (k + 1) for name, value in row.items()}} for k in range(count)]
    for late in rows[count // 2 :] if diverges else ():
        late["train_loss"] = late["validation_loss"] = math.nan
    return rows


@pytest.mark.parametrize("count", [1, 2, 10, 50])
@pytest.mark.parametrize("diverges", [False, True], ids=["", "diverges"])
def test_curves_are_drawn_for_any_run(count: int, diverges: bool, tmp_path: Path) -> None:
    """One epoch or fifty; also of a run whose loss is lost, for that is when one wants to see it."""
    measures.save_curves(epochs(count, diverges=diverges), tmp_path / "convergence.png", title="a run")
    assert list(widths(tmp_path)) == ["convergence.png"]


def test_the_curves_name_the_best_validation() -> None:
    """The epoch with the highest accuracy and that with the lowest loss, each with its figure."""
    rows = epochs(12)
    rows[6]["validation_accuracy"], rows[3]["validation_loss"] = 0.9512, 0.0123
    for name, best, said in (("accuracy", max, "95.12%, epoch 7"), ("loss", min, "0.012, epoch 4")):
        axes = measures.Figure().subplots()
        measures.draw_curves(axes, rows, name, best=best)
        assert f"best validation: {said}" in texts(axes)
        assert {"training", "validation"} <= set(texts(axes))


@pytest.mark.parametrize(
    ("start", "whole"), [pytest.param(-0.7, False, id="bad"), pytest.param(-0.02, True, id="good")]
)
def test_a_bad_beginning_does_not_flatten_the_rest(start: float, whole: bool) -> None:
    """First epochs that would take half of the height run out of the picture; others stay in it."""
    rows = epochs(30)
    for row in rows:
        row["validation_accuracy"] = row["train_accuracy"] = 0.9 + row["epoch"] / 1000
    rows[0]["validation_accuracy"] += start
    axes = measures.Figure().subplots()
    measures.draw_curves(axes, rows, "accuracy", best=max)
    low, high = axes.get_ylim()
    assert (low <= 0.901 + start) == whole
    assert low < 0.904 < 0.93 < high
