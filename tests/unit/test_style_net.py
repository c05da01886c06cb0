"""The network of styles: sizes, norms of its own for each style, and what adding one changes."""

from itertools import pairwise

import pytest
import torch

from training.models.style.net import LIMIT, ConditionalNorm, Convolution, Residual, Served, StyleNet
from training.models.style.train import PRESETS


def small(styles: int = 3) -> StyleNet:
    """With styles that differ, as they do once they are trained."""
    torch.manual_seed(0)
    net = StyleNet(styles, (4, 6, 8), blocks=2).eval()
    for name, parameter in net.named_parameters():
        if ".norm." in name:
            torch.nn.init.normal_(parameter, 1 if name.endswith("scale") else 0, 0.5)
    torch.nn.init.normal_(net.palette.shift)
    torch.nn.init.normal_(net.last[1].weight, 0, 0.1)
    return net


def test_untrained_it_gives_the_photograph_back_a_little_paler() -> None:
    """In any style: what is learnt is the difference."""
    photo = torch.rand(1, 3, 20, 20)
    painted = StyleNet(2, (4, 6, 8), blocks=1)(photo, torch.tensor([[0.3, 0.7]]))
    assert (painted - photo).abs().max() < 0.15


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 31), (18, 64), (61, 83)])
def test_any_size_from_16_comes_back_as_large(height: int, width: int) -> None:
    """Halving rounds up and the rest is cut off."""
    painted = small()(torch.rand(1, 3, height, width), torch.eye(3)[:1])
    assert painted.shape == (1, 3, height, width)
    assert painted.min() >= 0
    assert painted.max() <= 1


def test_requests_for_different_styles_share_a_batch() -> None:
    """Each picture of a batch is painted as it is alone, in its own style."""
    net, photos, weights = small(), torch.rand(3, 3, 20, 24), torch.eye(3)
    together = net(photos, weights)
    for k in range(3):
        torch.testing.assert_close(together[k : k + 1], net(photos[k : k + 1], weights[k : k + 1]))
    same_photo = net(photos[:1].expand(3, -1, -1, -1), weights)
    assert all((a - b).abs().max() > 0.01 for a, b in pairwise(same_photo))


def test_a_mixture_mixes_the_norms() -> None:
    """Half of each of two styles is a style whose scales and shifts are the means of theirs."""
    net, photo = small(2), torch.rand(1, 3, 20, 20)
    mixed = net.with_another()  # a style more begins as the mean of the others
    torch.testing.assert_close(net(photo, torch.tensor([[0.5, 0.5]])), mixed(photo, torch.tensor([[0.0, 0.0, 1.0]])))


def test_no_spot_outgrows_a_residual_block() -> None:
    """One bright spot on a smooth ground, 32 standard deviations off, which a free norm keeps: droplets grow so."""
    spot = torch.zeros(1, 1, 32, 32)
    spot[0, 0, 16, 16] = 1.0
    assert ConditionalNorm(1, 1)(spot, torch.ones(1, 1)).max() > 30
    assert ConditionalNorm(1, 1, LIMIT)(spot, torch.ones(1, 1)).max() == LIMIT
    norms = [m for m in Residual(1, 4).modules() if isinstance(m, ConditionalNorm)]
    assert [norm.limit for norm in norms] == [LIMIT, LIMIT]


def test_another_style_leaves_the_others_as_they_were() -> None:
    """The same pictures come out for the old styles."""
    net, photo = small(), torch.rand(1, 3, 20, 20)
    more = net.with_another()
    assert more.styles == 4
    for k in range(3):
        torch.testing.assert_close(net(photo, torch.eye(3)[[k]]), more(photo, torch.eye(4)[[k]]))


def test_what_is_served_takes_weights_of_any_sum() -> None:
    """uint8 in and out; twice the weights are the same style."""
    served = Served(small(), ("a", "b", "c"), {})
    content = torch.randint(0, 256, (2, 17, 22, 3), dtype=torch.uint8)
    weights = torch.tensor([[1.0, 0, 0], [1, 1, 0]])
    image = served(content, weights)
    assert (image.dtype, image.shape) == (torch.uint8, content.shape)
    assert torch.equal(image, served(content, 2 * weights))


def test_johnsons_network_is_the_papers() -> None:
    """Widths 32, 64, 128, five residual blocks, 9 x 9 at both ends (Johnson et al. 2016, supplementary, table 1)."""
    options = PRESETS["johnson"]
    net = StyleNet(1, options.widths, outer=options.outer)
    shapes = [tuple(layer.convolution.weight.shape) for layer in net.modules() if isinstance(layer, Convolution)]
    down = [(32, 3, 9, 9), (64, 32, 3, 3), (128, 64, 3, 3)]
    assert shapes == [*down, *[(128, 128, 3, 3)] * 10, (64, 128, 3, 3), (32, 64, 3, 3)]
    assert [tuple(p.shape) for p in net.last.parameters()] == [(3, 32, 9, 9), (3,)]
    assert not [layer for layer in net.modules() if isinstance(layer, torch.nn.ConvTranspose2d)]
