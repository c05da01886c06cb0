"""Evaluate a colorizer. Run: python -m training.run colorizer --corpus DIR --test DIR --evaluate CHECKPOINT

Numbers say little about colour: a field may be green or yellow, and both are right. So look at colorized.png, too.
Each metric is compared with baselines that need no network: the gray picture itself, the corpus's mean colour, and the
colours of the training picture whose luminance is nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity
from torch import Tensor

from training import plots
from training.measures import psnr
from training.models.colorizer.net import Served, gray_of, lab, lightness, linear, resized, rgb

AT_ONCE = 16
SHEET = 24
"""Number of pictures on the sheet."""
THUMB = 16
"""Side in pixels of the thumbnails whose luminances are compared."""

Pictures = np.ndarray
Colouring = Callable[[Tensor], Tensor]
"""Gray levels (N, 1, H, W) in [0, 1] -> RGB (N, 3, H, W) in [0, 1]."""


@torch.no_grad()
def evaluate(net: Served, held_out: Pictures, trained_on: Pictures, *, out: Path) -> dict[str, float]:
    """Means over pictures uint8 (N, H, W, 3): of both stages, and of the baselines.

    `psnr` (dB) and `ssim` are of RGB; `ciede2000` is the mean colour difference, where 1 is just noticeable;
    `colourfulness_to_truth` is Hasler and Süsstrunk's (2003), relative to the photographs' own; `ciede2000_to_gray` is
    relative to that of the gray picture. Metrics without a prefix are the second stage's.
    """
    methods: dict[str, Colouring] = {
        "": lambda gray: coloured(net, gray, 2),
        "stage1_": lambda gray: coloured(net, gray, 1),
        "gray_": lambda gray: gray.expand(-1, 3, -1, -1),
        "mean_": mean_chroma(trained_on),
        "nearest_": nearest_chroma(trained_on),
    }
    truth = colourfulness(held_out)
    metrics: dict[str, float] = {}
    for prefix, method in methods.items():
        made = np.concatenate([_coloured(method, part) for part in _parts(held_out)])
        metrics |= {f"{prefix}{name}": value for name, value in compared(made, held_out).items()}
        metrics[f"{prefix}colourfulness_to_truth"] = colourfulness(made) / max(truth, 1e-6)
    metrics["ciede2000_to_gray"] = metrics["ciede2000"] / max(metrics["gray_ciede2000"], 1e-6)
    metrics["stage1_ciede2000_to_gray"] = metrics["stage1_ciede2000"] / max(metrics["gray_ciede2000"], 1e-6)
    plots.save_grid(side_by_side(net, held_out[:SHEET]), out / "colorized.png", columns=8)
    return metrics


def compared(made: Pictures, truth: Pictures) -> dict[str, float]:
    """Means over pictures uint8 (N, H, W, 3): psnr (dB), ssim, ciede2000."""
    decibels = [psnr(one, there) for one, there in zip(made, truth, strict=True)]
    ssim = [structural_similarity(there, one, channel_axis=2) for one, there in zip(made, truth, strict=True)]
    ciede2000 = [deltaE_ciede2000(rgb2lab(there), rgb2lab(one)).mean() for one, there in zip(made, truth, strict=True)]
    return {
        "psnr": float(np.mean(decibels)),
        "ssim": float(np.mean(ssim)),
        "ciede2000": float(np.mean(ciede2000)),
    }


def colourfulness(pictures: Pictures) -> float:
    """The mean of Hasler and Süsstrunk's metric over uint8 (N, H, W, 3): 0 is gray, 109 extremely colourful."""
    red, green, blue = np.moveaxis(pictures.astype(np.float64), 3, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])  # (2, N, H, W)
    spread, strength = opponents.std((2, 3)), opponents.mean((2, 3))
    return float((np.hypot(*spread) + 0.3 * np.hypot(*strength)).mean())


# --- baselines, which need no network ---


def mean_chroma(trained_on: Pictures) -> Colouring:
    """Gives every pixel the mean a and b of the corpus."""
    mean = torch.cat([lab(_tensor(part))[:, 1:].mean((2, 3)) for part in _parts(trained_on)]).mean(0)

    def colour(gray: Tensor) -> Tensor:
        return _joined(gray, mean[None, :, None, None].expand(len(gray), -1, *gray.shape[2:]))

    return colour


def nearest_chroma(trained_on: Pictures) -> Colouring:
    """Gives every picture the a and b of its nearest training picture, by the pixels of their gray thumbnails."""
    thumbs = torch.cat([_thumb(gray_of(_tensor(part))) for part in _parts(trained_on)])

    def colour(gray: Tensor) -> Tensor:
        nearest = torch.cdist(_thumb(gray), thumbs).argmin(1)
        chroma = lab(_tensor(trained_on[nearest.numpy()]))[:, 1:]
        return _joined(gray, resized(chroma, *gray.shape[2:]))

    return colour


def _thumb(gray: Tensor) -> Tensor:
    return F.interpolate(gray, size=(THUMB, THUMB), mode="area").flatten(1)


def _joined(gray: Tensor, chroma: Tensor) -> Tensor:
    light = linear(gray)
    return rgb(light, lightness(light), chroma)


# --- pictures ---


def gray_levels(picture: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> (H, W, 1) of the same luminance, as the served model takes it."""
    return _levels(gray_of(_tensor(picture[None])))[0].numpy()


def coloured(net: Served, gray: Tensor, stage: float) -> Tensor:
    """Takes gray on the CPU and returns the answer there, whatever device the network is on."""
    device = net.levels.device
    answer: Tensor = net(_levels(gray).to(device), torch.full((len(gray), 1), float(stage), device=device))
    return answer.cpu().permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def side_by_side(net: Served, pictures: Pictures) -> Pictures:
    """uint8 (4 N, H, W, 3): for every eight pictures the gray ones, the first stage's, the second's, and the truth."""
    rows = []
    for start in range(0, len(pictures), 8):
        truth = pictures[start : start + 8]
        gray = gray_of(_tensor(truth))
        made = [gray.expand(-1, 3, -1, -1), coloured(net, gray, 1), coloured(net, gray, 2)]
        rows += [*map(_pixels, made), truth]
    return np.concatenate(rows)


def _levels(gray: Tensor) -> Tensor:
    return (gray * 255).round().byte().permute(0, 2, 3, 1)


def _coloured(method: Colouring, pictures: Pictures) -> Pictures:
    return _pixels(method(gray_of(_tensor(pictures))))


def _parts(pictures: Pictures) -> list[Pictures]:
    return np.split(pictures, range(AT_ONCE, len(pictures), AT_ONCE))


def _tensor(pictures: Pictures) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def _pixels(pictures: Tensor) -> Pictures:
    return (pictures * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
