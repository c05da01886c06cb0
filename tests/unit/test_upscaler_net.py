"""The network that enlarges: what it begins as, how far it sees, tiles against the whole, and its graph."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training import catalog, export
from training.models.upscaler.net import Served, Upscaler
from training.models.upscaler.spec import OVERLAP
from training.models.upscaler.train import PRESETS

import onnxruntime


def lively(layers: int = 12) -> Upscaler:
    """Weights that let every pixel in sight be seen, as far as the shipped network does."""
    torch.manual_seed(0)
    net = Upscaler(6, layers).eval()
    torch.nn.init.normal_(net.last.weight, 0, 0.05)
    return net


def test_untrained_it_enlarges_as_bilinear_interpolation_does() -> None:
    """What is learnt is the difference."""
    picture = torch.rand(2, 3, 17, 22)
    expected = F.interpolate(picture, size=(68, 88), mode="bilinear")
    torch.testing.assert_close(Upscaler(4, 2)(picture), expected)


@pytest.mark.parametrize("layers", [1, 5, 12])
def test_a_pixel_is_seen_as_far_as_the_radius_and_no_farther(layers: int) -> None:
    """One pixel changed in the middle changes all pixels of its square, up to the edge of what it may."""
    net = lively(layers=layers).double()
    middle = net.radius + 3
    one = torch.rand(1, 3, 2 * middle + 1, 2 * middle + 1, dtype=torch.float64)
    other = one.clone()
    other[:, :, middle, middle] += 1
    changed = (net(one) != net(other)).any(1)[0]
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    for seen in (rows, columns):
        assert (int(seen[0]) // 4, int(seen[-1]) // 4) == (middle - net.radius, middle + net.radius)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_sees_farther_than_tiles_overlap(preset: str) -> None:
    """Clients cut large pictures into tiles that overlap by 16 pixels to each side."""
    options = PRESETS[preset]
    assert Upscaler(options.channels, options.layers).radius <= OVERLAP


def tiled(enlarge: Callable[[Tensor], Tensor], picture: Tensor, *, overlap: int) -> Tensor:
    """A picture (1, 3, 90, 75) enlarged in tiles of 30 x 25, with `overlap` pixels around each that are cut off."""
    image = torch.zeros(1, 3, 360, 300, dtype=picture.dtype)
    for top in range(0, 90, 30):
        for left in range(0, 75, 25):
            above, before = min(top, overlap), min(left, overlap)
            tile = picture[:, :, top - above : top + 30 + overlap, left - before : left + 25 + overlap]
            inner = enlarge(tile)[:, :, 4 * above : 4 * above + 120, 4 * before : 4 * before + 100]
            image[:, :, 4 * top : 4 * top + 120, 4 * left : 4 * left + 100] = inner
    return image


def test_tiles_are_enlarged_as_the_whole_is() -> None:
    """With 16 pixels around them to the last bits of float64; with one less than the network sees, not so."""
    net, picture = lively().double(), torch.rand(1, 3, 90, 75, dtype=torch.float64)
    whole = net(picture)
    torch.testing.assert_close(tiled(net, picture, overlap=OVERLAP), whole, atol=1e-12, rtol=0)
    assert (tiled(net, picture, overlap=net.radius - 1) - whole).abs().max() > 1e-12


def test_served_tiles_differ_by_rounding_at_most() -> None:
    """A level of 255, where sums in another order meet a half."""
    served = Served(lively())
    picture = torch.randint(0, 256, (1, 3, 90, 75), dtype=torch.uint8)

    def enlarge(part: Tensor) -> Tensor:
        return served(part.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    whole = enlarge(picture).int()
    assert (tiled(enlarge, picture, overlap=OVERLAP).int() - whole).abs().max() <= 1
    assert whole.float().std() > 10


def test_what_is_served_stays_within_its_range() -> None:
    """uint8 in and out, four times as large; what the network overshoots is white or black, not the opposite."""
    net = lively()
    torch.nn.init.constant_(net.last.bias, 0.5)
    image = Served(net)(torch.full((2, 16, 19, 3), 255, dtype=torch.uint8))
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (2, 64, 76, 3))
    assert image.min() > 128


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> tuple[Served, Path]:
    """A served network and its graph, traced with a batch of two."""
    served, path = Served(lively()).eval(), tmp_path_factory.mktemp("graph") / "model.onnx"
    traced = {"low_res": np.zeros((2, 20, 24, 3), np.uint8)}
    export.write_onnx(served, catalog.spec("upscaler"), traced, path)
    return served, path


@pytest.mark.parametrize(
    "shape",
    [(1, 16, 16, 3), (1, 37, 53, 3), (3, 37, 53, 3), (3, 64, 16, 3)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_the_graph_agrees_with_the_eager_model_at_any_size(graph: tuple[Served, Path], shape: tuple[int, ...]) -> None:
    """And in any batch, but for a level where rounding meets a half."""
    served, path = graph
    low_res = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (image,) = session.run(["image"], {"low_res": low_res})
    truth = served(torch.from_numpy(low_res)).numpy()
    assert image.shape == truth.shape == (shape[0], 4 * shape[1], 4 * shape[2], 3)
    assert np.abs(image.astype(int) - truth).max() <= 1


def test_triton_and_tensorrt_take_the_graph(graph: tuple[Served, Path]) -> None:
    """Free batch, names and types of the spec, operators of both."""
    assert export.graph_reasons(graph[1], catalog.spec("upscaler")) == []


def test_the_shipped_network_is_small() -> None:
    """Under 4 MB, as its weights are kept in the graph."""
    options = PRESETS["default"]
    weights = Upscaler(options.channels, options.layers).parameters()
    assert sum(4 * each.numel() for each in weights) < 4e6
