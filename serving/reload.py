"""Hands the newest version of a model over to every replica, or rolls it back on all of them.

Run: python -m serving.reload wgan --servers HOST:PORT,HOST:PORT   (once)
     python -m serving.reload --watch --servers dns:NAME:PORT      (every published version, every replica that joins)

A hand-over has two phases, like a two-phase commit. First each replica tries the version out against its golden batch,
under a name that no client requests. If it passes on all of them, each loads it, one after the other, and is verified
again. Serving continues throughout: Triton answers with the previous version until the new one is ready, and finishes
the requests in flight. The previous version stays loaded: a request that names it is answered until the next hand-over;
one that names an older version is not. A version whose inputs have other members, such as a new style, is served alone.

If a replica refuses the version, or its answers don't match, although the previous version passes there, the version is
at fault: it is withdrawn in the repository and, where it was loaded, rolled back. A replica that disappears from
--servers meanwhile is skipped; if a second one does, the version is at fault. A listed replica that does not answer, or
that fails with the previous version as well, keeps the hand-over from starting (it is retried later); once the
hand-over has started, it causes a rollback. While a hand-over runs, publishers of that model wait.

A replica that starts up loads the newest version by itself, tried out or not: published versions have passed the gate
on the gate's own Triton. --watch notices that it has joined, verifies it, and treats its verdict like any other.
"""

from __future__ import annotations

import argparse
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import prometheus_client

from serving import cli, configs, plans, replicas
from serving import repository as repo
from serving.errors import (
    Elsewhere,
    Refused,
    RepositoryError,
    ServerError,
    ServingError,
    Unlisted,
    Unreachable,
    Withdrawn,
)
from serving.local import EVERY_INTERFACE
from serving.replicas import Replica, Resolver
from serving.repository import REPOSITORY

PATIENCE_S = 60.0
"""Longer than the TTL of a DNS record (30 s in a cluster): by then a pod that is gone is no longer listed."""
POLL_S = 2.0
RETRY_S = 0.5
BACKOFF_S = 60.0
"""Delay between attempts to hand over a version that was neither loaded nor withdrawn."""
MAX_LOST = 1
SETTLED_S = 30.0
"""An incomplete version folder that has not changed for this long is no longer being copied."""

LOADED, ROLLED_BACK, FAILED = "loaded", "rolled_back", "failed"
HAND_OVERS = prometheus_client.Counter("atelier_reload_total", "Hand-overs ended", ["model", "outcome"])
SERVED = prometheus_client.Gauge("atelier_served_version", "Version that every replica serves, verified", ["model"])
REPLICAS = prometheus_client.Gauge("atelier_reload_replicas", "Replicas that answer")
ROUND = prometheus_client.Gauge("atelier_reload_last_round_timestamp_seconds", "When all replicas were last looked at")

log = logging.getLogger("atelier.reload")


@dataclass
class Reloader:
    """Keeps the replicas listed by `resolver` on the newest versions of `repository`."""

    repository: Path
    resolver: Resolver
    atol: float | None = None
    patience_s: float = PATIENCE_S
    _verified: dict[tuple[Replica, str], list[int]] = field(default_factory=dict)
    _lost: int = 0

    def replicas(self) -> list[Replica]:
        return [Replica(address, self.repository) for address in self.resolver()]

    def hand_over(self, model: str) -> int:
        """Hands over the newest version of a model; returns the version that every replica now serves.

        Raises Withdrawn if the newest version has been taken out of service instead; another ServingError if none has
        been.
        """
        with repo.locked(self.repository, model):
            repo.check_names(self.repository, model)
            configs.check(self.repository / model)
            version = repo.newest(self.repository, model)
            if not repo.steps(self.repository, model):
                self._try_out(model, version)
            self._switch(model, version)
            if target := plans.missed(self.repository / model):
                then = "restart the servers once `python -m serving.tensorrt` has built it, as pods do when they start"
                log.warning("%s %d: served by its ONNX graph, without a plan for %s; %s", model, version, target, then)
        return version

    def is_current(self, replica: Replica, model: str, served: Mapping[str, int]) -> bool:
        """Whether the replica serves the newest version and has been verified, so that nothing is left to do."""
        newest = repo.newest(self.repository, model)
        return served.get(model) == newest and self._verified.get((replica, model)) == self._versions(model)

    def forget(self, replica: Replica) -> None:
        """Forgets what was verified on the replica, so that it is verified again."""
        for known in [key for key in self._verified if key[0] == replica]:
            del self._verified[known]

    # --- the first phase, the trial: nothing changes for clients

    def _try_out(self, model: str, version: int) -> None:
        try:
            self._check(model, version)
            self._on_each(lambda replica: self._attempt(replica, model, version))
        except Refused as exc:
            self._withdraw(model, version, exc)

    def _check(self, model: str, version: int) -> None:
        folder = self.repository / model / str(version)
        try:
            repo.check(folder, model)
        except RepositoryError as exc:
            changed = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if time.time() - changed > SETTLED_S:
                raise Refused(str(exc)) from exc
            raise

    def _attempt(self, replica: Replica, model: str, version: int) -> None:
        served = replica.serves()
        if self.is_current(replica, model, served):
            return
        try:
            if served.get(model) == version:  # it joined with this version
                self._verify(replica, model, version)
            else:
                replica.try_out(model, version, self.atol)
        except Unreachable:
            raise
        except ServingError as exc:
            self._blame(replica, model, version, exc)

    def _blame(self, replica: Replica, model: str, version: int, why: ServingError) -> NoReturn:
        """Raises Refused; ServerError if the previous version fails on the replica as well, or nothing can tell."""
        try:
            doubt = self._doubt(replica, model, version)
        except ServingError as exc:
            raise type(exc)(f"{why}; whether that is the server's fault can't be asked: {exc}") from why
        if doubt:
            raise ServerError(f"{why}; {doubt}") from why
        raise Refused(str(why)) from why

    def _doubt(self, replica: Replica, model: str, version: int) -> str:
        """Why the replica's verdict against the version does not count; empty if it does.

        The test is whether the version before that it has ready passes. If it has no other version at all, as when
        the members differ and the version is loaded alone, its verdict counts; if all others have been withdrawn,
        nothing can tell.
        """
        others = [each for each in replica.ready(model) if each != version]
        before = [each for each in repo.versions(self.repository, model) if each < version and each in others]
        if not before:
            return "no version before it is loaded there, to tell whether that is the server's fault" if others else ""
        try:
            replica.verify(model, before[-1], self.atol)
        except Unreachable:
            raise
        except ServingError as exc:
            return f"the server's fault, as {model} {before[-1]} fails there too: {exc}"
        return ""

    # --- the second phase, the switch: one replica after the other

    def _switch(self, model: str, version: int) -> None:
        try:
            self._on_each(lambda replica: self._load(replica, model, version))
        except (Unlisted, Elsewhere):  # no verdict on the version; --watch resumes where this stopped
            raise
        except ServingError as exc:
            if repo.steps(self.repository, model) or not self.replicas():
                raise
            self._check_before(model, exc)
            self._withdraw(model, version, exc)

    def _check_before(self, model: str, why: ServingError) -> None:
        """Raises ServerError if the version before is damaged: Triton loads both or neither, and rollback needs it."""
        for before in repo.versions(self.repository, model)[-2:-1]:
            folder = self.repository / model / str(before)
            try:
                repo.check(folder, model)
            except RepositoryError as exc:
                mend = f"mend that, or name the folder {repo.withdrawn(self.repository, model, before).name}"
                raise ServerError(f"{why}; nothing is withdrawn, as the one before is damaged: {exc}; {mend}") from why

    def _load(self, replica: Replica, model: str, version: int) -> None:
        served = replica.serves()
        if self.is_current(replica, model, served):
            return
        if served.get(model) != version:
            replica.load(model)
            if (now := replica.serves().get(model)) != version:
                said = f"was told to load {model} {version}, and has {now}; does it serve this folder?"
                raise Elsewhere(f"{replica}: {said}")
        self._verify(replica, model, version)

    def _verify(self, replica: Replica, model: str, version: int) -> None:
        worst = replica.verify(model, version, self.atol)
        for ensemble in self._ensembles_with(model) & set(replica.serves()):
            replica.verify(ensemble, repo.newest(self.repository, ensemble), self.atol)
            self._verified[replica, ensemble] = self._versions(ensemble)
        self._verified[replica, model] = self._versions(model)
        log.info("%s %d: %s serves it, largest difference %.2g", model, version, replica, worst)

    def _withdraw(self, model: str, version: int, why: ServingError) -> NoReturn:
        try:
            repo.withdraw(self.repository, model)
        except RepositoryError as exc:
            raise ServerError(f"{model} {version} is refused: {why}; but it can't be withdrawn: {exc}") from why
        back = repo.newest(self.repository, model)
        away = repo.withdrawn(self.repository, model, version)
        log.error("%s %d: withdrawn to %s, back to %d everywhere: %s", model, version, away, back, why)
        try:
            there = self.replicas()
        except Unreachable as exc:  # --watch rolls them back as soon as it can look them up
            there = []
            log.error("%s %d: no replica is back on it: %s", model, back, exc)
        for replica in there:
            try:
                self._load(replica, model, back)
            except ServingError as exc:
                log.error("%s %d: %s is not back on it: %s", model, back, replica, exc)
        raise Withdrawn(f"{model} {version} is withdrawn, and {back} is served: {why}") from why

    # --- every replica, while they come and go

    def _on_each(self, act: Callable[[Replica], None]) -> None:
        """Calls `act` with every listed replica, including those that join meanwhile."""
        self._lost = 0
        done: set[Replica] = set()
        # Listed again each time: a replica that is gone before its turn says nothing about the version.
        while left := [replica for replica in self.replicas() if replica not in done]:
            self._with_retries(left[0], act)
            done.add(left[0])
        if not done:
            raise Unreachable("--servers: no replica is there; is one ready?")

    def _with_retries(self, replica: Replica, act: Callable[[Replica], None]) -> None:
        deadline = math.inf
        while True:
            try:
                return act(replica)
            except ServingError as exc:
                if self._is_gone(replica):
                    return self._count_lost(replica, exc)
                # Counted from the first failure: the missed deadline, or load, may have taken as long already.
                deadline = min(deadline, time.monotonic() + self.patience_s)
                if not isinstance(exc, Unreachable) or time.monotonic() >= deadline:
                    raise
            time.sleep(RETRY_S)

    def _is_gone(self, replica: Replica) -> bool:
        """Whether it is no longer listed. False if the lookup fails: it may be this process that is cut off."""
        try:
            return replica not in self.replicas()
        except Unreachable:
            return False

    def _count_lost(self, replica: Replica, why: ServingError) -> None:
        self._lost += 1
        if self._lost > MAX_LOST:
            raise Refused(f"{self._lost} replicas were lost over it, the last one {replica}: {why}") from why
        log.warning("%s: gone from --servers, going on without it: %s", replica, why)

    def _versions(self, model: str) -> list[int]:
        """Its newest version and, for an ensemble, those of its steps."""
        return [repo.newest(self.repository, each) for each in (model, *repo.steps(self.repository, model))]

    def _ensembles_with(self, model: str) -> set[str]:
        return {each for each in repo.models(self.repository) if model in repo.steps(self.repository, each)}


@dataclass
class Watch:
    """Polls the repository and the replicas, and hands over each newest version that is not in service everywhere."""

    reloader: Reloader
    servers: str = ""
    """What the log calls the replicas: `--servers`."""
    _joined: set[Replica] = field(default_factory=set)
    _backing_off: dict[str, tuple[int, float]] = field(default_factory=dict)
    _said: str = ""

    def round(self) -> None:
        try:
            served = self._look()
            for model in self._models() if served else ():
                if not all(self.reloader.is_current(replica, model, its) for replica, its in served.items()):
                    self._hand_over(model)
        except (ServingError, OSError) as exc:  # an OSError is the repository's or the key's
            self._say_once(logging.ERROR, str(exc))
        else:
            nobody = f"--servers {self.servers}: no address there yet; is a replica ready, and is that its name?"
            self._say_once(logging.WARNING, "" if served else nobody)
            ROUND.set_to_current_time()

    def _say_once(self, level: int, trouble: str) -> None:
        """Logs `trouble` once while it lasts."""
        if trouble and trouble != self._said:
            log.log(level, "%s", trouble)
        self._said = trouble

    def _look(self) -> dict[Replica, dict[str, int]]:
        """What each replica that answers serves. If those listed all fail to, raises the last one's error."""
        served, silent = {}, None
        for replica in self.reloader.replicas():
            try:
                if replica not in self._joined:
                    replica.end_trials(self._models())
                served[replica] = replica.serves()
            except ServingError as exc:
                silent = exc
        for replica in served.keys() - self._joined:
            log.info("%s: joined", replica)
        for replica in self._joined - served.keys():
            log.info("%s: left", replica)
            self.reloader.forget(replica)
        if self._joined != served.keys():
            self._backing_off.clear()
        self._joined = set(served)
        REPLICAS.set(len(served))
        if silent and not served:
            raise silent
        return served

    def _models(self) -> list[str]:
        """The models with versions; ensembles last, after their steps."""
        repository = self.reloader.repository
        whole = [model for model in repo.models(repository) if not repo.lacking(repository, model)]
        return sorted(whole, key=lambda model: len(repo.steps(repository, model)))

    def _hand_over(self, model: str) -> None:
        newest = repo.newest(self.reloader.repository, model)
        version, until = self._backing_off.get(model, (0, 0.0))
        if version == newest and time.monotonic() < until:
            return
        try:
            SERVED.labels(model).set(self.reloader.hand_over(model))
            outcome = LOADED
        except Withdrawn:
            outcome = ROLLED_BACK
        except (ServingError, OSError) as exc:
            outcome = FAILED
            self._backing_off[model] = (newest, time.monotonic() + BACKOFF_S)
            log.error("%s %d: not handed over, again in %.0f s: %s", model, newest, BACKOFF_S, exc)
        HAND_OVERS.labels(model, outcome).inc()


# --- command line


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    status = cli.run(_watch if options.watch else _once, options)
    return 0 if options.watch and status == cli.INTERRUPTED else status


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m serving.reload", description="The newest version on every replica, or none.")
    parser.add_argument("model", nargs="?", help="hand over the newest version of this one, and end")
    parser.add_argument("--watch", action="store_true", help="hand over whatever is published, until SIGTERM")
    parser.add_argument("--servers", required=True, help="gRPC addresses HOST:PORT,HOST:PORT or dns:NAME:PORT")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="default %(default)s")
    parser.add_argument("--atol", type=cli.tolerance, help="largest difference allowed; default: as in serving.verify")
    waits = "how long a replica that is listed may be silent; default %(default)g"
    parser.add_argument("--patience-s", type=cli.seconds, default=PATIENCE_S, help=waits)
    parser.add_argument("--metrics-port", type=int, default=0, help="with --watch: serve Prometheus there")
    parser.add_argument("--metrics-host", default="127.0.0.1", help=f"{EVERY_INTERFACE} listens on every interface")
    return parser


def _reloader(options: argparse.Namespace) -> Reloader:
    repository = repo.existing(options.repository)  # it may be a volume that is still to be seeded
    return Reloader(repository, replicas.resolver(options.servers), options.atol, options.patience_s)


def _once(options: argparse.Namespace) -> str:
    if not options.model:
        raise ServerError("MODEL: name the one to hand over, or give --watch for all")
    if gone := repo.lacking(options.repository, options.model):
        raise RepositoryError(f"{options.repository}: no version of {', '.join(gone)}")
    reloader = _reloader(options)
    for each in (*repo.steps(options.repository, options.model), options.model):
        version = reloader.hand_over(each)
    return f"{options.model} {version}: served by {', '.join(map(str, reloader.replicas()))}"


def _watch(options: argparse.Namespace) -> str:
    if options.model:
        raise ServerError(f"--watch: hands over every model; leave out {options.model}")
    watch = Watch(_reloader(options), options.servers)
    if options.metrics_port:
        _serve_metrics(options.metrics_host, options.metrics_port)
    while True:
        watch.round()
        time.sleep(POLL_S)


def _serve_metrics(host: str, port: int) -> None:
    if not host:  # the system takes this for every interface
        raise ServerError(f"--metrics-host: is empty; give 127.0.0.1 or {EVERY_INTERFACE}")
    try:
        prometheus_client.start_http_server(port, host)
    except (OSError, OverflowError, UnicodeError) as exc:
        raise ServerError(f"--metrics-host {host} --metrics-port {port}: {exc}; choose others") from exc


if __name__ == "__main__":
    sys.exit(main())
