"""A classifier that computes next to nothing, so that what a call of it costs is what serving costs.

Run: python -m tests.load.nothing --out out/nothing
     python -m tests.load --report --model classifier --repository out/nothing

What batching or another server gains for this model is the most that it can gain for any classifier whose pictures take
as long in a batch as alone.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving import cli
from serving.errors import RepositoryError
from serving.repository import CARD, GOLDEN, MODEL, REPOSITORY, newest
from training.export import OPSET
from training.models.classifier.spec import SPEC

import onnxruntime


def main(arguments: Sequence[str] | None = None) -> int:
    parser = cli.Parser(prog="python -m tests.load.nothing", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder: a model repository")
    return cli.run(_written, parser.parse_args(arguments))


def _written(options: argparse.Namespace) -> str:
    out: Path = options.out
    if out.exists():
        raise RepositoryError(f"--out: {out} is there already; name a new folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as beside:
            write(Path(beside) / "repository").parents[1].rename(out)
    except OSError as error:
        raise RepositoryError(f"--out: can't write {out} ({error.strerror or error}); name another folder") from error
    return f"{out}: python -m tests.load --report --model classifier --repository {out}"


def write(repository: Path) -> Path:
    """Writes a repository with the classifier's configuration and golden pictures, and this graph; returns the
    version."""
    source = REPOSITORY / SPEC.name
    shutil.copytree(source, repository / SPEC.name, ignore=shutil.ignore_patterns(CARD))
    version = repository / SPEC.name / str(newest(REPOSITORY, SPEC.name))
    graph = logistic()
    onnx.save(graph, version / MODEL)
    golden = dict(np.load(version / GOLDEN))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    given = {tensor.name: golden[tensor.name] for tensor in SPEC.inputs}
    np.savez(version / GOLDEN, **given, probabilities=session.run(["probabilities"], given)[0])
    return version


def logistic() -> onnx.ModelProto:
    """uint8 (N, 28, 28, 1) -> float (N, 10): one matrix product, with random weights, and a softmax."""
    (image,), (probabilities,) = SPEC.inputs, SPEC.outputs
    pixels, classes = math.prod(image.shape), probabilities.shape[0]
    weights = np.random.default_rng(0).normal(0, 1e-3, (pixels, classes)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", [image.name], ["pixels"], axis=1),
            helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["floats", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], [probabilities.name], axis=1),
        ],
        "nothing",
        [helper.make_tensor_value_info(image.name, TensorProto.UINT8, ["batch", *image.shape])],
        [helper.make_tensor_value_info(probabilities.name, TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(weights, "weights")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


if __name__ == "__main__":
    sys.exit(main())
