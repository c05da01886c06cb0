"""The colorizer's measures: the truth comes out best, gray as gray, and baselines learn what they are said to."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_colorizer_net import colorizer

from training.models.colorizer import evaluate as measures
from training.models.colorizer.net import Served, gray_of, lab


def fields(count: int, seed: int = 0) -> np.ndarray:
    """Pictures uint8 (N, 40, 40, 3): sky over grass, with a horizon and some noise."""
    rng = np.random.default_rng(seed)
    pictures = np.zeros((count, 40, 40, 3), np.uint8)
    for picture, horizon in zip(pictures, rng.integers(8, 32, count), strict=True):
        picture[:horizon], picture[horizon:] = (150, 190, 250), (60, 110, 30)
    return (pictures + rng.integers(0, 6, (count, 40, 40, 1))).astype(np.uint8)


def grayed(pictures: np.ndarray) -> np.ndarray:
    gray = gray_of(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255)
    return (gray * 255).round().byte().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()


def test_colourfulness_is_none_for_gray_and_more_for_more() -> None:
    """Of the same pictures, half as saturated ones have about half of it; a plain red field as its definition says."""
    pictures = fields(3)
    gray = grayed(pictures)
    pale = (pictures // 2 + gray // 2).astype(np.uint8)
    assert measures.colourfulness(gray) == 0
    assert measures.colourfulness(pale) == pytest.approx(measures.colourfulness(pictures) / 2, rel=0.1)
    red = np.full((1, 8, 8, 3), (255, 0, 0), np.uint8)
    assert measures.colourfulness(red) == pytest.approx(0.3 * np.hypot(255, 127.5))


def test_what_is_nearer_to_the_truth_measures_better() -> None:
    """Itself, then paler, then gray, then in false colours: by each measure."""
    truth = fields(3)
    ways = [truth, (truth // 2 + grayed(truth) // 2).astype(np.uint8), grayed(truth), truth[..., ::-1].copy()]
    psnr, ssim, away = zip(*(measures.compared(way, truth).values() for way in ways), strict=True)
    assert psnr[0] == pytest.approx(78.1, abs=0.1)
    assert away[0] == 0
    assert ssim[0] == pytest.approx(1)
    assert list(psnr) == sorted(psnr, reverse=True)
    assert list(ssim) == sorted(ssim, reverse=True)
    assert list(away) == sorted(away)


def test_pictures_that_are_equal_count_as_the_others_do() -> None:
    """With a finite figure of their own: a mean is over all pictures, whichever method gets some of them right, and
    JSON knows no infinity."""
    truth, made = fields(2), fields(2)
    made[0] ^= 1
    other, equal = (measures.compared(made[[k]], truth[[k]])["psnr"] for k in (0, 1))
    assert other == pytest.approx(20 * np.log10(255))
    assert measures.compared(made, truth)["psnr"] == pytest.approx((other + equal) / 2)


def test_ciede2000_is_the_published_one() -> None:
    """A pair of the paper's own test data (Sharma et al. 2005): 50, 2.6772, -79.7751 and 50, 0, -82.7485 are 2.0425
    apart, as scikit-image's, which `compared` asks, says."""
    pair = np.array([50, 2.6772, -79.7751]), np.array([50, 0, -82.7485])
    assert measures.deltaE_ciede2000(*pair) == pytest.approx(2.0425, abs=1e-4)


def test_mean_chroma_gives_every_pixel_the_mean() -> None:
    """All of a corpus that is one colour gets that colour back."""
    one = np.full((4, 20, 20, 3), (150, 190, 250), np.uint8)
    gray = gray_of(torch.from_numpy(one).permute(0, 3, 1, 2).float() / 255)
    made = measures.mean_chroma(one)(gray)
    torch.testing.assert_close(made[0, :, 0, 0], torch.tensor([150, 190, 250]) / 255, atol=0.01, rtol=0)


def test_mean_chroma_counts_every_picture_alike() -> None:
    """Also the last of a corpus that is no multiple of the number computed at once."""
    corpus = np.full((measures.AT_ONCE + 1, 4, 4, 3), (150, 190, 250), np.uint8)
    corpus[-1] = (250, 60, 30)
    made = measures.mean_chroma(corpus)(torch.full((1, 1, 4, 4), 0.6))
    ends = lab(torch.from_numpy(corpus[[0, -1]]).permute(0, 3, 1, 2).float() / 255)[:, 1:, 0, 0]
    wanted = (measures.AT_ONCE * ends[0] + ends[1]) / (measures.AT_ONCE + 1)
    torch.testing.assert_close(lab(made)[0, 1:, 0, 0], wanted, atol=0.05, rtol=0)


def test_nearest_chroma_finds_the_picture_that_it_knows() -> None:
    """Of pictures that were trained on, their own colours come back."""
    known = fields(6)
    gray = gray_of(torch.from_numpy(known).permute(0, 3, 1, 2).float() / 255)
    made = (measures.nearest_chroma(known)(gray) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.abs(made.astype(int) - known).mean() < 2


def test_all_measures_come_with_a_sheet(tmp_path: Path) -> None:
    """Both stages and three baselines; leaving it gray is what the share is of. Five pictures, in four ways each."""
    metrics = measures.evaluate(Served(colorizer()), fields(5, seed=1), fields(12), out=tmp_path)
    assert metrics["gray_colourfulness_to_truth"] == 0
    assert metrics["ciede2000_to_gray"] == pytest.approx(metrics["ciede2000"] / metrics["gray_ciede2000"])
    assert metrics["nearest_ciede2000"] < min(metrics["mean_ciede2000"], metrics["gray_ciede2000"])
    assert {f"{prefix}{name}" for prefix in ("", "stage1_", "gray_", "mean_", "nearest_") for name in (
        "psnr", "ssim", "ciede2000", "colourfulness_to_truth")} <= metrics.keys()  # fmt: skip
    with Image.open(tmp_path / "colorized.png") as sheet:
        assert sheet.size == (8 * 42 + 2, 3 * 42 + 2)
