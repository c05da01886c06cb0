"""The networks against the source's description, and the one that ships against its contract."""

import pytest
import torch

from training.models.wgan.net import NETWORKS, Critic, Generator, Served, SourceCritic, SourceGenerator
from training.models.wgan.spec import LATENT, SPEC


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_source_generator_is_the_sources_layer_by_layer() -> None:
    """Dense to 8x8x512, then transposed convolutions 512, 256, 128, 3 of kernel 10 and stride 2, batch norm between."""
    net = SourceGenerator()
    convolutions = [layer for layer in net.layers if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert (net.dense.in_features, net.dense.out_features) == (100, 8 * 8 * 512)
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(512, 512), (512, 256), (256, 128), (128, 3)]
    assert {(c.kernel_size, c.stride) for c in convolutions} == {((10, 10), (2, 2))}
    norms = [layer for layer in net.layers if isinstance(layer, torch.nn.BatchNorm2d)]
    assert [n.num_features for n in norms] == [512, 512, 256, 128]
    assert {round(1 - n.momentum, 6) for n in norms} == {0.9}
    # dense + three wide convolutions + the last + two parameters for each normalised channel
    dense = 100 * 32768 + 32768
    wide = 100 * (512 * 512 + 512 * 256 + 256 * 128) + 512 + 256 + 128
    assert parameters(net) == dense + wide + (100 * 128 * 3 + 3) + 2 * (512 + 512 + 256 + 128) == 45_950_083


def test_source_critic_is_the_sources_layer_by_layer() -> None:
    """Convolutions 128, 256, 512, 1024 of kernel 5 and stride 2, no norm, no dropout, a dense layer of one."""
    net = SourceCritic()
    convolutions = [layer for layer in net.layers if isinstance(layer, torch.nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [128, 256, 512, 1024]
    assert {(c.kernel_size, c.stride) for c in convolutions} == {((5, 5), (2, 2))}
    assert not [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d | torch.nn.Dropout)]
    assert parameters(net) == 25 * (3 * 128 + 128 * 256 + 256 * 512 + 512 * 1024) + 1920 + 65_537 == 17_280_257


def test_source_weights_start_at_normal_002() -> None:
    """Weights come from normal(0, 0.02), biases from zero."""
    torch.manual_seed(0)
    for layer in (SourceGenerator().layers[2], SourceCritic().layers[4]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.01)
        assert layer.bias.abs().max().item() == 0


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_map_latents_to_pictures_to_scores(network: str) -> None:
    """Generator: (N, 100) to (N, 3, 128, 128) within [-1, 1]; critic: pictures to one score each."""
    generator, critic = (net() for net in NETWORKS[network])
    pictures = generator(torch.randn(2, LATENT))
    assert pictures.shape == (2, 3, 128, 128)
    assert pictures.abs().max() <= 1
    assert critic(pictures).shape == (2,)


def test_critic_scores_each_picture_on_its_own() -> None:
    """The gradient penalty is per picture (Gulrajani et al. 2017, section 4), so no layer may mix a batch."""
    torch.manual_seed(0)
    critic, pictures = Critic(), torch.rand(3, 3, 128, 128)
    torch.testing.assert_close(critic(pictures)[1], critic(pictures[1:2])[0], rtol=1e-4, atol=1e-4)


def test_shipped_generator_fits_8_megabytes() -> None:
    """Float32 weights of the default generator stay under the 8 MB that a version may weigh."""
    assert parameters(Generator()) * 4 < 8e6


def test_served_generator_answers_in_wire_format() -> None:
    """Served: uint8 (N, H, W, 3) of the spec's shape; -1 is 0 and 1 is 255."""

    class Extremes(torch.nn.Module):
        def forward(self, latent: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.full((3, 128, 128), v) for v in (-1.0, 0.0, 1.0)])

    answer = Served(Extremes())(torch.zeros(3, LATENT))
    assert answer.dtype == torch.uint8
    assert tuple(answer.shape[1:]) == SPEC.outputs[0].shape
    assert answer[:, 0, 0, 0].tolist() == [0, 128, 255]
