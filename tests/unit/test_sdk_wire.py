"""Tensors on the wire and what becomes of them: pictures and classifications, or an error that says what came."""

from __future__ import annotations

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from atelier import _wire, errors, latents
from atelier._models import MODELS
from atelier.tasks import CLASSIFY, GENERATE

WGAN, CLASSIFIER = MODELS["wgan"], MODELS["classifier"]
LATENTS = latents.draw(3, seed=1)
SEEN = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
SHARES = np.random.default_rng(1).dirichlet(np.ones(10), 3).astype(np.float32)


def reply(name: str, datatype: str, shape: tuple[int, ...], raw: bytes) -> pb.ModelInferResponse:
    made = pb.ModelInferResponse(model_name="some", model_version="2")
    made.outputs.add(name=name, datatype=datatype, shape=shape)
    made.raw_output_contents.append(raw)
    return made


def pictures(**changes) -> pb.ModelInferResponse:
    """A right answer of 3 pictures, but for `changes`."""
    right = {"name": "image", "datatype": "UINT8", "shape": (3, 128, 128, 3), "raw": bytes(3 * 128 * 128 * 3)}
    return reply(**{**right, **changes})


@pytest.mark.parametrize(
    ("contract", "given", "named", "asked"),
    [
        (WGAN, LATENTS, ("latent", "FP32", (3, 100)), "image"),
        (CLASSIFIER, SEEN, ("image", "UINT8", (3, 28, 28, 1)), "probabilities"),
    ],
    ids=["wgan", "classifier"],
)
def test_a_request_is_what_the_contract_says(contract, given, named, asked):
    """Names, types and shapes of the tensors, their bytes in little-endian order, and the output by name."""
    request = _wire.request({named[0]: given}, "some", "7", contract)
    assert (request.model_name, request.model_version) == ("some", "7")
    (tensor,), (output,) = request.inputs, request.outputs
    assert (tensor.name, tensor.datatype, tuple(tensor.shape)) == named
    assert output.name == asked
    assert list(request.raw_input_contents) == [given.astype(given.dtype.newbyteorder("<")).tobytes()]


def test_a_request_of_another_kind_is_a_programmer_s_error():
    """Every caller checks before; nothing of another shape is ever sent."""
    with pytest.raises(AssertionError, match=r"float32 \(3, 99\)"):
        _wire.request({"latent": LATENTS[:, :99]}, "wgan", "", WGAN)


def test_a_tensor_survives_the_wire():
    """What `put` writes `tensors` reads, whichever its type."""
    message = pb.ModelInferRequest()
    for name, array in {"latent": LATENTS, "image": SEEN}.items():
        _wire.put(message.inputs, message.raw_input_contents, name, array)
    found = _wire.tensors(message.inputs, message.raw_input_contents)
    np.testing.assert_array_equal(found["latent"], LATENTS)
    np.testing.assert_array_equal(found["image"], SEEN)


def test_an_answer_becomes_pictures_that_know_their_model():
    """RGB pixels as they came, in order; model and version in `info`."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    found = GENERATE.read(_wire.result(pictures(raw=pixels.tobytes()), WGAN, 3), WGAN)
    assert [picture.mode for picture in found] == ["RGB"] * 3
    np.testing.assert_array_equal(np.stack([np.asarray(picture) for picture in found]), pixels)
    assert [picture.info for picture in found] == [{"model": "some", "version": 2}] * 3


def test_an_answer_becomes_classifications_in_the_order_of_the_labels():
    """Every probability under its label, with model and version."""
    sent = reply("probabilities", "FP32", (3, 10), SHARES.tobytes())
    found = CLASSIFY.read(_wire.result(sent, CLASSIFIER, 3), CLASSIFIER)
    assert [list(each.probabilities) for each in found] == [list(CLASSIFIER.labels)] * 3
    np.testing.assert_array_equal([list(each.probabilities.values()) for each in found], SHARES)
    assert {(each.model, each.version) for each in found} == {("some", 2)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "other"}, "no output 'image'"),
        ({"datatype": "FP32", "shape": (3, 128, 32, 3)}, "float32 (3, 128, 32, 3), and must be UINT8"),
        ({"shape": (3, 128 * 128, 3)}, "(3, 16384, 3), and must be"),
        ({"shape": (3, 64, 256, 3)}, "(3, 64, 256, 3), and must be UINT8 (3, 128, 128, 3)"),
        ({"shape": (2, 128, 128, 3), "raw": bytes(2 * 128 * 128 * 3)}, "(2, 128, 128, 3), and must be"),
        ({"shape": (), "raw": b"x"}, "uint8 (), and must be"),
        ({"datatype": "BYTES"}, "cannot be read"),
        ({"raw": b"short"}, "cannot be read"),
    ],
    ids=["other-output", "other-type", "flat", "other-size", "one-too-few", "a-number", "unknown-type", "too-short"],
)
def test_an_answer_that_is_not_what_was_asked_is_the_server_s_error(changes, says):
    """ServerError says what came and what must have come; nothing comes out of numpy or Pillow."""
    with pytest.raises(errors.ServerError) as caught:
        _wire.result(pictures(**changes), WGAN, 3)
    assert says in str(caught.value)
    assert str(caught.value).startswith("some: ")


@pytest.mark.parametrize("field", ["raw_output_contents", "model_version"])
def test_an_answer_without_its_bytes_or_its_version_is_the_server_s_error(field):
    """An output that is named and not sent, or that no version is said to have made."""
    sent = pictures()
    sent.ClearField(field)
    with pytest.raises(errors.ServerError, match="cannot be read"):
        _wire.result(sent, WGAN, 3)
