"""The requests sent to each model under load, and the correct answers.

Models of fixed input size get their golden batch, and the painter its golden painting. If requests choose the size,
random pictures of the benchmarks' size are used, and ONNX Runtime in process gives the correct answers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving import verify
from serving.errors import RepositoryError
from serving.repository import GOLDEN, MODEL, newest
from serving.spec import Ensemble, ModelSpec, Served, Tensor
from training import catalog

import onnxruntime

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

SIDES = {"style": 256, "upscaler": 128, "colorizer": 256}
LAST_STAGE = 2.0  # the colorizer computes both stages, whichever is asked for
ITERATIONS = 3
"""of the painter: few, as only the stream is of interest"""
DRAWN = 4
"""pictures of noise for each model that gets noise, all different, so that swapped answers are noticed

Other models get their golden batch, the classifier garments: what a picture shows decides how long it takes. Two
garments of one class have almost the same answer, so that only a swap between classes is noticed.
"""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A request that is prepared once and sent repeatedly: a batch of one, or without a batch dimension if the model
    has none.

    `expected` is every output of the model, or the first answer of a stream; a number may differ from it by `atol`.
    """

    model: str
    inputs: Arrays
    expected: Arrays
    atol: float
    streamed: bool = False


def questions(repository: Path, model: str, count: int | None = None) -> list[Question]:
    """At most `count` questions. Raises RepositoryError for a model without a version or a golden batch."""
    spec = served(model)
    inputs, expected = _inputs_and_expected(repository, spec, count)
    atol = _atol(spec)
    if not spec.max_batch:
        return [Question(model=model, inputs=inputs, expected=expected, atol=atol, streamed=True)]
    rows = range(len(next(iter(inputs.values()))))
    return [
        Question(
            model=model,
            inputs={name: array[row : row + 1] for name, array in inputs.items()},
            expected={name: array[row : row + 1] for name, array in expected.items()},
            atol=atol,
        )
        for row in rows
    ]


def served(model: str) -> Served:
    """The model's spec. Raises RepositoryError if there is no such model."""
    known = catalog.names()
    if model not in known:
        raise RepositoryError(f"no model {model!r}; there are {', '.join(known)}")
    return catalog.served(model)


def _inputs_and_expected(repository: Path, spec: Served, count: int | None) -> tuple[Arrays, Arrays]:
    if isinstance(spec, Ensemble):
        first = spec.steps[0]
        golden = _golden(repository, first.model, first.model.inputs)
        inputs = {first.inputs[name]: array[:count] for name, array in golden.items()}
        tensors = ensemble(repository, spec)(inputs)
        return inputs, {tensor.name: tensors[tensor.name] for tensor in spec.outputs}
    if spec.name in SIDES:
        inputs = batch(repository, spec, count or DRAWN)
        return inputs, in_process(repository, spec)(inputs)
    inputs, expected = (_golden(repository, spec, tensors) for tensors in (spec.inputs, spec.outputs))
    if spec.decoupled:  # the golden painting is the start of any longer one
        longer = np.array([ITERATIONS], np.int32)
        return inputs | {"iterations": longer, "every": longer}, expected | {"total": longer}
    return tuple({name: array[:count] for name, array in arrays.items()} for arrays in (inputs, expected))


def _golden(repository: Path, model: ModelSpec, tensors: Sequence[Tensor]) -> dict[str, Array]:
    path = folder(repository, model.name) / GOLDEN
    arrays = verify.read(path)
    try:
        return {tensor.name: arrays[tensor.name] for tensor in tensors}
    except KeyError as exc:
        raise RepositoryError(f"{path}: no array {exc}; publish the version anew, or take it away") from exc


def _atol(spec: Served) -> float:
    """The tolerance: of an ensemble the sum over its steps, as each of them rounds."""
    return sum(step.model.golden_atol for step in spec.steps) if isinstance(spec, Ensemble) else spec.golden_atol


def folder(repository: Path, model: str) -> Path:
    """The folder of the newest version."""
    return repository / model / str(newest(repository, model))


def batch(repository: Path, model: ModelSpec, count: int) -> Arrays:
    """The model's inputs for `count` pictures: noise, or those of its golden batch, repeated as needed."""
    if model.name in SIDES:
        arrays = random_inputs(model, count, SIDES[model.name])
        return {tensor.name: array for tensor, array in zip(model.inputs, arrays, strict=True)}
    golden = _golden(repository, model, model.inputs)
    return {name: array[np.arange(count) % len(array)] for name, array in golden.items()}


def random_inputs(model: ModelSpec, count: int, side: int) -> tuple[np.ndarray, ...]:
    """The model's inputs, batches of `count`: pictures of noise, and what is asked for each."""
    channels = model.inputs[0].shape[-1]
    pictures = np.random.default_rng(0).integers(0, 256, (count, side, side, channels), np.uint8)
    match model.name:
        case "style":
            return pictures, np.eye(1, len(model.inputs[1].members), dtype=np.float32).repeat(count, 0)
        case "colorizer":
            return pictures, np.full((count, 1), LAST_STAGE, np.float32)
        case _:
            return (pictures,)


def in_process(repository: Path, model: ModelSpec) -> Callable[[Arrays], dict[str, Array]]:
    """Runs the newest version's graph, without a server. As many calls run at once as the server has instances, and
    those of other threads wait: more would only compete for the cores, and this is meant as the upper bound."""
    session = open_session(folder(repository, model.name) / MODEL, model)
    outputs = [tensor.name for tensor in model.outputs]
    free = threading.Semaphore(model.instances)

    def run(given: Arrays) -> dict[str, Array]:
        with free:
            return dict(zip(outputs, session.run(outputs, dict(given)), strict=True))

    return run


def ensemble(repository: Path, made_of: Ensemble) -> Callable[[Arrays], dict[str, Array]]:
    """Runs its steps one after the other, without a server; returns all of their tensors."""
    steps = [(step, in_process(repository, step.model)) for step in made_of.steps]

    def run(given: Arrays) -> dict[str, Array]:
        known = dict(given)
        for step, answer in steps:
            outputs = answer({own: known[name] for own, name in step.inputs.items()})
            known |= {name: outputs[own] for own, name in step.outputs.items()}
        return known

    return run


def open_session(path: Path, model: ModelSpec) -> onnxruntime.InferenceSession:
    """Opens a session with as many threads as the server's, and ONNX Runtime's defaults otherwise."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = model.threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def mismatch(answer: Arrays, question: Question, *, closely: bool = True) -> str | None:
    """What is wrong with an answer, if anything. Compares names, shapes and dtypes, and numbers if `closely`."""
    for name, expected in question.expected.items():
        got = answer.get(name)
        if got is None:
            return f"{question.model}: no {name}"
        if (got.shape, got.dtype) != (expected.shape, expected.dtype):
            return f"{question.model}: {name} is {got.dtype} {got.shape}, and must be {expected.dtype} {expected.shape}"
        if closely:
            error = float(np.abs(got.astype(np.float64) - expected).max(initial=0))
            if not error <= question.atol:  # NaN is wrong, too
                return f"{question.model}: {name} is off by {error:g}, allowed {question.atol:g}"
    return None
