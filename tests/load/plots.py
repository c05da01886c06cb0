"""Pictures of what the load generator found, as PNG files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from tests.load.knee import by_rate
from tests.load.result import Result, percentile_ms

SIZE = (7.2, 4.0)
SHOWN = (50.0, 95.0, 99.0)
STEPS = 400
BINS = 60
LEAST_SHARE = 1e-4


def all_of(results: Sequence[Result], limit_ms: float | None, folder: Path) -> list[Path]:
    """Those for which there is something to show."""
    folder.mkdir(parents=True, exist_ok=True)
    right = [result for result in results if result.total.correct]
    drawn = []
    if len(at_rates := by_rate(right)) > 1:
        drawn.append(_saved(folder / "latency.png", lambda axes: _against_rate(axes, at_rates, limit_ms)))
    if right:
        drawn.append(_saved(folder / "histogram.png", lambda axes: _histogram(axes, right)))
        drawn.append(_saved(folder / "distribution.png", lambda axes: _distribution(axes, right)))
    if any(counts.batches for result in right for counts in result.counts.values()):
        drawn.append(_saved(folder / "batches.png", lambda axes: _batches(axes, right)))
    return drawn


def _saved(path: Path, draw: Callable[[Axes], None]) -> Path:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=140)
    return path


def _against_rate(axes: Axes, results: Sequence[Result], limit_ms: float | None) -> None:
    rates = [result.plan.load.per_s for result in results]
    for percentile in SHOWN:
        axes.plot(rates, [result.percentile_ms(percentile) for result in results], "o-", label=f"p{percentile:g}")
    if limit_ms:
        axes.axhline(limit_ms, color="0.5", linestyle="--", linewidth=1, label=f"limit of p99, {limit_ms:.3g} ms")
    axes.set(xlabel="requests a second that arrive", ylabel="latency, ms", yscale="log", xlim=(0, None))
    _plain(axes.yaxis)
    axes.set_title("Latency against rate, open loop", loc="left")
    axes.legend(frameon=False, bbox_to_anchor=(1, 1), loc="upper left")


def _histogram(axes: Axes, results: Sequence[Result]) -> None:
    """Which latencies are usual. The tail, of few requests, is hardly seen here."""
    colours = mpl.colormaps["viridis"]
    tallies = [result.total.latency for result in results]
    slowest = max(tally.get_max_value() for tally in tallies)
    edges = np.geomspace(0.99 * min(tally.get_min_value() for tally in tallies), 1.01 * slowest, BINS + 1) / 1000
    for place, (result, tally) in enumerate(zip(results, tallies, strict=True)):
        # Of each step at once, which is the same object as the one before.
        steps = [(each.value_iterated_to, each.count_added_in_this_iter_step) for each in tally.get_recorded_iterator()]
        times, counts = np.array(steps).T
        label, colour = str(result.plan.load), colours(place / len(results))
        axes.hist(times / 1000, edges, weights=counts / counts.sum(), histtype="step", color=colour, label=label)
    axes.set(xlabel="latency, ms", ylabel="share of the requests, by bin", xscale="log")
    _plain(axes.xaxis)
    axes.set_title("Histogram of latency", loc="left")
    axes.legend(frameon=False, fontsize="small", bbox_to_anchor=(1, 1), loc="upper left")


def _distribution(axes: Axes, results: Sequence[Result]) -> None:
    """The share of the requests that take longer (complementary CDF), which shows the tail as large as the rest."""
    colours = mpl.colormaps["viridis"]
    for place, result in enumerate(results):
        least = max(LEAST_SHARE, 1 / result.total.correct)
        slower = [least ** (step / STEPS) for step in range(STEPS + 1)]
        times = [percentile_ms(result.total, 100 * (1 - share)) for share in slower]
        axes.plot(times, slower, color=colours(place / len(results)), label=str(result.plan.load), drawstyle="steps")
    axes.set(xlabel="latency, ms", ylabel="share of the requests that take longer", xscale="log", yscale="log")
    _plain(axes.xaxis)
    axes.set_title("Distribution of latency", loc="left")
    axes.legend(frameon=False, fontsize="small", bbox_to_anchor=(1, 1), loc="upper left")


def _batches(axes: Axes, results: Sequence[Result]) -> None:
    """How the requests of each load were batched: the share of them that were in a batch of about each size."""
    shares = [batch_shares(result) for result in results]
    groups = sorted({most for each in shares for most in each})
    start = [0.0] * len(results)
    colours = mpl.colormaps["viridis"]
    for place, most in enumerate(groups):
        widths = [each.get(most, 0.0) for each in shares]
        colour = colours(place / max(1, len(groups) - 1))
        label = str(most) if most <= 2 else f"{most // 2 + 1} to {most}"
        axes.barh(range(len(results)), widths, left=start, color=colour, label=label)
        start = [left + width for left, width in zip(start, widths, strict=True)]
    axes.set_yticks(range(len(results)), [str(result.plan.load) for result in results])
    axes.invert_yaxis()
    axes.set(xlabel="share of the requests, by the size of their batch", xlim=(0, 1))
    axes.set_title("Batches that Triton made", loc="left")
    axes.legend(frameon=False, fontsize="small", bbox_to_anchor=(1, 1), loc="upper left")


def batch_shares(result: Result) -> dict[int, float]:
    """Of its requests in batches of 1, 2, 3 to 4, 5 to 8 and so on, by the most that such a batch holds."""
    members: Counter[int] = Counter()
    for counts in result.counts.values():
        for size, count in counts.batches.items():
            members[1 << (size - 1).bit_length()] += size * count
    return {most: number / members.total() for most, number in members.items()}


def _plain(axis: Axis) -> None:
    """1400, and not 1.4 x 10^3, which run into one another."""
    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter())
