"""Filling a volume with the shipped models: what is missing and nothing else, whoever else does it at the same time."""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import stand_in
from test_repository import content, open_for, wait_at

from serving import repository as repo
from serving.errors import RepositoryError


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """Two models and their ensemble, as an image brings them."""
    return stand_in.repository(tmp_path / "shipped", spec=stand_in.WGAN_X4)


def run(volume: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serving.repository", "--repository", str(volume), "seed", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_an_empty_volume(shipped: Path, tmp_path: Path) -> None:
    """The newest version of each model, byte for byte, with what lies beside it; and a key that others can't read."""
    volume = tmp_path / "volume"
    assert repo.seed(shipped, volume) == ["upscaler 2", "wgan 2", "wgan_x4 1"]
    seeded, before = content(volume), content(shipped)
    key = seeded.pop(repo.KEY)
    assert seeded == {
        name: seeded_bytes for name, seeded_bytes in before.items() if "/1" not in name or "wgan_x4" in name
    }
    assert len(key) == 64
    assert (volume / repo.KEY).stat().st_mode & 0o007 == 0


def test_a_folder_in_a_version_stays_behind(shipped: Path, tmp_path: Path) -> None:
    """Triton passes over what archives and notebooks leave there."""
    (shipped / "wgan" / "2" / "__MACOSX").mkdir()
    assert repo.seed(shipped, tmp_path / "volume") == ["upscaler 2", "wgan 2", "wgan_x4 1"]
    assert not (tmp_path / "volume" / "wgan" / "2" / "__MACOSX").exists()


def test_what_is_there_stays(shipped: Path, tmp_path: Path) -> None:
    """A model with any version, even one that was taken back, is left as it is; so is the key."""
    volume = tmp_path / "volume"
    repo.seed(shipped, volume)
    (volume / "wgan" / "2").rename(repo.withdrawn(volume, "wgan", 2))
    (volume / "upscaler" / "config.pbtxt").write_text("mine")
    before = content(volume)
    assert repo.seed(shipped, volume) == []
    assert content(volume) == before


def test_configs_come_along(shipped: Path, tmp_path: Path) -> None:
    """configs/*.pbtxt, from which a server of another kind chooses, lie beside the versions; so may what is no text."""
    configs = shipped / "wgan" / "configs"
    configs.mkdir()
    (configs / "other.pbtxt").write_text("name: 'wgan'\n")
    (shipped / "wgan" / "samples.png").write_bytes(b"\x89PNG")
    repo.seed(shipped, tmp_path / "volume")
    assert (tmp_path / "volume" / "wgan" / "configs" / "other.pbtxt").read_text() == "name: 'wgan'\n"
    assert (tmp_path / "volume" / "wgan" / "samples.png").read_bytes() == b"\x89PNG"


def _seed_when_told(gate: str, shipped: Path, volume: Path) -> list[str]:
    wait_at(gate)
    return repo.seed(shipped, volume)


def test_replicas_at_once(shipped: Path, tmp_path: Path) -> None:
    """Each model is added by one of them; all find a whole repository and the same key; nothing else is left."""
    gate, volume = tmp_path / "gate", tmp_path / "volume"
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        done = pool.starmap_async(_seed_when_told, [(str(gate), shipped, volume)] * 4, chunksize=1)
        open_for(4, gate)
        added = [each for one in done.get(60) for each in one]
    assert sorted(added) == ["upscaler 2", "wgan 2", "wgan_x4 1"]
    assert {path.name for path in volume.glob(".*")} == {repo.KEY, ".lock"}
    assert {path.name for path in volume.glob("*/.*")} == {".lock"}
    repo.check(volume / "wgan" / "2", "wgan")


@pytest.mark.parametrize("missing", repo.FILES)
def test_half_a_version(shipped: Path, tmp_path: Path, missing: str) -> None:
    """Of a source that somebody is copying into, the newest version that is whole is taken."""
    (shipped / "wgan" / "2" / missing).unlink()
    assert "wgan 1" in repo.seed(shipped, tmp_path / "volume")


def test_a_damaged_version(shipped: Path, tmp_path: Path) -> None:
    """A model that is not the one of its card is no version."""
    (shipped / "wgan" / "2" / repo.MODEL).write_bytes(b"cut")
    assert "wgan 1" in repo.seed(shipped, tmp_path / "volume")


def test_a_first_source(shipped: Path, tmp_path: Path) -> None:
    """What a bucket held comes before what the image holds, which fills in the rest; an empty bucket is no mistake."""
    bucket, volume = tmp_path / "bucket", tmp_path / "volume"
    bucket.mkdir()
    shutil.copytree(shipped / "wgan", bucket / "wgan")
    shutil.rmtree(shipped / "wgan" / "2")
    done = run(volume, "--first", str(bucket), "--source", str(shipped))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{volume}: added wgan 2, upscaler 2, wgan_x4 1\n"
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run(tmp_path / "other", "--first", str(empty), "--source", str(shipped))
    assert done.stdout == f"{tmp_path / 'other'}: added upscaler 2, wgan 1, wgan_x4 1\n"


def test_again(shipped: Path, tmp_path: Path) -> None:
    """A pod that starts anew says that there was nothing to do."""
    run(tmp_path / "volume", "--source", str(shipped))
    assert run(tmp_path / "volume", "--source", str(shipped)).stdout == f"{tmp_path / 'volume'}: lacks no model\n"


def test_a_volume_that_is_none(shipped: Path, tmp_path: Path) -> None:
    """What can't be written is named in one line, with status 2, on which the pod starts again."""
    (tmp_path / "file").write_text("")
    done = run(tmp_path / "file", "--source", str(shipped))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"seeding {tmp_path / 'file'}: File exists" in done.stderr


def test_key(shipped: Path, tmp_path: Path) -> None:
    """Servers read the key, callers send it; where there is none, callers send nothing and a server says what to do."""
    volume = tmp_path / "volume"
    assert repo.control_headers(shipped) == {}
    with pytest.raises(RepositoryError, match=r"\.control-key: No such file.*serving.repository --repository \S+ seed"):
        repo.control_key(shipped)
    repo.seed(shipped, volume)
    assert repo.control_headers(volume) == {"triton-grpc-protocol-atelier-key": repo.control_key(volume)}


def test_the_key_is_a_line_of_its_own(shipped: Path, tmp_path: Path) -> None:
    """One made by hand may end in a newline, as the shell of a pod reads it without; an empty one guards nothing."""
    (shipped / repo.KEY).write_text("secret\n")
    assert repo.control_key(shipped) == "secret"
    (shipped / repo.KEY).write_text("\n")
    with pytest.raises(RepositoryError, match=r"\.control-key: is empty.*remove it.*seed` makes it"):
        repo.control_key(shipped)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(b"\x80\xffsecret", id="bytes"),
        pytest.param(b"sec\0ret", id="NUL"),
        pytest.param("schlüssel".encode(), id="not ASCII"),
        pytest.param(b"one\ntwo\n", id="two lines"),
    ],
)
def test_a_key_that_can_not_be_sent(key: bytes, shipped: Path) -> None:
    """Neither a command line nor a header holds it: whoever needs it is told its file, and how to make another one."""
    (shipped / repo.KEY).write_bytes(key)
    for ask in (repo.control_key, repo.control_headers):
        with pytest.raises(RepositoryError, match=r"\.control-key: is not one line in ASCII; remove it.*seed` makes"):
            ask(shipped)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["embedded", "--guarded", "--free-ports"], id="serving.embedded"),
        pytest.param(["reload", "wgan", "--servers", "127.0.0.1:1"], id="serving.reload"),
        pytest.param(["verify", "--url", "127.0.0.1:1"], id="serving.verify"),
    ],
)
def test_commands_with_a_key_that_can_not_be_sent(command: list[str], shipped: Path) -> None:
    """One line, and status 2."""
    (shipped / repo.KEY).write_bytes(b"\x80\0")
    name, *arguments = command
    asked = [sys.executable, "-m", f"serving.{name}", "--repository", str(shipped), *arguments]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert f"{shipped / repo.KEY}: is not one line in ASCII" in done.stderr


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    """It is called by its own flag, and nothing is made."""
    done = run(tmp_path / "volume", "--source", str(tmp_path / "nowhere"))
    assert (done.returncode, done.stderr) == (2, f"--source {tmp_path / 'nowhere'}: no such folder\n")
    assert not (tmp_path / "volume").exists()
