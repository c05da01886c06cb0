"""The painter's objective: what it says, and that its gradient, which is written by hand, is the true one."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from serving.backends.painter import knobs, painting
from training.models.features import net as features
from training.models.painter import evaluate as measures
from training.models.painter.autograd import Closure, targets_of
from training.models.painter.net import Objective, tv_gradient
from training.models.painter.spec import CONTENT_LAYERS, GRAPH, STYLE_LAYERS

SIZES = [(64, 64), (63, 97), (16, 16), (17, 31), (34, 50), (95, 46)]
AT_WORK = replace(
    knobs.read({}), start="noise", content_layers=(0.5, 1.0, 1.0, 2.0), style_layers=(1.0, 2.0, 1.0, 0.5, 1.0),
    style_weight=3.0, tv_weight=5.0,
)  # fmt: skip
CONTENT, STYLE = (replace(AT_WORK, **{off: 0.0, "tv_weight": 0.0}) for off in ("style_weight", "content_weight"))
OUTPUTS = [tensor.name for tensor in GRAPH.outputs]


def pictures(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A canvas, a photograph of its size and a painting of another, float (3, H, W)."""
    rng = np.random.default_rng(height * width)
    sizes = [(height, width), (height, width), (width + 3, height + 6)]
    return tuple(rng.random((3, *size), np.float32) for size in sizes)  # type: ignore[return-value]


@pytest.fixture(scope="module", params=["vgg16", "vgg19"])
def vgg(request: pytest.FixtureRequest) -> features.Vgg:
    torch.manual_seed(0)
    blocks = features.BLOCKS[request.param]
    return features.frozen(features.Vgg(blocks, (8, 12, 16, 24, 24)))


@pytest.fixture(scope="module")
def net(vgg: features.Vgg) -> Objective:
    return Objective(vgg, name="a small one").eval()


def said(net: Objective, height: int, width: int, asked: knobs.Knobs) -> dict[str, torch.Tensor]:
    given = measures.inputs(net, *pictures(height, width), asked)
    assert len(given) == len(GRAPH.inputs)
    return dict(zip(OUTPUTS, net(*given), strict=True))


def by_autograd(vgg: features.Vgg, height: int, width: int, asked: knobs.Knobs) -> tuple[Closure, torch.Tensor]:
    canvas, photo, painted = (torch.from_numpy(picture)[None] for picture in pictures(height, width))
    variable = canvas.clone().requires_grad_()
    closure = Closure(vgg, variable, targets_of(vgg, photo, painted), asked)
    closure()
    assert variable.grad is not None
    return closure, variable.grad


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_gradient_is_the_one_that_autograd_finds(vgg: features.Vgg, net: Objective, height: int, width: int) -> None:
    """With all losses and layers at work, to 1e-4 of its length, at sizes that pooling cuts and at the smallest."""
    closure, truth = by_autograd(vgg, height, width, AT_WORK)
    answer = said(net, height, width, AT_WORK)
    assert (answer["gradient"] - truth).norm() <= 1e-4 * truth.norm()
    torch.testing.assert_close(answer["losses"][0], closure.losses)
    torch.testing.assert_close(answer["objective"].item(), closure())


@pytest.mark.parametrize(
    "asked",
    [
        *(replace(CONTENT, content_layers=tuple(row)) for row in np.eye(4).tolist()),
        *(replace(STYLE, style_layers=tuple(row)) for row in np.eye(5).tolist()),
    ],
    ids=[*CONTENT_LAYERS, *STYLE_LAYERS],
)
def test_each_layer_alone_has_its_own_gradient(vgg: features.Vgg, net: Objective, asked: knobs.Knobs) -> None:
    """One layer of one loss, so that no other one can hide an error in its own."""
    _, truth = by_autograd(vgg, 37, 50, asked)
    assert truth.norm() > 0
    assert (said(net, 37, 50, asked)["gradient"] - truth).norm() <= 1e-4 * truth.norm()


def test_total_variation_alone_has_its_own_gradient() -> None:
    """It is a thousandth of the others' where all are at work."""
    canvas = torch.rand(1, 3, 19, 23, requires_grad=True)
    (truth,) = torch.autograd.grad(features.total_variation(canvas).sum(), canvas)
    torch.testing.assert_close(tv_gradient(canvas.detach()), truth)


def test_without_weights_nothing_moves(net: Objective) -> None:
    """Content and style are measured all the same; the objective and its gradient are zero."""
    *given, weights = measures.inputs(net, *pictures(32, 48), AT_WORK)
    losses, objective, gradient, *_ = net(*given, torch.zeros_like(weights))
    assert losses.min() > 0
    assert objective.item() == 0
    assert gradient.count_nonzero() == 0


def test_a_photograph_is_its_own_content_and_style(net: Objective) -> None:
    """Painted on itself in its own manner, it is worth its total variation and nothing else."""
    canvas, *_ = pictures(40, 33)
    losses, *_ = net(*measures.inputs(net, canvas, canvas, canvas, AT_WORK))
    assert losses[0, :2].tolist() == [0, 0]
    assert losses[0, 2] > 0


def test_activations_make_the_targets(net: Objective) -> None:
    """What the graph says of a picture is what a canvas is held against: so the served painter needs no other graph."""
    canvas, photo, painted = pictures(33, 47)
    targets = measures.inputs(net, canvas, photo, painted, AT_WORK)[1:10]
    of_photo, of_painting = (
        dict(zip(OUTPUTS, net(*measures.inputs(net, picture, picture, picture, AT_WORK)), strict=True))
        for picture in (photo, painted)
    )
    made = [of_photo[f"answer_{layer}"] for layer in CONTENT_LAYERS]
    made += [of_painting[f"own_gram_{layer}"] for layer in STYLE_LAYERS]
    assert all(torch.equal(one, other) for one, other in zip(made, targets, strict=True))


def test_weights_that_halves_hold_are_kept_as_halves() -> None:
    """Nothing is lost that way, and a graph of our own backbone is half as large; others stay as they are."""
    vgg = features.frozen(features.Vgg(features.BLOCKS["vgg16"], (4, 4, 4, 4, 4)))
    assert {weight.dtype for weight in Objective(vgg, name="any").weights} == {torch.float32}
    for layer in vgg.convolutions.values():
        layer.weight.copy_(layer.weight.half().float())
    net = Objective(vgg, name="ours")
    assert {weight.dtype for weight in net.weights} == {torch.float16}
    picture = torch.rand(1, 3, 32, 32)
    for layer, activation in vgg(picture, net.layers).items():
        torch.testing.assert_close(net.activations(picture)[layer], activation)


@pytest.mark.parametrize("name", knobs.OPTIMIZERS)
def test_following_the_gradient_makes_the_objective_smaller(net: Objective, name: str) -> None:
    """The backend's optimizers, with the eager objective in the graph's place, improve from canvas to canvas."""
    names = [tensor.name for tensor in GRAPH.inputs]

    def run(outputs: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        answers = net(*(torch.from_numpy(feed[tensor]) for tensor in names))
        return [dict(zip(OUTPUTS, answers, strict=True))[output].numpy() for output in outputs]

    free = {tensor.name: tuple(max(1, side) for side in tensor.shape) for tensor in GRAPH.inputs}
    _, photo, painted = (painting.pixels(picture) for picture in pictures(32, 40))
    worths: list[float] = []
    asked = replace(knobs.read({}), optimizer=name, iterations=12, every=4)
    painting.paint(
        painting.Graph(run, free, OUTPUTS),
        photo,
        painted,
        asked,
        lambda stroke: worths.append(stroke.evaluation.objective),
    )
    assert len(worths) == 4
    assert all(later < earlier for earlier, later in pairwise(worths))
