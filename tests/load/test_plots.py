"""The pictures and the page of a load test: what is drawn of known latencies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.load import page, plots
from tests.load.loop import Tally, WorkerResult
from tests.load.plan import ClosedLoop, OpenLoop
from tests.load.result import Result
from tests.load.stand_ins import made


def with_latencies(load: ClosedLoop | OpenLoop, counts: Mapping[int, int]) -> Result:
    """So many requests by the milliseconds that they took."""
    tally = Tally(requests=sum(counts.values()), correct=sum(counts.values()))
    for took_ms, count in counts.items():
        tally.latency.record_value(1000 * took_ms, count)
    return replace(made(load), workers=[WorkerResult({"stand-in": tally}, 0.1, 0.0, 10)])


def drawn(draw: Callable[[Axes], None]) -> Axes:
    axes = Figure().subplots()
    draw(axes)
    return axes


def test_the_histogram_shows_which_latencies_are_usual() -> None:
    """Three in four requests take 10 ms, and the others 20."""
    result = with_latencies(ClosedLoop(1), {10: 75, 20: 25})
    (outline,) = drawn(lambda axes: plots._histogram(axes, [result])).patches
    heights = {round(height, 9): left for left, height in outline.get_xy() if height}
    assert heights == {0.75: pytest.approx(10, rel=0.03), 0.25: pytest.approx(20, rel=0.03)}


def test_the_distribution_shows_how_many_take_longer() -> None:
    """Of all requests down to one in a hundred: of the slowest quarter 20 ms, of the others 10."""
    result = with_latencies(ClosedLoop(1), {10: 75, 20: 25})
    axes = drawn(lambda axes: plots._distribution(axes, [result]))
    (line,) = axes.get_lines()
    times, shares = line.get_data()
    assert (shares[0], shares[-1]) == (1, pytest.approx(0.01))
    assert (shares[1:] < shares[:-1]).all()
    assert times[shares > 0.26] == pytest.approx(10, rel=1e-3)
    assert times[shares < 0.24] == pytest.approx(20, rel=1e-3)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["1 caller"]


def test_each_percentile_is_drawn_over_the_rates_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In which order they were asked. Callers have no rate, nor has what answered nothing a latency."""
    fast, slow = {10: 90, 20: 6, 30: 4}, {100: 90, 200: 6, 300: 4}
    given = [with_latencies(OpenLoop(20.0), slow), with_latencies(OpenLoop(10.0), fast)]
    found: dict[str, Axes] = {}
    monkeypatch.setattr(plots, "_saved", lambda path, draw: found.update({path.name: drawn(draw)}))
    plots.all_of([made(ClosedLoop(1)), *given, made(OpenLoop(15.0), failed=100)], 50.0, tmp_path)
    lines = {line.get_label(): list(map(list, line.get_data())) for line in found["latency.png"].get_lines()}
    limit = lines.pop("limit of p99, 50 ms")
    assert lines == {
        f"p{percentile}": [[10, 20], pytest.approx([took_ms, 10 * took_ms], rel=1e-3)]
        for percentile, took_ms in ((50, 10), (95, 20), (99, 30))
    }
    assert limit[1] == [50, 50]


def test_pictures_and_page_stand_alone(tmp_path: Path) -> None:
    results = [made(ClosedLoop(1)), made(OpenLoop(10.0)), made(OpenLoop(20.0), latency_us=30_000)]
    pictures = plots.all_of(results, 50.0, tmp_path)
    assert [path.name for path in pictures] == ["latency.png", "histogram.png", "distribution.png", "batches.png"]
    page.write(tmp_path / "report.html", "a <b>", "about", "verdict", results, pictures)
    text = (tmp_path / "report.html").read_text()
    assert "a &lt;b&gt;" in text
    assert text.count("data:image/png;base64,") == 4
    assert "http" not in text
    assert "$" not in text


def test_batches_are_told_by_about_their_size() -> None:
    """Doubling: few enough for a legend, whatever sizes the server made. Shares are of the requests, not of batches."""
    result = made(ClosedLoop(8))
    result.counts["stand-in"].batches.update({3: 20, 4: 10, 5: 4, 64: 1})
    assert plots.batch_shares(result) == {1: 20 / 284, 2: 80 / 284, 4: 100 / 284, 8: 20 / 284, 64: 64 / 284}
