"""Train a model; the entry point of every Job. Run: python -m training.run wgan --dry-run

    python -m training.run wgan                             train into runs/wgan, evaluate, export
    python -m training.run wgan --preset tiny --name try    seconds on a CPU
    python -m training.run wgan --resume                    go on where runs/wgan stopped
    python -m training.run wgan --publish DIR               and put the result through the gate into a model repository
    python -m training.run wgan --evaluate CHECKPOINT       only the measures of a checkpoint
    python -m training.run wgan --corpus DIR --name mine --init CHECKPOINT     start from learnt weights

Exit status: 0 done; 1 the corpus can't be fetched; 2 bad options or data; 3 refused by the gate; 143 stopped by
SIGTERM, with a checkpoint to resume.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from training import catalog
from training.errors import BAD_INPUT, REFUSED, STOPPED, UNREACHABLE, BadInput, Refused, Unreachable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Invocation:
    """What every model's run can be asked, besides the model's own options."""

    name: str = ""
    """of the run, and of its directory; the model's name if left out"""
    runs: Path = Path("runs")
    """where run directories are"""
    resume: bool = False
    """go on from the last checkpoint if there is one"""
    publish: Path | None = None
    """a model repository, to publish the result in if the gate lets it pass"""
    evaluate: Path | None = None
    """only measure this checkpoint"""
    metrics_port: int = 0
    """serve Prometheus metrics there while training; 0 does not"""
    dry_run: bool = False
    """print the resolved options and stop"""


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    # A pod's first process gets no default handler: without this one, evaluation and export would sit out a drain.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    try:
        model, preset, rest = _model_and_preset(arguments)
        return _run(model, preset, rest)
    except BadInput as error:
        print(f"training.run: {error}", file=sys.stderr)
        return UNREACHABLE if isinstance(error, Unreachable) else BAD_INPUT
    except Refused as error:
        print(f"training.run: {error}", file=sys.stderr)
        return REFUSED


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
    if asked.dry_run:
        print(json.dumps(dataclasses.asdict(options), indent=2, default=str))
        return 0

    name = asked.name or model
    if asked.publish is not None and model not in catalog.names():
        raise BadInput(f"--publish: {model} is not served; its weights stay in {asked.runs / name / 'candidate'}")

    # Heavy imports come after the cheap refusals.
    from training import devices, export
    from training.rundir import RunDir, Stopped

    devices.pick_device()  # a GPU that is missing is told before the corpus is made
    devices.keep_freed_memory()
    corpus = recipe.load_corpus(options)
    if asked.evaluate is not None:
        net = recipe.load_net(asked.evaluate)
        print(json.dumps(recipe.evaluate(net, corpus, out=asked.evaluate.parent), indent=2))
        print(f"pictures of it: {asked.evaluate.parent}", file=sys.stderr)
        return 0

    if asked.publish is not None:
        _check_publish(asked.publish)
    if asked.metrics_port:
        _serve_metrics(asked.metrics_port)
    run = RunDir(
        asked.runs / name, model=model, options=options, preset=preset, resume=asked.resume,
        corpus={"name": corpus.name, "sha256": corpus.sha256},
    )  # fmt: skip
    try:
        checkpoint = recipe.train(options, run, corpus)
    except Stopped:
        print(f"stopped; the same command with --resume goes on from {run.last}", file=sys.stderr)
        return STOPPED
    finally:
        run.close()
        _push_metrics(model, name)
    published = run.path / "published.txt"
    if asked.publish is not None and published.is_file():  # a pod that took over from one that was done
        print(published.read_text(), end="")
        return 0
    if model not in catalog.names():
        print(f"weights and their card: {export.keep(model, checkpoint, run.path, corpus=corpus)}")
        return 0
    candidate = export.export(model, checkpoint, run.path, corpus=corpus)
    if asked.publish is None:
        print(
            f"candidate: {candidate}; python -m training.export {run.path} --publish serving/model_repository serves it"
        )
    else:
        version = export.publish(model, candidate, asked.publish)
        published.write_text(f"published {model} version {version} in {asked.publish}\n")
        print(published.read_text(), end="")
    return 0


def _parse(model: str, preset: str, recipe: Any, rest: list[str]) -> tuple[Invocation, Any]:
    """The command line made from the two dataclasses, with the preset's values as defaults."""
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
    except SystemExit as stop:
        if stop.code == 0:  # --help
            raise
        raise BadInput(
            f"{_one_line(said.getvalue())}; python -m training.run {model} --help lists the options"
        ) from None
    return parsed.invocation, parsed.options


def _one_line(box: str) -> str:
    """What tyro says in a box, up to the first rule, without the box."""
    lines = [line.strip("│ ") for line in box.splitlines() if line.startswith("│")]
    first = itertools.takewhile(lambda line: not line.startswith("─"), lines)
    return " ".join(" ".join(first).split()).rstrip(" .")


def _check_publish(repository: Path) -> None:
    """Before hours of training, not after them: the repository is a folder, or one can be made."""
    existing = next(path for path in (repository, *repository.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise BadInput(f"--publish: can't write {repository}; give a folder that can be written")


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
        except OSError as error:  # a lost figure is no reason to lose a trained model
            print(f"ATELIER_PUSHGATEWAY: {gateway} took no metrics ({error})", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
