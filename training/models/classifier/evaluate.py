"""Evaluate a classifier of garments. Run: python -m training.run classifier --evaluate CHECKPOINT

Measures accuracy, also class by class, and calibration: of the answers given with a confidence of 80 %, four in five
ought to be right. Needs numpy for the metrics and matplotlib for the figures.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray

from training import plots
from training.models.classifier.spec import CLASSES, SIZE

Images = NDArray[np.uint8]
Labels = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]

BINS = 15  # Guo et al. 2017
# Lower probabilities are clipped to this, as in Keras, so that losses can be compared with Keras's.
LEAST_PROBABILITY = 1e-7

# The curves' labels, and how their keys begin.
SIDES = {"training": "train", "validation": "validation"}
# Save the whole figure, however far its labels extend.
WHOLE = {"bbox_inches": "tight", "pad_inches": 0.15}
RIGHT, WRONG = "#2b6cb0", "#c2410c"  # blue and rust: distinguishable with red-green colour blindness


def measure(probabilities: Floats, labels: Labels) -> dict[str, float]:
    """Metrics of probabilities (N, 10) for labels (N,): accuracy, loss, ece, and accuracy_<class> if it is present.

    Accuracies are between 0 and 1; loss is the mean cross-entropy in nats, ece the expected calibration error.
    """
    assert len(labels) > 0, "nothing to measure"
    assert probabilities.shape == (len(labels), len(CLASSES)), (probabilities.shape, len(labels))
    assert np.allclose(probabilities.sum(1), 1, atol=1e-3), "rows that do not add up to 1"
    correct = probabilities.argmax(1) == labels
    of_truth = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    metrics = {
        "accuracy": float(correct.mean()),
        "loss": float(-np.log(np.maximum(of_truth, LEAST_PROBABILITY)).mean()),
        "ece": calibration_error(reliability(probabilities, labels)),
    }
    there = (label for label in range(len(CLASSES)) if (labels == label).any())
    return metrics | {f"accuracy_{slug(CLASSES[k])}": float(correct[labels == k].mean()) for k in there}


def slug(name: str) -> str:
    """T-shirt/top -> t_shirt_top"""
    return re.sub(r"\W+", "_", name.lower())


# --- calibration ---------------------------------------------------------------------------------------


class Reliability(NamedTuple):
    """The answers in BINS equal bins, from 0 to 1, of their confidence, i.e. top probability; each (BINS,)."""

    counts: np.ndarray  # number of answers
    confidence: np.ndarray  # sum of their confidences
    correct: np.ndarray  # number of right answers


def reliability(probabilities: Floats, labels: Labels) -> Reliability:
    confidence = probabilities.max(1).astype(np.float64)
    edges = np.linspace(0, 1, BINS + 1)
    within = np.digitize(confidence, edges[1:-1], right=True)  # bin m is (m / 15, (m + 1) / 15]
    correct = probabilities.argmax(1) == labels
    summed = np.ones(len(confidence)), confidence, correct
    return Reliability(*(np.bincount(within, weights, BINS) for weights in summed))


def calibration_error(bins: Reliability) -> float:
    """Expected calibration error: each bin's |confidence - accuracy|, averaged over the answers."""
    return float(np.abs(bins.correct - bins.confidence).sum() / bins.counts.sum())


def wilson_interval(correct: Floats, count: Floats) -> tuple[Floats, Floats]:
    """The 95 % confidence interval of a proportion, given `correct` of `count` trials (Wilson 1927)."""
    z = 1.96
    middle = (correct + z**2 / 2) / (count + z**2)
    reach = z / (count + z**2) * np.sqrt(correct * (count - correct) / count + z**2 / 4)
    return middle - reach, middle + reach


# --- figures -------------------------------------------------------------------------------------------


def report(images: Images, labels: Labels, probabilities: Floats, out: Path) -> None:
    """Draws confusion.png, mistakes.png and calibration.png into the folder `out`.

    Pictures (N, 28, 28), labels (N,), probabilities (N, 10).
    """
    assert len(images) == len(labels) == len(probabilities), (len(images), len(labels), len(probabilities))
    plots.save(draw_confusion(labels, probabilities), out / "confusion.png", **WHOLE)
    plots.save(draw_mistakes(images, labels, probabilities), out / "mistakes.png", **WHOLE)
    plots.save(draw_calibration(labels, probabilities), out / "calibration.png", **WHOLE)


def confusion(labels: Labels, probabilities: Floats) -> NDArray[np.intp]:
    """The confusion matrix (10, 10): how often garments of each class (rows) are classified as each (columns)."""
    pairs = labels.astype(np.intp) * len(CLASSES) + probabilities.argmax(1)
    return np.bincount(pairs, minlength=len(CLASSES) ** 2).reshape(len(CLASSES), len(CLASSES))


def draw_confusion(labels: Labels, probabilities: Floats) -> Figure:
    counts = confusion(labels, probabilities)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(9, 8.4), layout="constrained")
    axes = figure.subplots()
    # Right answers and mistakes have separate colours and scales; otherwise ten dark squares hide everything else.
    on_diagonal = np.eye(len(CLASSES), dtype=bool)
    worst = max(float(shares[~on_diagonal].max()), 0.01)
    axes.imshow(np.ma.array(shares, mask=on_diagonal | (counts == 0)), cmap="Oranges", vmin=0, vmax=1.15 * worst)
    axes.imshow(np.ma.array(shares, mask=~on_diagonal), cmap="Blues", vmin=0, vmax=1.15)
    for (row, column), share in np.ndenumerate(shares):
        if counts[row, column]:
            dark = share > (0.6 if row == column else 0.6 * worst)
            axes.text(
                column, row, percent(share), ha="center", va="center", color="white" if dark else "black",
                fontsize=10, fontweight="bold" if row == column else "normal",
            )  # fmt: skip
    names = [f"{name}  {count:,}" for name, count in zip(CLASSES, counts.sum(1), strict=True)]
    axes.set_yticks(range(len(CLASSES)), names, fontsize=11)
    axes.set_xticks(range(len(CLASSES)), CLASSES, rotation=40, ha="right", rotation_mode="anchor", fontsize=11)
    axes.set_xticks(np.arange(len(CLASSES)) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(CLASSES)) - 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("what the model says", fontsize=12)
    axes.set_ylabel("what it is, and how many there are", fontsize=12)
    accuracy = counts[on_diagonal].sum() / counts.sum()
    axes.set_title(f"{accuracy:.2%} of {counts.sum():,} right; in % of each row", fontsize=13)
    return figure


def percent(share: float) -> str:
    """A share in percent, short enough for a cell: 97, 4.2, 0.1; 100 only if it is exactly that."""
    return f"{100 * share:.0f}" if 0.0995 <= share < 0.995 or share == 1 else f"{100 * share:.1f}"


def draw_mistakes(images: Images, labels: Labels, probabilities: Floats, *, columns: int = 8, rows: int = 5) -> Figure:
    """The mistakes with the highest confidence, in descending order."""
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][: columns * rows]
    rows = max(1, -(-len(worst) // columns))
    # One sheet, with room for two lines of text over each picture: 40 panels would take ten times as long to lay out.
    wide, high = SIZE + 2, SIZE + 11
    sheet = np.full((rows * high, columns * wide), 255, np.uint8)
    figure = Figure(figsize=(1.7 * columns, 1.7 * rows * high / wide + 0.7), layout="constrained")
    figure.suptitle(
        f"the surest of {len(wrong):,} mistakes among {len(labels):,} pictures\n"
        "blue: what it is; rust: what the model says, and how sure it is",
        fontsize=13,
    )
    axes = figure.subplots()
    for k, one in enumerate(worst):
        x, y = k % columns * wide + 1, (k // columns + 1) * high - SIZE
        sheet[y : y + SIZE, x : x + SIZE] = images[one]
        middle = x + SIZE / 2 - 0.5
        axes.text(middle, y - 5.2, CLASSES[labels[one]], ha="center", color=RIGHT, fontsize=11, fontweight="bold")
        said = f"{CLASSES[predicted[one]]} {surely(confidence[one])}"
        axes.text(middle, y - 1.6, said, ha="center", color=WRONG, fontsize=10)
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_axis_off()
    return figure


def surely(probability: float) -> str:
    """Never 100 %, which no model should claim."""
    return f"{probability:.1%}" if probability < 0.9995 else ">99.9%"


def draw_calibration(labels: Labels, probabilities: Floats) -> Figure:
    bins = reliability(probabilities, labels)
    filled = bins.counts > 0
    count, confidence, correct = (part[filled] for part in bins)
    accuracy, at = correct / count, confidence / count
    low, high = wilson_interval(correct, count)
    figure = Figure(figsize=(7.4, 8.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot((0, 1), (0, 1), color="gray", linestyle="--", linewidth=1.2, label="as sure as right")
    upper.errorbar(
        at, accuracy, np.abs((accuracy - low, high - accuracy)), color=RIGHT, marker="o", markersize=6,
        linewidth=1.6, elinewidth=1.2, capsize=3, label="the model, with what chance allows (95%)",
    )  # fmt: skip
    upper.fill_between(at, accuracy, at, color=WRONG, alpha=0.18, linewidth=0, label="the gap")
    upper.set(ylabel="how often right", xlim=(0, 1), ylim=(-0.03, 1.03))
    upper.set_title(
        f"expected calibration error {calibration_error(bins):.4f}; "
        f"on average {confidence.sum() / count.sum():.2%} sure, {correct.sum() / count.sum():.2%} right",
        fontsize=11,
    )
    upper.legend(loc="lower right")
    lower.bar((np.arange(BINS) + 0.5) / BINS, bins.counts, 0.92 / BINS, color=RIGHT)
    # Most answers have a confidence near 1, and on a linear scale the others would not show beside them.
    lower.set_yscale("log")
    lower.set_ylim(0.7, None)
    lower.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    lower.set(xlabel="how sure the model is of its answer", ylabel="answers")
    upper.yaxis.set_major_formatter(PercentFormatter(1))
    lower.xaxis.set_major_formatter(PercentFormatter(1))
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    return figure


# --- training curves -----------------------------------------------------------------------------------


def save_curves(stats: list[dict[str, float]], path: Path, title: str) -> None:
    """Plots training and validation accuracy and loss by epoch; `stats` has one row per epoch, net after net.

    A row holds epoch, train_loss, train_accuracy, validation_loss, validation_accuracy; NaN leaves a gap. All nets have
    the same number of epochs.
    """
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    figure.suptitle(title, fontsize=13, parse_math=False)  # a run's name may hold dollar signs
    accuracy, loss = figure.subplots(1, 2)
    draw_curves(accuracy, stats, "accuracy", best=max)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    draw_curves(loss, stats, "loss", best=min)
    plots.save(figure, path, **WHOLE)


def draw_curves(axes: Axes, stats: list[dict[str, float]], name: str, *, best: Callable[..., int]) -> None:
    epochs = sorted({row["epoch"] for row in stats})
    # (nets, epochs)
    sides = {k: np.array([row[f"{key}_{name}"] for row in stats]).reshape(-1, len(epochs)) for k, key in SIDES.items()}
    for (side, values), color in zip(sides.items(), ("0.55", RIGHT), strict=True):
        first, *_ = axes.plot(
            epochs, values.T, ".-", color=color, markersize=7 if len(epochs) <= 20 else 0, linewidth=1.8
        )
        first.set_label(side)
    values = sides["validation"].ravel()
    known = np.flatnonzero(~np.isnan(values))
    at = best(known, key=values.__getitem__) if len(known) else 0
    top, epoch = values[at], epochs[at % len(epochs)]
    text = f"{top:.2%}" if name == "accuracy" else f"{top:.3f}"
    label = f"best validation: {text}, epoch {epoch:.0f}"
    axes.plot(epoch, top, "o", markersize=9, color=WRONG, fillstyle="none", markeredgewidth=2, label=label)
    # Scale the y axis to the rest where the first tenth, in which everything is still bad, would flatten it.
    everything, settled = (
        np.concatenate([v[:, skip:].ravel() for v in sides.values()]) for skip in (0, len(epochs) // 10)
    )
    if np.ptp(everything) > 2 * np.ptp(settled) > 0:
        margin = 0.08 * np.ptp(settled)
        axes.set_ylim(settled.min() - margin, settled.max() + margin)
    axes.set(title=name, xlabel="epoch", xlim=(epochs[0] - 0.6, epochs[-1] + 0.6))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.legend()
