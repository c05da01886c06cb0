"""The colorizer's networks: colour against scikit-image, sizes against Pillow, and luminance that stays as it was."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2lab
from torch import Tensor

from training.models.colorizer.net import (
    CHROMA,
    Block,
    Colorizer,
    Critic,
    Encoder,
    Served,
    gray_of,
    lab,
    lightness,
    linear,
    resized,
    rgb,
)
from training.models.features import net as features


def picture(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def colorizer(color: str = "lab", *, whole: bool = False, size: int = 32) -> Colorizer:
    """Untrained, with answers that are not gray, and norms that have measured something."""
    torch.manual_seed(0)
    net = Colorizer(Encoder(features.load(features.RANDOM)), (8, 8, 8), color=color, whole=whole, size=size)
    for decoder in net.decoders:
        torch.nn.init.normal_(decoder.last.weight, 0, 1)
    net.train()
    net(picture(4, 1, size, size), 1), net(picture(4, 1, size, size), 2)
    return net.eval()


def asked(*shape: int) -> tuple[Tensor, Tensor]:
    """A request: gray uint8 (N, H, W, 1), and the stage."""
    return (picture(*shape, 1) * 255).byte(), torch.full((shape[0], 1), 2.0)


def test_lab_is_scikit_images() -> None:
    """Within a hundredth of what can be seen."""
    colours = picture(2, 3, 20, 30)
    theirs = rgb2lab(colours.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(lab(colours).permute(0, 2, 3, 1).numpy(), theirs, atol=0.01)


def test_a_colour_comes_back_from_gray_and_chroma() -> None:
    """Of a colour that a screen can show, nothing is lost between RGB and luminance, a and b."""
    colours = picture(2, 3, 20, 30)
    light = linear(gray_of(colours))
    there = rgb(light, lightness(light), lab(colours)[:, 1:])
    torch.testing.assert_close(there, colours, atol=1e-4, rtol=0)


def test_a_colour_beyond_the_screen_keeps_its_luminance() -> None:
    """Chroma gives way, and stays in the picture's range."""
    colours = picture(2, 3, 20, 30)
    light = linear(gray_of(colours))
    there = rgb(light, lightness(light), 5 * lab(colours)[:, 1:])
    assert there.min() >= 0
    assert there.max() <= 1
    torch.testing.assert_close(lab(there)[:, 0], lab(colours)[:, 0], atol=1e-2, rtol=0)


@pytest.mark.parametrize("size", [(31, 40), (140, 200), (64, 64)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_sizes_change_as_pillows_bilinear_does(size: tuple[int, int]) -> None:
    """Smaller and larger, of no round size."""
    levels = 255 * picture(70, 90)
    pillows = np.asarray(Image.fromarray(levels.numpy()).resize(size[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_allclose(resized(levels[None, None], *size)[0, 0].numpy(), pillows, atol=0.01)


@pytest.mark.parametrize("size", [(16, 16), (37, 53), (128, 16)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_luminance_is_the_pictures_own(size: tuple[int, int]) -> None:
    """What comes back has the lightness of what went in, within the rounding to 255 levels; and colour."""
    gray, stage = asked(2, *size)
    made = Served(colorizer())(gray, stage)
    assert made.shape == (2, *size, 3)
    assert made.dtype == torch.uint8
    as_lab = rgb2lab(made.numpy())
    truth = rgb2lab(gray.expand(-1, -1, -1, 3).numpy())[..., 0]
    np.testing.assert_allclose(as_lab[..., 0], truth, atol=1.5)
    assert np.abs(as_lab[..., 1:]).mean() > 2


def test_a_stage_between_is_a_mixture() -> None:
    """In chroma, where that is linear: half way, the mean of both."""
    served = Served(colorizer())
    chroma = {}
    for stage in (1.0, 1.5, 2.0):
        gray = torch.full((1, 32, 32, 1), 128, dtype=torch.uint8)
        chroma[stage] = rgb2lab(served(gray, torch.tensor([[stage]])).numpy())[..., 1:]
    assert np.abs(chroma[1.0] - chroma[2.0]).mean() > 1
    np.testing.assert_allclose(chroma[1.5], (chroma[1.0] + chroma[2.0]) / 2, atol=2)


def test_pictures_of_a_batch_do_not_meet() -> None:
    """Each is answered as it is alone."""
    served = Served(colorizer())
    gray, _ = asked(3, 40, 24)
    stage = torch.tensor([[1.0], [1.5], [2.0]])
    alone = torch.cat([served(gray[k : k + 1], stage[k : k + 1]) for k in range(3)])
    assert (served(gray, stage).int() - alone.int()).abs().max() <= 1


@pytest.mark.parametrize("color", ["lab", "rgb"])
def test_packed_weights_say_the_same(color: str) -> None:
    """Without norms and in two bytes each: within two levels, and no norm is left."""
    served = Served(colorizer(color))
    gray, stage = asked(2, 40, 40)
    before = served(gray, stage).int()
    after = served.packed()(gray, stage).int()
    assert (before - after).abs().max() <= 2
    assert all(isinstance(b.norm, torch.nn.Identity) for b in served.modules() if isinstance(b, Block))
    assert all(torch.equal(p, p.half().float()) for p in served.parameters())


def test_the_encoder_is_as_it_was_while_the_decoder_trains() -> None:
    """Norms of pretrained weights keep to what they measured: training mode stops before them."""
    net = colorizer()
    net.train()
    assert not net.encoder.training
    assert net.decoders[0].training


@pytest.mark.parametrize(("whole", "side"), [(True, 32), (False, 16)], ids=["whole", "half"])
def test_decoders_answer_at_their_size(whole: bool, side: int) -> None:
    """Chroma at half the size of what the network sees, or at all of it."""
    assert colorizer("rgb", whole=whole)(picture(2, 1, 32, 32), 2).shape == (2, 3, side, side)


def test_an_edge_of_luminance_is_an_edge_of_chroma() -> None:
    """Two fields, dark and light, and chroma that changes a little beside their border. On a picture eight times
    as large as the network's chroma is, it changes where luminance does, and not where chroma alone would."""
    served = Served(colorizer(size=64), edge=1.0)
    side, border = 256, 123
    light = torch.full((1, 1, side, side), 20.0)
    light[..., border:] = 80
    chroma = torch.full((1, 2, 32, 32), -0.4 * CHROMA)
    chroma[..., 15:] = 0.4 * CHROMA  # a place of these is 8 pixels: it changes at 120
    across = served.guided_filter(chroma, light, side, side)[0, 0, side // 2]
    assert torch.equal(across > 0, torch.arange(side) >= border)
    plain = resized(chroma, side, side)[0, 0, side // 2]
    assert torch.equal(plain > 0, torch.arange(side) >= 120)


def test_the_critic_scores_every_patch() -> None:
    """One score for each 4 x 4 places, less one at the border."""
    assert Critic(3)(picture(2, 3, 64, 64)).shape == (2, 1, 15, 15)
