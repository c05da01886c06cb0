"""What `python -m serving.reload` is told, and what it concludes without a server: its addresses, and who is lost."""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import stand_in
from tritonclient.utils import InferenceServerException

from serving import plans, reload, replicas
from serving import repository as repo
from serving.errors import (
    Disagreement,
    Elsewhere,
    RepositoryError,
    ServerError,
    ServingError,
    Unlisted,
    Unreachable,
    Withdrawn,
)
from serving.reload import PATIENCE_S, Reloader, Watch
from serving.replicas import Replica
from serving.verify import loaded

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
        pytest.param(["wgan", "--servers", "dns:///replicas:8001"], "give HOST:PORT", id="a name as clients write it"),
        pytest.param(["wgan", "--servers", NOBODY, "--patience-s", "nan"], "--patience-s: 'nan'", id="no patience"),
        pytest.param(
            ["--watch", "--servers", NOBODY, "--metrics-port", "8", "--metrics-host", ""],
            "--metrics-host: is empty",
            id="metrics host empty",
        ),
        pytest.param(["wgan", "--servers", NOBODY, "--atol", "nan"], "--atol: 'nan' must be", id="no tolerance"),
        pytest.param(["wgan", "--servers", NOBODY, "--atol=-1"], "--atol: '-1' must be", id="a negative tolerance"),
        pytest.param(["wgan", "--servers", NOBODY, "--patience-s", "0"], NOBODY, id="nobody there"),
        pytest.param(
            ["--watch", "--servers", NOBODY, "--metrics-port", "70000"], "--metrics-port 70000", id="metrics port"
        ),
        pytest.param(
            ["--watch", "--servers", NOBODY, "--metrics-port", "8", "--metrics-host", "nowhere.invalid"],
            "--metrics-host nowhere.invalid",
            id="metrics host",
        ),
        pytest.param(
            ["--watch", "--servers", NOBODY, "--metrics-port", "8", "--metrics-host", "no..name"],
            "--metrics-host no..name",
            id="metrics host that is no name",
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


def _loads_the_newest(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas that serve version 1 until they are told to load what there is."""
    served: dict[str, int] = {}

    def load(replica: Replica, model: str) -> None:
        served[replica.address] = repo.newest(repository, model)

    monkeypatch.setattr(Replica, "serves", lambda replica: {"wgan": served.get(replica.address, 1)})
    monkeypatch.setattr(Replica, "load", load)


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


def test_one_that_left_before_its_turn_is_not_lost_over_the_version(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a node is drained while the replica before is trying the version out."""
    there = ["a:1", "b:1", "c:1"]
    asked: list[str] = []

    def slow(replica: Replica, *_: object) -> float:
        asked.append(replica.address)
        there[:] = ["a:1"]
        return 0.0

    _loads_the_newest(repository, monkeypatch)
    monkeypatch.setattr(Replica, "verify", lambda *_: 0.0)
    monkeypatch.setattr(Replica, "try_out", slow)
    assert Reloader(repository, lambda: list(there)).hand_over("wgan") == 2
    assert asked == ["a:1"]


@pytest.mark.parametrize(
    ("before", "newest", "serves", "loaded", "judge"),
    [
        pytest.param([1, 2], 3, 1, {1}, 1, id="it missed the one before"),
        pytest.param([3], 4, 5, {4, 5}, None, id="nothing before is loaded"),
        pytest.param([1, 2, 4], 5, 3, {2, 3}, 2, id="what it serves has been withdrawn"),
        pytest.param([1, 2], 3, 3, {2, 3}, 2, id="it joined with this one"),
    ],
)
@pytest.mark.parametrize("sick", [False, True], ids=["the version's fault", "the server's"])
def test_the_judge_is_a_version_that_the_replica_has_loaded(
    before: list[int],
    newest: int,
    serves: int,
    loaded: set[int],
    judge: int | None,
    sick: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A replica that is wrong with that, too, or has none to be judged by, condemns no version; it says what it met."""
    repository = stand_in.repository(tmp_path / "repository")
    source = repository / "wgan" / "2"
    for version in {*before, newest} - {1, 2}:
        shutil.copytree(source, repository / "wgan" / str(version))
    for version in {1, 2} - {*before, newest}:
        shutil.rmtree(repository / "wgan" / str(version))
    asked: list[int] = []

    def verify(replica: Replica, model: str, version: int, _: object) -> float:
        if withdrawn():
            return 0.0
        asked.append(version)
        if version not in loaded:
            raise Unreachable(f"{replica}: {model} version {version} is not at ready state")  # as Triton says it
        if version == newest or sick:
            raise ServerError(f"{replica}: {model} {version} differs")
        return 0.0

    def withdrawn() -> bool:
        return newest not in repo.versions(repository, "wgan")

    def disagrees(*_: object) -> float:
        raise ServerError(f"a:1: wgan {newest} differs")

    monkeypatch.setattr(Replica, "serves", lambda replica: {"wgan": serves})
    monkeypatch.setattr(Replica, "ready", lambda *_: sorted(loaded))
    monkeypatch.setattr(Replica, "load", lambda *_: None)
    monkeypatch.setattr(Replica, "verify", verify)
    monkeypatch.setattr(Replica, "try_out", disagrees)
    with pytest.raises(ServingError) as told:
        Reloader(repository, lambda: ["a:1"], patience_s=0).hand_over("wgan")
    assert isinstance(told.value, Withdrawn) == (not sick and judge is not None) == withdrawn()
    assert f"a:1: wgan {newest} differs" in str(told.value)
    if judge:
        assert asked[-1] == judge


def test_a_judge_that_can_not_be_asked(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is withdrawn, and what the version was tried out for goes before what became of the replica."""

    def differs(*_: object) -> float:
        raise ServerError("a:1: wgan 2 differs")

    def gone(*_: object) -> float:
        raise Unreachable("a:1: socket closed")

    monkeypatch.setattr(Replica, "serves", lambda replica: {"wgan": 1})
    monkeypatch.setattr(Replica, "ready", lambda *_: [1])
    monkeypatch.setattr(Replica, "try_out", differs)
    monkeypatch.setattr(Replica, "verify", gone)
    with pytest.raises(Unreachable, match=r"^a:1: wgan 2 differs; .*: a:1: socket closed$"):
        Reloader(repository, lambda: ["a:1"], patience_s=0).hand_over("wgan")
    assert repo.versions(repository, "wgan") == [1, 2]


def test_a_version_that_was_loaded_alone_has_no_judge(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of other members: the replica joined with it and with nothing else, so that its word against it counts."""

    def verify(replica: Replica, model: str, version: int, _: object) -> float:
        if 2 in repo.versions(repository, "wgan"):
            raise ServerError(f"{replica}: {model} {version} differs, or is not found")
        return 0.0

    config = repository / "wgan" / "config.pbtxt"
    config.write_text(config.read_text().replace("num_versions: 2", "num_versions: 1"))
    monkeypatch.setattr(Replica, "serves", lambda replica: {"wgan": 2})
    monkeypatch.setattr(Replica, "ready", lambda *_: [2])
    monkeypatch.setattr(Replica, "load", lambda *_: None)
    monkeypatch.setattr(Replica, "verify", verify)
    with pytest.raises(Withdrawn):
        Reloader(repository, lambda: ["a:1"]).hand_over("wgan")


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
    _loads_the_newest(repository, monkeypatch)
    monkeypatch.setattr(Replica, "try_out", asked)
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
    monkeypatch.setattr(Replica, "ready", lambda *_: [1])
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


def test_a_server_of_another_folder(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads what it has, as a volume does that shows late what is new: that is no word against the version."""
    monkeypatch.setattr(Replica, "serves", lambda replica: {"wgan": 1})
    monkeypatch.setattr(Replica, "try_out", lambda *_: 0.0)
    monkeypatch.setattr(Replica, "load", lambda *_: None)
    with pytest.raises(Elsewhere, match="a:1: was told to load wgan 2, and has 1; does it serve this folder"):
        Reloader(repository, lambda: ["a:1"]).hand_over("wgan")
    assert repo.versions(repository, "wgan") == [1, 2]


def _put_away(folder: Path) -> Path:
    return (folder / "2").rename(folder / "2.bak")


def _misspelt(folder: Path) -> Path:
    config = folder / repo.CONFIG
    config.write_text(config.read_text().replace("max_queue_size", "max_queue_sise"))
    return config


@pytest.mark.parametrize("change", [_put_away, _misspelt], ids=["a version put away", "config.pbtxt misspelt"])
def test_a_repository_that_somebody_has_changed(
    change: Callable[[Path], Path], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No server could load what is there: none is asked, the file is named, and no version is withdrawn for it."""
    shutil.copytree(repository / "wgan" / "1", repository / "wgan" / "3")
    asked: list[object] = []
    for name in ("serves", "ready", "try_out", "load", "verify"):
        monkeypatch.setattr(Replica, name, lambda *call: asked.append(call))
    changed = change(repository / "wgan")
    before = repo.versions(repository, "wgan")
    with pytest.raises(RepositoryError, match=rf"^{changed}: .*({repo.WITHDRAWN}NUMBER|max_queue_sise)"):
        Reloader(repository, lambda: ["a:1"]).hand_over("wgan")
    assert (asked, repo.versions(repository, "wgan")) == ([], before)


def test_a_way_back_that_is_damaged(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton loads both versions or none: a good one is not withdrawn for the one before it."""

    def fails(*_: object) -> None:
        raise ServerError("a:1: loading wgan: version 1 is at UNAVAILABLE state")

    monkeypatch.setattr(Replica, "serves", lambda replica: {"wgan": 1})
    monkeypatch.setattr(Replica, "try_out", lambda *_: 0.0)
    monkeypatch.setattr(Replica, "load", fails)
    (repository / "wgan" / "1" / repo.MODEL).unlink()
    said = r"^a:1: loading wgan: .* is damaged: \S+/wgan/1: no model.onnx; .*name the folder \.withdrawn-1$"
    with pytest.raises(ServerError, match=said):
        Reloader(repository, lambda: ["a:1"]).hand_over("wgan")
    assert repo.versions(repository, "wgan") == [1, 2]


@pytest.mark.parametrize("gpu", [True, False], ids=["on a GPU", "on a CPU"])
@pytest.mark.parametrize("planned", [True, False], ids=["with plans", "without"])
def test_a_version_without_a_plan_is_told(
    gpu: bool, planned: bool, repository: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    """It was published elsewhere, and is served by its graph from now on: slower, and nobody would notice."""
    _loads_the_newest(repository, monkeypatch)
    monkeypatch.setattr(Replica, "try_out", lambda *_: 0.0)
    monkeypatch.setattr(Replica, "verify", lambda *_: 0.0)
    if gpu:
        plans.set_target(repository, plans.Target("NVIDIA L4", "11.1"))
    if planned:
        (repository / "wgan" / plans.CONFIG).parent.mkdir()
        (repository / "wgan" / plans.CONFIG).touch()
    Reloader(repository, lambda: ["a:1"]).hand_over("wgan")
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == (gpu and not planned)
    for line in said:
        assert line.startswith("wgan 2: served by its ONNX graph, without a plan for TensorRT 11.1 on NVIDIA L4; ")


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
    _loads_the_newest(repository, monkeypatch)
    monkeypatch.setattr(Replica, "try_out", lambda *_: 0.0)
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


def test_a_watch_that_no_replica_answers_says_why_and_misses_its_round(
    repository: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    """As with a key that Triton does not take: once in the log, and the alert on rounds that are missed will fire."""
    rounds: list[None] = []
    refusing = [True]

    def end_trials(replica: Replica, _: object) -> None:
        if refusing[0]:
            raise ServerError(f"{replica}: ending trials: no permission")

    monkeypatch.setattr("serving.reload.ROUND", SimpleNamespace(set_to_current_time=lambda: rounds.append(None)))
    monkeypatch.setattr(Replica, "end_trials", end_trials)
    monkeypatch.setattr(Replica, "serves", lambda replica: {"wgan": 2})
    monkeypatch.setattr(Replica, "verify", lambda *_: 0.0)
    watch = Watch(Reloader(repository, lambda: ["a:1", "b:1"]))
    for _ in range(3):
        watch.round()
    assert [record.getMessage() for record in caplog.records] == ["b:1: ending trials: no permission"]
    assert not rounds
    refusing[0] = False
    watch.round()
    assert len(rounds) == 1


def test_a_trial_is_nothing_that_clients_ask_for(repository: Path) -> None:
    """So a deep health check during a hand-over looks for no golden batch of it."""
    models = [SimpleNamespace(name=name, version="3", state="READY") for name in ("wgan", "wgan-trial")]
    client = SimpleNamespace(get_model_repository_index=lambda **_: SimpleNamespace(models=models))
    assert loaded(client, repository) == {"wgan": 3}


def test_what_a_trial_finds_goes_before_how_it_ends(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that differs is refused, though the replica is too slow to unload it: else it would be tried again."""

    def late(*_: object, **__: object) -> None:
        raise InferenceServerException("Deadline Exceeded", status="StatusCode.DEADLINE_EXCEEDED")

    def differs(*_: object) -> float:
        raise Disagreement("wgan 2 differs")

    client = SimpleNamespace(load_model=lambda *_, **__: None, unload_model=late)
    monkeypatch.setattr("serving.verify.connect", lambda _: contextlib.nullcontext(client))
    monkeypatch.setattr("serving.verify.verify", differs)
    with pytest.raises(Disagreement):
        Replica(NOBODY, repository).try_out("wgan", 2)
    monkeypatch.setattr("serving.verify.verify", lambda *_: 0.0)
    with pytest.raises(Unreachable):
        Replica(NOBODY, repository).try_out("wgan", 2)


@pytest.mark.parametrize("doing", ["load_model", "verify"])
def test_a_trial_that_ctrl_c_ends(doing: str, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The replica is told to unload what was tried out there, and has so long for it as for any answer."""
    unloaded: list[tuple[object, ...]] = []

    def struck(*_: object, **__: object) -> float:
        raise KeyboardInterrupt

    def unload(name: str, *, client_timeout: float, **_: object) -> None:
        unloaded.append((name, client_timeout))

    client = SimpleNamespace(load_model=lambda *_, **__: None, unload_model=unload)
    monkeypatch.setattr("serving.verify.connect", lambda _: contextlib.nullcontext(client))
    monkeypatch.setattr(*((client, doing) if doing == "load_model" else ("serving.verify.verify",)), struck)
    with pytest.raises(KeyboardInterrupt):
        Replica(NOBODY, repository).try_out("wgan", 2)
    assert unloaded == [("wgan-trial", replicas.ASK_TIMEOUT_S)]


def test_a_watch_without_replicas_says_so_once(repository: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """None is ready yet, or the name is mistyped: that is no error, and its rounds are over."""
    rounds: list[None] = []
    addresses: list[str] = []
    monkeypatch.setattr("serving.reload.ROUND", SimpleNamespace(set_to_current_time=lambda: rounds.append(None)))
    monkeypatch.setattr(Replica, "end_trials", lambda *_: None)
    monkeypatch.setattr(Replica, "serves", lambda replica: {"wgan": 2})
    monkeypatch.setattr(Replica, "verify", lambda *_: 0.0)
    watch = Watch(Reloader(repository, lambda: addresses), "dns:replicas:8001")
    said = "--servers dns:replicas:8001: no address there yet; is a replica ready, and is that its name?"
    for listed, times in (([], 1), ([], 1), (["a:1"], 1), ([], 2)):
        addresses[:] = listed
        watch.round()
        assert [record.getMessage() for record in caplog.records] == [said] * times
    assert len(rounds) == 4
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
