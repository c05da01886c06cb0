"""The golden batch tells a right model from a wrong one on a live server, and says by how much."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import fleet
import numpy as np
import pytest
import stand_in
from conftest import need_tritonserver
from traces import PATIENCE_S

from serving.embedded import Embedded
from serving.errors import Disagreement, RepositoryError, ServerError, Unreachable
from serving.spec import Batching
from serving.verify import read, verify

Arrays = Mapping[str, np.ndarray[Any, Any]]
NOBODY = "127.0.0.1:1"


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return stand_in.candidate(tmp_path / "candidate", version=1) / "golden.npz"


def changed(golden: Path, change: Callable[[dict[str, Any]], Arrays]) -> Path:
    with np.load(golden) as file:
        arrays = change(dict(file))
    np.savez(golden, **arrays)
    return golden


def test_agrees(server: Embedded, golden: Path) -> None:
    """The right version agrees, within the rounding of single levels."""
    assert verify(server.grpc, "wgan", 1, golden, atol=1) <= 1


def test_tolerance_fits_the_output(classifier_server: Embedded, tmp_path: Path) -> None:
    """Without a tolerance, probabilities agree to what rounding leaves: one level of a picture would excuse any."""
    golden = stand_in.candidate(tmp_path / "candidate", 1, stand_in.CLASSIFIER) / "golden.npz"
    assert verify(classifier_server.grpc, "classifier", 1, golden) < 1e-4

    def shift(arrays: dict[str, Any]) -> Arrays:
        arrays["probabilities"][3, 9] += 0.002
        return arrays

    with pytest.raises(Disagreement, match=r"allowed 0\.001"):
        verify(classifier_server.grpc, "classifier", 1, changed(golden, shift))


def test_tolerance_of_the_card(classifier_server: Embedded, tmp_path: Path) -> None:
    """What the version's own card allows goes before what rounding explains; a card that allows nonsense is named."""
    folder = stand_in.candidate(tmp_path / "candidate", 1, stand_in.CLASSIFIER)
    golden, card = folder / "golden.npz", folder / "card.json"
    said = json.loads(card.read_text())

    def shift(arrays: dict[str, Any]) -> Arrays:
        arrays["probabilities"][3, 9] += 0.002
        return arrays

    changed(golden, shift)
    card.write_text(json.dumps(said | {"golden_atol": 0.01}))
    assert verify(classifier_server.grpc, "classifier", 1, golden) == pytest.approx(0.002, abs=1e-4)
    card.write_text(json.dumps(said | {"golden_atol": "much"}))
    with pytest.raises(RepositoryError, match=r"card.json: golden_atol is 'much', not a number"):
        verify(classifier_server.grpc, "classifier", 1, golden)


def test_other_version(server: Embedded, golden: Path) -> None:
    """Another version of the same shape and type does not agree, and the message says by how much."""
    with pytest.raises(Disagreement, match=r"wgan 2 at .*: image differs from its golden batch") as error:
        verify(server.grpc, "wgan", 2, golden, atol=1)
    largest = float(re.search(r"up to (\d+)", str(error.value))[1])  # type: ignore[index]
    assert largest > 20


def test_one_pixel(server: Embedded, golden: Path) -> None:
    """One wrong pixel in the batch is enough, and is measured exactly."""

    def spoil(arrays: dict[str, Any]) -> Arrays:
        arrays["image"][2, 5, 7, 1] ^= 128
        return arrays

    with pytest.raises(Disagreement, match=r"by up to 12[789]"):
        verify(server.grpc, "wgan", 1, changed(golden, spoil), atol=1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(lambda image: image[:, :64], r"uint8 \(4, 64, 128, 3\)", id="shape"),
        pytest.param(lambda image: image.astype(np.int16), "int16", id="type"),
        pytest.param(lambda image: image[:1], r"uint8 \(1, 128", id="batch that could be broadcast"),
    ],
)
def test_other_shape_or_type(server: Embedded, golden: Path, change: Callable[[Any], Any], says: str) -> None:
    """Shape and type are compared before values, and nothing is broadcast or converted."""
    changed(golden, lambda arrays: arrays | {"image": change(arrays["image"])})
    with pytest.raises(Disagreement, match=says):
        verify(server.grpc, "wgan", 1, golden, atol=1)


def test_not_a_number(server: Embedded, golden: Path) -> None:
    """A golden batch of NaN agrees with nothing."""
    changed(golden, lambda arrays: arrays | {"latent": arrays["latent"] * np.float32("nan")})
    with pytest.raises(Disagreement):
        verify(server.grpc, "wgan", 1, golden, atol=1)


@pytest.mark.parametrize(
    ("model", "version", "says"),
    [
        pytest.param("other", 1, "unknown model: 'other'", id="unknown model"),
        pytest.param("wgan", 9, "version 9 is not found", id="unknown version"),
    ],
)
def test_not_served(server: Embedded, golden: Path, model: str, version: int, says: str) -> None:
    """What the server does not have is the server's error, not a disagreement."""
    with pytest.raises(ServerError, match=says):
        verify(server.grpc, model, version, golden, atol=1)


def test_nobody_there(golden: Path) -> None:
    """An address where nobody listens is named, with the command that starts a server. No flag is: serving.reload asks,
    too, whose is another."""
    with pytest.raises(Unreachable, match=f"^{NOBODY}: wgan 1: .*onnect.*`make serve` starts one"):
        verify(NOBODY, "wgan", 1, golden, atol=1)


def test_too_much_to_do(tmp_path: Path, golden: Path) -> None:
    """A server whose queue is full, or too slow, is said to be there."""
    need_tritonserver()
    batching = Batching(max_batch=32, queue_delay_us=60_000_000, queue_size=1, queue_timeout_us=2_000_000)
    busy = stand_in.repository(tmp_path / "busy", (1,), replace(stand_in.SPEC, batching=batching, instances=1))
    with Embedded(busy) as server, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(verify, server.grpc, "wgan", 1, golden) for _ in range(2)]
        errors = [each.exception() for each in as_completed(asked)]
    for error, words in zip(errors, ("Exceeds maximum queue size", "Request timeout expired"), strict=True):
        assert isinstance(error, Unreachable)
        assert str(error).endswith(f"{words}; it has too much to do; try again later")


def test_too_late(server: Embedded, golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is up and does not answer in time is as one that is not there: it may be well again soon."""
    monkeypatch.setattr("serving.verify.TIMEOUT_S", 1.0)
    with fleet.frozen(fleet.process(server)), pytest.raises(Unreachable, match=r"wgan 1: Deadline Exceeded$"):
        verify(server.grpc, "wgan", 1, golden)


def test_golden_without_output(server: Embedded, golden: Path) -> None:
    """A golden batch must cover every tensor, or it would verify nothing."""
    changed(golden, lambda arrays: {"latent": arrays["latent"]})
    with pytest.raises(RepositoryError, match="no array image"):
        verify(server.grpc, "wgan", 1, golden, atol=1)


def one_array() -> bytes:
    """An .npy file."""
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def one_text() -> bytes:
    """A zip of a file that is no array."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("image", b"text")
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no archive", id="text"),
        pytest.param(b"PK\x03\x04cut", id="cut short"),
        pytest.param(one_array(), id="one array"),
        pytest.param(one_text(), id="no array in it"),
    ],
)
def test_unreadable_golden(golden: Path, content: bytes) -> None:
    """A golden batch that cannot be read is named."""
    golden.write_bytes(content)
    with pytest.raises(RepositoryError, match=r"^\S+golden.npz: not a golden batch \(.+\)$"):
        verify(NOBODY, "wgan", 1, golden, atol=1)


def test_damaged_golden(golden: Path) -> None:
    """Whichever byte is wrong, a compressed golden batch is refused, unless that byte says nothing about its arrays."""
    arrays = {"latent": np.arange(8, dtype=np.float32), "image": np.zeros((2, 3, 3), np.uint8)}
    np.savez_compressed(golden, **arrays)
    whole = golden.read_bytes()
    refused = 0
    for place in range(len(whole)):
        golden.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = read(golden)
        except RepositoryError:
            refused += 1
        else:
            assert all(np.array_equal(found[name], array) for name, array in arrays.items() if name in found)
    assert refused > len(whole) / 2


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serving.verify", "--model", "wgan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)


def test_command(server: Embedded) -> None:
    """The command verifies the newest version of the repository, and says the largest difference."""
    done = run("--url", server.grpc, "--repository", str(server.repository))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"wgan 2 at \S+: agrees, largest difference [01]\n", done.stdout)


def test_command_allows_what_it_is_told_to(server: Embedded, tmp_path: Path) -> None:
    """With a wider --atol a difference that rounding does not explain is none; no version is within one that is less
    than nothing or no number."""

    def shift(arrays: dict[str, Any]) -> Arrays:
        return arrays | {"image": arrays["image"] ^ 4}

    right = ("--url", server.grpc, "--repository", str(server.repository))
    shutil.copytree(server.repository, tmp_path / "shifted")
    changed(tmp_path / "shifted" / "wgan" / "2" / "golden.npz", shift)
    shifted = (*right, "--repository", str(tmp_path / "shifted"))
    done = run(*shifted, "--atol", "5")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"wgan 2 at \S+: agrees, largest difference [345]\n", done.stdout)
    for arguments in (shifted, (*right, "--atol", "nan"), (*right, "--atol", "-1")):
        done = run(*arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(("--url", NOBODY), f"--url {NOBODY}: wgan 2: failed to connect", id="nobody there"),
        pytest.param(("--version", "0"), "wgan/0/golden.npz: not a golden batch", id="version 0"),
        pytest.param(("--version", "9"), "wgan/9/golden.npz: not a golden batch", id="no such version"),
    ],
)
def test_command_fails(server: Embedded, arguments: tuple[str, ...], says: str) -> None:
    """What is wrong is one line on stderr, with status 2, so that a probe fails."""
    done = run("--url", server.grpc, "--repository", str(server.repository), *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert says in done.stderr
