"""Follow a Job on a cluster: stream its log, and report what keeps it from running."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from training.cluster import Cluster, ClusterError, Json, NotFound, Unreachable
from training.errors import BAD_INPUT, REFUSED, STOPPED
from training.jobs import CONTAINER

POLL_S = 2.0
PATIENCE_S = 180.0
"""How long the API may be unreachable. Upgrading a small cluster's control plane takes a minute or two."""
LOG_ATTEMPTS = 3
MEANINGS = {
    BAD_INPUT: "bad options or data",
    REFUSED: "refused by the gate",
    STOPPED: "stopped",
}
STUCK = {
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
}
"""Waiting reasons that don't resolve by themselves, because a Job's pods can't be changed."""
STARTING = {"ContainerCreating", "PodInitializing"}
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


class Follower:
    """Calls `show` once with each line of the Job's log, and `tell` with messages about what happens around it.

    A pod that replaces another is followed in its turn. After a broken connection, the log resumes where it broke off.
    """

    def __init__(self, cluster: Cluster, job: str, *, show: Callable[[str], None], tell: Callable[[str], None]) -> None:
        self.cluster, self.job, self.show, self.tell = cluster, job, show, tell
        self._told: set[str] = set()
        self._shown_until: dict[str, tuple[str, int]] = {}
        """by pod: the last line's timestamp, and how many lines with that timestamp were shown"""
        self._log_failures: Counter[str] = Counter()
        self._incomplete_logs: set[str] = set()
        """pods whose log may have more lines"""
        self._ended: set[str] = set()

    def run(self) -> bool:
        """Waits for the Job to end and returns whether it succeeded. Raises ClusterError if it can't run or be read."""
        away_since: float | None = None
        while True:
            try:
                outcome = self._look()
                away_since = None
                if outcome is not None:
                    return outcome
            except Unreachable as error:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > PATIENCE_S:
                    raise ClusterError(f"{error}; {self.job} may well be running") from error
                self._tell_once(f"{error}; trying again")
            time.sleep(POLL_S)

    def _look(self) -> bool | None:
        """One round of polling; returns whether the Job succeeded, None if it isn't over. The Job is read before its
        pods: if it has ended by then, no more pods appear."""
        try:
            job = self.cluster.read("Job", self.job)
        except NotFound as error:
            raise ClusterError(f"{self.job} is gone: it was deleted") from error
        condition = _terminal_condition(job)
        pods = self.cluster.list("Pod", labelSelector=f"batch.kubernetes.io/job-name={self.job}")
        # The leader comes last: following its log takes as long as it runs, so the others are reported before.
        for pod in sorted(pods, key=lambda pod: (_is_leader(pod), str(pod["metadata"]["creationTimestamp"]))):
            self._look_at(pod, job_ended=condition is not None)
        if not pods:
            self._say_why_no_pod(job)
        self._incomplete_logs &= {pod["metadata"]["name"] for pod in pods}  # an evicted pod may be gone with its log
        if condition is None or self._incomplete_logs:
            return None
        succeeded: bool = condition["type"] == "Complete"
        self.tell("succeeded" if succeeded else f"failed: {condition.get('reason')}: {_message(condition)}")
        return succeeded

    def _look_at(self, pod: Json, *, job_ended: bool) -> None:
        name, status = pod["metadata"]["name"], pod.get("status", {})
        if name in self._ended:
            return
        for condition in status.get("conditions", []):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                self._tell_once(f"waits for a node: {_message(condition)}")
        state: Json = next((c["state"] for c in status.get("containerStatuses", []) if c["name"] == CONTAINER), {})
        if waiting := state.get("waiting"):
            self._say_why_waiting(waiting)
        terminated: Json | None = state.get("terminated")
        if terminated or "running" in state:
            self._tell_once(f"pod {name} runs on {pod['spec'].get('nodeName', 'a node')}")
            if _is_leader(pod):
                self._copy_log(name, final=terminated is not None or job_ended)
            elif terminated:
                self._ended.add(name)
        if terminated and name in self._ended and terminated["exitCode"]:
            said = "" if _is_leader(pod) else f": {_message(terminated)}"
            self.tell(f"pod {name} ended with status {terminated['exitCode']}: {_meaning(terminated)}{said}")

    def _copy_log(self, pod: str, *, final: bool) -> None:
        """Shows the rest of the log. If it breaks off, the next round reads it again and skips the lines shown."""
        self._incomplete_logs.add(pod)
        try:
            self._show_rest(pod)
        except ClusterError as error:
            self._log_failures[pod] += final
            if self._log_failures[pod] < LOG_ATTEMPTS:
                return
            self.tell(f"the rest of pod {pod}'s log can't be read: {error}")
        if final:
            self._incomplete_logs.remove(pod)
            self._ended.add(pod)

    def _show_rest(self, pod: str) -> None:
        """Shows the lines of the log that were not shown yet. Raises ClusterError if the log breaks off."""
        until, count = self._shown_until.get(pod, ("", 0))
        skipping, skipped = bool(until), 0
        for timestamp, line in self.cluster.log(pod, CONTAINER):
            if not TIMESTAMP.match(timestamp):  # a message from the kubelet, which can't read on
                self._tell_once(f"pod {pod}'s log: {timestamp} {line}".rstrip())
                raise Unreachable(f"{timestamp} {line}".rstrip())
            # Timestamps have a fixed width, so they sort as text. CRI-O gives the same one to lines that it reads at
            # once.
            if skipping and (timestamp < until or (timestamp == until and skipped < count)):
                skipped += timestamp == until
                continue
            skipping = False
            self.show(line)
            last, with_last = self._shown_until.get(pod, ("", 0))
            self._shown_until[pod] = timestamp, with_last + 1 if timestamp == last else 1

    def _say_why_waiting(self, waiting: Json) -> None:
        reason = waiting.get("reason", "")
        if reason in STUCK:
            raise ClusterError(
                f"{self.job} can't start: {reason}: {_message(waiting)}; "
                f"mend that, or end it: kubectl delete job {self.job}"
            )
        if reason and reason not in STARTING:
            self._tell_once(f"waits: {reason}: {_message(waiting)}")

    def _say_why_no_pod(self, job: Json) -> None:
        if job["spec"].get("suspend"):
            self._tell_once("suspended: it waits in a queue to be admitted")
        with suppress(ClusterError):  # listing events needs a permission of its own
            for event in self.cluster.list("Event", fieldSelector=f"involvedObject.name={self.job}"):
                if event.get("type") == "Warning":
                    self._tell_once(f"{event.get('reason')}: {_message(event)}")

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.tell(text)


def _terminal_condition(job: Json) -> Json | None:
    """The condition that says how the Job ended, if it has."""
    conditions: list[Json] = job.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] in ("Complete", "Failed") and c["status"] == "True"), None)


def _is_leader(pod: Json) -> bool:
    """Whether the pod's log is the run's: in an Indexed Job only index 0 leads; a Job of one pod has no indices."""
    index: str = pod["metadata"].get("annotations", {}).get("batch.kubernetes.io/job-completion-index", "0")
    return index == "0"


def _meaning(terminated: Json) -> str:
    """What a container's exit code means; the kubelet's reason if the code is not one of ours."""
    reason: str = terminated.get("reason", "Error")
    return MEANINGS.get(terminated["exitCode"], reason)


def _message(status: Json) -> str:
    return " ".join(status.get("message", "").split()) or "no message"
