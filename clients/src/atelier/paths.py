"""Interpolation in latent space: linear, spherical, and by a smooth spline through many keyframes. numpy only.

    frames = paths.walk(keyframes, steps=20, path="spline", loop=True)

A generator learns from z ~ N(0, I). In 100 dimensions nearly all of that mass lies in a thin shell: |z| is
10 ± 0.7, and two draws are nearly orthogonal. The middle of the straight line between them has |z| = 7,
where the network saw hardly a sample and its pictures fade. So `slerp` and `spline` move along directions and
carry the radius separately, from one keyframe's to the next one's; `lerp` is for vectors built by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from atelier._types import as_int, as_reals
from atelier.errors import InvalidInput

Path = Literal["lerp", "slerp", "spline"]
PATHS: tuple[Path, ...] = get_args(Path)

Vectors = npt.NDArray[np.float32]
_Reals = npt.NDArray[np.float64]

MOST_FRAMES = 100_000
"""Of a walk: an hour and a half at 20 frames a second, and 5 GB of the smallest pictures."""

_COLLINEAR = 1e-12
"""Below this sine of the angle between them, two directions are collinear in double precision and span no plane."""
_TINY = 1e-300


def lerp(a: npt.ArrayLike, b: npt.ArrayLike, t: npt.ArrayLike) -> Vectors:
    """Linear interpolation from `a` (t = 0) to `b` (t = 1). a, b: (D,); t: scalar or (T,) -> float32 (D,) or (T, D).

    At t = 0 and t = 1 exactly the ends. t beyond [0, 1] extrapolates.
    """
    return _interpolate(_lerp, a, b, t)


def slerp(a: npt.ArrayLike, b: npt.ArrayLike, t: npt.ArrayLike) -> Vectors:
    """Spherical linear interpolation: the great-circle arc from `a` to `b` at constant speed. Shapes as `lerp`.

    The norm goes linearly from |a| to |b|. Opposite ends span no plane: a fixed one is taken. A zero end takes the
    other's direction.
    """
    return _interpolate(_slerp, a, b, t)


def frame_count(keyframes: int, *, steps: int, loop: bool) -> int:
    """How many frames a walk has: `steps` for each leg and, on an open path, the last keyframe."""
    return keyframes * steps if loop else (keyframes - 1) * steps + 1


def check_count(frames: int) -> None:
    """Raises InvalidInput for more frames than a walk may have."""
    if frames > MOST_FRAMES:
        raise InvalidInput(f"a walk of {frames:,} frames is too long, {MOST_FRAMES:,} are the most; take fewer steps")


def walk(keyframes: npt.ArrayLike, *, steps: int, path: Path = "spline", loop: bool = False) -> Vectors:
    """Every frame of a walk through keyframes (N, D): float32 (frames, D); frame `i * steps` is keyframe i, exactly.

    `steps` frames lead from each keyframe to the next. A loop also leads from the last to the first, and
    stops one frame short of it, so that it plays without a stutter. Raises InvalidInput for fewer than 2 keyframes,
    numbers that are not finite in float32, another path, no step, or more than MOST_FRAMES.
    """
    per_leg = check_legs(path, steps)
    points = check_keyframes(keyframes)
    count = frame_count(len(points), steps=per_leg, loop=loop)
    check_count(count)
    times = np.arange(count) / per_leg
    frames = _spline(points, times, loop) if path == "spline" else _piecewise(_INTERPOLATIONS[path], points, times)
    frames[::per_leg] = points
    return frames.astype(np.float32)


def check_legs(path: Path, steps: int) -> int:
    """The steps as `walk` takes them. Raises InvalidInput for another path, or no step."""
    if not isinstance(path, str) or path not in PATHS:
        raise InvalidInput(f"path {path!r}: must be one of {', '.join(PATHS)}")
    per_leg = as_int(steps)
    if per_leg is None or per_leg < 1:
        raise InvalidInput(f"steps {steps!r}: must be a whole number, 1 or more")
    return per_leg


def check_keyframes(keyframes: npt.ArrayLike) -> _Reals:
    """Keyframes (N, D) as `walk` takes them, in float64. Raises InvalidInput."""
    try:
        points = as_reals(keyframes)
    except Exception as exc:  # what is like an array may raise anything, as PyTorch's tensors do
        raise InvalidInput("keyframes: must be an array of numbers, shape (N, D)") from exc
    if points.ndim != 2 or not points.shape[1]:
        raise InvalidInput(f"keyframes: need the shape (N, D), have {points.shape}")
    if len(points) < 2:
        raise InvalidInput(f"a walk needs 2 keyframes or more, and there is {len(points)}")
    with np.errstate(over="ignore"):
        finite = np.isfinite(points.astype(np.float32)).all()
    if not finite:
        raise InvalidInput("keyframes: every number must be finite, within the range of float32")
    return points


def _interpolate(interpolation: _Interpolation, a: npt.ArrayLike, b: npt.ArrayLike, t: npt.ArrayLike) -> Vectors:
    first, last = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    times = np.asarray(t, dtype=np.float64)[..., None]
    found = np.where(times == 0, first, np.where(times == 1, last, interpolation(first, last, times)))
    return found.astype(np.float32)


def _lerp(a: _Reals, b: _Reals, t: _Reals) -> _Reals:
    return (1 - t) * a + t * b


def _slerp(a: _Reals, b: _Reals, t: _Reals) -> _Reals:
    radius = _lerp(_norm(a), _norm(b), t)
    return radius * _unit_slerp(_unit(np.where(_norm(a) > 0, a, b)), _unit(np.where(_norm(b) > 0, b, a)), t)


_Interpolation = Callable[[_Reals, _Reals, _Reals], _Reals]
_INTERPOLATIONS: dict[Path, _Interpolation] = {"lerp": _lerp, "slerp": _slerp}


def _piecewise(interpolation: _Interpolation, points: _Reals, times: _Reals) -> _Reals:
    leg, fraction = _locate(times, len(points))
    return interpolation(points[leg], points[(leg + 1) % len(points)], fraction)


def _locate(times: _Reals, points: int) -> tuple[npt.NDArray[np.intp], _Reals]:
    """Times (T,), a unit to a leg -> the leg each falls in (T,), and the fraction of it that is done (T, 1)."""
    leg = np.floor(times).astype(np.intp)
    return leg % points, (times - leg)[:, None]


def _spline(points: _Reals, times: _Reals, closed: bool) -> _Reals:
    """A cubic spline through the keyframes' directions, normalised, times a radius by smoothstep between theirs.

    The middle of each leg's great-circle arc is a knot too. Knots are then at most a right angle apart, so that the
    curve keeps clear of the origin, where its direction would flip, even between opposite keyframes; and the
    speed varies by 2 instead of 4 (Catmull-Rom), measured on closed walks through 3 to 8 draws from N(0, I).
    """
    directions = _directions(points)
    middles = _unit_slerp(directions, np.roll(directions, -1, axis=0), np.array(0.5))
    knots = np.stack([directions, middles], axis=1).reshape(-1, points.shape[1])
    curve = _cubic_spline(knots if closed else knots[:-1], 2 * times, closed)
    leg, fraction = _locate(times, len(points))
    norms = _norm(points)
    radius = _lerp(norms[leg], norms[(leg + 1) % len(points)], fraction**2 * (3 - 2 * fraction))
    return radius * _unit(curve)


def _directions(points: _Reals) -> _Reals:
    """Unit keyframes; one that is zero takes the direction of the one before it."""
    nonzero = np.flatnonzero(_norm(points)[:, 0])
    if not nonzero.size:
        return points
    return _unit(points[nonzero[np.searchsorted(nonzero, np.arange(len(points)), side="right") - 1]])


def _cubic_spline(knots: _Reals, times: _Reals, closed: bool) -> _Reals:
    """The cubic spline (C2) through `knots` at times 0, 1, 2 ...; its open ends are natural."""
    second = _second_derivatives(knots, closed)
    leg, b = _locate(times, len(knots))
    after = (leg + 1) % len(knots)
    a = 1 - b
    cubic = ((a**3 - a) * second[leg] + (b**3 - b) * second[after]) / 6
    return np.asarray(_lerp(knots[leg], knots[after], b) + cubic)


def _second_derivatives(knots: _Reals, closed: bool) -> _Reals:
    """Second derivatives M at the knots: M[i-1] + 4 M[i] + M[i+1] = 6 (y[i-1] - 2 y[i] + y[i+1]).

    On a closed curve that is a circular convolution, which the Fourier transform inverts. An open one with natural
    ends (M = 0) becomes closed by its odd extension.
    """
    if closed:
        rhs = np.roll(knots, -1, axis=0) - 2 * knots + np.roll(knots, 1, axis=0)
    else:
        inner, end = np.diff(knots, n=2, axis=0), np.zeros_like(knots[:1])
        rhs = np.concatenate([end, inner, end, -inner[::-1]])
    frequencies = np.fft.rfftfreq(len(rhs))[:, None]
    spectrum = np.fft.rfft(6 * rhs, axis=0) / (4 + 2 * np.cos(2 * np.pi * frequencies))
    return np.asarray(np.fft.irfft(spectrum, n=len(rhs), axis=0)[: len(knots)])


def _unit_slerp(a: _Reals, b: _Reals, t: _Reals) -> _Reals:
    """From unit `a` toward unit `b` along their great circle; at t = 1 it is b."""
    cosine = np.sum(a * b, axis=-1, keepdims=True)
    rejection = b - cosine * a
    sine = _norm(rejection)
    tangent = np.where(sine < _COLLINEAR, _orthogonal(a), rejection / np.maximum(sine, _TINY))
    angle = t * np.arctan2(sine, cosine)
    return np.asarray(np.cos(angle) * a + np.sin(angle) * tangent)


def _orthogonal(a: _Reals) -> _Reals:
    """A unit vector orthogonal to each `a`: the axis of its smallest component, orthogonalised."""
    axis = np.eye(a.shape[-1])[np.argmin(np.abs(a), axis=-1)]
    return _unit(axis - np.sum(a * axis, axis=-1, keepdims=True) * a)


def _norm(vectors: _Reals) -> _Reals:
    return np.asarray(np.linalg.norm(vectors, axis=-1, keepdims=True))


def _unit(vectors: _Reals) -> _Reals:
    return np.asarray(vectors / np.maximum(_norm(vectors), _TINY))
