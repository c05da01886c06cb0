"""Writing files so that nothing half-written is ever seen: beside the target, then into its place."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from atelier.errors import InvalidInput


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to. It takes `target`'s place if the block succeeds, and goes if not.

    Makes missing parent folders. Raises InvalidInput, naming `target`, where the system refuses.
    """
    _check_kind(target)
    # By a short name: the target's own may be as long as the system takes, and no format has a long ending.
    suffix = target.suffix if len(target.suffix) < 8 else ""
    beside = target.with_name(f".atelier-{secrets.token_hex(4)}{suffix}")
    with map_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            _sync(beside)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)


def check_file(target: Path) -> None:
    """Raises InvalidInput if no file can be written at `target`. Leaves nothing behind."""
    _check_kind(target)
    check_writable(target)


def check_writable(target: Path) -> None:
    """Raises InvalidInput if nothing can be made at `target`. Leaves nothing behind."""
    check_name(target)
    there = _nearest(target)
    if not is_dir(there):
        there = there.parent if there == target.absolute() else there
    with map_os_errors(target), tempfile.TemporaryDirectory(prefix=".atelier-", dir=there):
        pass


def check_name(target: Path) -> None:
    """Raises InvalidInput for a name that nothing can have, though `exists` says only that there is nothing yet.

    With a NUL, too long, of links in a circle, or below a link to what is not there.
    """
    try:
        target.stat()
    except ValueError as exc:
        raise InvalidInput(f"{target}: cannot be written: {exc}") from exc
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise InvalidInput(f"{target}: cannot be written: {exc.strerror}") from exc
    there = _nearest(target)
    for part in target.absolute().relative_to(there).parts:
        with map_os_errors(target, "reached"):
            (there / part).exists()  # in a folder that is not there, no name is too long
    for folder in target.parents:
        if folder.is_symlink() and not exists(folder):
            raise InvalidInput(f"{target}: cannot be written: {folder} is a link to what is not there")


def check_apart(target: Path, others: Iterable[str | Path], *, what: str = "a picture that was given") -> None:
    """Raises InvalidInput if `target` is one of the others, which are `what`, or below one as if that were a folder."""
    here = resolved(target)
    if not {resolved(other) for other in others}.isdisjoint((here, *here.parents)):
        raise InvalidInput(f"{target}: would replace {what}; choose another")


def resolved(path: str | Path) -> Path:
    """As `Path.resolve`, which raises RuntimeError for symbolic links in a circle, up to Python 3.12."""
    return Path(os.path.realpath(path))


def exists(path: Path) -> bool:
    """As `Path.exists`. Raises InvalidInput where the system does not say, as of a name that is too long."""
    with map_os_errors(path, "reached"):
        return path.exists()


def is_dir(path: Path) -> bool:
    """As `Path.is_dir`. Raises InvalidInput where the system does not say, as of a name that is too long."""
    with map_os_errors(path, "reached"):
        return path.is_dir()


@contextlib.contextmanager
def map_os_errors(target: Path, done: str = "written") -> Iterator[None]:
    """Turns an OSError of the block into InvalidInput that names `target`, which cannot be `done`."""
    try:
        yield
    except OSError as exc:
        raise InvalidInput(f"{target}: cannot be {done}: {exc.strerror or exc}") from exc


def _nearest(target: Path) -> Path:
    """The target itself, or what there is of the folders above it."""
    there = next((path for path in (target.absolute(), *target.absolute().parents) if exists(path)), None)
    if there is None:
        raise InvalidInput(f"{target}: cannot be written: there is no {target.absolute().anchor}")
    return there


def _check_kind(target: Path) -> None:
    check_name(target)
    if is_dir(target) or not target.name:
        raise InvalidInput(f"{target}: is a folder; name a file")
    if exists(target) and not target.is_file():  # root could put a file in the place of /dev/null
        raise InvalidInput(f"{target}: is a device or a pipe; name a file")


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
