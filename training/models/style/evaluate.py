"""Judge a network of styles. Run: python -m training.run style --styles DIR --evaluate CHECKPOINT

By the objective that it was trained for, on photographs that it has not seen; and by whether each painting can be told
by what was made in its manner.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from training import plots
from training.models.features import net as features
from training.models.features.net import content_loss, gram, relative, style_loss, total_variation
from training.models.style.net import Served


@torch.no_grad()
def evaluate(net: Served, photos: np.ndarray, paintings: dict[str, np.ndarray], *, out: Path) -> dict[str, float]:
    """Means over photographs uint8 (N, H, W, 3) and the paintings' styles, and each style's own style loss.

    `recognised` is the share of painted pictures whose Gram matrices are nearer to their own painting's than to any
    other's, and is left out of one painting, which has no other; `photos_style` is what the style loss of the bare
    photographs is, from which painting sets out.
    """
    asked = net.objective
    vgg = features.load(asked["features"])
    photo = torch.from_numpy(photos).permute(0, 3, 1, 2).float() / 255
    layers = (*asked["content_layers"], *asked["style_layers"])
    there = vgg(photo, layers)
    grams = {
        style: {name: gram(answer) for name, answer in vgg(_picture(painting), asked["style_layers"]).items()}
        for style, painting in paintings.items()
    }
    metrics: dict[str, list[float]] = {name: [] for name in ("content", "style", "tv", "recognised", "photos_style")}
    of_style: dict[str, float] = {}
    rows = []
    for style, wanted in grams.items():
        weights = torch.eye(len(net.names))[net.names.index(style)].expand(len(photo), -1)
        painted = net.net(photo, weights)
        rows.append((painted[:4] * 255).round().byte().permute(0, 2, 3, 1).numpy())
        seen = vgg(painted, layers)
        manner = style_loss(seen, wanted)
        metrics["content"].append(content_loss(seen, {k: there[k] for k in asked["content_layers"]}).mean().item())
        metrics["style"].append(manner.mean().item())
        metrics["tv"].append(total_variation(painted).mean().item())
        metrics["photos_style"].append(style_loss(there, wanted).mean().item())
        if len(grams) > 1:
            metrics["recognised"].append(_recognised(seen, grams, style))
        of_style[f"style_{style.replace('-', '_')}"] = manner.mean().item()
    save_sheet(photos[:4], list(paintings.values()), rows, out / "styles.png")
    means = {name: float(np.mean(values)) for name, values in metrics.items() if values}
    means["objective"] = sum(asked[f"{name}_weight"] * means[name] for name in ("content", "style", "tv"))
    return means | of_style


def _picture(painting: np.ndarray) -> Tensor:
    return torch.from_numpy(painting).permute(2, 0, 1)[None].float() / 255


def _recognised(seen: dict[str, Tensor], grams: dict[str, dict[str, Tensor]], style: str) -> float:
    """The share of pictures that are nearest to `style`; distances are relative to the picture's own, so that a dark
    painting is not far from everything."""
    mine = {name: gram(seen[name]) for name in grams[style]}
    distances = {
        other: torch.stack([relative(wanted[name].expand_as(mine[name]), mine[name]) for name in mine]).sum(0)
        for other, wanted in grams.items()
    }
    nearest = torch.stack(list(distances.values())).argmin(0)
    return (nearest == list(distances).index(style)).float().mean().item()


def save_sheet(photos: np.ndarray, paintings: list[np.ndarray], rows: list[np.ndarray], path: Path) -> None:
    """The photographs in the first column, each style in one of its own under its painting."""
    side = photos.shape[1]
    heads = [np.asarray(ImageOps.pad(Image.fromarray(painting), (side, side))) for painting in paintings]
    columns = [np.concatenate([np.zeros_like(photos[:1]), photos])]
    columns += [np.concatenate([head[None], row]) for head, row in zip(heads, rows, strict=True)]
    plots.save_grid(np.concatenate(np.stack(columns, 1)), path, columns=len(columns))
