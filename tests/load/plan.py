"""What one run of the load generator is to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.repository import REPOSITORY
from tests.load.questions import Question, questions
from tests.load.targets import Target


@dataclass(frozen=True)
class Closed:
    """So many callers, each of which sends its next request when the last one is answered."""

    callers: int

    def __str__(self) -> str:
        return f"{self.callers} caller{'s' * (self.callers != 1)}"


@dataclass(frozen=True)
class Open:
    """Requests that come whether or not the server keeps up: so many a second on average, as a Poisson process.

    A `Threaded` target is asked by so many `threads`; what they have no hand free for waits, and the wait counts.
    What is to come within `together_s` comes at its end, at once. That costs the generator less, and is for loads under
    which every answer takes many times as long.
    """

    per_s: float
    threads: int = 16
    together_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.per_s:.4g}/s"


@dataclass(frozen=True)
class Share:
    """A model's part of the requests: `weight` compares with the others'."""

    model: str
    weight: float
    questions: Sequence[Question]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One target, one load, one window of `duration_s` after a warm-up; or, where given, of so many `requests`.

    The same seed draws the same arrivals and the same order of models. Of every `closely_every` answers one is
    compared number by number, of the others the shapes.
    """

    target: Target
    load: Closed | Open
    mix: Sequence[Share]
    warmup_s: float = 1.0
    duration_s: float = 5.0
    requests: int = 0
    processes: int = 1
    seed: int = 0
    closely_every: int = 17  # a prime: by 16 of a model's four questions only the first would ever be compared


def mixed(models: Mapping[str, float], repository: Path = REPOSITORY) -> list[Share]:
    """Raises RepositoryError for a model that there is not."""
    return [Share(model, weight, questions(repository, model)) for model, weight in models.items()]
