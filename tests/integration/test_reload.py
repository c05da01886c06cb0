"""Versions reach every replica while these are asked all the while, and bad ones reach nobody."""

from __future__ import annotations

import logging
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fleet
import pytest
import scripts
import stand_in
import tritonclient.grpc as triton
from conftest import need_tritonserver
from fleet import MODEL, Fleet
from waiting import until

from serving import pbtxt
from serving import repository as repo
from serving.embedded import Embedded
from serving.errors import Withdrawn
from serving.reload import Watch

PATIENCE_S = 60.0


def test_ten_publishes_and_two_bad_ones(three: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No request fails, no replica is ever not ready, nobody is answered by a bad version, all end on the same one."""
    caplog.set_level(logging.INFO)
    bad = {5: fleet.publish_refusing, 10: fleet.publish_disagreeing}
    watch = Watch(three.reloader())
    with fleet.under_load(three.addresses) as load:
        for version in range(3, 15):
            make: Callable[[Path, Path], int] = bad.get(version, fleet.publish)
            assert make(three.repository, tmp_path) == version
            watch.round()
            assert three.serve() == [version - 1 if version in bad else version] * 3, caplog.text
    assert load.failures == []
    assert load.answers > 500
    assert load.versions == set(range(2, 15)) - set(bad)
    assert [version for version in bad if not repo.withdrawn(three.repository, MODEL, version).is_dir()] == []
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [re.match(r"classifier (\d+): withdrawn to .+, back to (\d+) everywhere: ", line)[1] for line in said] == [
        "5",
        "10",
    ]
    assert "Protobuf parsing failed" in said[0]
    assert "probabilities differs from its golden batch" in said[1]


def test_versions_named_in_requests(two: Fleet, tmp_path: Path) -> None:
    """A request that names a version is answered during the hand-over after it, and by one line after the next."""
    reloader = two.reloader()
    given = triton.InferInput("image", fleet.PICTURES.shape, "UINT8")
    given.set_data_from_numpy(fleet.PICTURES)
    with triton.InferenceServerClient(two.addresses[0]) as client:
        for version in (3, 4):
            fleet.publish(two.repository, tmp_path)
            assert reloader.hand_over(MODEL) == version
            client.infer(MODEL, [given], str(version - 1), client_timeout=30)
        with pytest.raises(Exception, match=r"version 2 is not at ready state|unknown model"):
            client.infer(MODEL, [given], "2", client_timeout=30)


def test_a_bad_version_that_replicas_started_with(classifiers: Path, tmp_path: Path) -> None:
    """What was loaded without being tried out is verified where it is met, and taken back."""
    bad = fleet.publish_disagreeing(classifiers, tmp_path)
    with fleet.fleet(classifiers, 2) as replicas:
        assert replicas.serve() == [bad, bad]
        with pytest.raises(Withdrawn, match=f"classifier {bad} is withdrawn, and 2 is served: .* golden batch"):
            replicas.reloader().hand_over(MODEL)
        assert replicas.serve() == [2, 2]


def test_replicas_that_join(two: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that joins late with an old version is brought to the newest, and only that one is touched."""
    caplog.set_level(logging.INFO)
    late = two.servers.pop()
    watch = Watch(two.reloader())
    fleet.publish(two.repository, tmp_path)
    watch.round()
    two.servers.append(late)
    assert two.serve() == [3, 2]
    caplog.clear()
    watch.round()
    assert two.serve() == [3, 3]
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == f"{late.grpc}: joined"
    assert [line.split(",")[0] for line in said[1:]] == [f"classifier 3: {late.grpc} serves it"]


def test_models_that_nobody_serves_yet(two: Fleet) -> None:
    """A model that is new on the volume is loaded everywhere, and an ensemble of new ones with them."""
    stand_in.repository(two.repository, spec=stand_in.WGAN_X4)
    Watch(two.reloader()).round()
    assert [two.serve(model) for model in ("wgan", "upscaler", "wgan_x4")] == [[2] * 2, [2] * 2, [1] * 2]


def test_an_ensemble_follows_its_steps(tmp_path: Path) -> None:
    """Handed over, a step's new version answers in the ensemble as well, and rolled back the one before does."""
    need_tritonserver()
    repository = stand_in.repository(tmp_path / "repository", spec=stand_in.WGAN_X4)
    with fleet.fleet(repository, 1) as alone:
        watch = Watch(alone.reloader())
        repo.publish(stand_in.candidate(tmp_path / "candidate", 3), repository, "wgan")
        watch.round()
        assert (alone.serve("wgan"), alone.serve("wgan_x4")) == ([3], [1])
        repo.rollback(repository, "wgan")
        watch.round()
        assert (alone.serve("wgan"), alone.serve("wgan_x4")) == ([2], [1])


def test_a_version_with_a_new_style(tmp_path: Path) -> None:
    """It is handed over, taken back, and a server that starts in between is ready: the one before is no burden."""
    need_tritonserver()
    spec = stand_in.STYLE.with_members({"style_weights": ("negative", "ink-red", "faded", "blueprint")})
    repository = stand_in.repository(tmp_path / "repository", spec=stand_in.STYLE)
    with fleet.fleet(repository, 1) as alone:
        watch = Watch(alone.reloader())
        candidate = stand_in.candidate(tmp_path / "candidate", 3, spec)
        repo.publish(candidate, repository, "style", beside=pbtxt.files(spec))
        watch.round()
        assert alone.serve("style") == [3]
        with fleet.fleet(repository, 1) as late:
            assert late.serve("style") == [3]
        repo.rollback(repository, "style")
        watch.round()
        assert alone.serve("style") == [2]
        with fleet.fleet(repository, 1) as late:
            assert late.serve("style") == [2]


def test_guarded(classifiers: Path, tmp_path: Path) -> None:
    """Servers that load models only for who has the repository's key are handed its versions as any others are."""
    volume = tmp_path / "volume"
    repo.seed(classifiers, volume)
    with Embedded(volume, control_key=repo.control_key(volume)) as server:
        guarded = Fleet(volume, [server])
        version = fleet.publish(volume, tmp_path)
        assert guarded.reloader().hand_over(MODEL) == version
        assert guarded.serve() == [version]


# --- the commands


def command(replicas: Fleet, *arguments: str) -> list[str]:
    servers = ["--servers", ",".join(replicas.addresses), "--repository", str(replicas.repository)]
    return [sys.executable, "-m", "serving.reload", *servers, *arguments]


def test_once(two: Fleet, tmp_path: Path) -> None:
    """The command says which replicas serve the version now; a bad one is status 2 and the reason."""
    fleet.publish(two.repository, tmp_path)
    done = subprocess.run(command(two, MODEL), capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (0, f"classifier 3: served by {', '.join(two.addresses)}\n")
    fleet.publish_refusing(two.repository, tmp_path)
    done = subprocess.run(command(two, MODEL), capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("classifier 4 is withdrawn, and 3 is served: ")
    assert "Traceback" not in done.stderr


def test_once_with_a_tolerance(two: Fleet, tmp_path: Path) -> None:
    """A wider --atol hands over a version that is withdrawn without it; with one that is less than nothing or no number
    the status is 2, and nothing has changed."""

    def hand_over(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(two, MODEL, *arguments), capture_output=True, text=True, timeout=PATIENCE_S)

    version = fleet.publish_rough(two.repository, tmp_path)
    done = hand_over()
    assert done.returncode == 2
    assert "allowed 0.001" in done.stderr
    assert repo.withdrawn(two.repository, MODEL, version).is_dir()

    version = fleet.publish_rough(two.repository, tmp_path)
    for atol in ("nan", "-1"):
        done = hand_over("--atol", atol)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert (two.serve(), repo.newest(two.repository, MODEL)) == ([2, 2], version)
    done = hand_over("--atol", "0.01")
    assert (done.returncode, done.stdout) == (0, f"classifier {version}: served by {', '.join(two.addresses)}\n")
    assert two.serve() == [version] * 2


def metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as answer:
        return str(answer.read().decode())


def test_watch(two: Fleet, tmp_path: Path) -> None:
    """--watch hands over what is published and what is rolled back, counts it, and ends at SIGTERM with status 0."""
    port = scripts.free_port()
    log = tmp_path / "log"

    def handed_over(version: int) -> bool:
        return two.serve() == [version] * 2 and repo.newest(two.repository, MODEL) == version

    with log.open("wb") as file:
        watching = subprocess.Popen(command(two, "--watch", "--metrics-port", str(port)), stderr=file)
    try:
        for publish, version in ((fleet.publish, 3), (fleet.publish_disagreeing, 3), (None, 2)):
            publish(two.repository, tmp_path) if publish else repo.rollback(two.repository, MODEL)
            until(partial(handed_over, version), log.read_text, pause_s=0.1)
        until(lambda: 'atelier_served_version{model="classifier"} 2.0' in metrics(port), lambda: metrics(port))
        counted = metrics(port)
        assert 'atelier_reload_total{model="classifier",outcome="rolled_back"} 1.0' in counted
        assert "atelier_reload_replicas 2.0" in counted
        with pytest.raises(ConnectionRefusedError):  # one open to other machines would be on 127.0.0.2, too
            socket.create_connection(("127.0.0.2", port))
    finally:
        watching.send_signal(signal.SIGTERM)
        assert watching.wait(PATIENCE_S) == 0
    assert "Traceback" not in log.read_text()


def test_killed_in_the_middle(two: Fleet, tmp_path: Path) -> None:
    """Killed in its first phase, it has changed nothing; killed after a load, the next run verifies what was loaded."""
    fleet.publish(two.repository, tmp_path)
    with (
        fleet.frozen(fleet.process(two.servers[1])),
        subprocess.Popen(command(two, MODEL), stderr=subprocess.DEVNULL) as killed,
    ):

        def loaded() -> bool:
            assert killed.poll() is None
            return "successfully loaded 'classifier-trial'" in two.servers[0].log.read_text()

        try:
            until(loaded, two.servers[0].log.read_text)
        finally:
            killed.kill()
    assert two.serve() == [2, 2]
    assert two.reloader().hand_over(MODEL) == 3

    bad = fleet.publish_disagreeing(two.repository, tmp_path)
    with triton.InferenceServerClient(two.addresses[0]) as client:
        client.load_model(MODEL)  # as far as one got that was killed before it could verify
    assert two.serve() == [bad, 3]
    done = subprocess.run(command(two, MODEL), capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert f"classifier {bad}: withdrawn" in done.stderr
    assert two.serve() == [3, 3]
