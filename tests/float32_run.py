"""training.run without bf16: what differs then differs by more than rounding."""

from __future__ import annotations

import contextlib
import sys

from training import run
from training.models.style import train as style
from training.models.upscaler import train as upscaler

if __name__ == "__main__":
    for recipe in (style, upscaler):
        recipe.autocast = lambda device, bf16: contextlib.nullcontext()
    raise SystemExit(run.main(sys.argv[1:]))
