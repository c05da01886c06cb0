"""The client without its I/O: every step it asks for, and every error it makes, with no server and no clock."""

from __future__ import annotations

import math
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from flows import FULL, REFUSED, Clock, Failed, core, drive
from tritonclient.grpc import service_pb2 as pb

from atelier import _address, _failures, _protocol, errors, latents
from atelier._protocol import Core, Probe, Send, Sleep, split_batches
from atelier._types import NOT_GIVEN, Model
from atelier.tasks import CLASSIFY, GENERATE

Code = grpc.StatusCode
LATENTS = latents.draw(3, seed=1)


def answer() -> pb.ModelInferResponse:
    """A right answer to `generate`."""
    made = pb.ModelInferResponse(model_name="wgan", model_version="2")
    made.outputs.add(name="image", datatype="UINT8", shape=(3, 128, 128, 3))
    made.raw_output_contents.append(bytes(3 * 128 * 128 * 3))
    return made


def generate(made: Core, timeout_s=NOT_GIVEN, version=None):
    return made.infer(GENERATE, {"latent": LATENTS}, "wgan", version, timeout_s)


def sends(steps) -> list[Send]:
    return [step for step in steps if isinstance(step, Send)]


def pauses(steps) -> list[float]:
    return [step.seconds for step in steps if isinstance(step, Sleep)]


# --- errors


def test_every_status_code_has_its_error():
    """The map is total over grpc.StatusCode, and onto the SDK's own tree."""
    assert set(_failures.BY_CODE) == set(grpc.StatusCode)
    assert all(issubclass(kind, errors.AtelierError) for kind in _failures.BY_CODE.values())


@pytest.mark.parametrize("code", grpc.StatusCode, ids=lambda code: code.name)
@pytest.mark.parametrize("details", ["", "it went\nwrong"], ids=["silent", "with-words"])
def test_every_status_code_becomes_one_line_with_the_address(code, details):
    """Whatever fails, the text is one line, names the server, and the gRPC error is its cause."""
    failed = Failed(code, details)
    found, _ = drive(generate(core()), failed)
    assert isinstance(found, _failures.BY_CODE[code])
    assert "box:8001" in str(found)
    assert "\n" not in str(found)
    assert found.__cause__ is failed


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (Code.UNAVAILABLE, FULL, errors.Overloaded),
        (Code.UNAVAILABLE, "Request timeout expired", errors.Overloaded),
        (Code.UNAVAILABLE, "unknown model: 'wgan' version 1 is not at ready state", errors.ModelNotReady),
        (Code.UNAVAILABLE, REFUSED, errors.ServerUnreachable),
        (Code.NOT_FOUND, "Request for unknown model: 'wgan' has no available versions", errors.ModelNotReady),
        (Code.NOT_FOUND, "Request for unknown model: 'nope' is not found", errors.UnknownModel),
        (Code.NOT_FOUND, "unknown model: 'wgan' version 9 is not found", errors.UnknownVersion),
        (Code.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 4)", errors.InvalidInput),
        (Code.RESOURCE_EXHAUSTED, "quota", errors.Overloaded),
        (Code.UNAVAILABLE, "This protocol is restricted, expecting header 'x'", errors.AccessDenied),
        (Code.UNIMPLEMENTED, "Method not found!", errors.NotATritonServer),
        (Code.UNIMPLEMENTED, "Received http2 header with status: 404", errors.NotATritonServer),
        (Code.UNIMPLEMENTED, "doesn't support models with decoupled transaction policy", errors.ServerError),
        (Code.INTERNAL, "Stub process 'wgan_0_0' is not healthy.", errors.ServerError),
    ],
    ids=lambda value: value.replace(" ", "-")[:40] if isinstance(value, str) else None,
)
def test_what_triton_says_is_told_apart(code, details, kind):
    """Where Triton has one status code for several things, its words decide."""
    found, _ = drive(generate(core()), Failed(code, details))
    assert type(found) is kind


TLS = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:9: Tls handshake failed (TSI_PROTOCOL"
TLS += "_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:"


@pytest.mark.parametrize(
    ("details", "says"),
    [
        pytest.param(REFUSED, "(Connection refused)", id="one-address"),
        pytest.param(
            "connections to all backends failing; last error: UNKNOWN: ipv4:127.0.0.1:9: Connection refused",
            "(Connection refused)",
            id="balanced",
        ),
        pytest.param(
            f"{TLS}WRONG_VERSION_NUMBER: Invalid certificate verification context: OK",
            "(WRONG_VERSION_NUMBER)",
            id="no-tls",
        ),
        pytest.param(
            f"{TLS}CERTIFICATE_VERIFY_FAILED: self signed certificate: OK",
            "not trusted (CERTIFICATE_VERIFY_FAILED: self signed certificate); name the file",
            id="untrusted",
        ),
    ],
)
def test_gRPC_s_long_account_of_a_failed_connection_becomes_its_last_words(details, says):
    """People read "Connection refused", not the chain before it, nor the OK after it."""
    found, _ = drive(generate(core()), Failed(Code.UNAVAILABLE, details), accepts=details.startswith(TLS))
    assert says in str(found)
    assert "last error" not in str(found)


def test_an_unknown_version_is_answered_with_those_there_are():
    """The error lists what the server has, from its index."""
    index = pb.RepositoryIndexResponse()
    for version in ("1", "10"):
        index.models.add(name="wgan", version=version, state="READY")
    index.models.add(name="broken", version="1", state="UNAVAILABLE")
    failed = Failed(Code.NOT_FOUND, "unknown model: 'wgan' version 9 is not found")
    found, steps = drive(generate(core(), version=9), failed, index)
    assert isinstance(found, errors.UnknownVersion)
    assert str(found) == "box:8001: wgan has no version 9 (served: wgan 1, 10)"
    assert found.__cause__ is failed
    assert [step.method for step in sends(steps)] == ["ModelInfer", "RepositoryIndex"]


def test_a_server_that_hides_its_index_still_gets_a_clear_error():
    """Without the list, the error says what is wrong all the same."""
    failed = Failed(Code.NOT_FOUND, "unknown model: 'wgan' version 9 is not found")
    found, _ = drive(generate(core(), version=9), failed, Failed(Code.PERMISSION_DENIED, "no"))
    assert str(found) == "box:8001: wgan has no version 9"


# --- what is tried again


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0], ids=["early", "middle", "late"])
def test_a_server_that_is_down_is_asked_a_few_times(uniform):
    """MAX_ATTEMPTS calls, with pauses that grow, differ by chance, and stay under the cap."""
    found, steps = drive(generate(core(uniform=uniform)), Failed(Code.UNAVAILABLE, REFUSED))
    assert isinstance(found, errors.ServerUnreachable)
    assert len(sends(steps)) == _protocol.MAX_ATTEMPTS
    jitter = 1 + _protocol.JITTER * (2 * uniform - 1)
    first = _protocol.INITIAL_BACKOFF_S * jitter
    assert pauses(steps) == pytest.approx(
        [first * _protocol.BACKOFF_MULTIPLIER**i for i in range(_protocol.MAX_ATTEMPTS - 1)]
    )
    assert max(pauses(steps)) <= _protocol.MAX_BACKOFF_S * (1 + _protocol.JITTER)


def test_the_retries_outlast_grpc_s_own_pause_before_it_connects_again():
    """Even at their shortest; or a server that is back would be called down."""
    _, steps = drive(generate(core(uniform=0.0)), Failed(Code.UNAVAILABLE, REFUSED))
    options = dict(_address.parse("box").options)
    assert sum(pauses(steps)) > 1.2 * options["grpc.max_reconnect_backoff_ms"] / 1000


def test_a_server_that_comes_back_is_an_answer():
    """A call that succeeds the second time succeeds."""
    found, steps = drive(generate(core()), Failed(Code.UNAVAILABLE, REFUSED), answer())
    assert len(found) == 3
    assert len(sends(steps)) == 2


FINAL = [(code, patient) for code in grpc.StatusCode for patient in (False, True)]
FINAL.remove((Code.UNAVAILABLE, False))
FINAL.remove((Code.UNAVAILABLE, True))
FINAL.remove((Code.RESOURCE_EXHAUSTED, True))


@pytest.mark.parametrize(
    ("code", "patient"), FINAL, ids=[f"{c.name}-{'patient' if p else 'hurried'}" for c, p in FINAL]
)
def test_nothing_else_is_tried_again(code, patient):
    """Only "down" is; and when asked to be patient, overload."""
    _, steps = drive(generate(core(patient=patient)), Failed(code, "it went wrong"))
    assert len([step for step in sends(steps) if step.method == "ModelInfer"]) == 1
    assert not pauses(steps)


def test_overload_is_not_tried_again_unasked():
    """The caller gets Overloaded at once, with the time to come back."""
    found, steps = drive(generate(core()), Failed(Code.UNAVAILABLE, FULL))
    assert isinstance(found, errors.Overloaded)
    assert found.retry_after_s == _failures.DEFAULT_RETRY_AFTER_S
    assert len(steps) == 1


class Pairs(tuple[tuple[str, str], ...]):
    """Trailers as older grpc.aio has them: pairs, and so are what it calls their keys."""

    def keys(self) -> Iterator[tuple[str, str]]:
        return iter(self)


@pytest.mark.parametrize("kind", [tuple, Pairs])
def test_a_gateway_s_hint_when_to_come_back_is_passed_on(kind):
    """gRPC's own pushback trailer becomes retry_after_s."""
    failed = Failed(Code.RESOURCE_EXHAUSTED, "quota", kind([("grpc-retry-pushback-ms", "1500")]))
    found, _ = drive(generate(core()), failed)
    assert found.retry_after_s == 1.5


@pytest.mark.parametrize("uniform", [0.0, 1.0], ids=["early", "late"])
@pytest.mark.parametrize("code", [Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE], ids=lambda code: code.name)
def test_nobody_comes_back_before_a_gateway_s_hint(code, uniform):
    """Whatever the cap on backoff and the jitter; a hint beyond the deadline is the error at once."""
    failed = Failed(code, "quota", (("grpc-retry-pushback-ms", "5000"),))
    found, steps = drive(generate(core(patient=True, uniform=uniform)), failed, answer())
    assert len(found) == 3
    assert pauses(steps) == [5.0]
    found, steps = drive(generate(core(patient=True, timeout_s=4.0)), failed)
    assert isinstance(found, errors.Overloaded | errors.ServerUnreachable)
    assert not pauses(steps)


def test_a_patient_client_waits_out_an_overload_until_its_deadline():
    """It keeps asking, at a capped pace, and gives up inside the timeout."""
    clock = Clock(call_s=0.01)
    made = core(patient=True, timeout_s=20, clock=clock)
    found, steps = drive(generate(made), Failed(Code.UNAVAILABLE, FULL), clock=clock)
    assert isinstance(found, errors.Overloaded)
    assert 18 < clock.now <= 20
    assert max(pauses(steps)) == _protocol.MAX_BACKOFF_S

    made = core(patient=True)
    found, _ = drive(generate(made), *[Failed(Code.UNAVAILABLE, FULL)] * 4, answer())
    assert len(found) == 3


def test_retries_share_one_deadline():
    """Each call gets what is left of the timeout, and no pause goes beyond it."""
    clock = Clock(call_s=0.3)
    made = core(timeout_s=1.0, clock=clock)
    found, steps = drive(generate(made), Failed(Code.UNAVAILABLE, REFUSED), clock=clock)
    assert isinstance(found, errors.ServerUnreachable)
    assert [step.timeout_s for step in sends(steps)] == pytest.approx([1.0, 0.6])
    assert clock.now <= 1.0


# --- what is there at all


def test_a_port_that_talks_something_else_is_no_triton():
    """ "Unavailable" on a port that accepts connections, and never answered, is another kind of server."""
    found, steps = drive(core().models(NOT_GIVEN), Failed(Code.UNAVAILABLE, REFUSED), accepts=True)
    assert isinstance(found, errors.NotATritonServer)
    assert steps[-1] == Probe("box", 8001, 2.0)
    assert len(sends(steps)) == 1


@pytest.mark.parametrize("why", ["recvmsg:Connection reset by peer (104)", "Socket closed"])
def test_a_port_that_hangs_up_is_looked_at_once_more(why):
    """Triton's HTTP ports and TLS wait for what they are asked; a forwarded port without a server does not."""
    hung_up = Failed(Code.UNAVAILABLE, REFUSED.replace("Connection refused", why))
    found, steps = drive(core().models(NOT_GIVEN), hung_up, accepts=True)
    assert isinstance(found, errors.NotATritonServer)
    assert "grpcs://" in str(found)
    assert steps[-1] == Probe("box", 8001, 2.0, 0.5)
    found, steps = drive(core().models(NOT_GIVEN), hung_up, accepts=False)
    assert isinstance(found, errors.ServerUnreachable)
    assert len(sends(steps)) == _protocol.MAX_ATTEMPTS


def test_a_gateway_whose_servers_are_down_is_no_stranger():
    """It accepts connections and says "unavailable" in gRPC: a client made just then tries again, and is not ready."""
    down = Failed(Code.UNAVAILABLE, "no healthy upstream")
    found, steps = drive(core().models(NOT_GIVEN), down, accepts=True)
    assert isinstance(found, errors.ServerUnreachable)
    assert len(sends(steps)) == _protocol.MAX_ATTEMPTS
    assert drive(core().ready(None, None, NOT_GIVEN), down, accepts=True)[0] is False


def test_a_server_that_answered_once_and_is_gone_is_unreachable():
    """Something may already listen there again; it was Triton, and is not taken for a stranger."""
    made = core()
    drive(made.models(NOT_GIVEN), pb.RepositoryIndexResponse())
    found, steps = drive(made.models(NOT_GIVEN), Failed(Code.UNAVAILABLE, "Socket closed"), accepts=True)
    assert isinstance(found, errors.ServerUnreachable)
    assert not [step for step in steps if isinstance(step, Probe)]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (pb.ServerReadyResponse(ready=True), True),
        (pb.ServerReadyResponse(ready=False), False),
        (Failed(Code.UNAVAILABLE, REFUSED), False),
        (Failed(Code.UNAVAILABLE, "version 1 is not at ready state"), False),
        (Failed(Code.DEADLINE_EXCEEDED), False),
    ],
    ids=["ready", "loading", "nothing-there", "model-loading", "silent"],
)
def test_ready_is_a_yes_or_no_after_one_question(reply, expected):
    """So that it can be asked in a loop."""
    found, steps = drive(core().ready(None, None, NOT_GIVEN), reply)
    assert found is expected
    assert len(sends(steps)) == 1


def test_models_lists_versions_as_numbers():
    """Ready versions of each model, in numeric order; a model without one tells its state."""
    index = pb.RepositoryIndexResponse()
    for name, version, state in [("b", "10", "READY"), ("b", "9", "READY"), ("b", "8", "UNAVAILABLE"), ("a", "", "")]:
        index.models.add(name=name, version=version, state=state)
    found, _ = drive(core().models(NOT_GIVEN), index)
    assert found == [
        Model(name="a", versions=(), state="UNAVAILABLE"),
        Model(name="b", versions=(9, 10), state="READY"),
    ]


def test_the_newest_version_is_the_highest_number():
    """10 is newer than 9, though its text sorts before."""
    found, _ = drive(core().newest_version("wgan", NOT_GIVEN), pb.ModelMetadataResponse(versions=["10", "9"]))
    assert found == 10
    found, _ = drive(core().newest_version("wgan", NOT_GIVEN), pb.ModelMetadataResponse())
    assert isinstance(found, errors.ModelNotReady)


# --- requests


def test_a_request_goes_with_its_version_and_deadline():
    """To ModelInfer, and without a queue timeout of its own, which would race with the deadline."""
    _, (step,) = drive(generate(core(), timeout_s=1.5, version=2), answer())
    assert (step.method, step.timeout_s) == ("ModelInfer", 1.5)
    assert (step.request.model_name, step.request.model_version) == ("wgan", "2")
    assert not step.request.parameters


@pytest.mark.parametrize(("count", "sent"), [(0, 0), (1, 1), (2, 2), (20, 2), (64, 2), (65, 4), (100, 4)])
def test_tensors_go_in_batches_the_model_takes(count, sent):
    """All of them, in order, none above max_batch, as many batches as keep two instances busy, and alike."""
    vectors = latents.draw(100, seed=0)[:count]
    found = [batch["latent"] for batch in split_batches(GENERATE, {"latent": vectors}, "wgan")]
    sizes = [len(batch) for batch in found]
    assert len(sizes) == sent
    assert max(sizes, default=0) <= 32
    assert max(sizes[:-1], default=0) == min(sizes[:-1], default=0)
    np.testing.assert_array_equal(np.concatenate([vectors[:0], *found]), vectors)


KNOWS = "this version of the SDK knows"


@pytest.mark.parametrize(
    ("task", "model", "says"),
    [
        (GENERATE, "nope", f"no model 'nope' turns latent into image; {KNOWS} wgan, wgan_x4"),
        (GENERATE, "classifier", f"no model 'classifier' turns latent into image; {KNOWS} wgan, wgan_x4"),
        (CLASSIFY, "wgan", f"no model 'wgan' turns image into probabilities; {KNOWS} classifier"),
    ],
    ids=["of-no-kind", "generate", "classify"],
)
def test_a_model_the_sdk_does_not_know_for_this_is_refused_before_anything_is_sent(task, model, says):
    """UnknownModel names those that it knows for what is asked."""
    with pytest.raises(errors.UnknownModel) as caught:
        split_batches(task, {}, model)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    "timeout_s", [0, -1, math.nan, math.inf, 10**400, None, "3", True], ids=lambda value: repr(value)[:9]
)
def test_every_deadline_is_finite(timeout_s):
    """Neither the client nor a call waits for ever, or for nothing."""
    with pytest.raises(errors.InvalidInput, match="timeout_s"):
        core(timeout_s=timeout_s)
    with pytest.raises(errors.InvalidInput, match="timeout_s"):
        next(generate(core(), timeout_s=timeout_s))


@pytest.mark.parametrize("version", [0, -1, "2", 1.0, True], ids=repr)
def test_a_version_is_a_number_from_one(version):
    """What Triton would misread is refused here."""
    with pytest.raises(errors.InvalidInput, match="version"):
        next(generate(core(), version=version))


def test_numpy_s_numbers_are_numbers():
    """As a version or a deadline."""
    _, (step,) = drive(generate(core(), timeout_s=np.float32(1.5), version=np.int64(2)), answer())
    assert (step.timeout_s, step.request.model_version) == (1.5, "2")
