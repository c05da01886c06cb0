"""Train a model; the entry point of every Job. Run: python -m training.run wgan --dry-run

    python -m training.run wgan                             train into runs/wgan, evaluate, export
    python -m training.run wgan --preset tiny --name try    seconds on a CPU
    python -m training.run wgan --resume                    go on where runs/wgan stopped
    python -m training.run wgan --publish DIR               and put the result through the gate into a model repository
    python -m training.run wgan --publish DIR --export onnx,tensorrt    with a plan for the GPU that serves it
    python -m training.run wgan --evaluate CHECKPOINT       only the measures of a checkpoint
    python -m training.run wgan --corpus DIR --name mine --init CHECKPOINT     start from learnt weights

Exit status: 0 done; 1 the corpus can't be fetched; 2 bad options or data; 3 refused by the gate; 143 stopped by
SIGTERM or Ctrl-C, and where it was learning there is a checkpoint to resume. A volume that is full or can't be written
is 2, and so is a run that diverges: nobody but a person mends them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import io
import itertools
import json
import os
import signal
import sys
import threading
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Any

import tyro

from serving import cli, wheel
from serving.errors import ServingError
from training import catalog
from training.errors import BAD_INPUT, REFUSED, STOPPED, UNREACHABLE, BadInput, Refused, Unreachable, stopping_signals

TERMINATION_LOG = Path("/dev/termination-log")
"""What is written there is a pod's termination message. Without it Kubernetes takes the log's last 80 lines."""
ONNX, ONNX_AND_PLAN = "onnx", "onnx,tensorrt"
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Invocation:
    """What every model's run can be asked, besides the model's own options."""

    name: str = ""
    """name of the run and of its directory; left out: the model's name"""
    runs: Path = Path("runs")
    """folder of all run directories"""
    resume: bool = False
    """continue from the run's last checkpoint, if there is one"""
    publish: Path | None = None
    """model repository to publish the result in, if the gate lets it pass"""
    export: str = ONNX
    """what a published version holds: onnx, or onnx,tensorrt where this GPU is of the type that serves"""
    evaluate: Path | None = None
    """checkpoint to measure, without training"""
    metrics_port: int = 0
    """port that serves Prometheus metrics while training; 0 serves none"""
    dry_run: bool = False
    """print the resolved options and stop"""


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if sys.stdout is None:  # closed, as by `>&-`
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # as long as the process
    hook, threading.excepthook = threading.excepthook, _thread_failed
    try:
        model, preset, rest = _model_and_preset(arguments)
        return _run(model, preset, rest)
    except (BadInput, ServingError) as error:
        _say(str(error))
        return UNREACHABLE if isinstance(error, Unreachable) else BAD_INPUT
    except Refused as error:
        _say(str(error))
        return REFUSED
    except (MemoryError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        from training.data.files import TOO_LARGE, too_large

        if not too_large(error):
            raise
        _say(f"{TOO_LARGE}: lower --batch, --pictures or --size")
        return BAD_INPUT
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        where = error.filename2 or error.filename or "--runs or --publish"
        _say(f"{where}: {error.strerror}; put that right, and the same command with --resume goes on")
        return BAD_INPUT
    finally:
        threading.excepthook = hook


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard writes from a thread of its own. That the volume can't be written, the run itself tells in a line."""
    if not (isinstance(failed.exc_value, OSError) and failed.exc_value.errno in UNWRITABLE):
        threading.__excepthook__(failed)


def _say(why: str) -> None:
    _tell(f"training.run: {why}")
    with contextlib.suppress(OSError):
        if TERMINATION_LOG.is_file():
            TERMINATION_LOG.write_text(f"training.run: {why}\n")


def _tell(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody reads it any more
        print(text, file=sys.stderr)


def _model_and_preset(arguments: list[str]) -> tuple[str, str, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m training.run", description=__doc__, add_help=False, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", nargs="?", metavar="MODEL", help=", ".join(catalog.trained()))
    parser.add_argument("--preset", default="default")
    parser.add_argument("-h", "--help", action="store_true")
    known, rest = parser.parse_known_args(arguments)
    if known.model is None or known.model.startswith("-"):
        if known.help:
            print(f"{parser.format_help()}\nOptions of a model: python -m training.run wgan --help")
            raise SystemExit(0)
        raise BadInput(f"MODEL: which one? There are {', '.join(catalog.trained())}")
    if known.model not in catalog.trained():
        raise BadInput(f"MODEL: no {known.model!r}; there are {', '.join(catalog.trained())}")
    return known.model, known.preset, rest + (["--help"] if known.help else [])


def _run(model: str, preset: str, rest: list[str]) -> int:
    recipe = catalog.recipe(model)
    if preset not in recipe.PRESETS:
        raise BadInput(f"--preset: no {preset!r}; {model} has {', '.join(recipe.PRESETS)}")
    asked, options = _parse(model, preset, recipe, rest)
    if asked.export not in (ONNX, ONNX_AND_PLAN):
        raise BadInput(f"--export: no {asked.export!r}; give {ONNX} or {ONNX_AND_PLAN}")
    if asked.dry_run:
        cli.show(json.dumps(dataclasses.asdict(options), indent=2, default=str))
        return 0

    name = asked.name or model
    # What goes on needs no --init any more: its own checkpoint has it all.
    goes_on = asked.resume and (asked.runs / name / "checkpoints" / "last.pt").is_file()
    init = "" if goes_on else getattr(options, "init", "")
    if init and not Path(init).is_file():
        raise BadInput(f"--init: checkpoint {init}: no such file; a run has its own as checkpoints/last.pt")
    if asked.publish is not None and model not in catalog.names():
        raise BadInput(f"--publish: {model} is not served; its weights stay in {asked.runs / name / 'candidate'}")

    if asked.export == ONNX_AND_PLAN:
        _check_plan(model)
    if asked.publish is not None:
        _check_triton()

    # Heavy imports come after the cheap refusals.
    from training import devices, distributed
    from training.rundir import RunDir, check_free

    if distributed.world_size() > 1 and catalog.multinode(model) is None:
        able = " and ".join(other for other in catalog.names() if catalog.multinode(other))
        raise BadInput(f"WORLD_SIZE: {model} is for one worker, not {distributed.world_size()}; several train {able}")
    device = devices.pick_device()  # a GPU that is missing is told before the corpus is made
    devices.keep_freed_memory()
    if init and hasattr(recipe, "check_init"):
        recipe.check_init(options)
    if asked.evaluate is not None:
        net = recipe.load_net(asked.evaluate)
        _check_writable("--evaluate", asked.evaluate.parent)
        metrics = recipe.evaluate(net, recipe.load_corpus(options), out=asked.evaluate.parent)
        cli.show(json.dumps(metrics, indent=2))
        _tell(f"pictures of it: {asked.evaluate.parent}")
        return 0

    if asked.publish is not None:
        _check_writable("--publish", asked.publish)
    if distributed.leads() and not asked.resume:
        check_free(asked.runs / name)
    corpus = recipe.load_corpus(options)
    if asked.metrics_port and os.environ.get("LOCAL_RANK", "0") == "0":
        _serve_metrics(asked.metrics_port)
    with distributed.process_group(device), distributed.own_folder(asked.runs / name) as path:
        run = RunDir(
            path, model=model, options=options, preset=preset, resume=asked.resume,
            corpus={"name": corpus.name, "sha256": corpus.sha256},
        )  # fmt: skip
        try:
            return _train(recipe, run, corpus, asked)
        finally:
            run.close()
            if distributed.leads():
                _push_metrics(model, name)


def _train(recipe: Any, run: Any, corpus: Any, asked: Invocation) -> int:
    from training import distributed
    from training.rundir import Stopped

    try:
        checkpoint = recipe.train(run.options, run, corpus)
    except Stopped:
        if distributed.leads():
            _tell(f"stopped; the same command with --resume goes on from {run.last}")
        return STOPPED
    if distributed.leads():
        _hand_on(checkpoint, run, corpus, asked)
    if not distributed.barrier() and not distributed.leads():
        _say("the worker that evaluates and publishes has ended before it was done; its log says why")
        return UNREACHABLE
    return 0


def _hand_on(checkpoint: Path, run: Any, corpus: Any, asked: Invocation) -> None:
    """Make the candidate and, if asked to, publish it. A pod that took over from one that had says so once more."""
    from training import export, provenance

    if run.model not in catalog.names():
        cli.show(f"weights and their card: {export.export_weights(run.model, checkpoint, run.path, corpus=corpus)}")
        return
    publish, plan = asked.publish, asked.export != ONNX
    if publish is None:
        candidate = export.export(run.model, checkpoint, run.path, corpus=corpus)
        if plan:
            cli.show(export.add_plan(run.model, candidate, None))
        cli.show(
            f"candidate: {candidate}; python -m training.export {run.path} --publish serving/model_repository serves it"
        )
        return
    said = provenance.noted(run.path / provenance.PUBLISHED)
    if not said.endswith(f" in {publish}\n"):
        version = export.published_by(run.path, run.model, publish)
        if version is None:
            candidate = export.export(run.model, checkpoint, run.path, corpus=corpus)
            if plan:
                cli.show(export.add_plan(run.model, candidate, publish))
            with run.counted_outcome():
                version = export.publish(run.model, candidate, publish)
        said = provenance.note(run.path, run.model, version, publish)
    cli.show(said.rstrip("\n"))


def _parse(model: str, preset: str, recipe: Any, rest: list[str]) -> tuple[Invocation, Any]:
    """The command line made from the two dataclasses, with the preset's values as defaults."""
    for given, value in itertools.pairwise([*rest, ""]):
        for name in ("--runs", "--publish"):  # which would be the current directory
            if given == f"{name}=" or (given == name and not value):
                raise BadInput(f"{name}: is empty; give a folder")
    command = dataclasses.make_dataclass(
        "Command",
        [
            ("options", Annotated[recipe.Options, tyro.conf.OmitArgPrefixes], recipe.PRESETS[preset]),
            ("invocation", Annotated[Invocation, tyro.conf.OmitArgPrefixes], Invocation()),
        ],
        frozen=True,
    )
    description = f"{recipe.__doc__.splitlines()[0]} Preset {preset} of {', '.join(recipe.PRESETS)} (--preset)"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed: Any = tyro.cli(command, prog=f"python -m training.run {model}", args=rest, description=description)
    except BrokenPipeError:  # `--help | head`
        cli.drop_output()
        raise SystemExit(0) from None
    except SystemExit as stop:
        if stop.code == 0:  # --help
            raise
        raise BadInput(
            f"{_one_line(said.getvalue())}; python -m training.run {model} --help lists the options"
        ) from None
    return parsed.invocation, parsed.options


def _one_line(box: str) -> str:
    """What tyro says in a box, up to the first rule, without the box and its title.

    Where stdout is not in UTF-8, the box is of spaces, and its rules of hyphens: below the title, and after the text.
    """
    lines = [line.strip("│ ") for line in box.splitlines() if line.startswith(("│", " "))]
    if "│" not in box:
        lines = lines[2:]
    first = itertools.takewhile(lambda line: not line.startswith(("─", "--------")), lines)
    return " ".join(" ".join(first).split()).rstrip(" .")


def _check_plan(model: str) -> None:
    """Before hours of training, too: a plan needs TensorRT and a GPU."""
    from serving import pbtxt, tensorrt

    if model not in catalog.names() or not pbtxt.plan_files(catalog.spec(model)):
        raise BadInput(f"--export: Triton does not run the graph of {model} itself, so it has no plan; give onnx")
    try:
        tensorrt.builder()
    except ServingError as error:
        raise BadInput(f"--export: {error}; or give onnx") from error


def _check_triton() -> None:
    """Before hours of training, too: the gate serves the candidate with it."""
    try:
        wheel.find()
    except ServingError as error:
        raise BadInput(f"--publish: {error}; or leave it out") from error


def _check_writable(flag: str, folder: Path) -> None:
    """Before hours of training, not after them: it is a folder, or one can be made."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise BadInput(f"{flag}: can't write {folder}; give a folder that can be written")


def _serve_metrics(port: int) -> None:
    import prometheus_client

    try:
        prometheus_client.start_http_server(port)
    except (OSError, OverflowError) as error:
        raise BadInput(f"--metrics-port: {port} can't be used ({error}); give another or 0") from error


def _push_metrics(model: str, name: str) -> None:
    from training.rundir import push_metrics

    if gateway := os.environ.get("ATELIER_PUSHGATEWAY"):
        try:
            push_metrics(gateway, model=model, run=name)
        # A lost figure is no reason to lose a trained model, and a wrong address is told by any of these.
        except (OSError, HTTPException, ValueError) as error:
            _tell(f"ATELIER_PUSHGATEWAY: {gateway} took no metrics ({error})")


if __name__ == "__main__":
    # A pod's first process gets no default handler: without this one, evaluation and export would sit out a drain.
    for stop in stopping_signals():
        signal.signal(stop, lambda *_: sys.exit(STOPPED))
    raise SystemExit(main())
