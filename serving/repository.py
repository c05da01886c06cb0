"""The model repository: publish a version, list versions, take the newest back, fill an empty volume.

Run: python -m serving.repository list | python -m serving.repository rollback wgan
     python -m serving.repository --repository /models seed
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import re
import secrets
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from serving import cli, configs, files, plans
from serving.errors import RepositoryError

REPOSITORY = Path(__file__).parent / "model_repository"
MODEL, CARD, GOLDEN, CONFIG = files.MODEL, files.CARD, files.GOLDEN, configs.NAME
FILES = (MODEL, CARD, GOLDEN)
IN_FLOATS = ".floats"
"""Ends the name of what golden.npz has twice: an output of a quantized model as it is without its rounding."""
# tritonserver passes over folders whose name begins with no digit, or with 0.
STAGING = ".incoming-"
WITHDRAWN = ".withdrawn-"
KEY = ".control-key"
CONTROL_HEADER = "atelier-key"
GRPC_PREFIX = "triton-grpc-protocol-"
"""What Triton puts before the header's name on gRPC."""
ABANDONED_S = 24 * 3600.0
"""A staging folder as old as this belongs to a publisher that was killed."""
METRICS_LISTED = 6


@dataclass(frozen=True)
class Card:
    """What a version says about itself; `data` is the whole of card.json. A candidate's `version` is 0."""

    model: str
    version: int
    preset: str
    corpus: str
    metrics: Mapping[str, float]
    commit: str
    sha256: str
    published: str
    data: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Card:
        """Raises RepositoryError if the file is missing, is no JSON, or lacks a field."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                model=str(data["model"]),
                version=int(data.get("version") or 0),
                preset=str(data["preset"]),
                corpus=str(data["corpus"]["name"]),
                metrics={str(name): float(value) for name, value in data["metrics"].items()},
                commit=str(data["commit"]),
                sha256=str(data["sha256"]),
                published=str(data.get("published", "")),
                data=data,
            )
        except OSError as exc:
            raise RepositoryError(f"{path}: {exc.strerror}") from exc
        except KeyError as exc:
            raise RepositoryError(f"{path}: no field {exc}") from exc
        except (ValueError, TypeError, AttributeError) as exc:
            raise RepositoryError(f"{path}: not a model card ({exc})") from exc


def existing(repository: Path, flag: str = "--repository") -> Path:
    """The folder itself. Raises RepositoryError, which names the `flag`, if there is none."""
    if not repository.is_dir():
        raise RepositoryError(f"{flag} {repository}: no such folder")
    return repository


def models(repository: Path, flag: str = "--repository") -> list[str]:
    """The folders with a config.pbtxt. Raises RepositoryError, which names the `flag`, if there are none."""
    existing(repository, flag)
    found = sorted(path.parent.name for path in repository.glob(f"[!.]*/{CONFIG}"))
    if not found:
        raise RepositoryError(f"{flag} {repository}: no model in it (looked for MODEL/{CONFIG})")
    return found


def versions(repository: Path, model: str) -> list[int]:
    """Versions in service, oldest first; none if there is no such model."""
    return files.numbered(repository / model)


def newest(repository: Path, model: str) -> int:
    """Raises RepositoryError if no version is in service."""
    present = versions(repository, model)
    if not present:
        raise RepositoryError(f"{repository}: no version of {model}")
    return present[-1]


def config(repository: Path, model: str) -> pb.ModelConfig:
    """What its config.pbtxt says; see configs.read."""
    return configs.read(repository / model)


def steps(repository: Path, model: str) -> list[str]:
    """The models that an ensemble asks, in order; none for a model with weights of its own."""
    return [step.model_name for step in config(repository, model).ensemble_scheduling.step]


def lacking(repository: Path, model: str) -> list[str]:
    """Which models have no version yet, of those that `model` needs to be served: itself and, if any, its steps."""
    needed = dict.fromkeys([model, *steps(repository, model)])
    return [name for name in needed if not versions(repository, name)]


def check_names(repository: Path, model: str) -> None:
    """Raises RepositoryError for 2.bak or 2-old, which tritonserver takes for version 2, and for 02.

    In the folders of the model itself and, if any, of its steps, which are loaded with it.
    """
    folders = [repository / name for name in (model, *steps(repository, model))]
    for path in (each for folder in folders for each in folder.glob("[0-9]*/")):
        if not files.VERSION.fullmatch(path.name):
            raise RepositoryError(f"{path}: neither a version nor put away; name it NUMBER or {WITHDRAWN}NUMBER")


def card(repository: Path, model: str, version: int) -> Card:
    return Card.read(repository / model / str(version) / CARD)


def publish(
    candidate: Path,
    repository: Path,
    model: str,
    *,
    beside: Mapping[str, str] = MappingProxyType({}),
    check_last: Callable[[], None] = lambda: None,
) -> int:
    """Adds `candidate` (a folder with model.onnx, card.json, golden.npz) as the next version; returns that.

    A reader sees the whole version or none of it, whatever happens meanwhile; no number is used twice. A candidate's
    TensorRT plan comes along. `beside` are the texts of the files beside the versions, by name: pbtxt.files(spec).
    config.pbtxt follows the newest version's members, see configs.fitted. `check_last` is called when nobody else can
    publish the model any more; what it raises keeps the version out. Raises RepositoryError, having changed nothing or
    saying that the version is in service all the same.
    """
    check(candidate, model)
    folder = repository / model
    with (
        _translating_os_errors(f"publishing {model} in {repository}"),
        _made(folder),
        _staged(candidate, folder, [*FILES, *plans.files(candidate)]) as staged,
        _flocked(folder),
    ):
        check_last()
        number = max(_numbers_used(folder), default=0) + 1
        _assign_version(staged, number)
        files.fsync(staged)
        for name, text in beside.items():
            if name != CONFIG:
                files.write_atomically(folder / name, text)
        present = [folder / str(each) for each in versions(repository, model)]
        with _configured(folder, staged, [*present, staged], beside.get(CONFIG)):
            plans.reconcile(folder, incoming=[staged])
            staged.rename(folder / str(number))
            files.fsync(folder)
    return number


def rollback(repository: Path, model: str) -> int:
    """Takes the newest version out of service and returns its number.

    Its folder stays, as `withdrawn(…)`, for `restore`. Raises RepositoryError for an only version, an
    ensemble, and where another version has become the newest while it waited for the lock: that one was not meant.
    """
    folder = repository / model
    if not folder.is_dir():
        raise RepositoryError(f"{repository}: no model {model}")
    if made_of := steps(repository, model):
        raise RepositoryError(f"{folder}: always the newest {' and '.join(made_of)}; roll back one of these")
    meant = newest(repository, model)
    with locked(repository, model):
        if (now := newest(repository, model)) != meant:
            raise RepositoryError(f"{folder}: {now} has become the newest in place of {meant}; nothing was rolled back")
        return withdraw(repository, model)


def withdraw(repository: Path, model: str) -> int:
    """What rollback does, for a caller that holds the model's lock."""
    folder, present = repository / model, versions(repository, model)
    if len(present) < 2:
        raise RepositoryError(f"{folder}: versions {present}; rolling back would leave nothing to serve")
    *kept, gone = (folder / str(each) for each in present)
    with _translating_os_errors(f"rolling back {model} in {repository}"), _configured(folder, gone, kept):
        plans.reconcile(folder, outgoing=1)
        gone.rename(withdrawn(repository, model, present[-1]))
        files.fsync(folder)
    return present[-1]


def restore(repository: Path, model: str, version: int) -> None:
    """Makes a version that was rolled back the newest again.

    Raises RepositoryError if it lies nowhere, or a newer one is in service: running servers look for the newest alone.
    """
    folder, away = repository / model, withdrawn(repository, model, version)
    existing(folder)
    with locked(repository, model), _translating_os_errors(f"restoring {model} {version} in {repository}"):
        if not away.is_dir():
            raise RepositoryError(f"{away}: no such folder; only what was rolled back can be restored")
        present = versions(repository, model)
        if present and present[-1] > version:
            raise RepositoryError(f"{folder}: version {present[-1]} is newer; roll that back first")
        with _configured(folder, away, [*(folder / str(each) for each in present), away]):
            plans.reconcile(folder, incoming=[away])
            away.rename(folder / str(version))
            files.fsync(folder)


@contextlib.contextmanager
def _configured(folder: Path, moving: Path, in_service: Sequence[Path], text: str | None = None) -> Iterator[None]:
    """Around the renaming of `moving`, after which `in_service` are the versions, oldest first.

    config.pbtxt ends as `text`, or else as it is, fitted to the newest of them. While the block runs it suits a server
    that finds either newest version; after an error before the renaming it is as it was. One after it does not undo
    what servers may have seen: config.pbtxt is fitted or, where that fails, stays as it is meanwhile.
    """
    path = folder / CONFIG
    try:
        was = path.read_text(encoding="utf-8") if path.is_file() else None
    except UnicodeDecodeError as exc:
        raise RepositoryError(f"{path}: not in UTF-8 ({exc.reason} at byte {exc.start}); save it so") from exc
    fitted = None  # where there is nothing to write
    if (text := was if text is None else text) is not None:
        *older, newest = map(_members, in_service)
        fitted = configs.fitted(text, newest, older[-1] if older else None)
        fitted = None if fitted == was else fitted
    if fitted is not None:
        files.write_atomically(path, fitted if was is None else configs.transitional(was))
    try:
        try:
            yield
        finally:
            if not moving.exists():
                if fitted is not None:
                    files.write_atomically(path, fitted)
                plans.reconcile(folder)
    except BaseException as exc:
        if moving.exists():
            if fitted is not None:
                path.unlink() if was is None else files.write_atomically(path, was)
            plans.reconcile(folder)
        elif isinstance(exc, OSError):
            done = f"{moving.name} was renamed all the same; don't run it again, `list` shows what is in service"
            raise RepositoryError(f"{exc.filename or folder}: {exc.strerror}; {done}") from exc
        raise


def _members(version: Path) -> configs.Members:
    """Names of a version's own, such as its styles; none if its card can't be read."""
    try:
        members: configs.Members = Card.read(version / CARD).data.get(configs.MEMBERS, {})
    except RepositoryError:
        return {}
    return members


@contextlib.contextmanager
def locked(repository: Path, model: str) -> Iterator[None]:
    """Holds the model's lock: whoever else publishes, rolls back or hands over its versions waits."""
    with contextlib.ExitStack() as stack:
        with _translating_os_errors(f"locking {model} in {repository}"):
            stack.enter_context(_flocked(repository / model))
        yield


def withdrawn(repository: Path, model: str, version: int) -> Path:
    """Where a version lies once it has been rolled back."""
    return repository / model / f"{WITHDRAWN}{version}"


def seed(source: Path, repository: Path) -> list[str]:
    """Copies to `repository` the newest whole version of each model of `source` that it has none of; returns which.

    What is there stays as it is, a withdrawn version included; any number of callers may seed at once. Makes the
    control key, too, if there is none. Raises RepositoryError; what was not copied by then is absent, not half there.
    """
    with _translating_os_errors(f"seeding {repository}", "each model there is whole"):
        repository.mkdir(parents=True, exist_ok=True)
        added = [f"{model} {version}" for model in models(source) if (version := _seed(source, repository, model))]
        if not (repository / KEY).exists():
            _make_key(repository)
    return added


def _seed(source: Path, repository: Path, model: str) -> int | None:
    version, folder = _newest_complete(source, model), repository / model
    if version is None or _numbers_used(folder):
        return None
    given = source / model / str(version)
    names = [path.name for path in given.iterdir() if path.is_file()]
    with _made(folder), _staged(given, folder, names) as staged, _flocked(folder):
        if _numbers_used(folder):  # another replica was first
            return None
        for path in _beside(source / model):
            target = folder / path.relative_to(source / model)
            target.parent.mkdir(exist_ok=True)
            files.write_atomically(target, path.read_bytes())
        with _configured(folder, staged, [staged]):
            staged.rename(folder / str(version))
            files.fsync(folder)
    return version


def _newest_complete(source: Path, model: str) -> int | None:
    """The newest version that is complete: somebody may be copying into the source, file by file, as from a bucket.

    An ensemble's version holds no files.
    """
    for version in reversed(versions(source, model)):
        with contextlib.suppress(RepositoryError):
            if not steps(source, model):
                check(source / model / str(version), model)
            return version
    return None


def _beside(folder: Path) -> list[Path]:
    """A model's files that belong to no version: config.pbtxt, configs/*, labels."""
    return [path for path in (*folder.glob("[!.]*"), *folder.glob("configs/*")) if path.is_file()]


def _make_key(repository: Path) -> None:
    with _flocked(repository):
        if not (repository / KEY).exists():
            files.write_atomically(repository / KEY, secrets.token_hex(32), mode=0o640)


def control_key(repository: Path) -> str:
    """The key that guards model control of the servers of this repository.

    Raises RepositoryError if there is none, or one that no command line and no header can hold.
    """
    path, command = repository / KEY, f"python -m serving.repository --repository {repository} seed"
    try:
        key = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as exc:
        raise RepositoryError(f"{path}: {exc.strerror}; `{command}` makes it") from exc
    if not key:
        raise RepositoryError(f"{path}: is empty, and would guard nothing; remove it, and `{command}` makes it anew")
    if not (key.isascii() and key.isprintable()):
        raise RepositoryError(f"{path}: is not one line in ASCII; remove it, and `{command}` makes it anew")
    return key


def control_headers(repository: Path) -> dict[str, str]:
    """What a gRPC call that loads, unloads or lists models carries; nothing where no key guards them."""
    if not (repository / KEY).exists():
        return {}
    return {f"{GRPC_PREFIX}{CONTROL_HEADER}": control_key(repository)}


def _folders(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _numbers_used(folder: Path) -> list[int]:
    """Those of 2.bak and 2-old as well: that was version 2 once, and servers may still have it as that."""
    found = (re.match(r"[0-9]+", name.removeprefix(WITHDRAWN)) for name in _folders(folder))
    return [int(number[0]) for number in found if number]


def check(folder: Path, model: str) -> None:
    """Raises RepositoryError unless the folder holds a whole version or candidate of this model."""
    for name in FILES:
        if not (folder / name).is_file():
            raise RepositoryError(f"{folder}: no {name}; a version is {', '.join(FILES)}")
    says = Card.read(folder / CARD)
    if says.model != model:
        raise RepositoryError(f"{folder / CARD}: is of model {says.model!r}, not {model!r}")
    if says.sha256 != sha256(folder / MODEL):
        raise RepositoryError(f"{folder / MODEL}: its SHA-256 is not the one in {CARD}; export it again")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes the folder if need be. After an error one that was made here is removed, unless something is in it."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


@contextlib.contextmanager
def _staged(candidate: Path, folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """A copy on the repository's own filesystem, for one atomic rename, and flushed to disk; gone unless renamed."""
    _remove_abandoned(folder)
    staged = folder / f"{STAGING}{uuid.uuid4().hex}"
    try:
        staged.mkdir()
        for name in names:
            shutil.copyfile(candidate / name, staged / name)
            files.fsync(staged / name)
            if sha256(staged / name) != sha256(candidate / name):
                raise RepositoryError(f"{staged / name}: the copy differs from {candidate / name}; check the disk")
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    for path in folder.glob(f"{STAGING}*"):
        with contextlib.suppress(OSError):  # another publisher may be at it
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(path)


@contextlib.contextmanager
def _flocked(folder: Path) -> Iterator[None]:
    """One publisher or rollback at a time. The kernel releases the lock if its holder dies."""
    import fcntl  # missing on Windows, where the rest of this module works

    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _assign_version(staged: Path, number: int) -> None:
    data = dict(Card.read(staged / CARD).data)
    data["version"] = number
    data["published"] = datetime.now(UTC).isoformat(timespec="seconds")
    files.write_atomically(staged / CARD, json.dumps(data, indent=2) + "\n")


@contextlib.contextmanager
def _translating_os_errors(doing: str, state: str = "nothing has changed there") -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        name = exc.filename2 or exc.filename  # of a copy or a renaming, what was to be written
        where = f" ({name})" if name else ""
        raise RepositoryError(f"{doing}: {exc.strerror}{where}; {state}, so put that right and run it again") from exc


# --- command line


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return cli.run(options.run, options)


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m serving.repository", description="The versions of a model repository.")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="default %(default)s")
    commands = parser.add_subparsers(required=True)
    listing = commands.add_parser("list", help="the versions in service")
    listing.set_defaults(run=_list)
    back = commands.add_parser("rollback", help="take the newest version of a model out of service")
    back.add_argument("model")
    back.set_defaults(run=_rollback)
    again = commands.add_parser("restore", help="make a version that was rolled back the newest again")
    again.add_argument("model")
    again.add_argument("version", type=int)
    again.set_defaults(run=_restore)
    seeding = commands.add_parser("seed", help="copy the models that the repository lacks, and make its control key")
    seeding.add_argument("--source", type=Path, default=REPOSITORY, help="where they lie; default %(default)s")
    seeding.add_argument("--first", type=Path, help="where to look before that, such as a copy of a bucket")
    seeding.set_defaults(run=_seed_volume)
    return parser


def _list(options: argparse.Namespace) -> str:
    served = [model for model in models(options.repository) if not lacking(options.repository, model)]
    head = ("model", "version", "published", "preset", "commit", "metrics")
    return _table([head, *(row for model in served for row in _rows(options.repository, model))])


def _rows(repository: Path, model: str) -> list[tuple[str, ...]]:
    present = versions(repository, model)
    if made_of := steps(repository, model):
        return [(model, str(version), "-", "-", "-", f"the newest {', then '.join(made_of)}") for version in present]
    return [_row(repository, model, version) for version in present]


def _row(repository: Path, model: str, version: int) -> tuple[str, ...]:
    try:
        one = card(repository, model, version)
    except RepositoryError as exc:
        return (model, str(version), "-", "-", "-", str(exc))
    metrics = "  ".join(f"{name} {value:.4g}" for name, value in islice(one.metrics.items(), METRICS_LISTED))
    if (more := len(one.metrics) - METRICS_LISTED) > 0:
        metrics += f"  and {more} more in its {CARD}"
    return (model, str(version), one.published or "-", one.preset, one.commit[:10], metrics)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _rollback(options: argparse.Namespace) -> str:
    gone = rollback(options.repository, options.model)
    now = newest(options.repository, options.model)
    again = _command("serving.repository", options, "restore", options.model, gone)
    return f"{options.model} {now} is the newest now; `{again}` restores {gone}; {_reloading(options)}"


def _restore(options: argparse.Namespace) -> str:
    restore(options.repository, options.model, options.version)
    return f"{options.model} {options.version} is the newest again; {_reloading(options)}"


def _reloading(options: argparse.Namespace) -> str:
    tells = _command("serving.reload", options, options.model, "--servers", "HOST:PORT")
    return f"where no `serving.reload --watch` runs, `{tells}` tells the servers"


def _command(module: str, options: argparse.Namespace, *arguments: object) -> str:
    where = ["--repository", options.repository] if options.repository != REPOSITORY else []
    return shlex.join(["python", "-m", module, *map(str, [*where, *arguments])])


def _seed_volume(options: argparse.Namespace) -> str:
    models(options.source, "--source")
    sources = [options.source]
    if options.first and any(options.first.glob(f"*/{CONFIG}")):  # a bucket may still be empty
        sources.insert(0, options.first)
    added = [each for source in sources for each in seed(source, options.repository)]
    return f"{options.repository}: {'added ' + ', '.join(added) if added else 'lacks no model'}"


if __name__ == "__main__":
    sys.exit(main())
