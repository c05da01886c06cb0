"""Learning-rate schedules that more than one recipe has, as multipliers of the highest rate. Torch-free."""

from __future__ import annotations

import math


def warm_up_cosine(done: float, warm_up: float) -> float:
    """The multiplier after a share `done` of the steps: linear warm-up, then half a cosine to zero (Loshchilov and
    Hutter 2017). Pass `(step + 1) / steps`, so that the first step learns, too. A `warm_up` of 0 starts at 1."""
    return done / warm_up if done < warm_up else 0.5 + 0.5 * math.cos(math.pi * (done - warm_up) / (1 - warm_up))
