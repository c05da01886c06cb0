"""The recipe of the upscaler: a candidate and its card, resuming, what it learns from, and wrong options in one line."""

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training import run
from training.data.degradations import BICUBIC
from training.errors import BadInput
from training.models.upscaler import train as recipe
from training.models.upscaler.net import Served, Upscaler
from training.models.upscaler.train import PRESETS, Options
from training.rundir import RunDir


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 photographs of 56 x 41 pixels, which is no multiple of 4, and one too small to cut a patch from."""
    folder = tmp_path_factory.mktemp("photos")
    luck = np.random.default_rng(0)
    for k in range(20):
        Image.fromarray(luck.integers(0, 255, (41, 56, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    Image.new("RGB", (200, 31)).save(folder / "narrow.png")
    return folder


def asked(photos: Path, *more: str) -> list[str]:
    return ["upscaler", "--preset", "tiny", "--corpus", str(photos), *more]


def options(photos: Path, **changes: object) -> Options:
    return dataclasses.replace(PRESETS["tiny"], **{"corpus": str(photos), **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny preset, unbroken."""
    runs = tmp_path_factory.mktemp("runs")
    assert run.main(asked(photos, "--runs", str(runs))) == 0
    return runs / "upscaler"


def test_a_run_leaves_a_candidate_that_is_measured_beside_bicubic(trained: Path) -> None:
    """On photographs, on lines and on plotter drawings; with a sheet to judge by."""
    metrics = json.loads((trained / "candidate/card.json").read_text())["metrics"]
    for name in ("photos", "lines", "drawings"):
        gain = metrics[f"{name}_psnr"] - metrics[f"{name}_bicubic_psnr"]
        assert metrics[f"{name}_gain_db"] == pytest.approx(gain)
        assert 0 < metrics[f"{name}_bicubic_ssim"] < 1
    assert (trained / "samples/000004.png").is_file()
    assert (trained / "upscaled.png").is_file()
    assert (trained / "convergence.png").is_file()


def test_a_resumed_run_ends_in_the_same_bits(photos: Path, trained: Path, tmp_path: Path) -> None:
    """Stopped after its first step and resumed, against unbroken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "terminated", property(lambda self: True))
        assert run.main(asked(photos, "--runs", str(tmp_path))) == 143
    assert run.main(asked(photos, "--runs", str(tmp_path), "--resume")) == 0
    whole, resumed = (torch.load(path / "checkpoints/last.pt") for path in (trained, tmp_path / "upscaler"))
    for weights in ("net", "average"):
        for key, tensor in whole[weights].items():
            assert torch.equal(tensor, resumed[weights][key]), key
    assert not torch.equal(whole["net"]["last.weight"], torch.zeros_like(whole["net"]["last.weight"]))
