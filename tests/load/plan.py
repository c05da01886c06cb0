"""What one run of the load generator is to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.repository import REPOSITORY
from tests.load.questions import Question, questions
from tests.load.targets import Target


@dataclass(frozen=True)
class ClosedLoop:
    """Callers, each of which sends its next request when its last one is answered: constant concurrency."""

    callers: int

    def __str__(self) -> str:
        return f"{self.callers} caller{'s' * (self.callers != 1)}"


@dataclass(frozen=True)
class OpenLoop:
    """Requests that arrive whether or not the server keeps up: a Poisson process of `per_s` a second.

    Arrivals within each interval of `coalesce_s` come together, at its end. That costs the generator less, and suits
    loads under which every answer takes many times as long.
    """

    per_s: float
    coalesce_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.per_s:.4g}/s"


@dataclass(frozen=True)
class Share:
    """A model's part of the requests, in proportion to its `weight`."""

    model: str
    weight: float
    questions: Sequence[Question]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One target, one load, one window of `duration_s` after a warm-up; or, if given, of that many `requests`.

    The same seed gives the same arrivals and the same order of models. One in `closely_every` answers is compared
    number by number, the others only by shape and dtype.
    """

    target: Target
    load: ClosedLoop | OpenLoop
    mix: Sequence[Share]
    warmup_s: float = 1.0
    duration_s: float = 5.0
    requests: int = 0
    processes: int = 1
    seed: int = 0
    closely_every: int = 17  # a prime: with 16, only the first of a model's four questions would ever be compared


def mixed(models: Mapping[str, float], repository: Path = REPOSITORY) -> list[Share]:
    """The shares of models by weight. Raises RepositoryError if a model does not exist."""
    return [Share(model, weight, questions(repository, model)) for model, weight in models.items()]
