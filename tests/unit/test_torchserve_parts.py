"""TorchServe's archives and bytes, and what is said where it can't run: all without it."""

from __future__ import annotations

import contextlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import stand_in
from conftest import need
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from serving import pbtxt
from serving.errors import RepositoryError, ServerError
from serving.torchserve import archive, client, server, tensors

DTYPES = list(tensors.DTYPES.values())
SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)


@given(st.data(), st.sampled_from(DTYPES), SHAPES)
def test_round_trip(data: st.DataObject, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """A tensor comes back as it was, whatever follows it, and says how many bytes were its own."""
    array = data.draw(arrays.arrays(dtype, shape))
    packed = tensors.pack(array)
    back, taken = tensors.unpack(packed + b"more", dtype, len(shape))
    assert (back.shape, back.dtype, back.tobytes(), taken) == (shape, dtype, array.tobytes(), len(packed))


@given(st.binary(max_size=64), st.sampled_from(DTYPES), st.integers(1, 4))
def test_any_bytes(data: bytes, dtype: np.dtype, rank: int) -> None:
    """Whatever comes is a tensor within these bytes, or a ValueError."""
    with contextlib.suppress(ValueError):
        array, taken = tensors.unpack(data, dtype, rank)
        assert array.nbytes <= taken <= len(data)


def test_replies() -> None:
    """A reply gives every output by its name; a refusal gives its words."""
    config = pbtxt.config(stand_in.CLASSIFIER)
    outputs = {"probabilities": np.ones((2, 10), np.float32)}
    answer, batch = client.response(tensors.reply(3, outputs.values()), config.output)
    assert batch == 3
    assert np.array_equal(answer["probabilities"], outputs["probabilities"])
    with pytest.raises(client.Refused, match="too large"):
        client.response(tensors.refusal("too large"), config.output)


def test_archive(tmp_path: Path) -> None:
    """An archive holds the newest graph, and no folder of this checkout is needed to run it."""
    models = stand_in.repository(tmp_path / "repository")
    archive.write(models, "wgan", tmp_path)
    with zipfile.ZipFile(tmp_path / "wgan.mar") as written:
        assert written.read("model.onnx") == (models / "wgan" / "2" / "model.onnx").read_bytes()
        model = json.loads(written.read("MAR-INF/MANIFEST.json"))["model"]
        assert model["modelVersion"] == "2"
        assert {model["handler"], model["configFile"]} <= set(written.namelist())
        imported = written.read("handler.py").decode()
        for name in ("serving/backends/onnxruntime/model", "serving/torchserve/tensors"):
            assert f"{name}.py" in written.namelist()
            assert name.rpartition("/")[0].replace("/", ".") in imported


@pytest.mark.parametrize(
    ("queue_delay_us", "delay_ms"),
    [pytest.param(0, 1, id="none"), pytest.param(1000, 1, id="1 ms"), pytest.param(1001, 2, id="more")],
)
def test_settings(queue_delay_us: int, delay_ms: int) -> None:
    """Workers, batches and queue are those of Triton; the delay is in whole milliseconds, and never 0."""
    config = pbtxt.config(stand_in.SPEC)
    config.dynamic_batching.max_queue_delay_microseconds = queue_delay_us
    settings = archive.settings(config)
    assert stand_in.SPEC.batching is not None
    assert settings["maxBatchDelay"] == delay_ms
    assert settings["batchSize"] == stand_in.SPEC.batching.max_batch
    assert settings["jobQueueSize"] == stand_in.SPEC.batching.queue_size
    assert settings["minWorkers"] == settings["maxWorkers"] == stand_in.SPEC.instances


@pytest.mark.parametrize(
    ("model", "reason"),
    [pytest.param("painter", "answers with a stream", id="stream"), pytest.param("wgan_x4", "an ensemble", id="steps")],
)
def test_unfit_models(model: str, reason: str) -> None:
    """A model that was asked for by name is not left out in silence."""
    with pytest.raises(RepositoryError, match=f"--model {model}: {reason}"):
        server.TorchServe(models=["wgan", model])


def test_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has to be installed is named, with the command that does it."""
    monkeypatch.setitem(server.PACKAGES, "absent_module", "absent-package")
    with pytest.raises(ServerError, match=r"needs .*absent-package, which is not installed: run `make setup`"):
        server.TorchServe().start()


@pytest.fixture
def no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of all of PATH."""
    for module in server.PACKAGES:
        need(server.importlib.util.find_spec(module), "`pip install '.[torchserve]'`")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return tmp_path


def test_no_java(no_java: Path) -> None:
    """Java is named, with the package that brings it."""
    with pytest.raises(ServerError, match="TorchServe needs Java 17: `apt install openjdk-17-jre-headless`"):
        server.TorchServe().start()


def test_old_java(no_java: Path) -> None:
    """A Java that does not know TorchServe's classes is told from other faults."""
    java = no_java / "java"
    java.write_text("#!/bin/sh\necho 'Error: java.lang.UnsupportedClassVersionError: ModelServer' >&2\nexit 1\n")
    java.chmod(0o755)
    with pytest.raises(ServerError, match=r"needs Java 17.*the one found is older") as error:
        server.TorchServe().start()
    assert "\n" not in str(error.value)
