"""What an upscaler is measured by: against published formulas, against bicubic itself, and against what is worse."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from training.data.degradations import reduced
from training.models.upscaler import evaluate as measures

Pair = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    """Soft hills with a hard-edged square on them, of two shapes."""
    made = []
    for height, width in ((160, 200), (60, 72)):
        y, x = np.mgrid[:height, :width]
        hills = 120 + 60 * np.stack([np.sin(x / 11 + y / 17), np.cos(y / 9), np.sin((x - y) / 13)], -1)
        hills[21:43, 18:51] = (240, 200, 30)
        truth = np.rint(hills).astype(np.uint8)
        made.append((reduced(truth, 4), truth))
    return made


def nearest(low: np.ndarray) -> np.ndarray:
    """Worse than bicubic on hills: pixels 4 x 4."""
    return low.repeat(4, 0).repeat(4, 1)


def test_bicubic_gains_nothing_over_itself(pairs: list[Pair], tmp_path: Path) -> None:
    """To the bit, and in both measures."""
    metrics = measures.evaluate(measures.bicubic, {"photos": pairs}, out=tmp_path)
    assert metrics["photos_gain_db"] == 0
    assert metrics["photos_ssim"] == metrics["photos_bicubic_ssim"]
    assert 20 < metrics["photos_psnr"] < 40


def test_a_worse_enlargement_loses_and_the_truth_gains(pairs: list[Pair], tmp_path: Path) -> None:
    """The truth stays finite, though nothing differs from it."""
    worse = measures.evaluate(nearest, {"photos": pairs}, out=tmp_path)
    assert worse["photos_gain_db"] < -1
    assert worse["photos_ssim"] < worse["photos_bicubic_ssim"]
    truths = {low.tobytes(): truth for low, truth in pairs}
    best = measures.evaluate(lambda low: truths[low.tobytes()], {"lines": pairs}, out=tmp_path)
    assert best["lines_psnr"] > 75
    assert best["lines_ssim"] == pytest.approx(1)
    assert best["lines_gain_db"] == pytest.approx(best["lines_psnr"] - best["lines_bicubic_psnr"])


def test_means_are_over_pictures_not_over_pixels(pairs: list[Pair], tmp_path: Path) -> None:
    """A small picture counts as much as a large one."""
    alone = [measures.evaluate(nearest, {"photos": [pair]}, out=tmp_path)["photos_psnr"] for pair in pairs]
    both = measures.evaluate(nearest, {"photos": pairs}, out=tmp_path)["photos_psnr"]
    assert both == pytest.approx(np.mean(alone))
    assert alone[0] != pytest.approx(alone[1], abs=0.1)


def test_luminance_is_that_of_bt_601() -> None:
    """As scikit-image computes it: 16 for black, 235 for white."""
    picture = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    np.testing.assert_allclose(measures.luminance(picture), rgb2ycbcr(picture)[..., 0], atol=1e-3)
    ends = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    np.testing.assert_allclose(measures.luminance(ends), [[16, 235]])


def test_psnr_is_scikit_images(pairs: list[Pair]) -> None:
    """Of luminance, 4 pixels from the border."""
    low, truth = pairs[0]
    ours, wanted = (rgb2ycbcr(each)[4:-4, 4:-4, 0] for each in (nearest(low), truth))
    psnr, ssim = measures.measure(nearest(low), truth)
    assert psnr == pytest.approx(peak_signal_noise_ratio(wanted, ours, data_range=255), abs=1e-3)
    assert ssim == pytest.approx(structural_similarity(wanted, ours, data_range=255), abs=0.03)  # its window is flat


def test_borders_are_not_measured(pairs: list[Pair]) -> None:
    """Four pixels of them; the fifth is."""
    _, truth = pairs[0]
    framed = truth.copy()
    framed[:4], framed[-4:], framed[:, :4], framed[:, -4:] = 0, 0, 0, 0
    assert measures.measure(framed, truth) == measures.measure(truth, truth)
    framed[4] = 0
    assert measures.measure(framed, truth) < measures.measure(truth, truth)


def test_a_sheet_shows_where_bicubic_errs_the_most() -> None:
    """The square of 128 pixels that holds the only detail, in four versions; of small pictures all there is."""
    truth = np.full((300, 400, 3), 90, np.uint8)
    truth[200:260:2, 250:330:2] = 255
    low = reduced(truth, 4)
    pixels, bicubic, ours, wanted = measures.row(nearest, low, truth)
    assert wanted.shape == (128, 128, 3)
    assert (wanted == 255).sum() == (truth == 255).sum()
    assert np.array_equal(pixels, ours)
    assert not np.array_equal(bicubic, ours)
    small = measures.row(nearest, low[:10, :12], truth[:40, :48])
    assert small.shape == (4, 128, 128, 3)
    assert np.array_equal(small[3, :40, :48], truth[:40, :48])


def test_the_sheet_is_written_beside_the_checkpoint(pairs: list[Pair], tmp_path: Path) -> None:
    """Two pictures beside each other, each four times."""
    measures.evaluate(nearest, {"photos": pairs, "lines": pairs}, out=tmp_path)
    with Image.open(tmp_path / "upscaled.png") as sheet:
        assert sheet.size == (8 * 130 + 2, 2 * 130 + 2)
