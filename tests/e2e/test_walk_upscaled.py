"""clients/walk.py --upscale: the same walks four times as large, by an ensemble, and what that needs."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import stand_in
from scripts import CLIENTS, Done, frames, refused, run, worked

from atelier import latents, saving

WALK = CLIENTS / "walk.py"

Walk = Callable[..., Done]


@pytest.fixture
def walk(ensemble_server, tmp_path) -> Walk:
    """Runs walk.py in an empty folder against a shared server that has wgan_x4, too."""
    return lambda *arguments: run(WALK, "--url", ensemble_server.grpc, *arguments, cwd=tmp_path)


def enlarged(vectors: latents.Latents) -> npt.NDArray[np.int64]:
    return stand_in.upscaled(stand_in.images(vectors, 2), 2).astype(np.int64)


def test_upscaled_frames(walk, tmp_path):
    """512 x 512, each the upscaler's of the picture of its vector; the line and the recipe say which model."""
    done = worked(walk("--upscale", "--steps", 5, "--out", "w.png"))
    assert done.stdout == "w.png: 20 frames, 1.0 s; wgan_x4 version 1, seed 1\n"
    recipe = saving.read(tmp_path / "w.png")
    assert (recipe.model, recipe.version) == ("wgan_x4", 1)
    found = frames(tmp_path / "w.png")
    assert found.shape == (20, 512, 512, 3)
    assert np.abs(found - enlarged(recipe.latents())).max() <= 1


def test_upscaled_again(walk, tmp_path):
    """--again makes the large frames anew, --no-upscale the same walk small, and --upscale large from small."""
    worked(walk("--upscale", "--steps", 1, "--out", "a.webp"))
    worked(walk("--again", "a.webp", "--out", "b.png"))
    worked(walk("--again", "a.webp", "--no-upscale", "--out", "small.png"))
    worked(walk("--again", "small.png", "--upscale", "--out", "c.png"))
    before, small, after = (saving.read(tmp_path / name) for name in ("a.webp", "small.png", "c.png"))
    assert (small.model, small.version) == ("wgan", 2)
    assert np.abs(frames(tmp_path / "small.png") - stand_in.images(before.latents(), 2)).max() <= 1
    assert before.to_json() == after.to_json()
    for name in ("b.png", "c.png"):
        np.testing.assert_array_equal(frames(tmp_path / name), frames(tmp_path / "a.webp"))


def test_another_model_has_versions_of_its_own(walk, tmp_path):
    """A walk made again with another model takes that one's newest, or the one that is asked for."""
    worked(walk("--steps", 1, "--out", "small.png"))
    assert saving.read(tmp_path / "small.png").version == 2
    for options in ((), ("--version", 1)):
        done = worked(walk("--again", "small.png", "--model", "wgan_x4", *options, "--out", "large.png"))
        assert done.stdout == "large.png: 4 frames, 0.2 s; wgan_x4 version 1, seed 1\n"


def test_upscaled_in_this_process(walk, ensemble_server, tmp_path):
    """Without a server the steps run one after the other, to the same frames, with the heat map as high."""
    where = ("--repository", ensemble_server.repository, "--in-process")
    options = ("--upscale", "--steps", 1, "--latent", "--strip")
    worked(run(WALK, *where, *options, "--out", "near.png", cwd=tmp_path))
    worked(walk(*options, "--out", "far.png"))
    (near,), (far,) = (frames(tmp_path / name) for name in ("near.png", "far.png"))
    assert near.shape == (16 + 4 * 528, 16 + 1056 + 16, 3)
    assert np.abs(near - far).max() <= 1


@pytest.mark.parametrize("missing", ["wgan", "upscaler"])
def test_what_upscaling_lacks_is_named(tmp_path, missing):
    """The model that has no version yet, and the command that makes one."""
    root = stand_in.repository(tmp_path / "repository", spec=stand_in.WGAN_X4)
    for version in ("1", "2"):
        shutil.rmtree(root / missing / version)
    for options in ((), ("--in-process",)):
        done = run(WALK, "--repository", root, "--upscale", *options, cwd=tmp_path)
        refused(done, f"no version of {missing} yet", f"training.run {missing} --publish")
    assert not (tmp_path / "out").exists()


def test_an_upscaled_walk_has_versions_of_its_own(walk):
    """--version with --upscale is the ensemble's."""
    refused(walk("--upscale", "--version", 2), "--version", "wgan_x4 has no version 2", "wgan 1, 2; wgan_x4 1")
