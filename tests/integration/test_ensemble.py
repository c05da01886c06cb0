"""An ensemble answers as its steps do one after the other, wherever it runs, and needs all of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import holding
import numpy as np
import pytest
import stand_in
import traces
import tritonclient.grpc as triton
from conftest import need_tritonserver
from PIL import Image
from tritonclient.utils import InferenceServerException
from ways import WAYS, reach

from atelier import Client, errors, latents
from atelier.inprocess import InProcessClient
from serving.embedded import Embedded
from serving.errors import Disagreement, RepositoryError, ServerError
from serving.repository import versions
from serving.verify import verify_ensemble

SPEC = stand_in.WGAN_X4
MANY = latents.draw(20, seed=5)  # three batches
# In its config.pbtxt:
GENERATOR = 'model_name: "wgan"\n    model_version: '
SMALL = 'key: "image"\n      value: "low_res"'


@pytest.fixture(scope="module", params=WAYS)
def client(request, ensemble_server) -> Iterator[Client]:
    with reach(request.param, ensemble_server) as made:
        yield made


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model repository of the test's own: the ensemble, and versions 1 and 2 of its steps."""
    return stand_in.repository(tmp_path / "repository", spec=SPEC)


def pixels(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures]).astype(np.int64)


def truth(vectors: latents.Latents, version: int = 2) -> np.ndarray:
    return stand_in.upscaled(stand_in.images(vectors, version), version).astype(np.int64)


def asked(client: triton.InferenceServerClient, model: str, name: str, given: np.ndarray, dtype: str) -> np.ndarray:
    """The image that a model makes of one tensor, without the SDK."""
    tensor = triton.InferInput(name, given.shape, dtype)
    tensor.set_data_from_numpy(given)
    return client.infer(model, [tensor]).as_numpy("image")


# --- what comes back


def test_plain_requests(ensemble_server):
    """The very pixels of wgan's answer sent to the upscaler by hand, in a fixed size of uint8."""
    with triton.InferenceServerClient(ensemble_server.grpc) as client:
        at_once = asked(client, "wgan_x4", "latent", MANY[:4], "FP32")
        small = asked(client, "wgan", "latent", MANY[:4], "FP32")
        by_hand = asked(client, "upscaler", "low_res", small, "UINT8")
    assert (at_once.shape, at_once.dtype) == ((4, 512, 512, 3), np.uint8)
    np.testing.assert_array_equal(at_once, by_hand)


@pytest.mark.parametrize("count", [1, 8, 20])
def test_through_the_sdk(client, count):
    """Any number of vectors, in order, each by the newest version of both steps; pictures name the ensemble."""
    pictures = client.generate(MANY[:count], model="wgan_x4")
    assert np.abs(pixels(pictures) - truth(MANY[:count])).max() <= 1
    assert all(picture.info == {"model": "wgan_x4", "version": 1} for picture in pictures)


def test_its_steps_are_there_as_well(client):
    """Each way lists the ensemble beside its steps; its only version is 1."""
    there = {model.name: model.versions for model in client.models()}
    assert there == {"upscaler": (1, 2), "wgan": (1, 2), "wgan_x4": (1,)}
    assert client.ready("wgan_x4", version=1)
    with pytest.raises(errors.UnknownVersion, match=r"wgan_x4 has no version 2 \(served: .*wgan_x4 1\)"):
        client.generate(MANY[:1], model="wgan_x4", version=2)


def test_batches_are_those_of_its_least_step(ensemble_server):
    """Eight at once, as the upscaler takes them, and not nine, though wgan takes 32."""
    with triton.InferenceServerClient(ensemble_server.grpc) as client:
        assert len(asked(client, "wgan_x4", "latent", MANY[:8], "FP32")) == SPEC.max_batch == 8
        with pytest.raises(InferenceServerException, match="batch-size must be <= 8 for 'wgan_x4'"):
            asked(client, "wgan_x4", "latent", MANY[:9], "FP32")


def test_triton_loads_none_with_larger_batches(repository):
    """Why the spec takes the least: an ensemble that allows more keeps the server from starting."""
    need_tritonserver()
    config = repository / "wgan_x4" / "config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 8", "max_batch_size: 9"))
    with pytest.raises(ServerError, match=r"maximum batch size 9.*upscaler which only allows.* 8") as error:
        Embedded(repository).start()
    Path(str(error.value).rpartition(": ")[2]).unlink()


def test_a_full_step_is_overload(tmp_path):
    """A step's queue that has no room refuses the ensemble's request, as if the step had been asked itself."""
    need_tritonserver()
    generator, upscaler = SPEC.steps
    held = holding.held(upscaler.model)
    steps = generator, replace(upscaler, model=held)
    root = holding.with_urgent(stand_in.repository(tmp_path / "repository", spec=replace(SPEC, steps=steps)), held)
    with Embedded(root) as server, Client(server.grpc) as client, ThreadPoolExecutor(1) as pool:
        waits = pool.submit(client.generate, MANY[:1], model="wgan_x4")
        holding.wait_for_queue(server, held)
        with pytest.raises(errors.Overloaded, match="too much to do"):
            client.generate(MANY[1:2], model="wgan_x4")
        holding.let_go(server, held, stand_in.images(MANY[:1], 2))
        assert np.abs(pixels(waits.result()) - truth(MANY[:1])).max() <= 1


# --- what it needs


def test_naming_it_loads_its_steps(repository):
    """Triton itself loads what an ensemble asks."""
    need_tritonserver()
    with Embedded(repository, models=["wgan_x4"]) as server, triton.InferenceServerClient(server.grpc) as client:
        assert server.models == ["wgan_x4"]
        assert all(client.is_model_ready(name) for name in ("wgan_x4", "wgan", "upscaler"))


@pytest.mark.parametrize("missing", ["wgan", "upscaler"])
def test_without_a_step_s_version_it_is_left_out(repository, missing):
    """What is there is served all the same; who asks for the ensemble by name is told what it lacks."""
    need_tritonserver()
    for version in versions(repository, missing):
        shutil.rmtree(repository / missing / str(version))
    (there,) = {"wgan", "upscaler"} - {missing}
    with Embedded(repository) as server, triton.InferenceServerClient(server.grpc) as client:
        assert server.models == [there]
        assert client.is_model_ready(there)
        assert not client.is_model_ready("wgan_x4")
    with pytest.raises(RepositoryError, match=f"no version of {missing} yet.*training.run {missing} --publish"):
        Embedded(repository, models=["wgan_x4"])
    with InProcessClient(repository) as near:
        assert [model.name for model in near.models()] == [there]
        with pytest.raises(errors.UnknownModel, match=f"no model wgan_x4 .served: {there}"):
            near.generate(MANY[:1], model="wgan_x4")


def test_without_a_step_s_folder_it_is_left_out(repository):
    """A repository that never heard of the upscaler still serves wgan."""
    need_tritonserver()
    shutil.rmtree(repository / "upscaler")
    assert Embedded(repository).models == ["wgan"]


# --- in this process


def rewire(repository: Path, was: str, becomes: str) -> None:
    config = repository / "wgan_x4" / "config.pbtxt"
    assert config.read_text().count(was) == 1
    config.write_text(config.read_text().replace(was, becomes))


def test_a_step_may_be_held_to_a_version(repository):
    """As in Triton: the version that config.pbtxt names, and not the newest."""
    need_tritonserver()
    rewire(repository, f"{GENERATOR}-1", f"{GENERATOR}1")
    with Embedded(repository) as server, Client(server.grpc) as far, InProcessClient(repository) as near:
        by_triton, here = (pixels(client.generate(MANY[:3], model="wgan_x4")) for client in (far, near))
    assert np.abs(here - stand_in.upscaled(stand_in.images(MANY[:3], 1), 2)).max() <= 1
    assert np.abs(here - by_triton).max() <= 1


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        pytest.param(SMALL, SMALL.replace("low_res", "x"), "gives 'low_res'", id="no such input"),
        pytest.param('value: "image"', 'value: "x"', "gives 'image'", id="no such output"),
        pytest.param('key: "latent"', 'key: "x"', r"wgan/2/model\.onnx: ", id="no such tensor of the model"),
        pytest.param(f"{GENERATOR}-1", f"{GENERATOR}9", r"wgan/9/model\.onnx: ", id="no such version of the model"),
    ],
)
def test_a_miswired_ensemble(repository, was, becomes, says):
    """One line of the SDK's own, as for every other damage to a repository."""
    rewire(repository, was, becomes)
    with InProcessClient(repository) as client, pytest.raises(errors.AtelierError, match=says) as caught:
        client.generate(MANY[:1], model="wgan_x4")
    assert "\n" not in str(caught.value)


# --- verified


def verify(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serving.verify", "--model", "wgan_x4", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=traces.PATIENCE_S)


def test_verify_command(ensemble_server):
    """The command asks the steps one after the other, and compares."""
    done = verify("--url", ensemble_server.grpc, "--repository", str(ensemble_server.repository))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"wgan_x4 1 at \S+: agrees with wgan, then upscaler, largest difference [01]\n", done.stdout)


def test_verify_sees_an_ensemble_that_asks_others(repository):
    """A live ensemble whose generator is of another version disagrees with what the repository says of it."""
    need_tritonserver()
    rewire(repository, f"{GENERATOR}-1", f"{GENERATOR}1")
    with Embedded(repository) as server:
        rewire(repository, f"{GENERATOR}1", f"{GENERATOR}-1")
        with pytest.raises(Disagreement, match=r"wgan_x4 1 at .*: image differs from what its steps make of it"):
            verify_ensemble(server.grpc, "wgan_x4", 1, repository)


def test_verify_needs_its_first_step_s_golden_batch(repository):
    """Without one, or without the input, the line names the file; the server is not even asked."""
    golden = repository / "wgan" / "2" / "golden.npz"
    np.savez(golden, image=np.zeros(1))
    with pytest.raises(RepositoryError, match=r"wgan/2/golden.npz: no array for latent, which wgan_x4 takes"):
        verify_ensemble("127.0.0.1:1", "wgan_x4", 1, repository)
    golden.unlink()
    with pytest.raises(RepositoryError, match=r"wgan/2/golden.npz: not a golden batch"):
        verify_ensemble("127.0.0.1:1", "wgan_x4", 1, repository)


def test_verify_command_fails(ensemble_server):
    """Nobody there is one line and status 2."""
    done = verify("--url", "127.0.0.1:1", "--repository", str(ensemble_server.repository))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
