"""The painter's loop over a graph of numpy: what it shows and when, that it gets somewhere, and the sizes it takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from serving.backends.painter import knobs as painter_knobs
from serving.backends.painter import painting
from serving.backends.painter.knobs import Knobs
from serving.backends.painter.painting import Feed, Floats, Graph, Pixels, Stroke

OPTIMIZERS = pytest.mark.parametrize("optimizer", [0, 1], ids=painter_knobs.OPTIMIZERS)


class GraphStandIn:
    """Sees in a picture its pixels, as content, and its mean colour, as style. Counts how often it is evaluated.

    Some pixels matter more than others, so that an optimizer has something to do.
    """

    def __init__(self) -> None:
        self.evaluations = 0

    def graph(self) -> Graph:
        inputs = {
            "canvas": (1, 3, 1, 1), "content_pixels": (1, 3, 1, 1), "gram_colour": (1, 3, 1, 1),
            "content_layers": (1, 4), "style_layers": (1, 5), "weights": (1, 3),
        }  # fmt: skip
        return Graph(self.run, inputs, ("losses", "objective", "gradient", "answer_pixels", "own_gram_colour"))

    def run(self, outputs: Sequence[str], feed: Feed) -> list[Any]:
        self.evaluations += 1
        canvas, (content, style, _) = feed["canvas"], feed["weights"][0]
        content, style = content * feed["content_layers"].sum(), style * feed["style_layers"].sum()
        off, away = canvas - feed["content_pixels"], _colour(canvas) - feed["gram_colour"]
        matters = _matters(canvas)
        losses = np.array([[(matters * off * off).sum(), (away * away).sum(), 0]], np.float32)
        places = canvas[0, 0].size
        made = {
            "losses": losses,
            "objective": losses[:, :1] * content + losses[:, 1:2] * style,
            "gradient": 2 * content * matters * off + 2 * style * away / places * np.ones_like(canvas),
            "answer_pixels": canvas,
            "own_gram_colour": _colour(canvas),
        }
        return [made[name] for name in outputs]


def _matters(canvas: Floats) -> Floats:
    return np.geomspace(0.01, 1, canvas.size, dtype=np.float32).reshape(canvas.shape)


def _colour(canvas: Floats) -> Floats:
    return canvas.mean((2, 3), keepdims=True)


def knobs(**given: float | Sequence[float]) -> Knobs:
    """As a request would have them."""
    return painter_knobs.read({name: np.atleast_1d(value) for name, value in given.items()})


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def painted(content: Pixels, style: Pixels, **given: float | Sequence[float]) -> list[Stroke]:
    shown: list[Stroke] = []
    painting.paint(GraphStandIn().graph(), content, style, knobs(**given), shown.append)
    return shown


def counts(shown: list[Stroke]) -> list[int]:
    return [stroke.iteration for stroke in shown]


def sizes(shown: list[Stroke]) -> list[tuple[int, ...]]:
    return [stroke.evaluation.canvas.shape[1:] for stroke in shown]


# --- what is shown


@OPTIMIZERS
@pytest.mark.parametrize(
    ("iterations", "every", "shows"),
    [
        pytest.param(0, 10, [0], id="none"),
        pytest.param(1, 10, [0, 1], id="one"),
        pytest.param(20, 10, [0, 10, 20], id="even"),
        pytest.param(25, 10, [0, 10, 20, 25], id="odd"),
        pytest.param(3, 1, [0, 1, 2, 3], id="each"),
    ],
)
def test_the_start_every_so_many_and_the_last_are_shown(optimizer, iterations, every, shows):
    """Each once, in order; the last one's iteration is the total."""
    shown = painted(picture(20, 24), picture(30, 17), iterations=iterations, every=every, optimizer=optimizer, start=0)
    assert counts(shown) == shows
    assert {stroke.total for stroke in shown} == {iterations}


def test_where_nothing_is_left_to_improve_it_ends_early_and_says_it_is_done():
    """The photo itself is the best there is for its content: after the start comes the last, and no work between."""
    stand_in, shown = GraphStandIn(), []
    wanted = knobs(style_weight=0, iterations=1000)
    painting.paint(stand_in.graph(), picture(20, 24), picture(20, 24), wanted, shown.append)
    assert counts(shown) == [0, 1000]
    assert stand_in.evaluations < 10
    np.testing.assert_array_equal(painting.pixels(shown[-1].evaluation.canvas), picture(20, 24))


@pytest.mark.parametrize("iterations", [30, 1, 0])
def test_scales_are_counted_together(iterations):
    """Coarse canvases are smaller; the start is shown once, and the last canvas has the content's size."""
    shown = painted(picture(64, 80), picture(30, 30), iterations=iterations, every=1, scales=3, optimizer=1)
    assert counts(shown) == list(range(iterations + 1))
    assert sizes(shown)[-1] == (64, 80)
    if iterations == 30:
        assert sizes(shown) == [(16, 20)] * 18 + [(32, 40)] * 8 + [(64, 80)] * 5


def test_losses_belong_to_the_canvas_they_come_with():
    """Whichever point an optimizer evaluated last."""
    content, style = picture(20, 24), picture(20, 24, seed=1)
    for stroke in painted(content, style, iterations=8, every=1, start=0, content_weight=3, style_weight=1):
        canvas, (content_loss, style_loss, _) = stroke.evaluation.canvas, stroke.evaluation.losses
        off = canvas - painting.planes(content)
        assert content_loss == pytest.approx((_matters(canvas) * off * off).sum(), rel=1e-4)
        assert stroke.evaluation.objective == pytest.approx(3 * content_loss + 5 * style_loss, rel=1e-4)


# --- where it gets


@OPTIMIZERS
def test_content_alone_gives_the_photo(optimizer):
    """Style weight 0, from noise."""
    content = picture(20, 24)
    last = painted(content, picture(20, 24, seed=1), style_weight=0, start=0, iterations=200, optimizer=optimizer)[-1]
    assert np.abs(painting.pixels(last.evaluation.canvas).astype(int) - content).max() <= 3


@OPTIMIZERS
def test_style_alone_forgets_the_photo(optimizer):
    """Content weight 0: the mean colour is the style's, and the losses of the content are nobody's business."""
    style = np.full((20, 24, 3), (200, 40, 90), np.uint8)
    last = painted(picture(20, 24), style, content_weight=0, iterations=200, optimizer=optimizer)[-1]
    np.testing.assert_allclose(last.evaluation.canvas.mean((1, 2)) * 255, (200, 40, 90), atol=2)


def test_l_bfgs_needs_hardly_more_evaluations_than_iterations():
    """Two to make the targets, one at the start, and a few where a step was too long."""
    stand_in = GraphStandIn()
    rough = knobs(start=0, iterations=20, content_weight=1e-3, style_weight=1, tv_weight=0)
    painting.paint(stand_in.graph(), picture(20, 24), picture(20, 24, seed=1), rough, lambda stroke: None)
    assert stand_in.evaluations <= 2 + 1 + 20 + 5


def test_the_same_seed_is_the_same_noise():
    """And another is other noise; the content is nowhere in it."""
    first, again, other = (
        painted(picture(20, 24), picture(20, 24), start=0, seed=seed, iterations=0)[0].evaluation.canvas
        for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert abs(np.corrcoef(first.ravel(), painting.planes(picture(20, 24)).ravel())[0, 1]) < 0.1


def test_an_error_of_the_graph_comes_through():
    """So does whatever stops a painting: nothing is swallowed, nothing tried again."""

    def broken(outputs: Sequence[str], feed: Feed) -> list[Any]:
        raise ArithmeticError("no graph")

    graph = Graph(broken, GraphStandIn().graph().inputs, GraphStandIn().graph().outputs)
    with pytest.raises(ArithmeticError, match="no graph"):
        painting.paint(graph, picture(20, 24), picture(20, 24), knobs(), lambda stroke: None)


# --- sizes


@pytest.mark.parametrize(
    ("size", "count", "expected"),
    [
        pytest.param((17, 33), 0, [(17, 33)], id="small"),
        pytest.param((256, 256), 0, [(256, 256)], id="as-coarse-as-it-gets"),
        pytest.param((360, 300), 0, [(360, 300)], id="hardly-larger"),
        pytest.param((512, 384), 0, [(256, 192), (512, 384)], id="twice"),
        pytest.param((1023, 768), 0, [(256, 192), (512, 384), (1023, 768)], id="four-times"),
        pytest.param((2048, 20), 0, [(2048, 20)], id="too-narrow-to-halve"),
        pytest.param((256, 256), 3, [(64, 64), (128, 128), (256, 256)], id="asked-for"),
    ],
)
def test_scales(size, count, expected):
    """Each side twice the one before, and 16 or more; by itself a picture begins at about 256."""
    assert painting.scales(size, count) == expected


@pytest.mark.parametrize(("iterations", "count"), [(100, 1), (100, 2), (100, 3), (7, 3), (1, 3), (0, 2), (1000, 6)])
def test_iterations_are_shared_between_scales(iterations, count):
    """They add up; a coarse scale has about twice as many as the next, and the finest has any that there are."""
    shares = painting.split_iterations(iterations, count)
    assert (sum(shares), len(shares)) == (iterations, count)
    assert shares[-1] >= min(iterations, 1)
    assert all(2 * fine + 2 * count >= coarse for coarse, fine in itertools.pairwise(shares))


@pytest.mark.parametrize(
    ("style", "canvas", "expected"),
    [
        pytest.param((800, 800), (200, 200), (200, 200), id="larger"),
        pytest.param((100, 400), (100, 100), (50, 200), id="another-shape"),
        pytest.param((30, 20), (200, 200), (30, 20), id="smaller-stays"),
        pytest.param((4000, 16), (64, 64), (1012, 16), id="never-too-narrow"),
    ],
)
def test_a_style_is_looked_at_at_the_canvas_s_scale(style, canvas, expected):
    """With as many pixels, in its own shape, never enlarged."""
    assert painting.fitted(style, canvas) == expected


def test_max_scales_is_what_the_shorter_side_allows():
    """So that the coarsest side has 16 pixels or more."""
    assert [painting.max_scales((side, 2000)) for side in (16, 31, 32, 64, 1024)] == [1, 1, 2, 3, 7]


def test_pixels_and_planes_are_each_other_s_reverse():
    """What is beyond black and white is cut off where it is shown."""
    np.testing.assert_array_equal(painting.pixels(painting.planes(picture(17, 33))), picture(17, 33))
    assert painting.pixels(np.array([[[-0.2]], [[0.5]], [[1.7]]], np.float32)).tolist() == [[[0, 128, 255]]]
    assert math.isclose(painting.planes(picture(17, 33)).max(), 1, abs_tol=0.01)
