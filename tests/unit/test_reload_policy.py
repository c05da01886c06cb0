"""What `python -m serving.reload` is told, and what it concludes without a server: its addresses, and who is lost."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import stand_in

from serving import reload, replicas
from serving import repository as repo
from serving.errors import ServerError, Unlisted, Unreachable, Withdrawn
from serving.reload import PATIENCE_S, Reloader, Watch
from serving.replicas import Replica

NOBODY = "127.0.0.1:1"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serving.reload", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["wgan"], "--servers", id="no servers"),
        pytest.param(["--servers", NOBODY], "MODEL: name the one to hand over, or give --watch", id="nothing to do"),
        pytest.param(["wgan", "--watch", "--servers", NOBODY], "--watch: hands over every model", id="one and all"),
        pytest.param(["other", "--servers", NOBODY], "no version of other", id="unknown model"),
        pytest.param(["wgan", "--servers", "localhost"], "--servers localhost: give HOST:PORT", id="no port"),
        pytest.param(["wgan", "--servers", "a:8001,b:99999"], "give HOST:PORT", id="no such port"),
        pytest.param(["wgan", "--servers", "dns:replicas"], "dns:NAME:PORT", id="a name without port"),
        pytest.param(["wgan", "--servers", "dns:no body:8001"], "no replica is there", id="no such name"),
        pytest.param(["wgan", "--servers", "dns:no..name:8001"], "dns:no..name:8001: not a name", id="no name"),
        pytest.param(["wgan", "--servers", NOBODY, "--patience-s", "0"], NOBODY, id="nobody there"),
        pytest.param(
            ["--watch", "--servers", NOBODY, "--metrics-port", "70000"], "--metrics-port 70000", id="metrics port"
        ),
        pytest.param(
            ["--watch", "--servers", NOBODY, "--metrics-port", "8", "--metrics-host", "nowhere.invalid"],
            "--metrics-host nowhere.invalid",
            id="metrics host",
        ),
    ],
)
def test_bad_input(repository: Path, arguments: list[str], says: str) -> None:
    """A mistake is one line on stderr and status 2; nothing in the repository has changed."""
    done = run("--repository", str(repository), *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert says in done.stderr
    assert repo.versions(repository, "wgan") == [1, 2]


def test_no_repository(tmp_path: Path) -> None:
    """A volume that is not there is named before anything else is tried."""
    done = run("--watch", "--servers", NOBODY, "--repository", str(tmp_path / "absent"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"--repository {tmp_path / 'absent'}: no such folder" in done.stderr


def test_a_volume_that_is_still_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that starts before a replica has seeded their volume watches it, and is told to end as any other."""

    def told_to_end(watch: Watch) -> None:
        rounds(watch)
        raise KeyboardInterrupt

    rounds = Watch.round
    monkeypatch.setattr(Watch, "round", told_to_end)
    monkeypatch.setattr("serving.reload.signal.signal", lambda *_: None)
    assert reload.main(["--watch", "--servers", NOBODY, "--repository", str(tmp_path)]) == 0


def test_ended_before_it_has_handed_over(repository: Path) -> None:
    """Then it is not as one that has done its work. Here it waits for a server that says nothing."""
    command = [sys.executable, "-m", "serving.reload", "wgan", "--repository", str(repository), "--servers"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        command.append(f"127.0.0.1:{silent.getsockname()[1]}")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            connection, _ = silent.accept()
            with connection:
                process.terminate()
                output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "", "")


@pytest.mark.parametrize(
    ("servers", "addresses"),
    [
        pytest.param("a:8001, b:8002", ["a:8001", "b:8002"], id="a list"),
        pytest.param("dns:localhost:8001", ["127.0.0.1:8001"], id="a name"),
        pytest.param("dns:no body:8001", [], id="a name of nobody, as a Service without a ready pod"),
    ],
)
def test_servers(servers: str, addresses: list[str]) -> None:
    """A list stays as it is given; a name is every address that it has at the moment."""
    assert replicas.resolver(servers)() == addresses


def test_names_that_nobody_looks_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A DNS that does not answer is no Service without pods."""

    def silent(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    with pytest.raises(
        Unreachable, match="--servers dns:replicas:8001: Temporary failure in name resolution; does DNS"
    ):
        replicas.resolver("dns:replicas:8001")()


def _lost(monkeypatch: pytest.MonkeyPatch, there: list[str]) -> None:
    """Replicas that serve version 1, and are gone as soon as they try another one out."""

    def gone(replica: Replica, *_: object) -> float:
        there.remove(replica.address)
        raise Unreachable(f"{replica}: socket closed")

    monkeypatch.setattr(Replica, "serves", lambda replica: {"wgan": 1})
    monkeypatch.setattr(Replica, "load", lambda *_: None)
    monkeypatch.setattr(Replica, "verify", lambda *_: 0.0)
    monkeypatch.setattr(Replica, "try_out", gone)


def test_a_version_that_ends_its_servers(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One replica may be lost by chance; a second one over the same version condemns it, before it ends them all."""
    there = ["a:1", "b:1", "c:1"]
    _lost(monkeypatch, there)
    with pytest.raises(Withdrawn, match="wgan 2 is withdrawn, and 1 is served: 2 replicas were lost over it"):
        Reloader(repository, lambda: list(there)).hand_over("wgan")
    assert there == ["c:1"]
    assert repo.versions(repository, "wgan") == [1]


def test_the_only_replica_is_lost(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a replica nothing has been handed over, and nothing is withdrawn."""
    there = ["a:1"]
    _lost(monkeypatch, there)
    with pytest.raises(ServerError, match="no replica is there"):
        Reloader(repository, lambda: list(there)).hand_over("wgan")
    assert repo.versions(repository, "wgan") == [1, 2]


def test_cut_off_for_a_while(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither replicas nor DNS are reached, none is lost over a version, which is handed over afterwards."""
    silences = [Unreachable("No route to host")] * 4

    def listed() -> list[str]:
        if 0 < len(silences) < 4:
            raise Unreachable("--servers dns:replicas:8001: Temporary failure in name resolution")
        return ["a:1", "b:1"]

    def asked(*_: object) -> float:
        if silences:
            raise silences.pop()
        return 0.0

    monkeypatch.setattr("serving.reload.RETRY_S", 0.0)
    monkeypatch.setattr(Replica, "serves", lambda replica: {"wgan": 1})
    monkeypatch.setattr(Replica, "try_out", asked)
    monkeypatch.setattr(Replica, "load", lambda *_: None)
    monkeypatch.setattr(Replica, "verify", lambda *_: 0.0)
    assert Reloader(repository, listed).hand_over("wgan") == 2
    assert silences == []


def test_cut_off_while_a_version_is_withdrawn(repository: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """Where DNS does not answer then, it is told as withdrawn, and that no replica is back yet."""

    def listed() -> list[str]:
        if repo.versions(repository, "wgan") == [1]:
            raise Unreachable("--servers dns:replicas:8001: Temporary failure in name resolution")
        return ["a:1"]

    def disagrees(*_: object) -> float:
        raise ServerError("a:1: wgan 2 differs")

    monkeypatch.setattr(Replica, "serves", lambda replica: {"wgan": 1})
    monkeypatch.setattr(Replica, "try_out", disagrees)
    monkeypatch.setattr(Replica, "verify", lambda *_: 0.0)
    with pytest.raises(Withdrawn, match="wgan 2 is withdrawn, and 1 is served: a:1: wgan 2 differs"):
        Reloader(repository, listed).hand_over("wgan")
    assert "wgan 1: no replica is back on it: --servers dns:replicas:8001: Temporary" in caplog.text


def test_cut_off_when_every_replica_has_loaded(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where DNS does not answer then, the version stays: no replica has said a word against it."""
    served, lookups = {"wgan": 1}, [0]

    def listed() -> list[str]:
        lookups[0] += served["wgan"] == 2
        if lookups[0] == 1:
            raise Unlisted("--servers dns:replicas:8001: Temporary failure in name resolution")
        return ["a:1"]

    monkeypatch.setattr(Replica, "serves", lambda replica: dict(served))
    monkeypatch.setattr(Replica, "try_out", lambda *_: 0.0)
    monkeypatch.setattr(Replica, "load", lambda *_: served.update(wgan=2))
    monkeypatch.setattr(Replica, "verify", lambda *_: 0.0)
    reloader = Reloader(repository, listed)
    with pytest.raises(Unlisted):
        reloader.hand_over("wgan")
    assert repo.versions(repository, "wgan") == [1, 2]
    reloader.hand_over("wgan")


def test_patience_begins_with_the_first_silence(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that was too late is asked again, though it took longer than a replica may be silent."""
    now, left = [0.0], [Unreachable("Deadline Exceeded")]

    def too_late_at_first(*_: object) -> float:
        if left:
            now[0] += 2 * PATIENCE_S
            raise left.pop()
        return 0.0

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _: None)
    monkeypatch.setattr("serving.reload.time", clock)
    monkeypatch.setattr(Replica, "serves", lambda replica: {"wgan": 1})
    monkeypatch.setattr(Replica, "try_out", lambda *_: 0.0)
    monkeypatch.setattr(Replica, "load", lambda *_: None)
    monkeypatch.setattr(Replica, "verify", too_late_at_first)
    assert Reloader(repository, lambda: ["a:1"]).hand_over("wgan") == 2
    assert left == []


def test_trouble_with_the_volume_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """A repository that is gone for a while ends no watch, and does not fill its log."""
    monkeypatch.setattr(Replica, "end_trials", lambda *_: None)
    monkeypatch.setattr(Replica, "serves", lambda replica: {"wgan": 2})
    monkeypatch.setattr(Replica, "verify", lambda *_: 0.0)
    repository, away = stand_in.repository(tmp_path / "repository"), tmp_path / "away"
    watch = Watch(Reloader(repository, lambda: ["a:1"]))
    watch.round()
    repository.rename(away)
    for _ in range(3):
        watch.round()
    away.rename(repository)
    watch.round()
    assert [record.getMessage() for record in caplog.records] == [f"--repository {repository}: no such folder"]
