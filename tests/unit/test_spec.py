"""A spec refuses what could not be served, a model or an ensemble; a threshold says why it refuses a candidate."""

from __future__ import annotations

from typing import Any

import pytest

from serving.spec import ANY, Batching, Ensemble, ModelSpec, Step, Tensor, Threshold

Keywords = dict[str, Any]

LATENT = Tensor(name="latent", dtype="FP32", shape=(100,))
IMAGE = Tensor(name="image", dtype="UINT8", shape=(ANY, ANY, 3))
GOOD: Keywords = {
    "name": "wgan",
    "summary": "pictures",
    "inputs": (LATENT,),
    "outputs": (IMAGE,),
    "batching": Batching(max_batch=8),
}
LOW_RES = Tensor(name="low_res", dtype="UINT8", shape=(ANY, ANY, 3))
UPSCALER = ModelSpec(**GOOD | {"name": "upscaler", "inputs": (LOW_RES,), "batching": Batching(max_batch=4)})
FIRST = Step(model=ModelSpec(**GOOD), inputs={"latent": "latent"}, outputs={"image": "small"})
SECOND = Step(model=UPSCALER, inputs={"low_res": "small"}, outputs={"image": "image"})
PAIR: Keywords = {
    "name": "pair",
    "summary": "larger pictures",
    "inputs": (LATENT,),
    "outputs": (Tensor(name="image", dtype="UINT8", shape=(512, 512, 3)),),
    "steps": (FIRST, SECOND),
}


def test_good_spec_is_accepted() -> None:
    """A complete spec with a free size is valid, and cannot be changed."""
    spec = ModelSpec(**GOOD)
    with pytest.raises(AttributeError):
        spec.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"name": "Wgan 2"}, "Wgan 2", id="name with capitals and a space"),
        pytest.param({"name": "../wgan"}, "model name", id="name that is a path"),
        pytest.param({"inputs": ()}, "needs an input", id="no input"),
        pytest.param({"outputs": ()}, "needs an input and an output", id="no output"),
        pytest.param({"outputs": (LATENT,)}, "repeat", id="output named as an input"),
        pytest.param({"instances": 0}, "1 or more", id="no instance"),
        pytest.param({"threads": 0}, "1 or more", id="no thread"),
        pytest.param({"decoupled": True}, "can't be batched", id="a stream in batches"),
        pytest.param({"max_pixels": -1}, "max_pixels -1", id="fewer pixels than none"),
        pytest.param({"labels": ("cat", "dog")}, "2 labels for outputs", id="labels that its output has no room for"),
    ],
)
def test_bad_spec_is_refused(change: Keywords, says: str) -> None:
    """What Triton could not serve is a ValueError that names the field."""
    with pytest.raises(ValueError, match=says):
        ModelSpec(**GOOD | change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"max_batch": 0}, "max_batch 0", id="batch of none"),
        pytest.param({"preferred": (16,)}, "preferred", id="preferred above the largest batch"),
        pytest.param({"preferred": (0,)}, "preferred", id="preferred batch of none"),
        pytest.param({"queue_delay_us": -1}, "queue_delay_us -1", id="negative delay"),
        pytest.param({"queue_size": 0}, "queue_size 0", id="queue of none"),
        pytest.param({"queue_timeout_us": 0}, "queue_timeout_us 0", id="no time in the queue"),
    ],
)
def test_bad_batching_is_refused(change: Keywords, says: str) -> None:
    """Limits outside of Triton's are a ValueError with the number."""
    with pytest.raises(ValueError, match=says):
        Batching(**{"max_batch": 8} | change)


@pytest.mark.parametrize("shape", [(), (0,), (3, -2)], ids=["empty", "zero", "negative"])
def test_bad_shape_is_refused(shape: tuple[int, ...]) -> None:
    """A dimension is a size or free."""
    with pytest.raises(ValueError, match="shape"):
        Tensor(name="image", dtype="UINT8", shape=shape)


@pytest.mark.parametrize(
    ("shape", "members"),
    [((3,), ("a", "b")), ((ANY, 2), ("a", "b")), ((1,), ("a,b",))],
    ids=["three", "table", "comma"],
)
def test_bad_names_of_elements_are_refused(shape: tuple[int, ...], members: tuple[str, ...]) -> None:
    """A vector has as many elements as names, and a name can stand in a list that commas part."""
    with pytest.raises(ValueError, match="members"):
        Tensor(name="weights", dtype="FP32", shape=shape, members=members)


def test_a_version_may_name_the_elements_itself() -> None:
    """Only those of the tensors that it speaks of."""
    weights = Tensor(name="weights", dtype="FP32", shape=(ANY,), members=("a", "b"))
    spec = ModelSpec(**GOOD | {"inputs": (LATENT, weights)}).with_members({"weights": ["c"]})
    assert [tensor.members for tensor in spec.inputs] == [(), ("c",)]


def test_good_ensemble_is_accepted() -> None:
    """Free sizes fit fixed ones; its batches are those of its least step."""
    assert Ensemble(**PAIR).max_batch == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"name": "a pair"}, "model name 'a pair'", id="name with a space"),
        pytest.param({"outputs": ()}, "needs an input and an output", id="no output"),
        pytest.param({"steps": ()}, "pair: needs a step", id="no step"),
        pytest.param({"inputs": (LATENT, LOW_RES)}, "inputs of free size: low_res", id="free size"),
        pytest.param({"steps": (SECOND, FIRST)}, "no input or step before gives small, the low_res of", id="order"),
        pytest.param({"steps": (FIRST,)}, "no input or step before gives image, an output", id="no step gives it"),
        pytest.param({"steps": (FIRST, FIRST, SECOND)}, "pair: small is given twice", id="given twice"),
        pytest.param(
            {"inputs": (LATENT, Tensor(name="seed", dtype="INT32", shape=(1,)))}, "nothing takes seed", id="unused"
        ),
        pytest.param(
            {"inputs": (Tensor(name="latent", dtype="FP32", shape=(64,)),)},
            r"latent is FP32 \(64,\) and, as the latent of wgan, must be FP32 \(100,\)",
            id="other size",
        ),
        pytest.param(
            {"outputs": (Tensor(name="image", dtype="FP32", shape=(512, 512, 3)),)},
            r"image is UINT8 \(-1, -1, 3\) and, as an output, must be FP32",
            id="other type",
        ),
        pytest.param(
            {"outputs": (Tensor(name="image", dtype="UINT8", shape=(512, 512)),)}, "as an output", id="other rank"
        ),
    ],
)
def test_bad_ensemble_is_refused(change: Keywords, says: str) -> None:
    """What Triton would not load, or would fail on at the first request, is a ValueError that names the tensor."""
    with pytest.raises(ValueError, match=says):
        Ensemble(**PAIR | change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"inputs": {}}, "wgan: a step must give it latent", id="input left out"),
        pytest.param({"inputs": {"latent": "z", "noise": "z"}}, "no noise among its inputs", id="unknown input"),
        pytest.param({"outputs": {"picture": "small"}}, "no picture among its outputs", id="unknown output"),
        pytest.param({"model": ModelSpec(**GOOD | {"batching": None})}, "takes no batches", id="no batches"),
    ],
)
def test_bad_step_is_refused(change: Keywords, says: str) -> None:
    """A step has its model's tensors by their names, every one that the model needs."""
    with pytest.raises(ValueError, match=says):
        Step(**vars(FIRST) | change)


def test_a_step_may_leave_out_what_is_optional() -> None:
    """An input that requests may leave out, a step may, too."""
    knob = Tensor(name="knob", dtype="FP32", shape=(1,), optional=True)
    step = Step(**vars(FIRST) | {"model": ModelSpec(**GOOD | {"inputs": (LATENT, knob)})})
    assert step.consumed == [("latent", LATENT)]


@pytest.mark.parametrize(
    ("bound", "value", "live", "refusal"),
    [
        pytest.param({"at_least": 0.5}, 0.6, None, None, id="good, nothing live"),
        pytest.param({"at_least": 0.5}, 0.4, None, "structure 0.4 is below 0.5", id="too low"),
        pytest.param({"at_most": 3.0}, 3.1, None, "structure 3.1 is above 3", id="too high"),
        pytest.param({"at_least": 0.5, "may_worsen_by": 0.1}, 0.6, 0.65, None, id="a little lower"),
        pytest.param({"at_least": 0.5, "may_worsen_by": 0.1}, 0.6, 0.8, "worse than the live 0.8", id="fell"),
        pytest.param({"at_most": 3.0, "may_worsen_by": 0.1}, 2.0, 1.5, "worse than the live 1.5", id="rose"),
        pytest.param({"at_most": 3.0}, 1.0, 2.0, None, id="better"),
        pytest.param({"at_least": 0.5}, float("nan"), None, "below", id="not a number, lower bound"),
        pytest.param({"at_most": 0.5}, float("nan"), None, "above", id="not a number, upper bound"),
    ],
)
def test_threshold(bound: Keywords, value: float, live: float | None, refusal: str | None) -> None:
    """A candidate passes within its bound and near the live version; a refusal says by which number."""
    said = Threshold(metric="structure", **bound).refusal(value, live)
    assert said is None if refusal is None else refusal in str(said)


@pytest.mark.parametrize("bounds", [{}, {"at_least": 0.0, "at_most": 1.0}], ids=["none", "both"])
def test_threshold_has_one_bound(bounds: Keywords) -> None:
    """No bound, or two, is a mistake in the spec."""
    with pytest.raises(ValueError, match="not both"):
        Threshold(metric="structure", **bounds)
