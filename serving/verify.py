"""Whether a live server answers as a version's golden batch says. Run: python -m serving.verify --model wgan

An ensemble has none, and must answer as its steps do that are asked one after the other.

The deep readiness probe: it sees a wrong model or a broken backend behind a server that is up.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from serving import cli
from serving.errors import Disagreement, RepositoryError, ServerError
from serving.repository import GOLDEN, REPOSITORY, config, newest, steps

TIMEOUT_S = 60.0
LEVELS_ATOL, NUMBERS_ATOL = 1.0, 1e-3
"""Differences allowed unless told otherwise, for each model that rounds: one level of a picture, and what rounding
leaves of other numbers."""
BATCH, STEPS = "its golden batch", "what its steps make of it"
"""What an answer is compared with."""

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


def verify(url: str, model: str, version: int, golden: Path, atol: float | None = None) -> float:
    """Sends the golden inputs to the gRPC address `url` and compares what comes back with the golden outputs.

    Returns the largest difference, in the outputs' own unit. Raises Disagreement for one above `atol` (None: what
    rounding explains) or for another shape or dtype, ServerError without an answer, RepositoryError for an
    unreadable golden batch.
    """
    arrays = _read(golden)
    with _connected(url, f"{model} {version}") as client:
        answers = _ask(client, model, str(version), arrays, golden)
    where = f"{model} {version} at {url}"
    return max(_difference(where, name, answer, arrays[name], atol) for name, answer in answers.items())


def verify_ensemble(url: str, model: str, version: int, repository: Path, atol: float | None = None) -> float:
    """Sends an ensemble its first step's golden inputs, and compares what comes back with what its steps answer.

    Returns and raises as `verify` does.
    """
    asked = config(repository, model)
    first = asked.ensemble_scheduling.step[0]
    golden = repository / first.model_name / str(newest(repository, first.model_name)) / GOLDEN
    arrays = _read(golden)
    given = {name: arrays[own][: asked.max_batch_size] for own, name in first.input_map.items() if own in arrays}
    if missing := {tensor.name for tensor in asked.input} - set(given):
        raise RepositoryError(f"{golden}: no array for {', '.join(sorted(missing))}, which {model} takes")
    with _connected(url, f"{model} {version}") as client:
        expected = _by_hand(client, asked.ensemble_scheduling.step, given)
        answers = _ask(client, model, str(version), expected, golden)
    where, rounded = f"{model} {version} at {url}", len(asked.ensemble_scheduling.step)
    return max(_difference(where, name, answers[name], expected[name], atol, STEPS, rounded) for name in answers)


def _by_hand(client: triton.InferenceServerClient, steps: Iterable[Any], given: Arrays) -> Arrays:
    """All tensors of an ensemble with these inputs, its steps asked one after the other."""
    known = dict(given)
    for step in steps:
        tensors = [_tensor(own, known[name]) for own, name in step.input_map.items()]
        answer = client.infer(step.model_name, tensors, client_timeout=TIMEOUT_S)
        known |= {name: answer.as_numpy(own) for own, name in step.output_map.items()}
    return known


@contextlib.contextmanager
def _connected(url: str, about: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(url) as client:
        try:
            yield client
        except InferenceServerException as exc:
            unreachable = exc.status() == "StatusCode.UNAVAILABLE"
            hint = "; is a server running there, and is that its gRPC port? `make serve` starts one"
            raise ServerError(f"--url {url}: {about}: {exc.message()}{hint if unreachable else ''}") from exc


def _read(golden: Path) -> Arrays:
    try:
        with golden.open("rb") as file, np.load(file) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as exc:
        raise RepositoryError(f"{golden}: not a golden batch ({exc})") from exc


def _ask(
    client: triton.InferenceServerClient, model: str, version: str, arrays: Arrays, golden: Path
) -> dict[str, Array | None]:
    metadata = client.get_model_metadata(model, version, client_timeout=TIMEOUT_S)
    inputs, outputs = ([tensor.name for tensor in tensors] for tensors in (metadata.inputs, metadata.outputs))
    if missing := {*inputs, *outputs} - set(arrays):
        raise RepositoryError(f"{golden}: no array {', '.join(sorted(missing))}, which {model} {version} has")
    served = client.get_model_config(model, version, client_timeout=TIMEOUT_S).config
    tensors = [_tensor(name, arrays[name]) for name in inputs]
    if served.model_transaction_policy.decoupled:
        answer = _first_of_stream(client, model, version, tensors)
    else:
        answer = client.infer(model, tensors, version, client_timeout=TIMEOUT_S)
    return {name: answer.as_numpy(name) for name in outputs}


def _first_of_stream(
    client: triton.InferenceServerClient, model: str, version: str, tensors: list[triton.InferInput]
) -> triton.InferResult:
    """A decoupled model answers as often as it likes; its golden batch holds the first answer."""
    answers: SimpleQueue[Any] = SimpleQueue()
    client.start_stream(lambda result, error: answers.put(error or result), stream_timeout=TIMEOUT_S)
    try:
        client.async_stream_infer(model, tensors, version)
        answer = answers.get()  # the stream ends with an error after its timeout at the latest
    finally:
        client.stop_stream()  # once it has ended: Triton 2.51 can't unload a model of which a stream was cancelled then
    if isinstance(answer, InferenceServerException):
        raise answer
    return answer


def _tensor(name: str, array: Array) -> triton.InferInput:
    tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def _difference(
    where: str,
    name: str,
    answer: Array | None,
    expected: Array,
    atol: float | None,
    source: str = BATCH,
    rounded: int = 1,
) -> float:
    if answer is None or (answer.shape, answer.dtype) != (expected.shape, expected.dtype):
        got = "nothing" if answer is None else f"{answer.dtype} {answer.shape}"
        raise Disagreement(f"{where}: {name} is {got}; {source} has {expected.dtype} {expected.shape}")
    if atol is None:
        atol = rounded * (LEVELS_ATOL if expected.dtype.kind in "iu" else NUMBERS_ATOL)
    largest = float(np.abs(answer.astype(np.float64) - expected.astype(np.float64)).max())
    if not largest <= atol:  # NaN disagrees, too
        raise Disagreement(f"{where}: {name} differs from {source} by up to {largest:g}, allowed {atol:g}")
    return largest


# --- command line


def main(arguments: Sequence[str] | None = None) -> int:
    return cli.run(_verify, _parser().parse_args(arguments))


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m serving.verify", description="A live server against the golden batch.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--version", type=int, help="default: the newest in the repository")
    parser.add_argument("--url", default="localhost:8001", help="gRPC address, without http://; default %(default)s")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="where the golden batch lies")
    explained = f"{LEVELS_ATOL:g} for levels of a picture, {NUMBERS_ATOL:g} for other numbers"
    parser.add_argument("--atol", type=float, help=f"largest difference allowed; default {explained}")
    return parser


def _verify(options: argparse.Namespace) -> str:
    version = options.version or newest(options.repository, options.model)
    if made_of := steps(options.repository, options.model):
        largest = verify_ensemble(options.url, options.model, version, options.repository, options.atol)
        what = f"agrees with {', then '.join(made_of)}"
        return f"{options.model} {version} at {options.url}: {what}, largest difference {largest:g}"
    golden = options.repository / options.model / str(version) / GOLDEN
    largest = verify(options.url, options.model, version, golden, options.atol)
    return f"{options.model} {version} at {options.url}: agrees, largest difference {largest:g}"


if __name__ == "__main__":
    sys.exit(main())
