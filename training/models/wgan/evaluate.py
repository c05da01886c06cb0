"""Evaluate a generator of pictures. Run: python -m training.run wgan --evaluate CHECKPOINT

Every corpus gets the metrics that need no ground truth: sliced Wasserstein distance, nearest neighbours, spread.
The lines corpora get more, because what a correct picture shows is known: structure, palette, positions,
colours, copies. Each is given as a ratio to the score of held-out pictures, or beside it.

Good and bad generators of lines on every metric (2,048 pictures measured, 10,000 trained on, 4,096 held out):

                          real   copies  40 only   blur 1   gray  all uniform   noise   one picture
sliced_wasserstein_ratio  0.99   0.99    5.3       3.0      6.5   9.1           45      25
nearest_ratio             1.00   0.00    0.97      0.97     1.3   1.3           4.4     0.00
spread_ratio              0.99   1.00    0.00      0.80     1.1   1.2           2.6     0.00
structure                 0.99   0.99    1.00      0.99     0.99  0.99          0.00    1.00
palette                   1.00   1.00    1.00      0.69     0.50  1.00          0.09    1.00
free_px                   0.7    0.8     5.9       0.7      0.7   12            128     31
colors_tv                 0.01   0.03    0.19      0.02     0.74  0.03          1.0     0.75
copies                    0.004  1.00    0.02      0.004    0.00  0.00          0.00    1.00
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance
from skimage.color import rgb2lab

from training import plots
from training.data.corpus import Corpus
from training.data.files import contact_sheet
from training.data.lines import COLORS, SIZE, THICKNESS

Images = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

COUNT = 2048  # pictures on each side of a comparison; fewer when there are fewer
# Twelve fresh sets of real pictures score 1.02 +- 0.05 with 256 directions, and the same with 1,024: the remaining
# variance is due to the sample of 2,048 pictures, not to the directions.
PROJECTIONS = 256
SPLITS = 8  # real pairs differ by 4 %, their average by 1.5 %

# Half of the dimmest palette colour (blue's strongest channel is 179): a pixel above it belongs to a line.
LINE_LEVEL = 90
# A pixel above this, away from every line, is dirt that is visible on black.
DIRT_LEVEL = 48
# CIELAB: 2.3 is just noticeable, and two of the four colours are at least 74 apart. Within 20 a red is
# still red; so close to a palette colour is also one bright pixel of noise in eleven.
PALETTE_DISTANCE = 20.0

PANEL_COLORS = ("tab:orange", "black")  # generated, held out


def evaluate(generated: Images, corpus: Corpus, *, projections: int = PROJECTIONS) -> dict[str, float]:
    """Metrics of uint8 (N, H, W, 3) pictures against a corpus of the same size; quote them only for N >= 2,048.

    Always sliced_wasserstein_ratio, nearest_ratio, spread_ratio. For the lines corpora also structure,
    structure_real, palette, vertical_px, free_px, fixed_px, colors_tv, copies, copies_real. Takes about 12 s on
    one core.
    """
    assert generated.dtype == np.uint8, generated.dtype
    assert generated.shape[1:] == corpus.images.shape[1:], (generated.shape, corpus.images.shape)
    metrics = distance_metrics(generated[:COUNT], corpus, projections=projections)
    if corpus.three_lines:
        metrics |= lines_metrics(generated[:COUNT], corpus)
    return metrics


# --- metrics that need no ground truth -----------------------------------------------------------------


def random_directions(pixels: int, number: int) -> Floats:
    """Unit vectors in random directions, the same at each call: float32 (pixels, number)."""
    directions = np.random.default_rng(0).standard_normal((pixels, number), dtype=np.float32)
    directions /= np.linalg.norm(directions, axis=0)
    return directions


def project(images: Images, directions: Floats) -> Floats:
    """Projects flattened pixels (black 0, white 1) onto each direction: float32 (N, P)."""
    pieces = [images[k : k + 256] for k in range(0, len(images), 256)]  # 50 MB each as float32
    return np.concatenate([p.reshape(len(p), -1).astype(np.float32) @ directions for p in pieces]) / 255


def sliced_wasserstein(a: Floats, b: Floats) -> float:
    """Wasserstein-1 of two projected sets of equal size, averaged over the directions (Rabin et al. 2011)."""
    return float(np.abs(np.sort(a, axis=0) - np.sort(b, axis=0)).mean())


def nearest(a: Floats, b: Floats, *, itself: bool = False) -> tuple[Floats, NDArray[np.intp]]:
    """Distance from each row of a to the nearest of b, and its index; `itself` excludes row k of b for row k of a."""
    square = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    if itself:
        np.fill_diagonal(square, np.inf)
    return np.sqrt(np.maximum(square.min(1), 0)), square.argmin(1)


def ratio(a: float | Floats, b: float | Floats) -> float:
    """The ratio of the medians; very large but finite if b is 0, because all real pictures are the same."""
    return float(np.median(a) / max(float(np.median(b)), 1e-6))


def distance_metrics(generated: Images, corpus: Corpus, *, projections: int = PROJECTIONS) -> dict[str, float]:
    """Sliced Wasserstein distance, distance to the training set, spread: all relative to held-out pictures."""
    # Whole pictures in plain pixels, not patches of a pyramid (Karras et al. 2018): a patch of three lines is
    # nearly always black, and doesn't tell where in the picture a line runs.
    directions = random_directions(generated[0].size, projections)
    fake, train, held = (project(side, directions) for side in (generated, corpus.images, corpus.held_out))

    # Both sides are compared with the same held-out pictures, never with training pictures, so that copying
    # gains nothing.
    rng = np.random.default_rng(0)
    count = min(len(fake), len(train), len(held))
    to_real, between_real = 0.0, 0.0
    for _ in range(SPLITS):
        f, t, h = (side[rng.permutation(len(side))[:count]] for side in (fake, train, held))
        to_real += sliced_wasserstein(f, h)
        between_real += sliced_wasserstein(t, h)

    # Nearest neighbours use the same projections: 256 of them preserve distances to about 5 % (Johnson,
    # Lindenstrauss 1984), and a copy's at 0.
    fake, held = fake[:count], held[:count]
    return {
        "sliced_wasserstein_ratio": ratio(to_real, between_real),
        # 1: as far from the training set as unseen real pictures are; 0: copies of it.
        "nearest_ratio": ratio(nearest(fake, train)[0], nearest(held, train)[0]),
        # 1: as diverse as real pictures; 0: the same few again and again.
        "spread_ratio": ratio(nearest(fake, fake, itself=True)[0], nearest(held, held, itself=True)[0]),
    }


# --- metrics of the lines corpora ----------------------------------------------------------------------


class Lines(NamedTuple):
    """What find_lines detected in N pictures; positions and colours are valid only where `found`."""

    found: Bools  # (N,)
    positions: Floats  # (N, 3): vertical x, free horizontal y, fixed horizontal y (the nearer to 48); pixels
    colors: NDArray[np.intp]  # (N, 3): index of the nearest palette colour of each of those
    stray: Floats  # (N,): share of pixels that are bright outside a full row or column, or dark inside


def bands(full: Bools) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Runs of True along (N, L): their number (N,); start and end (exclusive) of the first two, (N, 2) each."""
    padded = np.pad(full, ((0, 0), (1, 1)))
    starts, ends = padded[:, 1:] & ~padded[:, :-1], padded[:, :-1] & ~padded[:, 1:]

    def first_two(marks: Bools) -> NDArray[np.intp]:
        return np.stack([(marks & (np.cumsum(marks, 1) == k)).argmax(1) for k in (1, 2)], 1)

    return starts.sum(1), first_two(starts), first_two(ends)


def strongest(images: Images) -> Images:
    """The maximum over the three channels, (N, H, W); 14 times as fast as max(axis=3)."""
    return np.maximum(np.maximum(images[..., 0], images[..., 1]), images[..., 2])


def widened(full: Bools) -> Bools:
    """Dilates the runs of True along (N, L) by one on either side."""
    padded = np.pad(full, ((0, 0), (1, 1)))
    return padded[:, 2:] | padded[:, 1:-1] | padded[:, :-2]


def find_lines(images: Images) -> Lines:
    """Looks for exactly one vertical and two horizontal lines in uint8 (N, 128, 128, 3).

    A line is 5 +- 1 full rows (or columns), i.e. bright over at least 95 % of the picture. Beyond one soft pixel
    on either side of the lines, at most 1 % of the pixels may be brighter than DIRT_LEVEL.
    """
    level = strongest(images)
    on = level > LINE_LEVEL
    rows, columns = on.mean(2) >= 0.95, on.mean(1) >= 0.95
    stray = (on ^ (rows[:, :, None] | columns[:, None, :])).mean((1, 2))

    # Two horizontals that touch or overlap make one band of 6 to 11 rows. A band of 5 counts as one line, although
    # in 1 real picture of 108 it is two, one exactly behind the other: if it passed for two, a generator could omit
    # a line unnoticed. So real pictures score 0.99, not 1. (A generator that omits a line and draws the other 6
    # thick passes here, but shows in free_px.)
    verticals, x0, x1 = bands(columns)
    horizontals, y0, y1 = bands(rows)
    thick = y1 - y0
    upright = (verticals == 1) & (np.abs(x1 - x0 - THICKNESS)[:, 0] <= 1)
    apart = (horizontals == 2) & (np.abs(thick - THICKNESS) <= 1).all(1)
    merged = (horizontals == 1) & (thick[:, 0] > THICKNESS) & (thick[:, 0] <= 2 * THICKNESS + 1)

    rest = ~(widened(rows)[:, :, None] | widened(columns)[:, None, :])
    dirt = ((level > DIRT_LEVEL) & rest).sum((1, 2)) / np.maximum(rest.sum((1, 2)), 1)
    found = upright & (apart | merged) & (dirt <= 0.01)

    # The upper line of a merged band begins where the band begins, the lower one ends where it ends.
    starts = np.stack([x0[:, 0], y0[:, 0], np.where(merged, y1[:, 0] - THICKNESS, y0[:, 1])], 1)
    ends = np.stack([x1[:, 0], np.where(merged, y0[:, 0] + THICKNESS, y1[:, 0]), y1.max(1)], 1)
    positions = (starts + ends - 1) / 2

    # A line's colour is the median of its pixels away from the crossings; in a merged band, of its
    # outermost row, the only one that is surely its own.
    colors = np.zeros((len(images), 3), np.intp)
    for k in np.flatnonzero(found):
        image, (x, top, low), (x_end, top_end, low_end) = images[k], starts[k], ends[k]
        if merged[k]:
            top_end, low = top + 1, low_end - 1
        beside = np.r_[0:x, x_end:SIZE]
        strips = image[~rows[k], x:x_end], image[top:top_end, beside], image[low:low_end, beside]
        for line, strip in enumerate(strips):
            away = np.median(strip.reshape(-1, 3), 0) - COLORS
            colors[k, line] = (away**2).sum(1).argmin()

    # The picture doesn't tell which horizontal is which: the one nearer to 48 is taken for the fixed one.
    swap = np.abs(positions[:, 1] - 48) < np.abs(positions[:, 2] - 48)
    order = np.where(swap[:, None], [0, 2, 1], [0, 1, 2])
    positions, colors = (np.take_along_axis(side, order, 1) for side in (positions, colors))
    return Lines(found, positions, colors, stray)


def palette_share(images: Images) -> float:
    """Share of line pixels (above LINE_LEVEL) that are near one of the four colours; 0 where there are none."""
    pixels = images[strongest(images) > LINE_LEVEL]
    if not len(pixels):
        return 0.0
    pixels = pixels[:: -(-len(pixels) // 500_000)]  # a subsample is enough: +- 0.1 %
    lab = rgb2lab(pixels)
    away = np.stack([np.linalg.norm(lab - color, axis=1) for color in rgb2lab(COLORS)])
    return float((away.min(0) <= PALETTE_DISTANCE).mean())


def color_shares(lines: Lines) -> Floats:
    """How often each of the three lines has each of the four colours: (3, 4), rows sum to 1."""
    return np.stack([(lines.colors[lines.found] == color).mean(0) for color in range(len(COLORS))], 1)


def drawings(lines: Lines) -> list[bytes]:
    """A hashable key of what each found picture draws: three positions, to the pixel, and three colours."""
    whole = np.concatenate([np.rint(lines.positions).astype(np.uint8), lines.colors.astype(np.uint8)], 1)
    return [row.tobytes() for row in whole[lines.found]]


def lines_metrics(generated: Images, corpus: Corpus) -> dict[str, float]:
    """Structure and palette; how well positions and colours match held-out pictures; how many were memorised."""
    fake, real, train = (find_lines(side) for side in (generated, corpus.held_out, corpus.images))
    metrics = {
        "structure": float(fake.found.mean()),
        "structure_real": float(real.found.mean()),
        "palette": palette_share(generated),
    }
    # Wasserstein-1 of the positions, in pixels: how far lines would have to move. Two real sets score 0.4 to
    # 0.9 for x and the free y, 0.05 for the fixed y. A generator without lines scores a whole picture's side.
    names = ("vertical_px", "free_px", "fixed_px")
    if not fake.found.any():
        worst = dict.fromkeys(names, float(SIZE))
        return metrics | worst | {"colors_tv": 1.0, "copies": 0.0, "copies_real": 0.0}
    places = zip(names, fake.positions[fake.found].T, real.positions[real.found].T, strict=True)
    metrics |= {name: float(wasserstein_distance(f, r)) for name, f, r in places}
    # Total variation distance of the colours, for the worst line: 0.02 by chance, 0.75 for a single colour.
    metrics["colors_tv"] = float(np.abs(color_shares(fake) - color_shares(real)).sum(1).max() / 2)
    # A copy shows the lines of a training picture, however softly. By chance, 4 pictures in 1,000 do so, too.
    seen = set(drawings(train))
    for name, side in (("copies", fake), ("copies_real", real)):
        metrics[name] = float(np.mean([drawing in seen for drawing in drawings(side)]))
    return metrics


# --- the figure ----------------------------------------------------------------------------------------


def report(generated: Images, corpus: Corpus, path: Path) -> None:
    """Draws a figure, a PNG or PDF at `path`: distributions of generated and held-out pictures, the worst
    pictures, and those nearest to the training set beside their nearest training pictures.
    """
    generated = generated[:COUNT]
    # 64 directions are enough to say which pictures to show.
    directions = random_directions(generated[0].size, 64)
    fake, train, held = (project(side, directions) for side in (generated, corpus.images, corpus.held_out))
    distance, neighbour = nearest(fake, train)

    figure = Figure(figsize=(15, 9.6), layout="constrained")
    mosaic = figure.add_gridspec(2, 2, height_ratios=(1, 2.4))
    top, left, right = (figure.add_subfigure(part) for part in (mosaic[0, :], mosaic[1, 0], mosaic[1, 1]))
    if corpus.three_lines:
        found, real = find_lines(generated), find_lines(corpus.held_out)
        draw_lines_panels(top, found, real)
        worst = np.lexsort((-found.stray, found.found))
        title = f"worst by structure; {found.found.mean():.1%} of {len(generated):,} show three lines"
    else:
        panel = top.subplots()
        sides = [distance, nearest(held, train)[0]]
        panel.hist(sides, 40, weights=shares(sides), label=("generated", "held out"), color=PANEL_COLORS)
        panel.set(title="distance to the nearest training picture", yticks=[])
        panel.legend()
        worst = np.argsort(-distance)
        title = "farthest from the training set"

    show(left, generated[worst[:48]], columns=8, title=title)
    close = np.argsort(distance)[:24]
    between = np.full_like(generated[close][:, :, :2], 120)
    pairs = np.concatenate([generated[close], between, corpus.images[neighbour[close]]], axis=2)
    show(right, pairs, columns=4, title="nearest to the training set: generated | training picture")

    plots.save(figure, path, dpi=90)


def shares(sides: list[Floats]) -> list[Floats]:
    """Weights that make histograms of sets of unequal size, or of empty ones, comparable."""
    return [np.full(len(side), 1 / max(len(side), 1)) for side in sides]


def draw_lines_panels(figure: SubFigure, found: Lines, real: Lines) -> None:
    """Where the lines are and in which colours, generated beside held out."""
    *places, paints = figure.subplots(1, 4)
    titles = ("vertical line, x", "free horizontal, y", "horizontal near 48, y")
    for line, (panel, title) in enumerate(zip(places, titles, strict=True)):
        both = [side.positions[side.found][:, line] for side in (found, real)]
        # Bins only over the range of the data: 9 in 10 of the second horizontals lie within 4 pixels.
        low, high = np.percentile(np.concatenate(both), (0.2, 99.8)) if len(both[1]) else (0, SIZE)
        bins = np.arange(np.floor(low) - 0.5, high + 1.5, max(1, round((high - low) / 36)))
        panel.hist(both, list(bins), weights=shares(both), label=("generated", "held out"), color=PANEL_COLORS)
        panel.set(title=title, yticks=[], xlabel="pixel")
    places[-1].legend()
    # One group of bars for each line; a bar's fill is the colour that it counts, its edge tells the side.
    for side, (lines, edge) in enumerate(zip((found, real), PANEL_COLORS, strict=True)):
        for line, heights in enumerate(color_shares(lines) if lines.found.any() else np.zeros((3, 4))):
            at = line * 9.5 + np.arange(4) * 2 + side * 0.9
            paints.bar(at, heights, 0.8, color=COLORS / 255, edgecolor=edge, linewidth=2)
    paints.axhline(1 / len(COLORS), color="gray", linewidth=0.8)
    paints.set(title="colours", xticks=np.arange(3) * 9.5 + 3.4)
    paints.set_xticklabels(("vertical", "free", "near 48"))


def show(figure: SubFigure, images: Images, *, columns: int, title: str) -> None:
    panel = figure.subplots()
    panel.imshow(np.asarray(contact_sheet(images, columns=columns, rows=-(-len(images) // columns), gap=4)))
    panel.set_title(title)
    panel.set_axis_off()
