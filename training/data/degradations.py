"""How a picture is downscaled: as Pillow does it, or with the flaws of the pictures that people have. Torch-free.

A picture is uint8 (H, W, 3), with both sides multiples of the reduction factor.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter

BICUBIC, BOX, LANCZOS = Image.Resampling.BICUBIC, Image.Resampling.BOX, Image.Resampling.LANCZOS
KERNELS = (BOX, Image.Resampling.BILINEAR, BICUBIC, LANCZOS)
# The flaws that cameras, chats and scanners cause, no worse: a network that expects ruins smooths good pictures.
BLUR = (0.0, 1.2)
"""standard deviation of a Gaussian blur before the reduction, in pixels"""
NOISE = (0.0, 4.0)
"""standard deviation of noise after the reduction, in levels of 255"""
QUALITY = (60, 96)
"""JPEG quality, applied last"""
GRAIN, WEAVE = (0.0, 12.0), (0.0, 16.0)
"""standard deviations, in levels of 255, of what a small generator adds to flat colours: to each pixel, and to the four
phases of its pixel shuffle. wgan's lines have 8 and 10 at the median, 15 and 23 in one line of ten"""


def reduced(picture: np.ndarray, factor: int, kernel: Image.Resampling = BICUBIC) -> np.ndarray:
    """uint8 (H, W, 3) -> (H / factor, W / factor, 3), antialiased: the usual input to evaluate super-resolution."""
    height, width, _ = picture.shape
    assert height % factor == width % factor == 0, (picture.shape, factor)
    return resized(picture, height // factor, width // factor, kernel)


def resized(picture: np.ndarray, height: int, width: int, kernel: Image.Resampling = LANCZOS) -> np.ndarray:
    """uint8 of any size -> uint8 (height, width, 3)."""
    return np.array(Image.fromarray(picture).resize((width, height), kernel))


def degraded(picture: np.ndarray, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Like `reduced`, with a random kernel and, each with probability 1/2, a little out of focus, noisy, a JPEG."""
    blurred, noisy, saved = rng.random(3) < 0.5
    image = Image.fromarray(picture)
    if blurred:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR)))
    small = reduced(np.asarray(image), factor, KERNELS[rng.integers(len(KERNELS))])
    if noisy:
        noise = rng.standard_normal(small.shape) * rng.uniform(*NOISE)
        small = np.clip(np.rint(small + noise), 0, 255).astype(np.uint8)
    return as_jpeg(small, int(rng.integers(*QUALITY))) if saved else small


def woven(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture as a generator would draw it: lit areas get grain and a woven pattern; black stays black."""
    height, width, _ = picture.shape
    weave = np.tile(rng.standard_normal((2, 2, 3)), (height // 2 + 1, width // 2 + 1, 1))[:height, :width]
    noise = rng.uniform(*WEAVE) * weave + rng.uniform(*GRAIN) * rng.standard_normal(picture.shape)
    lit = picture.max(2, keepdims=True) / 255
    return np.clip(np.rint(picture + lit * noise), 0, 255).astype(np.uint8)


def as_jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    """The picture after saving it as JPEG, with Pillow's default of halved chroma resolution."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))
