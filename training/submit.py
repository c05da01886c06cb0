"""Create a model's training Job on a cluster. Run: python -m training.submit wgan --follow

    python -m training.submit wgan --set steps=2000 seed=3     with other options, checked here first
    python -m training.submit wgan --image registry.example/atelier-training:0.1.0-gpu
    python -m training.submit wgan --cpu                       on a cluster without GPUs
    python -m training.submit style --nodes 4                  on several nodes: deploy/train-style-multinode.yaml
    python -m training.submit wgan --dry-run                   print what would be created

Creates what deploy/train-wgan.yaml holds: the Job under a name of its own, the rest where it is not there yet.

Exit status: 0 created or, with --follow, succeeded; 1 the Job failed or can't run; 2 nothing was started.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import typing
from collections.abc import Callable
from typing import Any

from ruamel.yaml.error import YAMLError

from serving.cli import INTERRUPTED, Parser
from training import catalog, jobs
from training.cluster import AlreadyExists, Cluster, ClusterError, connect
from training.errors import BAD_INPUT, BadInput
from training.follow import Follower

LABEL, LONGEST_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"), 63  # RFC 1123, as Kubernetes names Jobs' pods
CONVERTERS: dict[type, Callable[[str], object]] = {
    int: int,
    float: float,
    str: str,
    bool: lambda text: {"true": True, "false": False}[text.lower()],
}


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        manifests = _manifests(args)
        if args.dry_run:
            print(jobs.dump(manifests), end="")
            return 0
        cluster = connect(namespace=args.namespace, context=args.context)
        job = _create(cluster, manifests)
    except (BadInput, ClusterError) as error:
        print(f"training.submit: {error}", file=sys.stderr)
        return BAD_INPUT
    if args.follow:
        return _follow(cluster, job, args.nodes)
    print(f"created {job}; its log: {_log_command(cluster, job, args.nodes)}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m training.submit", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help=", ".join(_trainable()))
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="options of the model"
    )
    parser.add_argument("--preset", help="of the model's options")
    parser.add_argument("--name", help="of the Job and its run; a new one if left out")
    parser.add_argument("--image", help="where your cluster finds the training image")
    parser.add_argument("--cpu", action="store_true", help="ask for no GPU, and take the CPU image")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="as many pods, which share every batch")
    parser.add_argument("--namespace", help="that of the kubeconfig's context if left out")
    parser.add_argument("--context", help="of the kubeconfig; its current one if left out")
    parser.add_argument("--follow", action="store_true", help="copy the log, wait for the end, return its success")
    parser.add_argument("--dry-run", action="store_true", help="print what would be created and stop")
    return parser


def _trainable() -> list[str]:
    return [name for name in catalog.names() if catalog.job(name)]


# --- what to create ---


def _manifests(args: argparse.Namespace) -> list[Any]:
    """The manifests of deploy/train-<model>.yaml, which a reader may have edited, with what was asked for."""
    training_job = catalog.job(args.model) if args.model in _trainable() else None
    if training_job is None:
        raise BadInput(f"MODEL: no {args.model!r}; there are {', '.join(_trainable())}")
    if args.nodes != 1:
        training_job = catalog.multinode(args.model) if args.nodes > 1 else None
    if training_job is None:
        multinode = " and ".join(name for name in _trainable() if catalog.multinode(name))
        raise BadInput(f"--nodes: {args.nodes} can't train {args.model}; on 2 or more {multinode} can be trained")
    _check_given(args)
    path = jobs.file(args.model, training_job)
    try:
        manifests = jobs.load(jobs.ROOT / path)
        (job,) = (manifest for manifest in manifests if manifest["kind"] == "Job")
        pod = job["spec"]["template"]["spec"]
        (container,) = (container for container in pod["containers"] if container["name"] == jobs.CONTAINER)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; `make generate` writes it") from error
    except (YAMLError, LookupError, TypeError, ValueError) as error:
        raise BadInput(
            f"{path}: not one Job with a container {jobs.CONTAINER!r}; `make generate` writes it anew"
        ) from error
    _change(job, pod, container, args)
    if args.nodes > 1:
        _require_even_shares(args.model, training_job, container["args"], args.nodes)
    return manifests


def _check_given(args: argparse.Namespace) -> None:
    """Refuses a name or an image that no cluster takes: the name is a label's value, and begins its pods' host names,
    which end in -INDEX where there are several."""
    longest = LONGEST_LABEL - (len(f"-{args.nodes - 1}") if args.nodes > 1 else 0)
    if args.name is not None and (len(args.name) > longest or not LABEL.fullmatch(args.name)):
        allowed = f"at most {longest} of a-z, 0-9 and -, neither beginning nor ending with -"
        raise BadInput(f"--name: {args.name!r} can't name a Job; give {allowed}, or leave it out")
    if args.image is not None and not args.image.strip():
        raise BadInput("--image: is empty; give the image's address, or leave it out")


def _change(job: Any, pod: Any, container: Any, args: argparse.Namespace) -> None:
    if args.name:
        job["metadata"]["name"] = args.name
    else:
        job["metadata"].insert(0, "generateName", f"{job['metadata'].pop('name')}-")
    if args.nodes > 1:
        _set_nodes(job["spec"], container, args.nodes)
    container["args"] += training_arguments(args.model, args.preset, args.set)
    if args.cpu:
        if container["image"].endswith("-gpu"):  # another is whoever edited the file's own
            container["image"] = container["image"].removesuffix("-gpu") + "-cpu"
        container["resources"]["limits"].pop(jobs.GPU, None)
        pod.pop("tolerations", None)
        for variable in container.get("env", []):
            if variable["name"] == jobs.DEVICE:
                variable["value"] = "cpu"
    if args.image:
        container["image"] = args.image


def _set_nodes(spec: Any, container: Any, nodes: int) -> None:
    """Sets how many nodes the Job takes, in place of the file's number, and backoffLimit in proportion."""
    spec["backoffLimit"] = spec["backoffLimit"] // spec["completions"] * nodes
    spec["completions"] = spec["parallelism"] = nodes
    (index,) = (k for k, argument in enumerate(container["args"]) if argument.startswith("--nnodes="))
    container["args"][index] = f"--nnodes={nodes}"


def _require_even_shares(model: str, job: jobs.Job, arguments: list[str], nodes: int) -> None:
    """Refuses what training.distributed.shard would, hours later, when every pod has its node. What the file gives, as
    a reader may have edited it, goes before the job's own numbers."""
    parser = Parser(prog="python -m training.submit", add_help=False, allow_abbrev=False)
    for flag in ("--nproc-per-node", "--batch", "--preset"):
        parser.add_argument(flag, default="")
    given, _ = parser.parse_known_args(arguments)
    workers, batch = nodes * _count(given.nproc_per_node, job.workers), _count(given.batch, job.batch)
    if given.preset and not given.batch:
        try:
            batch = catalog.recipe(model).PRESETS[given.preset].batch
        except (ModuleNotFoundError, KeyError):  # a preset that the file gives, whose batch nothing here tells
            return
    if batch % workers:
        shared = -(-batch // workers) * workers
        raise BadInput(
            f"--nodes: {workers} workers can't share a batch of {batch} evenly; "
            f"give another number, or --set batch={shared}"
        )


def _count(text: str, otherwise: int) -> int:
    return int(text) if text.isdecimal() and int(text) else otherwise


def training_arguments(model: str, preset: str | None, settings: list[str]) -> list[str]:
    """training.run's command line for a preset and KEY=VALUEs. Raises BadInput for what training.run would refuse."""
    if not (preset or settings):
        return []
    try:
        recipe = catalog.recipe(model)
    except ModuleNotFoundError as error:
        raise BadInput(
            f"--set and --preset are checked against the model's code, which needs {error.name}: "
            "pip install '.[training]'"
        ) from error
    if preset and preset not in recipe.PRESETS:
        raise BadInput(f"--preset: no {preset!r}; {model} has {', '.join(recipe.PRESETS)}")
    values = dict(_setting(model, recipe.Options, text) for text in settings)
    try:
        dataclasses.replace(recipe.PRESETS[preset or "default"], **values)
    except BadInput as error:
        raise BadInput(f"--set: {error}") from error
    return ([f"--preset={preset}"] if preset else []) + [
        part for key, value in values.items() for part in _flag(key, value)
    ]


def _setting(model: str, options: Any, text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    key, types = key.replace("-", "_"), typing.get_type_hints(options)
    if not equals:
        raise BadInput(f"--set {text}: give it as KEY=VALUE")
    if key not in types:
        raise BadInput(f"--set {text}: {model} has no option {key!r}; it has {', '.join(types)}")
    _check_count(key, types[key], value)
    try:
        return key, _value(types[key], value)
    except (ValueError, KeyError) as error:
        raise BadInput(f"--set {text}: {value!r} is no {types[key].__name__}") from error


def _check_count(key: str, kind: Any, text: str) -> None:
    """A tuple of a fixed length needs as many; tuple[int, ...] takes any number."""
    kinds, given = typing.get_args(kind), text.count(",") + 1
    if typing.get_origin(kind) is tuple and kinds[-1] is not Ellipsis and given != len(kinds):
        raise BadInput(f"--set: --{key.replace('_', '-')}: has {given} numbers, and must have {len(kinds)}")


def _value(kind: Any, text: str) -> object:
    """Several are separated by commas."""
    if typing.get_origin(kind) is tuple:
        return tuple(_value(typing.get_args(kind)[0], part) for part in text.split(","))
    return CONVERTERS.get(kind, str)(text)


def _flag(key: str, value: object) -> list[str]:
    """As tyro reads it: a boolean has a flag for true and another for false, and several values follow their flag."""
    flag = key.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, tuple):
        return [f"--{flag}", *map(str, value)]
    return [f"--{flag}={value}"]


# --- on the cluster ---


def _create(cluster: Cluster, manifests: list[Any]) -> str:
    """Creates what the Job needs, where it is not there yet, then the Job; returns its name."""
    *prerequisites, job = sorted(manifests, key=lambda manifest: manifest["kind"] == "Job")
    for manifest in prerequisites:
        try:
            name = cluster.create(manifest)
            print(f"created {manifest['kind']} {name}", file=sys.stderr)
        except AlreadyExists:  # claims hold data and may have been changed by their owner: they stay as they are
            _require_shared(cluster, manifest)
    try:
        return cluster.create(job)
    except AlreadyExists as error:
        raise ClusterError(f"--name: {error}; choose another, or leave --name out") from error


def _require_shared(cluster: Cluster, manifest: Any) -> None:
    """Refuses an existing ReadWriteOnce claim where the file asks for ReadWriteMany: pods would wait for ever."""
    if "ReadWriteMany" not in manifest.get("spec", {}).get("accessModes", []):
        return
    name = manifest["metadata"]["name"]
    if "ReadWriteMany" not in (modes := cluster.read(manifest["kind"], name)["spec"]["accessModes"]):
        raise ClusterError(
            f"--nodes: the claim {name} is {', '.join(modes)}, and a claim's mode can't be changed; pods on several "
            "nodes need ReadWriteMany: use another --namespace, or make the claim anew"
        )


def _log_command(cluster: Cluster, job: str, nodes: int) -> str:
    return f"kubectl logs --namespace {cluster.namespace} --follow {jobs.log_target(job, nodes)}"


def _follow(cluster: Cluster, job: str, nodes: int) -> int:
    def tell(text: str) -> None:
        print(f"{job}: {text}", file=sys.stderr, flush=True)

    tell("created")
    try:
        succeeded = Follower(cluster, job, show=lambda line: print(line, flush=True), tell=tell).run()
    except ClusterError as error:
        print(f"training.submit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _leave_or_end(cluster, job, nodes, tell)
        return INTERRUPTED
    return 0 if succeeded else 1


def _leave_or_end(cluster: Cluster, job: str, nodes: int, tell: Callable[[str], None]) -> None:
    """Ctrl-C ends the following; whether it ends the Job, only a person can say."""
    try:
        if sys.stdin.isatty():
            print(f"\nLeave {job} running? [Y/n] ", end="", file=sys.stderr, flush=True)
            if input().strip().lower() in ("n", "no"):
                cluster.delete("Job", job)
                tell("deleted; its run stays on the volume")
                return
    except (EOFError, KeyboardInterrupt):
        pass
    except ClusterError as error:
        tell(f"not deleted: {error}")
        return
    tell(f"left running; {_log_command(cluster, job, nodes)} follows it")


if __name__ == "__main__":
    raise SystemExit(main())
