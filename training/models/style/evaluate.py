"""Evaluate a network of styles. Run: python -m training.run style --styles DIR --evaluate CHECKPOINT

On held-out photographs: by its training objective, and by whether the pictures in a painting's style can be matched to
that painting.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from training import plots
from training.models.features import net as features
from training.models.features.net import content_loss, gram, relative_error, style_loss, total_variation
from training.models.style.net import Served


@torch.no_grad()
def evaluate(net: Served, photos: np.ndarray, paintings: dict[str, np.ndarray], *, out: Path) -> dict[str, float]:
    """Means over photographs uint8 (N, H, W, 3) and the paintings' styles, and each style's own style loss.

    `recognised` is the share of painted pictures whose Gram matrices are nearer to their own painting's than to any
    other's, and is left out if there is only one painting; `photos_style` is the style loss of the unpainted
    photographs, the starting point.
    """
    objective = net.objective
    vgg = features.load(objective["features"])
    photo = torch.from_numpy(photos).permute(0, 3, 1, 2).float() / 255
    content_layers, style_layers = objective["content_layers"], objective["style_layers"]
    bare = vgg(photo, (*content_layers, *style_layers))
    targets = {layer: bare[layer] for layer in content_layers}
    grams = {
        style: {name: gram(activation) for name, activation in vgg(_picture(painting), style_layers).items()}
        for style, painting in paintings.items()
    }
    metrics: dict[str, list[float]] = {name: [] for name in ("content", "style", "tv", "recognised", "photos_style")}
    of_style: dict[str, float] = {}
    rows = []
    for style, target_grams in grams.items():
        weights = torch.eye(len(net.names))[net.names.index(style)].expand(len(photo), -1)
        image = net(torch.from_numpy(photos), weights)
        painted = image.permute(0, 3, 1, 2).float() / 255
        rows.append(image[:4].numpy())
        activations = vgg(painted, (*content_layers, *style_layers))
        style_losses = style_loss(activations, target_grams)
        metrics["content"].append(content_loss(activations, targets).mean().item())
        metrics["style"].append(style_losses.mean().item())
        metrics["tv"].append(total_variation(painted).mean().item())
        metrics["photos_style"].append(style_loss(bare, target_grams).mean().item())
        if len(grams) > 1:
            metrics["recognised"].append(_recognised(activations, grams, style))
        of_style[f"style_{style.replace('-', '_')}"] = style_losses.mean().item()
    save_sheet(photos[:4], list(paintings.values()), rows, out / "styles.png")
    means = {name: float(np.mean(values)) for name, values in metrics.items() if values}
    means["objective"] = sum(objective[f"{name}_weight"] * means[name] for name in ("content", "style", "tv"))
    return means | of_style


def _picture(painting: np.ndarray) -> Tensor:
    return torch.from_numpy(painting).permute(2, 0, 1)[None].float() / 255


def _recognised(activations: dict[str, Tensor], grams: dict[str, dict[str, Tensor]], style: str) -> float:
    """The share of pictures that are nearest to `style`; distances are relative to the norm of the picture's own Gram
    matrices, so that a dark painting is not far from everything."""
    own = {name: gram(activations[name]) for name in grams[style]}
    distances = {
        other: torch.stack([relative_error(of_other[name].expand_as(own[name]), own[name]) for name in own]).sum(0)
        for other, of_other in grams.items()
    }
    nearest = torch.stack(list(distances.values())).argmin(0)
    return (nearest == list(distances).index(style)).float().mean().item()


def save_sheet(photos: np.ndarray, paintings: list[np.ndarray], rows: list[np.ndarray], path: Path) -> None:
    """The photographs in the first column, then a column for each style, headed by its painting."""
    side = photos.shape[1]
    heads = [np.asarray(ImageOps.pad(Image.fromarray(painting), (side, side))) for painting in paintings]
    columns = [np.concatenate([np.zeros_like(photos[:1]), photos])]
    columns += [np.concatenate([head[None], row]) for head, row in zip(heads, rows, strict=True)]
    plots.save_grid(np.concatenate(np.stack(columns, 1)), path, columns=len(columns))
