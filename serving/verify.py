"""Whether a live server answers as a version's golden batch says. Run: python -m serving.verify --model wgan

The deep readiness probe: it sees a wrong model or a broken backend behind a server that is up.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from serving import cli
from serving.errors import Disagreement, RepositoryError, ServerError
from serving.repository import GOLDEN, REPOSITORY, newest

TIMEOUT_S = 60.0
LEVELS_ATOL, NUMBERS_ATOL = 1.0, 1e-3
"""Differences allowed unless told otherwise: one level of a picture, and what rounding leaves of other numbers."""

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


def verify(url: str, model: str, version: int, golden: Path, atol: float | None = None) -> float:
    """Sends the golden inputs to the gRPC address `url` and compares what comes back with the golden outputs.

    Returns the largest difference, in the outputs' own unit. Raises Disagreement for one above `atol` (None: what
    rounding explains) or for another shape or dtype, ServerError without an answer, RepositoryError for an
    unreadable golden batch.
    """
    arrays = _read(golden)
    with triton.InferenceServerClient(url) as client:
        try:
            answers = _ask(client, model, str(version), arrays, golden)
        except InferenceServerException as exc:
            raise _server_error(url, f"{model} {version}", exc) from exc
    where = f"{model} {version} at {url}"
    return max(_difference(where, name, answer, arrays[name], atol) for name, answer in answers.items())


def _server_error(url: str, version: str, exc: InferenceServerException) -> ServerError:
    unreachable = exc.status() == "StatusCode.UNAVAILABLE"
    hint = "; is a server running there, and is that its gRPC port? `make serve` starts one" if unreachable else ""
    return ServerError(f"--url {url}: {version}: {exc.message()}{hint}")


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
    config = client.get_model_config(model, version, client_timeout=TIMEOUT_S).config
    tensors = [_tensor(name, arrays[name]) for name in inputs]
    if config.model_transaction_policy.decoupled:
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


def _difference(where: str, name: str, answer: Array | None, expected: Array, atol: float | None) -> float:
    if answer is None or (answer.shape, answer.dtype) != (expected.shape, expected.dtype):
        got = "nothing" if answer is None else f"{answer.dtype} {answer.shape}"
        raise Disagreement(f"{where}: {name} is {got}; its golden batch has {expected.dtype} {expected.shape}")
    if atol is None:
        atol = LEVELS_ATOL if expected.dtype.kind in "iu" else NUMBERS_ATOL
    largest = float(np.abs(answer.astype(np.float64) - expected.astype(np.float64)).max())
    if not largest <= atol:  # NaN disagrees, too
        raise Disagreement(f"{where}: {name} differs from its golden batch by up to {largest:g}, allowed {atol:g}")
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
    golden = options.repository / options.model / str(version) / GOLDEN
    largest = verify(options.url, options.model, version, golden, options.atol)
    return f"{options.model} {version} at {options.url}: agrees, largest difference {largest:g}"


if __name__ == "__main__":
    sys.exit(main())
