"""Paths through latent space: what holds for any keyframes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.interpolate import CubicSpline

from atelier import paths
from atelier.errors import InvalidInput

WIDTH = 12
NUMBERS = st.floats(-50, 50, width=32)
VECTORS = arrays(np.float32, WIDTH, elements=NUMBERS)
KEYFRAMES = st.integers(2, 6).flatmap(lambda n: arrays(np.float32, (n, WIDTH), elements=NUMBERS))
PLENTY = settings(max_examples=40, deadline=None)  # a busy machine is no failure
PATH = pytest.mark.parametrize("path", paths.PATHS)
LOOP = pytest.mark.parametrize("loop", [False, True], ids=["open", "loop"])


def draws(count: int, seed: int = 0, width: int = 100) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal((count, width))


def norms(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    return np.linalg.norm(vectors.astype(np.float64), axis=-1)


@pytest.mark.parametrize("way", [paths.lerp, paths.slerp])
@PLENTY
@given(a=VECTORS, b=VECTORS)
def test_ends_are_exact(way, a, b):
    """At t = 0 and t = 1 the ends themselves come back, to the bit."""
    found = way(a, b, [0, 1])
    assert found.dtype == np.float32
    assert found.tobytes() == np.stack([a, b]).tobytes()


@PLENTY
@given(a=VECTORS, b=VECTORS, t=st.floats(0, 1))
def test_slerp_takes_the_norm_evenly_from_one_end_to_the_other(a, b, t):
    """|slerp(a, b, t)| is (1 - t) |a| + t |b|; so ends of one norm keep it, opposite and parallel ones too."""
    expected = (1 - t) * norms(a) + t * norms(b)
    assert norms(paths.slerp(a, b, t)) == pytest.approx(expected, rel=1e-5, abs=1e-30)


@PLENTY
@given(a=VECTORS, b=VECTORS)
def test_slerp_keeps_the_norm_of_ends_that_share_it(a, b):
    """Between two vectors scaled to one norm, every point of the arc has it."""
    assume(min(norms(a), norms(b)) > 1e-3)
    found = paths.slerp(10 * a / norms(a), 10 * b / norms(b), np.linspace(0, 1, 9))
    np.testing.assert_allclose(norms(found), 10, rtol=1e-5)


@PLENTY
@given(seed=st.integers(0, 1000), t=st.floats(0, 1))
def test_slerp_turns_evenly(seed, t):
    """The angle from the start grows in proportion to t."""
    a, b = draws(2, seed)
    found = paths.slerp(a, b, t).astype(np.float64)
    assert angle(a, found) == pytest.approx(t * angle(a, b), abs=1e-6)


def angle(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    a, b = a / norms(a), b / norms(b)
    return float(2 * np.arctan2(norms(a - b), norms(a + b)))


@pytest.mark.parametrize(
    "b",
    [
        pytest.param(lambda a: -a, id="opposite"),
        pytest.param(lambda a: -a * (1 + 1e-9), id="nearly-opposite"),
        pytest.param(lambda a: a, id="the-same"),
        pytest.param(lambda a: a * (1 + 1e-7), id="nearly-the-same"),
        pytest.param(lambda a: 0 * a, id="zero"),
    ],
)
@PATH
@LOOP
def test_awkward_ends_give_even_steps(b, path, loop):
    """Opposite, equal and zero keyframes: all finite, and no jump longer than a tenth of the way."""
    a = draws(1)[0]
    frames = paths.walk(np.stack([a, b(a)]), steps=40, path=path, loop=loop).astype(np.float64)
    assert np.isfinite(frames).all()
    assert norms(np.diff(frames, axis=0)).max() <= np.pi * norms(a) / 10


@PATH
@LOOP
@PLENTY
@given(keyframes=KEYFRAMES, steps=st.integers(1, 7))
def test_walk_passes_through_its_keyframes(path, loop, keyframes, steps):
    """Frame i * steps is keyframe i to the bit, and the number of frames is legs * steps, plus an open end."""
    frames = paths.walk(keyframes, steps=steps, path=path, loop=loop)
    count = len(keyframes) * steps if loop else (len(keyframes) - 1) * steps + 1
    assert frames.shape == (count, WIDTH)
    assert paths.frame_count(len(keyframes), steps=steps, loop=loop) == count
    assert frames[::steps].tobytes() == keyframes.tobytes()
    assert np.isfinite(frames).all()


@PATH
@PLENTY
@given(seed=st.integers(0, 1000), count=st.integers(2, 6), turn=st.integers(0, 5))
def test_a_loop_has_no_beginning(path, seed, count, turn):
    """To start a loop at another of its keyframes is to start its animation at another frame."""
    keyframes = draws(count, seed)
    rolled = paths.walk(np.roll(keyframes, -turn, axis=0), steps=5, path=path, loop=True)
    whole = paths.walk(keyframes, steps=5, path=path, loop=True)
    np.testing.assert_allclose(rolled, np.roll(whole, -5 * turn, axis=0), atol=1e-5)


@PATH
@PLENTY
@given(seed=st.integers(0, 1000), count=st.integers(2, 6))
def test_a_loop_closes(path, seed, count):
    """The step from the last frame back to the first is no longer than the longest step of the walk."""
    frames = paths.walk(draws(count, seed), steps=10, path=path, loop=True).astype(np.float64)
    back = norms(frames[0] - frames[-1])
    assert back <= norms(np.diff(frames, axis=0)).max() * 1.1


@PATH
@PLENTY
@given(seed=st.integers(0, 1000), count=st.integers(2, 6))
def test_an_open_walk_backwards_is_the_walk_of_its_keyframes_backwards(path, seed, count):
    """Neither direction is special."""
    keyframes = draws(count, seed)
    there, back = (paths.walk(k, steps=6, path=path) for k in (keyframes, keyframes[::-1]))
    np.testing.assert_allclose(there, back[::-1], atol=1e-5)


@LOOP
@PLENTY
@given(seed=st.integers(0, 1000), count=st.integers(2, 6))
def test_spline_stays_in_the_shell_of_its_keyframes(loop, seed, count):
    """On each leg the norm stays between those of its two keyframes: no fading in the middle."""
    keyframes = draws(count, seed)
    frames = paths.walk(keyframes, steps=8, path="spline", loop=loop)
    ends = norms(np.concatenate([keyframes, keyframes[:1]]))
    for leg in range(count if loop else count - 1):
        within = norms(frames[leg * 8 : leg * 8 + 9])
        assert within.min() >= min(ends[leg : leg + 2]) * (1 - 1e-5)
        assert within.max() <= max(ends[leg : leg + 2]) * (1 + 1e-5)


@LOOP
def test_spline_is_smooth_where_slerp_has_corners(loop):
    """Twice the steps quarter the spline's second differences; at slerp's corners they only halve."""

    def bend(path: paths.Path, steps: int) -> float:
        frames = paths.walk(draws(5, seed=3), steps=steps, path=path, loop=loop).astype(np.float64)
        return float(norms(np.diff(frames, n=2, axis=0)).max())

    assert bend("spline", 40) / bend("spline", 80) > 3.5
    assert bend("slerp", 40) / bend("slerp", 80) < 2.2


@pytest.mark.parametrize(("closed", "kind"), [(False, "natural"), (True, "periodic")], ids=["open", "closed"])
@pytest.mark.parametrize("count", [3, 4, 9])
def test_the_cubic_is_the_textbook_one(closed, kind, count):
    """Agrees with scipy's CubicSpline with the same ends."""
    knots = draws(count, width=5)
    times = np.linspace(0, count if closed else count - 1, 37)
    all_knots = np.concatenate([knots, knots[: int(closed)]])
    expected = CubicSpline(np.arange(len(all_knots)), all_knots, bc_type=kind)(times)
    np.testing.assert_allclose(paths._cubic_spline(knots, times, closed), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("keyframes", "options", "says"),
    [
        pytest.param(np.ones((1, 4)), {}, "2 keyframes or more, and there is 1", id="one-keyframe"),
        pytest.param(np.ones(4), {}, "shape", id="one-dimension"),
        pytest.param(np.array([[1, np.nan], [1, 1]]), {}, "finite", id="nan"),
        pytest.param(np.full((2, 4), 1e300), {}, "within the range of float32", id="beyond-float32"),
        pytest.param(np.ones((2, 4)), {"steps": 0}, "steps 0", id="no-steps"),
        pytest.param(np.ones((2, 4)), {"steps": -1}, "steps -1", id="negative-steps"),
        pytest.param(np.ones((2, 4)), {"steps": 20.0}, r"steps 20\.0: must be a whole number", id="steps-a-float"),
        pytest.param(np.ones((2, 4)), {"steps": "20"}, "steps '20': must be a whole number", id="steps-a-text"),
        pytest.param([[1.0, 2.0], [1.0]], {}, "keyframes: must be an array of numbers", id="ragged"),
        pytest.param([[10**400], [1]], {}, "keyframes: must be an array of numbers", id="beyond-float64"),
        pytest.param(["here", "there"], {}, "keyframes: must be an array of numbers", id="texts"),
        pytest.param(np.ones((2, 4)), {"steps": 100_000}, "100,001 frames is too long", id="many-steps"),
        pytest.param(np.ones((2, 4)), {"steps": 10**25}, "frames is too long", id="very-many-steps"),
        pytest.param(np.ones((2, 4), complex), {}, "keyframes: must be an array of numbers", id="complex"),
        pytest.param(np.ones((2, 4)), {"path": "zigzag"}, "lerp, slerp, spline", id="unknown-path"),
        pytest.param(np.ones((2, 4)), {"path": np.array(["lerp", "slerp"])}, "lerp, slerp, spline", id="two-paths"),
    ],
)
def test_bad_walks_are_refused(keyframes, options, says):
    """InvalidInput says what is wrong."""
    with pytest.raises(InvalidInput, match=says):
        paths.walk(keyframes, **{"steps": 3, **options})
