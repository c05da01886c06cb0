"""A version published while the server runs: loaded on demand, taken back, and never cutting off the one before."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import stand_in
import tritonclient.grpc as triton
from conftest import need_tritonserver
from tritonclient.utils import InferenceServerException

from serving import repository as repo
from serving.embedded import Embedded
from serving.verify import verify

GIVEN = np.random.default_rng(0).standard_normal((2, 100)).astype(np.float32)


@pytest.fixture
def live(repository: Path) -> Iterator[Embedded]:
    need_tritonserver()
    with Embedded(repository) as server:
        yield server


@pytest.fixture
def client(live: Embedded) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(live.grpc) as client:
        yield client


def answers(client: triton.InferenceServerClient, version: str = "") -> stand_in.Images:
    given = triton.InferInput("latent", GIVEN.shape, "FP32")
    given.set_data_from_numpy(GIVEN)
    images = client.infer("wgan", [given], version, client_timeout=60).as_numpy("image")
    assert images is not None
    return images


def served(client: triton.InferenceServerClient) -> list[int]:
    return [version for version in range(1, 5) if client.is_model_ready("wgan", str(version))]


def same(images: stand_in.Images, version: int) -> bool:
    return bool(np.abs(images.astype(int) - stand_in.images(GIVEN, version)).max() <= 1)


def test_publish_load_rollback(live: Embedded, client: triton.InferenceServerClient, tmp_path: Path) -> None:
    """A published version answers once loaded, beside the one before; a rollback brings back what was."""
    candidate = stand_in.candidate(tmp_path / "candidate", version=3)
    assert repo.publish(candidate, live.repository, "wgan") == 3
    assert served(client) == [1, 2], "publishing alone changes nothing for those who are served"

    client.load_model("wgan")
    assert served(client) == [2, 3]
    assert same(answers(client), 3)
    assert same(answers(client, "2"), 2)
    verify(live.grpc, "wgan", 3, live.repository / "wgan" / "3" / "golden.npz", atol=1)

    repo.rollback(live.repository, "wgan")
    client.load_model("wgan")
    assert served(client) == [1, 2]
    assert same(answers(client), 2)


def test_nobody_is_cut_off(live: Embedded, client: triton.InferenceServerClient, tmp_path: Path) -> None:
    """Clients that ask all the while get an answer each time, from the old version or from the new one."""
    repo.publish(stand_in.candidate(tmp_path / "candidate", version=3), live.repository, "wgan")
    loaded = threading.Event()

    def ask() -> list[bool]:
        got = []
        while not loaded.is_set():
            images = answers(client)
            got.append(same(images, 2) or same(images, 3))
        return got

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        try:
            client.load_model("wgan")
        finally:
            loaded.set()
        got = [one for future in asking for one in future.result()]
    assert got
    assert all(got)


def test_broken_version_does_not_harm(live: Embedded, client: triton.InferenceServerClient) -> None:
    """A version that does not load is refused with its reason, and those that are served go on."""
    broken = live.repository / "wgan" / "3"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"no model")
    with pytest.raises(InferenceServerException, match="wgan"):
        client.load_model("wgan")
    assert same(answers(client), 2)
