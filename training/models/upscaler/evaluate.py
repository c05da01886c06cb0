"""Evaluate an upscaler. Run: python -m training.run upscaler --evaluate CHECKPOINT --test DIR

Compares it with Pillow's bicubic enlargement as is usual for super-resolution: on luminance, without 4 pixels at each
border.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import structural_similarity

from training import plots
from training.data.degradations import BICUBIC, resized
from training.measures import psnr
from training.models.upscaler.net import Served
from training.models.upscaler.spec import SCALE

Enlarge = Callable[[np.ndarray], np.ndarray]
"""uint8 (H, W, 3) -> (4H, 4W, 3)"""
BORDER = 4
CROP = 128
"""side in pixels of the crop that a sheet shows of each picture"""


def evaluate(enlarge: Enlarge, sets: dict[str, list[tuple[np.ndarray, np.ndarray]]], *, out: Path) -> dict[str, float]:
    """Means over the pictures of each set of pairs (low-res, ground truth): PSNR and SSIM, those of bicubic, and the
    gain in decibels. Writes upscaled.png into `out`."""
    metrics: dict[str, float] = {}
    rows = []
    for name, pairs in sets.items():
        ours, theirs = [], []
        for low, truth in pairs:
            ours.append(measure(enlarge(low), truth))
            theirs.append(measure(bicubic(low), truth))
        for kind, k in (("psnr", 0), ("ssim", 1)):
            metrics[f"{name}_{kind}"] = float(np.mean([each[k] for each in ours]))
            metrics[f"{name}_bicubic_{kind}"] = float(np.mean([each[k] for each in theirs]))
        metrics[f"{name}_gain_db"] = metrics[f"{name}_psnr"] - metrics[f"{name}_bicubic_psnr"]
        rows += [row(enlarge, *pair) for pair in pairs[:: max(1, len(pairs) // 6)][:6]]
    save_sheet(rows, out / "upscaled.png")
    return metrics


def bicubic(low: np.ndarray) -> np.ndarray:
    """The baseline: Pillow's bicubic enlargement."""
    return resized(low, SCALE * low.shape[0], SCALE * low.shape[1], BICUBIC)


def enlarger(net: Served) -> Enlarge:
    """The network as a function of one picture, on the network's device."""
    device = next(net.parameters()).device

    @torch.no_grad()
    def enlarge(low: np.ndarray) -> np.ndarray:
        return net(torch.from_numpy(low)[None].to(device))[0].cpu().numpy()

    return enlarge


def measure(picture: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """PSNR in decibels and SSIM (Wang et al. 2004), of the luminance inside the border."""
    ours, reference = (luminance(each)[BORDER:-BORDER, BORDER:-BORDER] for each in (picture, truth))
    similar = structural_similarity(
        ours, reference, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return psnr(ours, reference), float(similar)


def luminance(picture: np.ndarray) -> np.ndarray:
    """Y of ITU-R BT.601 in its studio range, 16 to 235, which super-resolution papers use."""
    return 16 + picture @ np.array([65.481, 128.553, 24.966]) / 255


def row(enlarge: Enlarge, low: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Low-res pixels, bicubic, ours, ground truth: crops (4, 128, 128, 3) where bicubic's error is largest."""
    theirs = bicubic(low)
    top, left = worst(np.abs(luminance(theirs) - luminance(truth)))
    pictures = [low.repeat(SCALE, 0).repeat(SCALE, 1), theirs, enlarge(low), truth]
    cut = np.stack(pictures)[:, top : top + CROP, left : left + CROP]
    return np.pad(cut, ((0, 0), (0, CROP - cut.shape[1]), (0, CROP - cut.shape[2]), (0, 0)))


def worst(error: np.ndarray) -> tuple[int, int]:
    """Top and left of the window of CROP x CROP pixels, or less if the picture is smaller, with the largest sum."""
    high, wide = (min(CROP, side) for side in error.shape)
    sums = np.pad(error, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    squares = sums[high:, wide:] - sums[:-high, wide:] - sums[high:, :-wide] + sums[:-high, :-wide]
    top, left = np.unravel_index(squares.argmax(), squares.shape)
    return int(top), int(left)


def save_sheet(rows: list[np.ndarray], path: Path) -> None:
    """Saves `rows` as a sheet, two beside each other."""
    plots.save_grid(np.concatenate(rows), path, columns=8)
