"""From a checkpoint to a served version: ONNX, parity, gate, publish.
Run: python -m training.export runs/wgan --publish serving/model_repository

The gate: (1) ONNX Runtime agrees with the eager model (with a graph that is to be quantized, before that), and Triton's
C++ backend and TensorRT accept the graph, (2) the metrics (of a quantized model, those of its graph) meet the spec's
thresholds, also relative to the live version, (3) a throwaway Triton serves it and its answers match the golden batch.
A candidate that is refused stays in runs/<name>/candidate, with the reasons in refused.txt.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from serving import cli, configs, files, pbtxt, plans, repository, tensorrt, verify
from serving.embedded import Embedded
from serving.errors import RepositoryError, ServingError
from serving.spec import ModelSpec, Threshold
from training import catalog, operators, provenance, quantize
from training.data.corpus import Corpus
from training.errors import BAD_INPUT, REFUSED, BadInput, Refused

import onnxruntime

OPSET = 17
WEIGHTS = "weights.pth"
GRAPH_GOLDEN = "graph.npz"
"""If model.onnx is only part of what is served: the graph's own tensors, beside golden.npz. It isn't published."""
ONNX_TYPES = {"FP32": onnx.TensorProto.FLOAT, "UINT8": onnx.TensorProto.UINT8}


# --- the candidate: everything a version directory holds, made beside the checkpoint ---


def export(model: str, checkpoint: Path, run: Path, *, corpus: Corpus) -> Path:
    """Write run/candidate with model.onnx, golden.npz and card.json; return that folder."""
    recipe, spec = catalog.recipe(model), catalog.spec(model)
    net = recipe.load_net(checkpoint)
    _require_finite(net.state_dict(), run)
    candidate = _emptied(run / "candidate")
    graph, measured = candidate / repository.MODEL, net
    golden = recipe.golden(net, corpus)
    graph_golden = recipe.graph_golden(net, corpus) if spec.graph else golden
    write_onnx(recipe.served(net), spec, graph_golden, graph)
    if spec.graph:
        _write_npz(candidate / GRAPH_GOLDEN, graph_golden)
    if spec.quantized:
        quantize.quantize(graph, recipe.quantization(net, corpus))
        measured = quantize.answered_by(graph, spec, net)
        floats = {f"{t.name}{repository.IN_FLOATS}": golden[t.name] for t in spec.outputs}
        golden = recipe.golden(measured, corpus) | floats
    onnx.save(stored_in_float16(onnx.load(graph)), graph)
    _write_npz(candidate / repository.GOLDEN, golden)
    metrics = recipe.evaluate(measured, corpus, out=run)
    extra: dict[str, Any] = {"missed_aims": missed(spec.aims, metrics), "golden_atol": spec.golden_atol}
    if hasattr(recipe, "members"):
        extra[configs.MEMBERS] = recipe.members(net)
    if hasattr(recipe, "backbone"):
        extra["backbone"] = recipe.backbone(net)
    _write_card(candidate, repository.MODEL, model, run, metrics, extra)
    return candidate


def export_weights(model: str, checkpoint: Path, run: Path, *, corpus: Corpus) -> Path:
    """For a model that is not served: write run/candidate with weights.pth and card.json; return that folder."""
    recipe = catalog.recipe(model)
    net = recipe.load_net(checkpoint)
    weights = recipe.weights(net)
    _require_finite({**net.state_dict(), **weights}, run)
    candidate = _emptied(run / "candidate")
    content = io.BytesIO()  # in memory, as in _write_npz: on a full disk torch's writer raises RuntimeError
    torch.save(weights, content)
    (candidate / WEIGHTS).write_bytes(content.getbuffer())
    _write_card(candidate, WEIGHTS, model, run, recipe.evaluate(net, corpus, out=run), {})
    return candidate


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write via memory: on a full disk NumPy's writer leaves a traceback beside the error that it raises."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    path.write_bytes(content.getbuffer())


def _require_finite(weights: Mapping[str, torch.Tensor], run: Path) -> None:
    """Raises BadInput for a run that has diverged in its last step, after which no loss was taken that would tell."""
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise BadInput(provenance.diverged(provenance.read(run)["options"]))


def _emptied(folder: Path) -> Path:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise BadInput(f"{folder}: is no folder; move it away, and the same command with --resume goes on")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
    folder.mkdir()
    return folder


def _write_card(
    candidate: Path, file: str, model: str, run: Path, metrics: dict[str, float], extra: dict[str, Any]
) -> None:
    """Write card.json: how the candidate's `file` was made, and its metrics."""
    made_by = provenance.read(run)
    card: dict[str, Any] = {
        "model": model,
        "preset": made_by["preset"],
        "options": made_by["options"],
        "corpus": made_by["corpus"],
        "metrics": metrics,
        **extra,
        "commit": made_by["commit"],
        "trained_on": made_by["machine"],
        "command": made_by["command"],
        **{name: made_by[name] for name in ("resumed", "started_from", "run") if name in made_by},
        "sha256": repository.sha256(candidate / file),
    }
    (candidate / repository.CARD).write_text(json.dumps(card, indent=2) + "\n")


def write_onnx(net: torch.nn.Module, spec: ModelSpec, golden: dict[str, np.ndarray], path: Path) -> None:
    """Export a net whose forward takes the core's inputs in order; if it takes batches, their dimension is dynamic."""
    core = spec.core
    names = [t.name for t in (*core.inputs, *core.outputs)]
    free = {}
    for tensor in (*core.inputs, *core.outputs):
        first = {0: "batch"} if spec.batching else {}
        sizes = tensor.shape if not spec.batching else (1, *tensor.shape)
        free[tensor.name] = first | {k: f"{tensor.name}_{k}" for k, size in enumerate(sizes) if size < 0}
    inputs = tuple(torch.from_numpy(golden[t.name]) for t in core.inputs)
    with warnings.catch_warnings():
        # The newer exporter (dynamo=True) makes graphs of these nets that are larger and no faster.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="Constant folding")  # of paddings' sizes, which ONNX Runtime folds
        # Instance norm uses each picture's own statistics, in training or not.
        warnings.filterwarnings("ignore", message=r"ONNX export mode .* 'instance_norm'")
        torch.onnx.export(
            net, inputs, str(path), dynamo=False, opset_version=OPSET,
            input_names=names[: len(inputs)], output_names=names[len(inputs) :], dynamic_axes=free,
            # A graph that uses its weights twice, once flipped, stores them once and flips them when it is loaded.
            do_constant_folding=spec.graph is None,
        )  # fmt: skip


def stored_in_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store weights that float16 represents exactly as float16, cast when the graph is loaded: half the file."""
    casts = []
    for weights in model.graph.initializer:
        values = onnx.numpy_helper.to_array(weights)
        if values.dtype != np.float32 or values.size < 1024:
            continue
        with np.errstate(over="ignore"):
            short = values.astype(np.float16)
        if (short == values).all():
            name = weights.name
            weights.CopyFrom(onnx.numpy_helper.from_array(short, f"{name}_short"))
            casts.append(onnx.helper.make_node("Cast", [f"{name}_short"], [name], to=onnx.TensorProto.FLOAT))
    for cast in casts:
        model.graph.node.insert(0, cast)
    return model


def add_plan(model: str, candidate: Path, into: Path | None) -> str:
    """Build the candidate's TensorRT plan, which is published with it; return a line about the result.

    A plan only works on the GPU that it was built on, so none is built if `into` is served by another.
    """
    card = json.loads((candidate / repository.CARD).read_text())
    config = pbtxt.config(catalog.spec(model).with_members(card.get(configs.MEMBERS, {})))
    served_by = plans.target(into) if into else None
    try:
        by = tensorrt.builder()
        if served_by not in (None, by.target):
            return f"no plan: {into} is served by {served_by}, and this is {by.target}"
        tensorrt.build(candidate, config, by, candidate.parent / tensorrt.TIMING_CACHE)
    except ServingError as error:
        return f"no plan, so that the ONNX graph is served: {'; '.join(str(error).splitlines())}"
    return f"plan: {candidate / plans.PLAN}, for {by.target}"


# --- the gate ---


def publish(model: str, candidate: Path, into: Path) -> int:
    """Put a candidate through the gate and into a model repository; return its version. Raises Refused."""
    card = json.loads((candidate / repository.CARD).read_text())
    spec = catalog.spec(model).with_members(card.get(configs.MEMBERS, {}))
    (candidate / "refused.txt").unlink(missing_ok=True)
    reasons = parity_reasons(candidate, spec) + graph_reasons(candidate / repository.MODEL, spec)
    reasons += metric_reasons(candidate, spec, into)
    _refuse_for(reasons or serving_reasons(candidate, spec), candidate, model)

    def check_last() -> None:
        """Compare again: another run may have published a better version since."""
        _refuse_for(metric_reasons(candidate, spec, into), candidate, model)

    try:
        return repository.publish(candidate, into, model, beside=pbtxt.files(spec), check_last=check_last)
    except ServingError as error:
        raise BadInput(f"--publish: {error}") from error


def _refuse_for(reasons: list[str], candidate: Path, model: str) -> None:
    if reasons:
        (candidate / "refused.txt").write_text("\n".join(reasons) + "\n")
        raise Refused(f"{model} refused, kept in {candidate}: {'; '.join(reasons)}")


def published_by(run: Path, model: str, into: Path) -> int | None:
    """The version that a run has already published, in case it was killed before it could record that."""
    ours = provenance.read(run).get("run", "none")
    for version in reversed(repository.versions(into, model)):
        with contextlib.suppress(RepositoryError):  # a damaged card is another run's; the gate deals with it
            if repository.card(into, model, version).data.get("run") == ours:
                return version
    return None


def parity_reasons(candidate: Path, spec: ModelSpec) -> list[str]:
    """Where ONNX Runtime's answers to the golden batch, whole and one by one, disagree with the eager model's.

    A quantized graph without its rounding must agree with it as closely as float graphs do; with its rounding, its
    answers one by one must match those to the whole batch within golden_atol. The tensors inside a model have no common
    unit: there golden_atol is relative to each tensor's largest magnitude.
    """
    reference = GRAPH_GOLDEN if spec.graph else repository.GOLDEN
    in_floats = repository.IN_FLOATS if spec.quantized else ""
    try:
        batches = {path.name: dict(verify.read(path)) for path in candidate.glob("*.npz")}
    except RepositoryError as error:
        return [str(error)]
    golden = batches.get(reference, {})
    if missing := [t.name for t in spec.core.outputs if t.name + in_floats not in golden]:
        return [
            f"no {missing[0]}{in_floats} in {reference}: an older version of this project made it; `training.run` makes"
            " a whole candidate"
        ]
    try:
        graph = (candidate / repository.MODEL).read_bytes()
        floats = tensorrt.for_gpus(onnx.load_from_string(graph)).SerializeToString() if spec.quantized else graph
        served, plain = (onnxruntime.InferenceSession(g, providers=["CPUExecutionProvider"]) for g in (graph, floats))
    except Exception as error:  # onnx and onnxruntime have no base class for their errors
        return [f"ONNX Runtime can't load model.onnx: {' '.join(str(error).split())}"]
    of_eager = golden | {t.name: golden[t.name + in_floats] for t in spec.core.outputs}
    parts = (slice(None), slice(0, 1)) if spec.batching else (slice(None),)
    reasons = _disagreements(plain, spec, of_eager, parts, "the eager model", in_floats=spec.quantized)
    if spec.quantized and not reasons:
        one_by_one = [slice(k, k + 1) for k in range(len(golden[spec.core.inputs[0].name]))]
        reasons = _disagreements(served, spec, golden, one_by_one, "its own answers to all together")[:1]
    return reasons


def _disagreements(
    session: onnxruntime.InferenceSession,
    spec: ModelSpec,
    golden: Mapping[str, np.ndarray],
    parts: Sequence[slice],
    source: str,
    *,
    in_floats: bool = False,
) -> list[str]:
    reasons, core = [], spec.core
    for part in parts:
        answers = session.run([t.name for t in core.outputs], {t.name: golden[t.name][part] for t in core.inputs})
        for tensor, answer in zip(core.outputs, answers, strict=True):
            expected = golden[tensor.name][part]
            if answer.shape != expected.shape or answer.dtype != expected.dtype:
                reasons.append(
                    f"{tensor.name} is {answer.dtype}{answer.shape}, in {source} {expected.dtype}{expected.shape}"
                )
                continue
            largest = float(np.abs(answer.astype(np.float64) - expected).max())
            allowed = verify.rounding_atol(expected.dtype) if in_floats else spec.golden_atol
            allowed *= float(np.abs(expected).max()) if spec.graph else 1
            if not largest <= allowed:
                reasons.append(f"{tensor.name} differs from {source} by {largest:.3g}, more than {allowed:.3g}")
    return reasons


def graph_reasons(path: Path, spec: ModelSpec) -> list[str]:
    """What otherwise only the cluster would refuse: a fixed batch size, a name or type that differs from config.pbtxt,
    an unsupported operator."""
    try:
        model = onnx.load(path)
    except Exception as error:  # onnx has no base class for its errors
        return [f"{path.name} is no graph ({' '.join(str(error).split())})"]
    graph, reasons = model.graph, []
    for values, tensors in ((graph.input, spec.core.inputs), (graph.output, spec.core.outputs)):
        if (have := sorted(v.name for v in values)) != (want := sorted(t.name for t in tensors)):
            reasons.append(f"the graph has {', '.join(have)} where the spec has {', '.join(want)}")
            continue
        for tensor in tensors:
            value = next(v for v in values if v.name == tensor.name).type.tensor_type
            dims = list(value.shape.dim)
            if spec.batching and not (first := dims.pop(0)).dim_param:
                reasons.append(f"{tensor.name}: its batch is fixed at {first.dim_value}")
            if value.elem_type != ONNX_TYPES[tensor.dtype]:
                reasons.append(f"{tensor.name}: its type is not {tensor.dtype}")
            fixed = [(d.dim_value, s) for d, s in zip(dims, tensor.shape, strict=False) if s > 0 and d.dim_value]
            if len(dims) != len(tensor.shape) or any(d != s for d, s in fixed):
                reasons.append(f"{tensor.name}: its shape is not {tensor.shape}")
    return reasons + operators.reasons(tensorrt.for_gpus(model))


def metric_reasons(candidate: Path, spec: ModelSpec, into: Path) -> list[str]:
    """What violates the spec's thresholds, also relative to the live version if it was measured on the same corpus."""
    card = repository.Card.read(candidate / repository.CARD)
    live: Mapping[str, float] = {}
    if present := repository.versions(into, spec.name):
        live_card = repository.card(into, spec.name, present[-1])
        live = live_card.metrics if live_card.corpus == card.corpus else {}
    return missed(spec.thresholds, card.metrics, live)


def missed(
    bounds: Iterable[Threshold], metrics: Mapping[str, float], live: Mapping[str, float] | None = None
) -> list[str]:
    """A reason for each bound that the metrics don't meet. A metric that was not measured is skipped: a corpus without
    known ground truth has no structure to measure."""
    measured = [bound for bound in bounds if bound.metric in metrics]
    reasons = [bound.refusal(metrics[bound.metric], (live or {}).get(bound.metric)) for bound in measured]
    return [reason for reason in reasons if reason]


def serving_reasons(candidate: Path, spec: ModelSpec) -> list[str]:
    """Why a throwaway Triton doesn't serve the candidate, or doesn't answer the golden batch as expected."""
    with tempfile.TemporaryDirectory(prefix="atelier-gate-") as folder:
        alone = Path(folder)
        version = repository.publish(candidate, alone, spec.name, beside=pbtxt.files(spec))
        try:
            with Embedded(alone) as server:
                golden = alone / spec.name / str(version) / repository.GOLDEN
                verify.verify(server.grpc, spec.name, version, golden, spec.golden_atol)
        except ServingError as error:
            return [f"Triton: {error}"]
    return []


def over_seeds(runs: list[Path]) -> dict[str, object]:
    """Mean and sample standard deviation of every metric over runs that differ in nothing but their seed."""
    cards = []
    for run in runs:
        path = run / "candidate" / repository.CARD
        if not path.is_file():
            raise BadInput(f"--beside: no candidate in {run}; python -m training.run makes one when it ends")
        cards.append(dict(repository.Card.read(path).data))
    seeds = [card["options"].pop("seed", None) for card in cards]
    for run, card in zip(runs, cards, strict=True):
        if getattr(catalog.recipe(card["model"]), "CORPUS_FROM_SEED", False):
            card["corpus"] = card["corpus"]["name"]  # its checksum differs with each seed
        if any(card[part] != cards[0][part] for part in ("model", "options", "corpus")):
            raise BadInput(f"--beside: {run} differs from {runs[0]} in more than its seed")
        if card["metrics"].keys() != cards[0]["metrics"].keys():
            raise BadInput(f"--beside: {run} has other measures than {runs[0]}; export it anew with --resume")
    if len(set(seeds)) < len(seeds):
        raise BadInput(f"--beside: seeds repeat ({', '.join(map(str, seeds))}); give runs of different seeds")
    values = {name: [card["metrics"][name] for card in cards] for name in cards[0]["metrics"]}
    return {
        "seeds": seeds,
        "mean": {name: float(np.mean(each)) for name, each in values.items()},
        "standard_deviation": {name: float(np.std(each, ddof=1)) for name, each in values.items()},
    }


def _folder(text: str) -> Path:
    if not text:  # which would be the current directory
        raise argparse.ArgumentTypeError("is empty; give a folder")
    return Path(text)


def main() -> int:
    parser = cli.Parser(prog="python -m training.export", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run directory with a candidate, such as runs/wgan")
    parser.add_argument("--publish", type=_folder, required=True, metavar="DIR", help="the model repository")
    parser.add_argument("--note", default="", metavar="TEXT", help="for the card: what a reader should know")
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], metavar="RUN",
        help="runs that differ in --seed only: the card tells the mean and the spread over all of them",
    )  # fmt: skip
    args = parser.parse_args()
    try:
        candidate = args.run / "candidate"
        path = candidate / repository.CARD
        if not path.is_file():
            raise BadInput(f"RUN: no candidate in {args.run}; python -m training.run makes one when it ends")
        card = dict(repository.Card.read(path).data)
        model = card["model"]
        if model not in catalog.names():
            raise BadInput(f"RUN: {model} is not served; its weights stay in {candidate}")
        if args.note:
            card["note"] = args.note
        if args.beside:
            card["seeds"] = over_seeds([args.run, *args.beside])
        files.write_atomically(path, json.dumps(card, indent=2) + "\n")
        print(f"published {model} version {publish(model, candidate, args.publish)} in {args.publish}")
        return 0
    except (BadInput, ServingError) as error:
        print(f"training.export: {error}", file=sys.stderr)
        return BAD_INPUT
    except Refused as error:
        print(f"training.export: {error}", file=sys.stderr)
        return REFUSED
    except OSError as error:
        print(f"training.export: {error.filename2 or error.filename or args.run}: {error.strerror}", file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    raise SystemExit(main())
