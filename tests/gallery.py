"""Pictures for the recipe of styles, and the command line of its tiny preset on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def pictures(root: Path) -> Path:
    """20 photographs, two paintings in a folder and one beside it."""
    rng = np.random.default_rng(0)
    for name, count, low in [("photos", 20, 0), ("paintings", 2, 100), ("more", 1, 200)]:
        (root / name).mkdir()
        for k in range(count):
            pixels = rng.integers(low, low + 55, (40, 56, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{name[:2]}_{k}.png")
    return root


def asked(pictures: Path, *more: str) -> list[str]:
    content = str(pictures / "photos")
    return ["style", "--preset", "tiny", "--styles", str(pictures / "paintings"), "--content", content, *more]
