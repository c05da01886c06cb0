"""A real Triton that looks for plans: it takes configs/tensorrt.pbtxt where there is one, and config.pbtxt elsewhere.

The wheel's Triton has no TensorRT: what it is told of plans here names our backend for ONNX graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in
import tensorrt_stand_in as fake
import tritonclient.grpc as triton
from conftest import need_tritonserver
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from serving import plans, tensorrt
from serving import repository as repo
from serving.embedded import Embedded
from serving.errors import Disagreement
from serving.verify import verify

CONFIG = Path("wgan") / plans.CONFIG


@pytest.fixture
def looking(repository: Path) -> Iterator[triton.InferenceServerClient]:
    need_tritonserver()
    with (
        Embedded(repository, options=[f"--model-config-name={plans.NAME}"]) as server,
        triton.InferenceServerClient(server.grpc) as client,
    ):
        yield client


def most(client: triton.InferenceServerClient) -> int:
    """What tells the two configurations apart."""
    return int(client.get_model_config("wgan").config.max_batch_size)


def test_a_plan_is_taken_where_it_is_told_of(repository: Path, looking: triton.InferenceServerClient) -> None:
    """When the model is loaded, and not before; without the file the graph is served again."""
    assert most(looking) == 32
    (repository / CONFIG).parent.mkdir()
    text = (repository / "wgan" / repo.CONFIG).read_text()
    (repository / CONFIG).write_text(
        text.replace("max_batch_size: 32", "max_batch_size: 5").replace("size: 32", "size: 5")
    )
    assert most(looking) == 32
    looking.load_model("wgan")
    assert most(looking) == 5
    (repository / CONFIG).unlink()
    looking.load_model("wgan")
    assert most(looking) == 32


def test_a_version_without_a_plan_reaches_a_server_that_serves_plans(
    repository: Path, looking: triton.InferenceServerClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told of plans, this Triton loads nothing, as it has no TensorRT; after the new version it serves graphs."""
    fake.install(tmp_path / "tools", monkeypatch)
    tensorrt.build_missing(repository, ["wgan"])
    with pytest.raises(InferenceServerException, match="tensorrt"):
        looking.load_model("wgan")
    version = repo.publish(stand_in.candidate(tmp_path / "new", 3), repository, "wgan")
    looking.load_model("wgan")
    assert looking.is_model_ready("wgan", str(version))


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_a_plan_answers_as_floats_do(
    server: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """A golden batch that has both: what a graph rounds, and what a plan, which this Triton is made to say it is."""
    golden = stand_in.candidate(tmp_path / "other", 2) / repo.GOLDEN
    arrays = dict(np.load(golden))
    floats = arrays["image"]
    np.savez(golden, **arrays | {"image": floats ^ 128, f"image{repo.IN_FLOATS}": floats})
    ask = triton.InferenceServerClient.get_model_config

    def told(client: triton.InferenceServerClient, *of: str, **options: Any) -> Any:
        answer = ask(client, *of, **options)
        answer.config.backend = backend
        return answer

    monkeypatch.setattr(triton.InferenceServerClient, "get_model_config", told)
    if backend == "tensorrt":
        assert verify(server.grpc, "wgan", 2, golden) <= 1
    else:
        with pytest.raises(Disagreement, match="differs from its golden batch by up to 128"):
            verify(server.grpc, "wgan", 2, golden)


@pytest.mark.parametrize("kind", [pb.ModelInstanceGroup.KIND_CPU, pb.ModelInstanceGroup.KIND_GPU], ids=["cpu", "gpu"])
def test_more_is_allowed_on_a_gpu_only(
    server: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    """Three levels off: too much for a CPU, and not for a GPU, which this Triton is made to say it runs on."""
    golden = stand_in.candidate(tmp_path / "other", 2) / repo.GOLDEN
    arrays = dict(np.load(golden))
    arrays["image"][0, 0, 0] += np.where(arrays["image"][0, 0, 0] < 128, 3, -3).astype(np.uint8)
    np.savez(golden, **arrays)
    ask = triton.InferenceServerClient.get_model_config

    def told(client: triton.InferenceServerClient, *of: str, **options: Any) -> Any:
        answer = ask(client, *of, **options)
        answer.config.instance_group[0].kind = kind
        return answer

    monkeypatch.setattr(triton.InferenceServerClient, "get_model_config", told)
    if kind == pb.ModelInstanceGroup.KIND_GPU:
        assert 2 <= verify(server.grpc, "wgan", 2, golden) <= 4
    else:
        with pytest.raises(Disagreement, match="allowed 1"):
            verify(server.grpc, "wgan", 2, golden)
