"""Checks a live server's answers against a version's golden batch. Run: python -m serving.verify --model wgan

An ensemble has none; its answers must match those of its steps, run one after the other. Without --model, every model
that the server has loaded is checked: a deep health check, which a pod runs at startup, and which detects a wrong model
or a broken backend behind a server that is up.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from serving import cli
from serving.errors import Disagreement, RepositoryError, ServerError, Unreachable
from serving.pbtxt import GPU_ATOL
from serving.repository import CARD, GOLDEN, IN_FLOATS, REPOSITORY, Card, config, control_headers, newest, steps

TIMEOUT_S = 60.0
NOBODY = "; is a server running there, and is that its gRPC port? `make serve` starts one"
BUSY = "; it has too much to do; try again later"
UNREACHABLE_CODES = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")
"""gRPC's status codes if nothing answers. Triton itself answers UNAVAILABLE to what it can't do at the moment."""
HINTS = {  # keyed by parts of Triton 2.51's or gRPC's messages, in lower case
    "exceeds maximum queue size": BUSY,
    "request timeout expired": BUSY,
    "failed to connect": NOBODY,
    "errors resolving": NOBODY,
}
INTEGER_ATOL, FLOAT_ATOL = 1.0, 1e-3
"""Differences that rounding explains, for each model that an answer passes through: one level of a picture, and the
float error of other numbers."""
PLAN_BACKEND = "tensorrt"
TRIAL = "-trial"
"""Suffix of a model's name while serving.reload tries a version out; no model's own name has a hyphen."""
BATCH, STEPS = "its golden batch", "what its steps make of it"
"""What an answer is compared with, in error messages."""

TLS_NAME = "ATELIER_TLS_NAME"
OPTIONS = [
    # tritonclient's defaults, which it drops if others are given.
    ("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1),
    # gRPC obeys http_proxy even for localhost, and a training Job sets it for its corpus; these servers are our own.
    ("grpc.enable_http_proxy", 0),
]  # fmt: skip

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


def connect(url: str) -> triton.InferenceServerClient:
    """A client for the gRPC address `url`; with TLS if $ATELIER_TLS_NAME gives the name in the servers' certificate,
    which does not list the address of every replica. gRPC reads the roots from $GRPC_DEFAULT_SSL_ROOTS_FILE_PATH.
    """
    if name := os.environ.get(TLS_NAME):
        options = [*OPTIONS, ("grpc.ssl_target_name_override", name)]
        return triton.InferenceServerClient(url, ssl=True, channel_args=options)
    return triton.InferenceServerClient(url, channel_args=OPTIONS)


def loaded(client: triton.InferenceServerClient, repository: Path, timeout_s: float = TIMEOUT_S) -> dict[str, int]:
    """The models that a server has ready for clients, with the newest ready version of each."""
    return {model: versions[-1] for model, versions in ready(client, repository, timeout_s).items()}


def ready(client: triton.InferenceServerClient, repository: Path, timeout_s: float = TIMEOUT_S) -> dict[str, list[int]]:
    """Like `loaded`, with all ready versions of each model, oldest first."""
    index = client.get_model_repository_index(headers=control_headers(repository), client_timeout=timeout_s)
    found: dict[str, list[int]] = {}
    for model in index.models:
        if model.state == "READY" and not model.name.endswith(TRIAL):
            found.setdefault(model.name, []).append(int(model.version))
    return {model: sorted(versions) for model, versions in found.items()}


def verify(url: str, model: str, version: int, golden: Path, atol: float | None = None) -> float:
    """Sends the golden inputs to the gRPC address `url` and compares the answers with the golden outputs; those of a
    TensorRT plan with a quantized model's float outputs.

    Returns the largest difference, in the outputs' own unit. Raises Disagreement if it is above `atol` (None: what the
    version's card allows, or config.pbtxt on a GPU, or else what rounding explains) or if shape or dtype differ,
    ServerError without an answer, RepositoryError if the golden batch is unreadable.
    """
    arrays = read(golden)
    with _connected(url, f"{model} {version}") as client:
        served, answers = _infer(client, model, str(version), arrays, golden)
    if atol is None:
        atol = _allowed(served, golden)
    floats = IN_FLOATS if served.backend == PLAN_BACKEND else ""
    where = f"{model} {version} at {url}"
    return max(
        _difference(where, name, answer, arrays.get(name + floats, arrays[name]), atol)
        for name, answer in answers.items()
    )


def verify_ensemble(url: str, model: str, version: int, repository: Path, atol: float | None = None) -> float:
    """Sends an ensemble its first step's golden inputs, and compares its answers with those of its steps.

    Returns and raises as `verify` does.
    """
    ensemble = config(repository, model)
    first = ensemble.ensemble_scheduling.step[0]
    golden = repository / first.model_name / str(newest(repository, first.model_name)) / GOLDEN
    arrays = read(golden)
    given = {name: arrays[own][: ensemble.max_batch_size] for own, name in first.input_map.items() if own in arrays}
    if missing := {tensor.name for tensor in ensemble.input} - set(given):
        raise RepositoryError(f"{golden}: no array for {', '.join(sorted(missing))}, which {model} takes")
    with _connected(url, f"{model} {version}") as client:
        expected = _run_steps(client, ensemble.ensemble_scheduling.step, given)
        _, answers = _infer(client, model, str(version), expected, golden)
    where, roundings = f"{model} {version} at {url}", len(ensemble.ensemble_scheduling.step)
    return max(_difference(where, name, answers[name], expected[name], atol, STEPS, roundings) for name in answers)


def _run_steps(client: triton.InferenceServerClient, steps: Iterable[Any], given: Arrays) -> Arrays:
    """All tensors of an ensemble for these inputs, from running its steps one after the other."""
    known = dict(given)
    for step in steps:
        tensors = [_tensor(own, known[name]) for own, name in step.input_map.items()]
        answer = client.infer(step.model_name, tensors, client_timeout=TIMEOUT_S)
        known |= {name: answer.as_numpy(own) for own, name in step.output_map.items()}
    return known


@contextlib.contextmanager
def _connected(url: str, about: str) -> Iterator[triton.InferenceServerClient]:
    with connect(url) as client:
        try:
            yield client
        except InferenceServerException as exc:
            hint = next((hint for words, hint in HINTS.items() if words in exc.message().lower()), "")
            # A stream's error has a message but no status.
            kind = Unreachable if exc.status() in UNREACHABLE_CODES or hint == BUSY else ServerError
            raise kind(f"{url}: {about}: {exc.message()}{hint}") from exc


def read(golden: Path) -> Arrays:
    """The arrays of a golden batch by name. Raises RepositoryError if the file is damaged or not a golden batch."""
    try:
        with golden.open("rb") as file, np.load(file) as arrays:
            found = dict(arrays)
        if other := [name for name, array in found.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{other[0]} is no array")
    except Exception as exc:  # numpy, zipfile and zlib have no base class for their errors
        raise RepositoryError(f"{golden}: not a golden batch ({' '.join(str(exc).split())})") from exc
    return found


def _allowed(served: pb.ModelConfig, golden: Path) -> float | None:
    """What config.pbtxt or the version's card allows; None if neither says. Triton has resolved KIND_AUTO by now.

    If a GPU runs the graph instead of a plan, the larger one applies: the answers differ by the GPU's own arithmetic,
    and by where that makes a quantized model round differently.
    """
    on_gpu = any(group.kind == pb.ModelInstanceGroup.KIND_GPU for group in served.instance_group)
    if not on_gpu or GPU_ATOL not in served.parameters:
        return _card_atol(golden)
    atol = float(served.parameters[GPU_ATOL].string_value)
    return atol if served.backend == PLAN_BACKEND else max(atol, _card_atol(golden) or 0)


def _card_atol(golden: Path) -> float | None:
    """The tolerance in the version's card; None if it gives none."""
    card = golden.with_name(CARD)
    said = Card.read(card).data.get("golden_atol") if card.is_file() else None
    try:
        return None if said is None else float(said)
    except (TypeError, ValueError) as exc:
        raise RepositoryError(f"{card}: golden_atol is {said!r}, not a number") from exc


def _infer(
    client: triton.InferenceServerClient, model: str, version: str, arrays: Arrays, golden: Path
) -> tuple[pb.ModelConfig, dict[str, Array | None]]:
    """The model's configuration, as completed by Triton, and its answers by name."""
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
    return served, {name: answer.as_numpy(name) for name in outputs}


def _first_of_stream(
    client: triton.InferenceServerClient, model: str, version: str, tensors: list[triton.InferInput]
) -> triton.InferResult:
    """A decoupled model may answer any number of times; its golden batch holds the first answer."""
    answers: SimpleQueue[Any] = SimpleQueue()
    client.start_stream(lambda result, error: answers.put(error or result), stream_timeout=TIMEOUT_S)
    try:
        client.async_stream_infer(model, tensors, version)
        answer = answers.get()  # the stream ends with an error after its timeout at the latest
    finally:
        client.stop_stream()  # no cancel: Triton 2.51 can't unload a model whose stream is cancelled at its end
    if isinstance(answer, InferenceServerException):
        raise answer
    return answer


def _tensor(name: str, array: Array) -> triton.InferInput:
    tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def rounding_atol(dtype: np.dtype[Any]) -> float:
    """The largest difference that one model's rounding explains in an output of this dtype, in its own unit."""
    return INTEGER_ATOL if dtype.kind in "iu" else FLOAT_ATOL


def _difference(
    where: str,
    name: str,
    answer: Array | None,
    expected: Array,
    atol: float | None,
    source: str = BATCH,
    roundings: int = 1,
) -> float:
    if answer is None or (answer.shape, answer.dtype) != (expected.shape, expected.dtype):
        got = "nothing" if answer is None else f"{answer.dtype} {answer.shape}"
        raise Disagreement(f"{where}: {name} is {got}; {source} has {expected.dtype} {expected.shape}")
    if atol is None:
        atol = roundings * rounding_atol(expected.dtype)
    largest = float(np.abs(answer.astype(np.float64) - expected.astype(np.float64)).max())
    if not largest <= atol:  # NaN disagrees, too
        raise Disagreement(f"{where}: {name} differs from {source} by up to {largest:g}, allowed {atol:g}")
    return largest


# --- command line


def main(arguments: Sequence[str] | None = None) -> int:
    return cli.run(_verify, _parser().parse_args(arguments))


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m serving.verify", description="A live server against the golden batch.")
    parser.add_argument("--model", help="default: each that the server has loaded, in the version that it serves")
    parser.add_argument("--version", type=int, help="default: the newest in the repository")
    parser.add_argument("--url", default="localhost:8001", help="gRPC address, without http://; default %(default)s")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="where the golden batch lies")
    otherwise = f"{INTEGER_ATOL:g} for levels of a picture, {FLOAT_ATOL:g} for other numbers"
    default = f"what config.pbtxt allows on a GPU, or else the version's card, or else {otherwise}"
    parser.add_argument("--atol", type=cli.tolerance, help=f"largest difference allowed; default: {default}")
    return parser


def _version(options: argparse.Namespace) -> int:
    """The requested version, or else the newest."""
    return newest(options.repository, options.model) if options.version is None else int(options.version)


def _verify(options: argparse.Namespace) -> str:
    if options.model:
        return _verify_one(options, options.model, _version(options))
    if options.version is not None:
        raise ServerError(f"--version {options.version}: of which model? name it with --model")
    with _naming_url(), _connected(options.url, "what it serves") as client:
        if not (found := loaded(client, options.repository)):
            raise ServerError(f"{options.url}: it serves no model")
    return "\n".join(_verify_one(options, *each) for each in sorted(found.items()))


@contextlib.contextmanager
def _naming_url() -> Iterator[None]:
    """Prefixes a server's error, which begins with its address, with the flag."""
    try:
        yield
    except ServerError as exc:
        raise type(exc)(f"--url {exc}") from exc


def _verify_one(options: argparse.Namespace, model: str, version: int) -> str:
    if made_of := steps(options.repository, model):
        with _naming_url():
            largest = verify_ensemble(options.url, model, version, options.repository, options.atol)
        what = f"agrees with {', then '.join(made_of)}"
        return f"{model} {version} at {options.url}: {what}, largest difference {largest:g}"
    golden = options.repository / model / str(version) / GOLDEN
    with _naming_url():
        largest = verify(options.url, model, version, golden, options.atol)
    return f"{model} {version} at {options.url}: agrees, largest difference {largest:g}"


if __name__ == "__main__":
    sys.exit(main())
