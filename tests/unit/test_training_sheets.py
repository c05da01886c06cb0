"""Sheets and figures that a recipe makes while it trains: of a network that is on a GPU, and on a disk that is full."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.data.fashion_mnist import Split
from training.data.natural import Natural
from training.models.classifier import train as classifier
from training.models.colorizer import train as colorizer
from training.models.colorizer.net import Colorizer, Encoder
from training.models.features import net as backbones
from training.models.features import train as features
from training.models.painter import train as painter
from training.models.style import train as style
from training.models.style.net import StyleNet
from training.models.upscaler import train as upscaler
from training.models.upscaler.net import Upscaler
from training.models.wgan import train as wgan

GPU = torch.device("meta")
RNG = np.random.default_rng(0)


class StandIn(TorchDispatchMode):
    """Torch's meta device as a GPU: no operator takes tensors of both sides, and what is copied back is zeros."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sides = {each.device.type for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        if func is torch.ops.aten._to_copy.default and sides == {"meta"} and kwargs.get("device", GPU) != GPU:
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        assert len(sides) <= 1, f"{func} of {' and '.join(sorted(sides))}"
        return func(*args, **kwargs)


def pictures(count: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, *shape), dtype=np.uint8)


def upscaled(path: Path) -> None:
    small, large = pictures(2, 8, 8, 3), pictures(2, 32, 32, 3)
    held_out = {"photos": list(zip(small, large, strict=True))}
    upscaler.save_samples(Upscaler(4, 2).to(GPU), upscaler.Pictures("", [], [], held_out, ""), path)


def colorized(path: Path) -> None:
    net = Colorizer(Encoder(backbones.random_weights(seed=0)), (8, 8, 8), color="lab", whole=False, size=32)
    held_out = pictures(8, 40, 40, 3)
    colorizer.save_samples(net.to(GPU), colorizer.Photographs("", held_out, held_out, ""), path)


def stylized(path: Path) -> None:
    photos = pictures(3, 32, 32, 3)
    net = StyleNet(2, (4, 8, 8)).to(GPU)
    style.save_samples(net, ("one", "other"), style.Gallery("", photos, photos, {}, ""), path)


def generated(path: Path) -> None:
    generator = wgan.NETWORKS["strips"][0]().to(GPU)
    wgan.plots.save_grid(wgan.generate(generator, torch.zeros(2, wgan.LATENT)), path, columns=2)


def classified(path: Path) -> None:
    garments = Split(pictures(4, 28, 28), np.zeros(4, np.uint8))
    logits = classifier.predict_logits(classifier.NETWORKS["residual"]().to(GPU), garments)
    path.write_text(str(classifier.loss_and_accuracy(logits, garments)))


def told_apart(path: Path) -> None:
    photos, labels = pictures(4, 32, 32, 3), np.zeros(4, np.int64)
    corpus = Natural("", ("one", "other"), photos, labels, photos, labels, "")
    path.write_text(str(features.accuracy(backbones.VggClassifier(2).to(GPU), corpus, GPU)))


def painted(path: Path) -> None:
    painter.save_canvas(torch.zeros(1, 3, 16, 16, device=GPU, requires_grad=True), path)


def plotted(path: Path) -> None:
    wgan.plots.save_convergence([{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}], path, title="a run")


def filmed(path: Path) -> None:
    """Of frames that are small enough to be written, and too many."""
    (path.parent / "samples").mkdir()
    frames = [path.parent / "painting.png", *(path.parent / "samples" / f"{k:06d}.png" for k in range(8))]
    for frame, pixels in zip(frames, pictures(9, 32, 32, 3), strict=True):
        Image.fromarray(pixels).save(frame)
    painter.save_film(path.parent)


@pytest.mark.parametrize(
    ("save", "name"),
    [
        (lambda path: wgan.plots.save_grid(pictures(4, 64, 64, 3), path, columns=2), "000002.png"),
        (lambda path: painter.save_canvas(torch.rand(1, 3, 64, 64), path), "painting.png"),
        (plotted, "convergence.png"),
        (filmed, "film.webp"),
    ],
    ids=["grid", "canvas", "curves", "film"],
)
def test_a_picture_that_cannot_be_written_leaves_the_one_before(
    save: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    """Whole, and no part of the new one beside it: here room runs out."""
    (tmp_path / name).write_bytes(b"the one before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / name).read_bytes() == b"the one before"
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("made", [upscaled, colorized, stylized, generated, classified, told_apart, painted])
def test_what_is_shown_while_training_goes_to_where_the_network_is(
    made: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And comes back: the recipe's sheet is written."""
    monkeypatch.setattr(features, "autocast", lambda device, bf16: torch.autocast("cpu", enabled=False))
    with StandIn():
        made(tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 0
