"""A series of pictures through a model, as scripts do it: a few at a time, each saved when it is made, and counted.

jobs = folders.plan(["frames"], out="painted", tag="scream")
about = "{style}; {model} version {version}"
fitted = partial(sizing.sized, done="stylised")
outcome = series.run(jobs, server, title="stylize", fitted=fitted, made=stylised, about=about)
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol

from PIL import Image
from tqdm import tqdm

from atelier import cli, errors, folders, pictures, sizing
from atelier._client import Client
from atelier.folders import Job
from atelier.words import counted

Look = tuple[Job, Image.Image]
"""A picture as it is sent, and where it came from."""

AT_ONCE: Final = 8
"""Pictures in memory at a time: two of the style network's batches."""
PIXELS_AT_ONCE: Final = 1 << 24
"""Of their results, if these are large: eight of the style network's largest. A larger one comes alone."""


class Fit(Protocol):
    def __call__(self, picture: Image.Image, *, name: str) -> Image.Image:
        """A picture as it is sent. Raises InvalidInput, beginning with `name`."""


class Make(Protocol):
    def __call__(self, client: Client, looks: Sequence[Look], version: int | None) -> list[Image.Image]:
        """What becomes of each picture, in order; its `info` says the version, and what `about` names."""


def run(
    jobs: Sequence[Job],
    server: AbstractContextManager[Client],
    *,
    title: str,
    fitted: Fit,
    made: Make,
    about: str,
    version: int | None = None,
    scale: int = 1,
) -> cli.Outcome:
    """Opens a picture before it asks for the server, and says why it leaves one out.

    title: of the progress bar. about: what to say of a result, by its `info`, here and in its file. version: None is
    the newest when the first is made, for all of them. scale: how much wider and higher than a picture its result is.
    """
    done: list[Path] = []
    with progress(title, jobs) as bar:
        looks = _opened(jobs, fitted, scale, bar)
        if not (first := next(looks, None)):
            return cli.Outcome("", partial=True)
        with cli.counting(done, len(jobs)), server as client:
            for batch in _batches(itertools.chain([first], looks), scale):
                for (job, _), picture in zip(batch, made(client, batch, version), strict=True):
                    info: dict[Any, Any] = picture.info
                    version, said = info["version"], about.format(**info)
                    if _holds(job, picture.size):
                        folders.write(job.target, picture, about=said)
                        done.append(job.target)
                    bar.update()
    partial = len(done) < len(jobs)
    return cli.Outcome(f"{_place(done, jobs)}: {said}" if done else "", partial)


def progress(title: str, things: Sequence[Any]) -> Any:
    """A tqdm bar, to be iterated over or updated; it shows nothing for one thing, nor where there is no terminal."""
    return tqdm(things, desc=title, unit="picture", disable=None if len(things) > 1 else True)


def _opened(jobs: Sequence[Job], fitted: Fit, scale: int, bar: Any) -> Iterator[Look]:
    """Each picture that can be read, and whose result can be saved; of the others `bar` is told."""
    for job in jobs:
        try:
            if job.refused:
                raise errors.InvalidInput(job.refused)
            picture = pictures.open_picture(job.source, alpha=True, least=sizing.SMALLEST_SENT, say=cli.say)
            picture = fitted(picture, name=str(job.source))
        except errors.InvalidInput as exc:
            cli.say(str(exc))
            bar.update()
            continue
        if _holds(job, (scale * picture.width, scale * picture.height)):
            yield job, picture
        else:
            bar.update()


def _holds(job: Job, sides: tuple[int, int]) -> bool:
    """Whether the job's file can hold so many pixels; says why if not."""
    try:
        folders.check_holds(job.target, sides)
    except errors.InvalidInput as exc:
        cli.say(str(exc))
        return False
    return True


def _batches(looks: Iterable[Look], scale: int) -> Iterator[list[Look]]:
    """Pictures that are in memory together."""
    batch: list[Look] = []
    total = 0
    for job, picture in looks:
        pixels = scale**2 * picture.width * picture.height
        if batch and (len(batch) == AT_ONCE or total + pixels > PIXELS_AT_ONCE):
            yield batch
            batch, total = [], 0
        batch.append((job, picture))
        total += pixels
    yield batch


def _place(done: Sequence[Path], jobs: Sequence[Job]) -> str:
    if len(jobs) == 1:
        return str(done[0])
    return f"{os.path.commonpath([path.parent for path in done]) or '.'}: {counted(len(done), 'picture')}"
