"""The painter's knobs: what a request may choose, the one line where it may not, and that the SDK says the same."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields

import numpy as np
import pytest

import atelier
from atelier import errors, painting
from atelier._models import MODELS
from serving.backends.painter import knobs
from serving.backends.painter.knobs import KNOBS, BadRequest
from training.models.painter import spec


def test_what_is_left_out_is_as_by_default():
    """No inputs at all, or None for each, are a complete set of knobs."""
    assert knobs.read({}) == knobs.read(dict.fromkeys(KNOBS))
    assert (knobs.read({}).iterations, knobs.read({}).start, knobs.read({}).optimizer) == (100, "content", "l-bfgs")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        pytest.param("iterations", [1001], "iterations: 1001 must be 0 to 1000", id="too-many-iterations"),
        pytest.param("iterations", [-1], "iterations: -1 must be", id="iterations-negative"),
        pytest.param("iterations", [1, 2], "iterations: has 2 numbers, and must have 1", id="two-iterations"),
        pytest.param("iterations", [], "iterations: has 0 numbers", id="no-number"),
        pytest.param("every", [0], "every: 0 must be 1 to 1000", id="every-0"),
        pytest.param("content_weight", [-0.5], "content_weight: -0.5 must be 0 to 1e+06", id="weight-negative"),
        pytest.param("style_weight", [math.nan], "style_weight: nan must be", id="weight-nan"),
        pytest.param("tv_weight", [math.inf], "tv_weight: inf must be", id="weight-infinite"),
        pytest.param("content_layers", [0, 0, 1, -1], "content_layers: -1 must be", id="layer-negative"),
        pytest.param("style_layers", [1, 1], "style_layers: has 2 numbers, and must have 5", id="layers-missing"),
        pytest.param("start", [2], "start: 2 must be 0 to 1", id="another-start"),
        pytest.param("seed", [-1], "seed: -1 must be", id="seed-negative"),
        pytest.param("scales", [7], "scales: 7 must be 0 to 6", id="too-many-scales"),
        pytest.param("optimizer", [2], "optimizer: 2 must be 0 to 1", id="another-optimizer"),
    ],
)
def test_a_bad_knob_is_named_with_its_range(name, value, says):
    """One line, for whoever sends a request without the SDK."""
    with pytest.raises(BadRequest) as caught:
        knobs.read({name: np.array(value)})
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"content_weight": [0.0], "style_weight": [0.0]},
        {"content_weight": [0.0], "style_layers": [0.0] * 5},
        {"style_weight": [0.0], "content_layers": [0.0] * 4},
        {"content_layers": [0.0] * 4, "style_layers": [0.0] * 5},
    ],
    ids=["weights", "weight-and-style-layers", "weight-and-content-layers", "layers"],
)
def test_a_painting_of_nothing_is_refused(given):
    """Either weight may be 0, but not all that there is to see."""
    with pytest.raises(BadRequest, match="content_weight, style_weight"):
        knobs.read({name: np.array(value) for name, value in given.items()})


def test_either_weight_may_be_0():
    """Content alone, style alone."""
    assert knobs.read({"content_weight": np.zeros(1)}).content_weight == 0
    assert knobs.read({"style_weight": np.zeros(1)}).style_weight == 0


# --- the SDK's side


def test_the_sdk_has_the_painter_s_defaults():
    """What it sends unasked is what the painter would take unasked."""
    sent = {name: tuple(array.ravel().tolist()) for name, array in painting.Knobs().tensors().items()}
    assert sent == {name: knob.default for name, knob in KNOBS.items()}


def test_the_sdk_has_the_painter_s_limits():
    """So that what is beyond them is refused before it is sent."""
    assert {name: KNOBS[name].most for name in painting.MOST} == painting.MOST
    assert set(KNOBS) - set(painting.MOST) == {"start", "optimizer"}
    assert (painting.STARTS, painting.OPTIMIZERS) == (knobs.STARTS, knobs.OPTIMIZERS)
    assert (painting.CONTENT_LAYERS, painting.STYLE_LAYERS) == (spec.CONTENT_LAYERS, spec.STYLE_LAYERS)


def test_the_sdk_s_tensors_fit_the_contract():
    """Every optional input of the generated table is a knob, of its type and shape."""
    tensors, known = painting.Knobs().tensors(), MODELS["painter"].inputs
    assert {tensor.name for tensor in known if tensor.optional} == set(tensors)
    assert all(tensor.fits(tensors[tensor.name]) for tensor in known if tensor.optional)


def test_numpy_s_numbers_are_knobs():
    """Whole ones and others."""
    made = painting.Knobs(iterations=np.int64(5), style_weight=np.float32(2)).tensors()
    assert (made["iterations"].item(), made["style_weight"].item()) == (5, 2)


@pytest.mark.parametrize("client", [atelier.Client, atelier.AsyncClient])
def test_paint_takes_every_knob(client):
    """By its name, with its default."""
    parameters = inspect.signature(client.paint).parameters
    for field in fields(painting.Knobs):
        assert parameters[field.name].default == getattr(painting.Knobs(), field.name)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        pytest.param({"iterations": 1001}, "iterations 1001: must be a whole number from 0 to 1000", id="iterations"),
        pytest.param({"iterations": True}, "iterations True: must be a whole number", id="a-truth"),
        pytest.param({"iterations": 1.5}, "iterations 1.5: must be a whole number", id="half-an-iteration"),
        pytest.param({"every": 0}, "every 0: must be a whole number from 1", id="every"),
        pytest.param({"seed": -1}, "seed -1: must", id="seed"),
        pytest.param({"scales": 7}, "scales 7: must", id="scales"),
        pytest.param({"content_weight": math.nan}, "content_weight nan: must be a number from 0 to 1e+06", id="nan"),
        pytest.param({"style_weight": "much"}, "style_weight 'much': must be a number", id="a-word"),
        pytest.param({"tv_weight": -1}, "tv_weight -1: must", id="tv"),
        pytest.param({"content_layers": {"conv9_9": 1}}, "content_layers: no layer 'conv9_9'; there", id="layer"),
        pytest.param({"style_layers": {"conv1_1": -1}}, "style_layers: conv1_1 -1: must", id="layer-weight"),
        pytest.param({"style_layers": 3}, "style_layers 3: must be weights by names", id="no-layers"),
        pytest.param({"start": "black"}, "start 'black': must be one of noise, content", id="start"),
        pytest.param({"optimizer": "sgd"}, "optimizer 'sgd': must be one of l-bfgs, adam", id="optimizer"),
        pytest.param({"content_weight": 0, "style_weight": 0}, "content_weight: is 0, as style_weight", id="nothing"),
        pytest.param({"content_weight": 0, "style_layers": {}}, "content_weight: is 0, as", id="no-layers-at-all"),
    ],
)  # fmt: skip
def test_the_sdk_names_a_bad_knob(given, says):
    """InvalidInput that begins with the knob's name, so that a script can make its flag of it."""
    with pytest.raises(errors.InvalidInput) as caught:
        painting.Knobs(**given)
    assert str(caught.value).startswith(says)
