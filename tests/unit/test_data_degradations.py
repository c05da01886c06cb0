"""Pictures made small: as Pillow makes them, and as people's pictures are."""

import numpy as np
import pytest
from PIL import Image

from training.data import degradations
from training.data.degradations import BICUBIC, BOX, GRAIN, KERNELS, WEAVE, as_jpeg, degraded, reduced, woven


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """64 x 96 pixels of soft colours and hard edges."""
    y, x = np.mgrid[:64, :96]
    waves = 127 + 120 * np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 5)], -1)
    waves[20:40, 30:60] = (250, 20, 20)
    return np.rint(waves).astype(np.uint8)


class Given:
    """Luck that was chosen: `happens` are the three chances, `kernel` is KERNELS' and everything else its least."""

    def __init__(self, happens: tuple[bool, bool, bool], kernel: int = 2, quality: int = 60) -> None:
        self.happens, self.kernel, self.quality = happens, kernel, quality

    def random(self, count: int) -> np.ndarray:
        assert count == len(self.happens)
        return np.where(self.happens, 0.0, 1.0)

    def integers(self, low: int, high: int | None = None) -> int:
        return self.kernel if high is None else self.quality

    def uniform(self, low: float, high: float) -> float:
        return high

    def standard_normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng(0).standard_normal(shape)


def test_reduced_is_what_pillow_makes(picture: np.ndarray) -> None:
    """To the byte, and antialiased: a checkerboard becomes gray."""
    assert np.array_equal(reduced(picture, 4), Image.fromarray(picture).resize((24, 16), Image.Resampling.BICUBIC))
    checkers = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    assert np.abs(reduced(checkers, 4).astype(int)[1:-1, 1:-1] - 127).max() <= 1


def test_the_box_is_the_mean_of_the_pixels(picture: np.ndarray) -> None:
    """As plotter drawings came to their size. Pillow rounds twice, after the rows and after the columns."""
    means = picture.reshape(16, 4, 24, 4, 3).mean((1, 3))
    assert np.abs(reduced(picture, 4, BOX) - means).max() <= 1


def test_sides_that_are_no_multiple_are_a_mistake_of_the_program() -> None:
    """Both numbers are printed."""
    with pytest.raises(AssertionError, match=r"\(30, 32, 3\), 4"):
        reduced(np.zeros((30, 32, 3), np.uint8), 4)


@pytest.mark.parametrize("kernel", range(len(KERNELS)), ids=lambda k: KERNELS[k].name.lower())
def test_where_nothing_else_happens_only_the_kernel_differs(picture: np.ndarray, kernel: int) -> None:
    """Each of the kernels, bicubic among them."""
    small = degraded(picture, 4, Given((False, False, False), kernel))  # type: ignore[arg-type]
    assert np.array_equal(small, reduced(picture, 4, KERNELS[kernel]))


def test_blur_takes_edges_away(picture: np.ndarray) -> None:
    """The steepest step of the reduced picture is less steep, and its mean stays."""
    sharp, soft = reduced(picture, 4), degraded(picture, 4, Given((True, False, False)))  # type: ignore[arg-type]
    steepest = [np.abs(np.diff(each.astype(int), axis=1)).max() for each in (soft, sharp)]
    assert steepest[0] < steepest[1]
    assert soft.mean() == pytest.approx(sharp.mean(), abs=1)


def test_noise_is_as_strong_as_it_is_said_to_be() -> None:
    """In levels of 255, around no change at all; dark and bright do not wrap round."""
    gray = np.full((256, 256, 3), 128, np.uint8)
    noise = degraded(gray, 4, Given((False, True, False))).astype(int) - 128  # type: ignore[arg-type]
    assert noise.mean() == pytest.approx(0, abs=0.2)
    assert noise.std() == pytest.approx(degradations.NOISE[1], rel=0.05)
    black = degraded(np.zeros_like(gray), 4, Given((False, True, False)))  # type: ignore[arg-type]
    assert black.max() < 30


def test_jpeg_is_pillows_of_that_quality(picture: np.ndarray) -> None:
    """The worse the quality, the farther from the picture."""
    small = reduced(picture, 4, BICUBIC)
    saved = degraded(picture, 4, Given((False, False, True), quality=60))  # type: ignore[arg-type]
    assert np.array_equal(saved, as_jpeg(small, 60))
    errors = [np.abs(as_jpeg(small, quality) - small.astype(float)).mean() for quality in (95, 75, 40)]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_the_same_seed_degrades_alike(picture: np.ndarray) -> None:
    """And by another seed differently, unless it is spared everything."""
    once, again = ([degraded(picture, 4, np.random.default_rng(k)) for k in range(20)] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert len({each.tobytes() for each in once}) > 15
    assert all(each.shape == (16, 24, 3) for each in once)


def test_a_weave_is_where_the_picture_is_lit() -> None:
    """Black stays black, what is lit changes, by as much as its constants say and on the mean not at all; its pattern
    comes again after two pixels, its grain does not."""
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, 32:] = (120, 60, 200)
    wrong = np.stack([woven(picture, np.random.default_rng(k)) for k in range(200)]).astype(float) - picture
    assert not wrong[:, :, :32].any()
    lit = wrong[:, :, 32:] / (200 / 255)
    # Of a variance that is a strength squared, and strengths uniform from 0: a third of the largest one's.
    assert lit.std() == pytest.approx(((GRAIN[1] ** 2 + WEAVE[1] ** 2) / 3) ** 0.5, rel=0.2)
    assert abs(lit.mean()) < 1
    again = (lit[:, ::2, ::2] * np.roll(lit[:, ::2, ::2], 1, 1)).mean()
    assert again == pytest.approx(WEAVE[1] ** 2 / 3, rel=0.3)
