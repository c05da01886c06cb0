"""What the CPU image's backends have answered with an error, which Triton takes for a success: their own metric."""

from __future__ import annotations

import re
import urllib.request

from serving.embedded import Embedded

METRIC = "atelier_backend_failures_total"


def counted(server: Embedded, model: str) -> dict[str, int]:
    """Of the model's version 1, by reason."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics") as answer:
        text = answer.read().decode()
    labels = rf'\{{model="{model}",reason="(\w+)",version="1"\}}'
    return {reason: int(value) for reason, value in re.findall(rf"{METRIC}{labels} (\d+)", text)}
