"""Picture metrics that several models share."""

from __future__ import annotations

import numpy as np


def psnr(picture: np.ndarray, truth: np.ndarray) -> float:
    """PSNR in decibels, for values in 0..255. Identical pictures get 78 dB, so that means stay finite: the squared
    error is at least a thousandth of a level squared, where rounding alone leaves a twelfth."""
    error = max(float(np.square(picture.astype(np.float64) - truth).mean()), 1e-3)
    return 10 * float(np.log10(255**2 / error))
