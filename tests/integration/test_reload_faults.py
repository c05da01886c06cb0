"""Whatever fails during a hand-over, the served version never changes to a bad one, and the log says what happened."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fleet
import pytest
import stand_in
from conftest import need, need_tritonserver
from fleet import MODEL, Fleet

from serving import reload as handing
from serving import repository as repo
from serving.embedded import Embedded
from serving.errors import RepositoryError, ServerError, Unreachable, Withdrawn
from serving.reload import Reloader, Watch
from serving.replicas import Replica

NOBODY = "127.0.0.1:1"


@pytest.fixture
def dies(two: Fleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[Embedded]:
    """The second replica, which is killed at the moment when it is to load the version for good."""
    load, last = Replica.load, two.servers[1]

    def load_or_die(replica: Replica, model: str) -> None:
        if replica.address == last.grpc and two.serve()[1]:
            os.kill(fleet.process(last), signal.SIGKILL)
        load(replica, model)

    monkeypatch.setattr(Replica, "load", load_or_die)
    yield last
    last.log.unlink()  # it would stay, to tell what happened


def test_replica_that_dies_and_is_gone(two: Fleet, dies: Embedded, tmp_path: Path, caplog) -> None:
    """A pod that is deleted meanwhile is off the list soon: the others go on without it."""
    version, alive = fleet.publish(two.repository, tmp_path), two.addresses[:1]
    addresses = iter([two.addresses] * 5)  # the lists of the first phase, which ends with one, and of the second
    reloader = Reloader(two.repository, lambda: next(addresses, alive), patience_s=30)
    assert reloader.hand_over(MODEL) == version
    assert f"{dies.grpc}: gone from --servers, going on without it: " in caplog.text
    two.servers.remove(dies)
    assert two.serve() == [version]


def test_replica_that_dies_and_is_listed(two: Fleet, dies: Embedded, tmp_path: Path) -> None:
    """One that is said to be there and does not answer takes the version back everywhere: nothing is left half."""
    version = fleet.publish(two.repository, tmp_path)
    with pytest.raises(Withdrawn, match=f"classifier {version} is withdrawn, and 2 is served: .*{dies.grpc}"):
        two.reloader(patience_s=1).hand_over(MODEL)
    two.servers.remove(dies)
    assert two.serve() == [2]
    assert repo.versions(two.repository, MODEL) == [1, 2]


def test_silent_from_the_start(two: Fleet, tmp_path: Path, caplog) -> None:
    """One that is listed and never answers keeps a hand-over from starting; once it is off the list, it goes on."""
    version = fleet.publish(two.repository, tmp_path)
    addresses = [*two.addresses, NOBODY]
    watch = Watch(Reloader(two.repository, lambda: addresses, patience_s=0.5))
    watch.round()
    assert f"classifier {version}: not handed over, again in 60 s: {NOBODY}" in caplog.text
    assert two.serve() == [2, 2]
    assert repo.newest(two.repository, MODEL) == version
    addresses.pop()
    with pytest.raises(Unreachable, match=NOBODY):
        Reloader(two.repository, lambda: [NOBODY], patience_s=0).hand_over(MODEL)
    assert Reloader(two.repository, lambda: addresses).hand_over(MODEL) == version
    assert two.serve() == [version] * 2


def test_frozen(two: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is up and does not answer is as one that is not there."""
    monkeypatch.setattr("serving.replicas.ASK_TIMEOUT_S", 1.0)
    fleet.publish(two.repository, tmp_path)
    with fleet.frozen(fleet.process(two.servers[1])), pytest.raises(Unreachable, match="Deadline Exceeded"):
        two.reloader(patience_s=0).hand_over(MODEL)
    assert two.serve() == [2, 2]


def test_server_at_fault(two: Fleet, tmp_path: Path) -> None:
    """A replica that is wrong with the version before as well does not condemn a good one; nothing changes."""
    elsewhere = stand_in.repository(tmp_path / "elsewhere", versions=(1,), spec=stand_in.CLASSIFIER)
    stand_in.candidate(elsewhere / MODEL / "2", 50, stand_in.CLASSIFIER)
    version = fleet.publish_disagreeing(two.repository, tmp_path)
    with Embedded(elsewhere) as sick:
        reloader = Reloader(two.repository, lambda: [sick.grpc, *two.addresses])
        with pytest.raises(ServerError, match="the server's fault, as classifier 2 fails there too"):
            reloader.hand_over(MODEL)
    assert two.serve() == [2, 2]
    assert repo.newest(two.repository, MODEL) == version


def _without_golden(folder: Path) -> None:
    (folder / repo.GOLDEN).unlink()


def _cut_short(folder: Path) -> None:
    whole = (folder / repo.MODEL).read_bytes()
    (folder / repo.MODEL).write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize("damage", [_without_golden, _cut_short], ids=["a file is missing", "model.onnx cut short"])
def test_half_copied(two: Fleet, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """A version that somebody copies by hand is left alone while it may grow, and withdrawn when it does not."""
    version = fleet.publish(two.repository, tmp_path)
    folder = two.repository / MODEL / str(version)
    damage(folder)
    with pytest.raises(RepositoryError, match=str(folder)):
        two.reloader().hand_over(MODEL)
    assert repo.newest(two.repository, MODEL) == version
    long_ago = time.time() - handing.SETTLED_S - 1
    for path in (*folder.iterdir(), folder):
        os.utime(path, (long_ago, long_ago))
    with pytest.raises(Withdrawn, match=f"classifier {version} is withdrawn, and 2 is served: {folder}"):
        two.reloader().hand_over(MODEL)
    assert two.serve() == [2, 2]


def test_changed_by_hand(classifiers: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No good version is withdrawn where its load would fail for another folder; once that is put right, it goes on."""
    with fleet.fleet(classifiers, 1) as alone:
        watch, model = Watch(alone.reloader()), alone.repository / MODEL
        watch.round()
        version = fleet.publish(alone.repository, tmp_path)
        (model / "2").rename(model / "2.bak")
        for _ in range(2):
            watch.round()
        assert (alone.serve(), repo.versions(alone.repository, MODEL)) == ([2], [1, version])
        (model / "2.bak").rename(model / "2")
        (model / "2" / repo.MODEL).rename(tmp_path / "away")
        for _ in range(2):
            Watch(alone.reloader()).round()
        assert (alone.serve(), repo.versions(alone.repository, MODEL)) == ([2], [1, 2, version])
        (tmp_path / "away").rename(model / "2" / repo.MODEL)
        Watch(alone.reloader()).round()
        assert alone.serve() == [version]
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [line.partition(":")[0] for line in said] == [f"classifier {version}"] * 3
    assert f"{model}/2.bak: neither a version nor put away" in said[0]
    assert all(f"the one before is damaged: {model}/2: no model.onnx" in line for line in said[1:])


def test_rolled_back_to_one_that_fails(classifiers: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing but what was taken back is loaded beside it, so that it is not withdrawn; the log has the reason."""
    with fleet.fleet(classifiers, 1) as alone:
        fleet.publish(alone.repository, tmp_path)
        watch = Watch(alone.reloader(patience_s=0))
        watch.round()
        (alone.repository / MODEL / "2" / repo.GOLDEN).write_bytes(b"PK")
        repo.rollback(alone.repository, MODEL)
        watch.round()
        assert (alone.serve(), repo.versions(alone.repository, MODEL)) == ([3], [1, 2])
    [said] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert re.match(r"classifier 2: not handed over, again in 60 s: \S+/golden.npz: not a golden batch .*; no v", said)


@pytest.fixture
def read_only(classifiers: Path) -> Iterator[Callable[[], None]]:
    """Makes the repository what a volume is that was mounted read-only."""
    mounted: list[str] = []

    def mount() -> None:
        for options in (["--bind", str(classifiers)], ["-o", "remount,ro,bind"]):
            done = subprocess.run(["mount", *options, str(classifiers)], capture_output=True, text=True)
            need(done.returncode == 0, f"mounting a folder read-only needs root: {done.stderr.strip()}")
            mounted.append(str(classifiers))

    yield mount
    if mounted:
        subprocess.run(["umount", str(classifiers)], check=True)


def test_read_only_volume(two: Fleet, read_only: Callable[[], None], tmp_path: Path, caplog) -> None:
    """Where nothing can be withdrawn nothing is handed over, and the reason is said once, not at every look."""
    version = fleet.publish_disagreeing(two.repository, tmp_path)
    read_only()
    watch = Watch(two.reloader())
    watch.round()
    watch.round()
    [said] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert f"classifier {version}: not handed over" in said
    assert "Read-only file system" in said
    assert two.serve() == [2, 2]


def test_only_version(tmp_path: Path) -> None:
    """The only version of a model stays where it is, whatever it answers: there is nothing to go back to."""
    need_tritonserver()
    repository = stand_in.repository(tmp_path / "repository", (1,), stand_in.CLASSIFIER)
    golden = stand_in.candidate(tmp_path / "other", 2, stand_in.CLASSIFIER) / repo.GOLDEN
    golden.replace(repository / MODEL / "1" / repo.GOLDEN)
    with fleet.fleet(repository, 1) as alone:
        with pytest.raises(ServerError, match=r"is refused: .*golden batch.* can't be withdrawn: .*nothing to serve"):
            alone.reloader().hand_over(MODEL)
        assert alone.serve() == [1]
