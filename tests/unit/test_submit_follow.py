"""training.submit --follow against a stand-in for the API server, through the real client over real HTTP."""

from __future__ import annotations

import argparse
import itertools
import os
import pty
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from kubernetes_stand_in import (
    NOT_THERE,
    UNSCHEDULABLE,
    KubernetesStandIn,
    Pod,
    Refusal,
    stand_in_cluster,
    waiting,
)

from training import follow, jobs, submit
from training.cluster import connect


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "POLL_S", 0.01)


def _follow(server: KubernetesStandIn, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = submit.main(["wgan", "--name", "lines", "--follow"])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_follow_shows_the_log_and_returns_success(tmp_path, monkeypatch, capsys):
    """Standard output is the Job's log to the letter, spaces and empty lines included; the status its success."""
    log = ["step 1/2", "", "  indented é", "published wgan version 1"]
    with stand_in_cluster(tmp_path, monkeypatch, Pod(log=log)) as server:
        status, out, err = _follow(server, capsys)
    assert (status, out) == (0, "".join(f"{line}\n" for line in log))
    assert "lines: pod lines-pod0 runs on node-1" in err
    assert err.endswith("lines: succeeded\n")


@pytest.mark.parametrize(("code", "meaning"), [(2, "bad options or data"), (3, "refused by the gate")])
def test_follow_a_job_that_fails_at_once(code, meaning, tmp_path, monkeypatch, capsys):
    """The reserved exit codes fail the Job with its first pod, and are told in words."""
    with stand_in_cluster(tmp_path, monkeypatch, Pod(log=["why"], exit_code=code), Pod()) as server:
        status, out, err = _follow(server, capsys)
    assert (status, out) == (1, "why\n")
    assert f"lines: pod lines-pod0 ended with status {code}: {meaning}\n" in err
    assert "lines: failed: PodFailurePolicy: " in err
    assert len(server.pods) == 1


def test_follow_goes_on_with_the_next_pod(tmp_path, monkeypatch, capsys):
    """A pod that was stopped, or crashed, is followed by the one that takes over."""
    pods = Pod(log=["step 1"], exit_code=143), Pod(log=["step 2"], exit_code=1), Pod(log=["step 3"])
    with stand_in_cluster(tmp_path, monkeypatch, *pods) as server:
        status, out, err = _follow(server, capsys)
    assert (status, out) == (0, "step 1\nstep 2\nstep 3\n")
    assert "lines-pod0 ended with status 143: stopped" in err
    assert "lines-pod1 ended with status 1: Error" in err


def test_follow_the_leader_of_several_pods(tmp_path, monkeypatch, capsys):
    """The log is that of index 0; of another pod that ended badly its status and termination message are told."""
    other = Pod(log=["not shown"], index=1, exit_code=1, message="training.run: lost the others", ended=True)
    with stand_in_cluster(tmp_path, monkeypatch, other, Pod(log=["step 1"], index=0)) as server:
        status, out, err = _follow(server, capsys)
    assert (status, out) == (0, "step 1\n")
    assert "lines: pod lines-pod0 ended with status 1: Error: training.run: lost the others\n" in err
    assert "can't be read" not in err


def test_follow_until_the_backoff_limit(tmp_path, monkeypatch, capsys):
    """A Job that gave up is a failure."""
    with stand_in_cluster(tmp_path, monkeypatch, Pod(exit_code=1)) as server:
        status, _, err = _follow(server, capsys)
    assert status == 1
    assert err.endswith("lines: failed: BackoffLimitExceeded: Job has reached the specified backoff limit\n")


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("after", range(4))
def test_a_broken_log_connection_loses_and_repeats_nothing(after, at_once, tmp_path, monkeypatch, capsys):
    """Wherever the connection breaks, every line is shown once, and were there several in one moment."""
    log = ["one", "two", "three"]
    pod = Pod(log=log, log_breaks_after=after, lines_at_once=at_once)
    with stand_in_cluster(tmp_path, monkeypatch, pod) as server:
        status, out, _ = _follow(server, capsys)
    assert (status, out.splitlines()) == (0, log)
    assert server.pods[0].log_breaks_after in (None, 3)


def test_what_the_kubelet_says_in_a_log_is_no_line_of_it(tmp_path, monkeypatch, capsys):
    """It is told, and the log goes on behind the lines that were shown."""
    pod = Pod(log=["one", "two", "three"], kubelet_says="failed to create fsnotify watcher: too many open files")
    with stand_in_cluster(tmp_path, monkeypatch, pod) as server:
        status, out, err = _follow(server, capsys)
    assert (status, out) == (0, "one\ntwo\nthree\n")
    assert "pod lines-pod0's log: failed to create fsnotify watcher: too many open files\n" in err


def test_follow_waits_for_a_node_and_says_so_once(tmp_path, monkeypatch, capsys):
    """An autoscaler may need minutes: the scheduler's reason is told once, and the waiting goes on."""
    pod = Pod(first=[UNSCHEDULABLE] * 3 + [waiting("ContainerCreating")])
    with stand_in_cluster(tmp_path, monkeypatch, pod) as server:
        status, _, err = _follow(server, capsys)
    assert status == 0
    assert err.count("lines: waits for a node: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.\n") == 1
    assert "ContainerCreating" not in err


def test_follow_ends_where_the_image_cannot_be_had(tmp_path, monkeypatch, capsys):
    """A Job's image can't be changed: its first failure is told, and back-off ends the following with the next step."""
    pod = Pod(first=[waiting("ErrImagePull", "not found"), waiting("ImagePullBackOff", 'Back-off pulling image "x"')])
    with stand_in_cluster(tmp_path, monkeypatch, pod) as server:
        status, out, err = _follow(server, capsys)
    assert (status, out) == (1, "")
    assert "lines: waits: ErrImagePull: not found\n" in err
    assert 'lines can\'t start: ImagePullBackOff: Back-off pulling image "x"; mend that, or end it: kubectl' in err


def test_follow_says_why_there_is_no_pod(tmp_path, monkeypatch, capsys):
    """A quota keeps pods from being created; only the Job's events tell."""
    with stand_in_cluster(tmp_path, monkeypatch, Pod(first=[NOT_THERE] * 3)) as server:
        message = 'pods "lines-abcde" is forbidden: exceeded quota: small'
        server.events = [
            {"type": "Normal", "reason": "SuccessfulCreate", "message": "no news"},
            {"type": "Warning", "reason": "FailedCreate", "message": message},
        ]
        status, _, err = _follow(server, capsys)
    assert status == 0
    assert err.count(f"lines: FailedCreate: {message}\n") == 1
    assert "no news" not in err


def test_follow_without_the_right_to_see_events(tmp_path, monkeypatch, capsys):
    """Events are a help, not a need."""
    with stand_in_cluster(tmp_path, monkeypatch, Pod(first=[NOT_THERE] * 2)) as server:
        server.refusals["GET", "Event"] = Refusal(403, "events is forbidden")
        status, _, err = _follow(server, capsys)
    assert status == 0
    assert "forbidden" not in err


def test_follow_bears_with_an_api_that_is_away(tmp_path, monkeypatch, capsys):
    """A control plane that is being upgraded: said once, then on with it."""
    with stand_in_cluster(tmp_path, monkeypatch, Pod(log=["a", "b"], log_breaks_after=1)) as server:
        monkeypatch.setattr(submit, "_create", _then_away(server, requests=3))
        status, out, err = _follow(server, capsys)
    assert (status, out) == (0, "a\nb\n")
    assert err.count("(apiserver not ready); try again later; trying again\n") == 1


def _then_away(server: KubernetesStandIn, *, requests: int):
    create = submit._create

    def create_then_away(*arguments):
        made = create(*arguments)
        server.away = requests
        return made

    return create_then_away


def test_follow_gives_up_on_an_api_that_stays_away(tmp_path, monkeypatch, capsys):
    """Patience has an end: status 1, in one line, for the Job's end is not known."""
    monkeypatch.setattr(follow, "PATIENCE_S", 0.0)
    with stand_in_cluster(tmp_path, monkeypatch, Pod()) as server:
        monkeypatch.setattr(submit, "_create", _then_away(server, requests=1000))
        status, _, err = _follow(server, capsys)
    assert status == 1
    assert err.endswith("(apiserver not ready); try again later; lines may well be running\n")
    assert err.splitlines()[-1].startswith("training.submit: ")


def test_patience_begins_with_the_first_failure(tmp_path, monkeypatch, capsys):
    """A log that was followed for hours does not use up the patience with an API that is away for a moment after it."""
    clock = itertools.count(step=10 * follow.PATIENCE_S)
    now = [next(clock)]
    monkeypatch.setattr(follow, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _: None))
    with stand_in_cluster(tmp_path, monkeypatch, Pod(log=["a", "b"], log_breaks_after=1)) as server:
        job = submit._create(connect(namespace=None, context=None), submit._manifests(_asked("wgan")))

        def show(line: str) -> None:
            now[0] = next(clock)
            server.away = 2 if line == "a" else 0

        assert follow.Follower(connect(namespace=None, context=None), job, show=show, tell=print).run()
    assert "trying again" in capsys.readouterr().out


def _asked(*arguments: str) -> argparse.Namespace:
    return submit._parser().parse_args(arguments)


def test_follow_a_pod_whose_log_is_lost(tmp_path, monkeypatch, capsys):
    """The log of a pod on a dead node can't be had; the Job's end can."""
    with stand_in_cluster(tmp_path, monkeypatch, Pod(ended=True, log_lost=True)) as server:
        status, _, err = _follow(server, capsys)
    assert status == 0
    assert err.count("the rest of pod lines-pod0's log can't be read: ") == 1
    assert "no route to host" in err
    assert err.endswith("lines: succeeded\n")


def test_follow_a_pod_that_is_gone(tmp_path, monkeypatch, capsys):
    """A pod that was evicted and collected owes no log: its successor decides."""
    lost = Pod(log=["step 1", "step 2"], log_breaks_after=1, collected_after_its_log=True, exit_code=143)
    with stand_in_cluster(tmp_path, monkeypatch, lost, Pod(log=["step 3"])) as server:
        status, out, _ = _follow(server, capsys)
    assert (status, out) == (0, "step 1\nstep 3\n")


def test_follow_a_job_that_somebody_deletes(tmp_path, monkeypatch, capsys):
    """It is neither success nor a traceback."""
    with stand_in_cluster(tmp_path, monkeypatch, Pod()) as server:
        monkeypatch.setattr(submit, "_create", lambda *_: "lines")
        status, _, err = _follow(server, capsys)
    assert status == 1
    assert err.endswith("training.submit: lines is gone: it was deleted\n")


# --- Ctrl-C ---


@pytest.mark.parametrize(
    ("answer", "deleted"),
    [("n\n", True), ("\n", False), ("y\n", False), (None, False)],
    ids=["no", "enter", "yes", "no terminal"],
)
def test_ctrl_c_asks_whether_to_leave_it_running(answer, deleted, tmp_path):
    """Only a person's "n" ends the Job; without a terminal to ask at, it goes on."""
    with KubernetesStandIn(Pod(log=["step 1/2"], log_stays_open=True)) as server:
        environment = {**os.environ, "KUBECONFIG": str(server.kubeconfig(tmp_path))}
        person, terminal = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "training.submit", "wgan", "--name", "lines", "--follow"],
            cwd=jobs.ROOT, env=environment, text=True,
            stdin=terminal if answer is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "step 1/2\n"
            process.send_signal(signal.SIGINT)
            if answer is not None:
                os.write(person, answer.encode())
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
            os.close(person)
            os.close(terminal)
    assert process.returncode == 130
    assert ("Leave lines running? [Y/n] " in err) == (answer is not None)
    assert ((("DELETE", "Job") in server.requests), ("Job", "lines") in server.objects) == (deleted, not deleted)
    assert ("lines: deleted" if deleted else "lines: left running") in err
    assert "Traceback" not in err
