"""The painter with a backbone of a few random channels, for tests of everything around its graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from serving import pbtxt
from training.export import write_onnx
from training.models.features import net as features
from training.models.painter.net import Objective
from training.models.painter.spec import SPEC

CHANNELS = 8


def repository(folder: Path, **changes: Any) -> Path:
    """A model repository that serves version 1 of it; `changes` are of its spec. Returns `folder`."""
    version = folder / SPEC.name / "1"
    version.mkdir(parents=True)
    _export(version / "model.onnx")
    for name, text in pbtxt.files(replace(SPEC, **changes)).items():
        (folder / SPEC.name / name).write_text(text)
    return folder


@torch.no_grad()
def _export(path: Path) -> None:
    torch.manual_seed(0)
    vgg = features.Vgg(features.BLOCKS["vgg16"], (CHANNELS,) * len(features.WIDTHS))
    for layer in vgg.convolutions.values():
        torch.nn.init.orthogonal_(layer.weight, gain=2**0.5)
    net = Objective(features.frozen(vgg), name="random").eval()
    targets = net.targets(torch.rand(1, 3, 37, 50), torch.rand(1, 3, 40, 33))
    given = (torch.rand(1, 3, 37, 50), *targets, torch.ones(1, 4), torch.ones(1, 5), torch.ones(1, 3))
    names = [tensor.name for tensor in SPEC.core.inputs]
    write_onnx(net, SPEC, {name: array.numpy() for name, array in zip(names, given, strict=True)}, path)
