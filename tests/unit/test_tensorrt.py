"""serving.tensorrt around a stand-in for TensorRT: what is built, what for, and what Triton is told when it is not."""

from __future__ import annotations

import errno
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import stand_in
import tensorrt_stand_in as fake
from onnx import TensorProto, helper

from serving import pbtxt, plans, tensorrt
from serving import repository as repo
from serving.errors import PlanError
from serving.spec import ModelSpec
from training import catalog, operators

import onnxruntime

SHIPPED = [name for name in catalog.names() if pbtxt.plan_files(catalog.served(name))]
of_shipped = pytest.mark.parametrize("model", SHIPPED)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tools"
    fake.install(folder, monkeypatch)
    return folder


def run(repository: Path, *arguments: str) -> int:
    return tensorrt.main([f"--repository={repository}", *arguments])


def told(repository: Path, model: str = "wgan") -> bool:
    """Whether a Triton with --model-config-name=tensorrt serves plans of it."""
    return (repository / model / plans.CONFIG).is_file()


def planned(repository: Path, model: str = "wgan") -> list[str]:
    return sorted(path.parent.name for path in (repository / model).glob(f"*/{plans.PLAN}"))


def leftovers(repository: Path) -> list[str]:
    return [path.name for path in repository.rglob(".*") if plans.PLAN in path.name]


# --- what is built


def test_every_version_in_service_gets_a_plan(repository: Path, tools: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each once, with a record of what it is for; then Triton is told. A second run builds nothing."""
    with caplog.at_level(logging.INFO):
        assert run(repository) == 0
    assert planned(repository) == ["1", "2"]
    assert told(repository)
    record = json.loads((repository / "wgan" / "2" / plans.RECORD).read_text())
    assert (record["gpu"], record["tensorrt"]) == ("NVIDIA L4, compute capability 8.9", fake.VERSION)
    assert record["graph_sha256"] == repo.card(repository, "wgan", 2).sha256
    assert "wgan 2: plan for TensorRT 11.1.0.106 on NVIDIA L4, compute capability 8.9" in caplog.text
    assert run(repository) == 0
    assert len(fake.orders(tools)) == 2


@pytest.mark.parametrize("changed", ["gpu", "tensorrt", "graph", "limit", "cut off"])
def test_a_plan_for_something_else_is_built_anew(
    repository: Path, tools: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """Another GPU, TensorRT, graph or batch size, or a file that has lost its end: it would not load, or not fit."""
    run(repository)
    newest = repository / "wgan" / "2"
    if changed == "gpu":
        fake.install(tools, monkeypatch, gpu=fake.H100)
    elif changed == "tensorrt":
        monkeypatch.setenv("TRT_VERSION", "11.4.0.106")
    elif changed == "graph":
        card = newest / repo.CARD
        (newest / repo.MODEL).write_bytes((repository / "wgan" / "1" / repo.MODEL).read_bytes())
        card.write_text(json.dumps({**json.loads(card.read_text()), "sha256": repo.sha256(newest / repo.MODEL)}))
    elif changed == "limit":
        config = repository / "wgan" / repo.CONFIG
        config.write_text(config.read_text().replace("max_batch_size: 32", "max_batch_size: 16"))
    else:
        (newest / plans.PLAN).write_bytes(b"")
    assert run(repository) == 0
    assert told(repository)
    assert len(fake.orders(tools)) == (2 + 1 if changed in ("graph", "cut off") else 2 + 2)


def test_timings_are_kept_for_the_same_gpu_only(repository: Path, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What kernels took on one GPU says nothing of another."""
    run(repository)
    assert (repository / tensorrt.TIMING_CACHE).read_text() == "measured\n" * 2
    fake.install(tools, monkeypatch, gpu=fake.H100)
    run(repository)
    assert (repository / tensorrt.TIMING_CACHE).read_text() == "measured\n" * 2


def test_a_plan_without_timings_is_as_good(repository: Path, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They only save the next builder's time."""
    fake.install(tools, monkeypatch, trtexec=fake.NO_TIMINGS)
    assert run(repository) == 0
    assert (planned(repository), told(repository)) == (["1", "2"], True)
    assert not (repository / tensorrt.TIMING_CACHE).exists()


def test_a_builder_that_is_killed_leaves_the_timings_whole(
    tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the builders before, whatever it had written of its own."""
    repository = stand_in.repository(tmp_path / "repository")
    run(repository)
    repo.publish(stand_in.candidate(tmp_path / "third", 3), repository, "wgan")
    fake.install(tools, monkeypatch, trtexec=fake.CRASHES)
    run(repository)
    assert len(fake.orders(tools)) == 3
    assert (repository / tensorrt.TIMING_CACHE).read_text() == "measured\n" * 2
    assert list(repository.glob(f"*{tensorrt.TIMING_CACHE}*")) == [repository / tensorrt.TIMING_CACHE]


def test_versions_out_of_service_lose_plans_that_no_server_can_load(
    tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan that still fits stays for a rollback; on another GPU it would only take room."""
    repository = stand_in.repository(tmp_path / "repository")
    run(repository)
    repo.publish(stand_in.candidate(tmp_path / "third", 3), repository, "wgan")
    run(repository)
    assert planned(repository) == ["1", "2", "3"]
    fake.install(tools, monkeypatch, gpu=fake.H100)
    run(repository)
    assert planned(repository) == ["2", "3"]


def test_one_model_alone(tmp_path: Path, tools: Path) -> None:
    """--model builds none for the others, and Triton is not told of any of theirs."""
    repository = stand_in.repository(tmp_path / "repository", spec=stand_in.WGAN_X4)
    for name in pbtxt.plan_files(stand_in.UPSCALER):  # as an image brings them
        (repository / "upscaler" / name).parent.mkdir(exist_ok=True)
        (repository / "upscaler" / name).touch()
    assert run(repository, "--model", "wgan") == 0
    assert (planned(repository, "wgan"), planned(repository, "upscaler")) == (["1", "2"], [])
    assert (told(repository, "wgan"), told(repository, "upscaler")) == (True, False)


def test_one_model_alone_on_another_gpu(tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others' plans would not load there: their graphs are served, before the first plan is built."""
    repository = stand_in.repository(tmp_path / "repository", spec=stand_in.WGAN_X4)
    run(repository)
    assert told(repository, "upscaler")
    fake.install(tools, monkeypatch, gpu=fake.H100)
    build, seen = tensorrt.build, []

    def look(*arguments: Any) -> None:
        seen.append((told(repository, "wgan"), told(repository, "upscaler")))
        build(*arguments)

    monkeypatch.setattr(tensorrt, "build", look)
    assert run(repository, "--model", "wgan") == 0
    assert seen == [(False, False)] * 2
    assert (told(repository, "wgan"), told(repository, "upscaler")) == (True, False)


SIDES = {"upscaler": 1024, "style": 2048, "colorizer": 2896}


@pytest.mark.parametrize(
    "spec", [stand_in.SPEC, stand_in.CLASSIFIER, stand_in.STYLE, stand_in.UPSCALER], ids=lambda spec: spec.name
)
def test_shapes_reach_from_one_small_picture_to_a_batch_of_large_ones(
    spec: ModelSpec, tmp_path: Path, tools: Path
) -> None:
    """As many as config.pbtxt allows, of as many pixels, in any shape up to twice as long as it is wide."""
    repository = stand_in.repository(tmp_path / "repository", spec=spec)
    assert run(repository) == 0
    order = fake.orders(tools)[-1]
    said = dict(each.removeprefix("--").split("=", 1) for each in order if "=" in each)
    assert "--stronglyTyped" in order
    smallest, usual, largest = (
        dict(shape.split(":") for shape in said[name].split(",")) for name in ("minShapes", "optShapes", "maxShapes")
    )
    for tensor in spec.inputs:
        sizes = [[int(size) for size in shape[tensor.name].split("x")] for shape in (smallest, usual, largest)]
        assert sizes[0][0] == 1
        assert sizes[1][0] == sizes[2][0] == spec.max_batch
        for k, size in enumerate(tensor.shape, 1):
            one = [each[k] for each in sizes]
            if size > 0:
                assert one == [size] * 3
            elif tensor.members:
                assert one == [len(tensor.members)] * 3
            else:
                assert one == [16, 512, SIDES[spec.name]]
                assert 2 * spec.max_pixels - 2 * one[2] - 1 < one[2] ** 2 <= 2 * spec.max_pixels


# --- what is served when something goes wrong


@pytest.mark.parametrize(
    ("trtexec", "reasons"),
    [
        (fake.REFUSES, ["In node 3 (GridSample): unsupported", "Failed to parse onnx file"]),
        (fake.CRASHES, ["it ended with status -11"]),
        (fake.HANGS, ["not built in 0.2 s; --limit-s allows more"]),
        ("exit 0", ["it ended with status 0"]),
    ],
    ids=["refuses", "crashes", "hangs", "writes nothing"],
)
def test_a_failed_build_leaves_the_onnx_graph_in_service(
    repository: Path,
    tools: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trtexec: str,
    reasons: list[str],
) -> None:
    """A line for each of TensorRT's reasons, exit status 0, no plan, and nothing half written."""
    fake.install(tools, monkeypatch, trtexec=trtexec)
    assert run(repository, "--limit-s=0.2" if trtexec == fake.HANGS else "--limit-s=60") == 0
    for reason in reasons:
        assert [record.getMessage() for record in caplog.records if reason in record.getMessage()]
    assert all("\n" not in record.getMessage() for record in caplog.records)
    assert (planned(repository), told(repository), leftovers(repository)) == ([], False, [])


def test_plans_of_another_gpu_are_not_served_when_the_build_fails(
    repository: Path, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would not load."""
    run(repository)
    fake.install(tools, monkeypatch, gpu=fake.H100, trtexec=fake.REFUSES)
    assert run(repository) == 0
    assert (planned(repository), told(repository)) == ([], False)


def test_one_version_without_a_plan_keeps_its_model_on_onnx(
    repository: Path, tools: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Triton loads all versions in service or fails; a graph that is damaged is told, and has no plan."""
    (repository / "wgan" / "1" / repo.MODEL).write_bytes(b"damaged")
    assert run(repository) == 0
    assert (planned(repository), told(repository)) == (["2"], False)
    assert "wgan 1: no plan" in caplog.text
    assert "SHA-256" in caplog.text


def test_a_version_that_is_withdrawn_meanwhile_is_passed_over(
    repository: Path, tools: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A plan takes minutes to build, and another version may be gone by then; the others are served by theirs."""
    build = tensorrt.build

    def slowly(version: Path, *arguments: Any) -> None:
        build(version, *arguments)
        assert repo.withdraw(repository, "wgan") == 2

    monkeypatch.setattr(tensorrt, "build", slowly)
    assert run(repository) == 0
    assert (planned(repository), told(repository)) == (["1"], True)
    assert [record.getMessage() for record in caplog.records] == ["wgan 2: no plan: withdrawn meanwhile"]


def test_a_golden_batch_that_can_not_be_read_is_told(
    tmp_path: Path, tools: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """How long a vector of free length is stands nowhere else; that version has no plan."""
    repository = stand_in.repository(tmp_path / "repository", spec=stand_in.STYLE)
    with (repository / "style" / "2" / repo.GOLDEN).open("wb") as file:
        np.save(file, np.zeros(3))
    assert run(repository) == 0
    assert (planned(repository, "style"), told(repository, "style")) == (["1"], False)
    assert "style 2: no plan: golden.npz: no length of style_weights in it" in caplog.text


def test_a_full_disk_is_told(
    repository: Path, tools: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The system's own words, and no plan."""

    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert run(repository) == 0
    assert "no plan: No space left on device" in caplog.text
    assert (planned(repository), leftovers(repository)) == ([], [])


def test_what_a_killed_builder_has_left_is_cleared(repository: Path, tools: Path) -> None:
    """By the next one, which holds the version's lock."""
    (repository / "wgan" / "2" / f".{plans.PLAN}-0123").write_bytes(b"half")
    run(repository)
    assert leftovers(repository) == []


@pytest.mark.parametrize(
    ("smi", "reason"),
    [
        ("echo 'NVIDIA-SMI has failed'; exit 9", "no NVIDIA GPU here (nvidia-smi: NVIDIA-SMI has failed)"),
        (None, "no NVIDIA GPU here (nvidia-smi: No such file or directory)"),
        ("", "GPUs of one kind are needed, and there are none"),
        (
            "echo 'NVIDIA L4, 8.9'; echo 'NVIDIA T4, 7.5'",
            "GPUs of one kind are needed, and there are NVIDIA L4, 8.9 and NVIDIA T4, 7.5",
        ),
    ],
    ids=["driver", "no driver", "none", "two kinds"],
)
def test_without_a_gpu_nothing_changes(
    repository: Path, tools: Path, capsys: pytest.CaptureFixture[str], smi: str | None, reason: str
) -> None:
    """One line, exit status 2; what replicas with a GPU have built and serve stays."""
    run(repository)
    capsys.readouterr()
    (tools / "nvidia-smi").write_text(f"#!/bin/sh\n{smi}\n")
    if smi is None:
        (tools / "nvidia-smi").unlink()
    assert run(repository) == 2
    assert capsys.readouterr() == ("", f"{reason}\n")
    assert (planned(repository), told(repository)) == (["1", "2"], True)


def test_several_gpus_of_one_kind_are_one_target(tools: Path) -> None:
    """A plan runs on each of them."""
    (tools / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA L4, 8.9'; echo 'NVIDIA L4, 8.9'\n")
    assert tensorrt.gpu() == "NVIDIA L4, compute capability 8.9"


@pytest.mark.parametrize("lacking", ["trtexec", "TRT_VERSION"])
def test_without_tensorrt_the_image_that_has_it_is_named(
    repository: Path, tools: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lacking: str
) -> None:
    """One line, exit status 2."""
    (tools / "trtexec").unlink() if lacking == "trtexec" else monkeypatch.delenv(lacking)
    assert run(repository) == 2
    said = capsys.readouterr().err
    assert said.startswith("no TensorRT here (no ")
    assert lacking in said
    assert "serving-gpu" in said


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_what_reads_graphs_nothing_changes(
    repository: Path, tools: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    """One line that says what to install, exit status 2."""
    monkeypatch.setitem(sys.modules, package, None)
    before = sorted(repository.rglob("*"))
    assert run(repository) == 2
    assert capsys.readouterr() == ("", f"{package} is not installed: pip install '.[gpu]'\n")
    assert sorted(repository.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--repository=/nowhere"], "--repository /nowhere: no such folder"),
        (["--model=cats"], "--model cats: not in "),
        (["--model=wgan_x4"], "--model wgan_x4: Triton does not run its graph itself"),
        (["--limit-s=soon"], "argument --limit-s: 'soon' must be a number from 0 to 1e+06"),
        (["--limit-s=inf"], "argument --limit-s: 'inf' must be a number from 0 to 1e+06"),
    ],
)
def test_bad_arguments(
    tmp_path: Path, tools: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    """One line that names the flag, exit status 2."""
    repository = stand_in.repository(tmp_path / "repository", spec=stand_in.WGAN_X4)
    try:
        status: Any = run(repository, *arguments)
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr().err
    assert status == 2
    assert reason in said
    assert said.count("\n") == 1


# --- half precision


@of_shipped
def test_half_precision_keeps_the_signature_and_what_tensorrt_takes(model: str) -> None:
    """What ships, in halves: the same inputs and outputs, a valid graph, operators and types of TensorRT's table."""
    version = repo.REPOSITORY / model / str(repo.newest(repo.REPOSITORY, model))
    graph, made = onnx.load(version / repo.MODEL), onnx.load_from_string(tensorrt.half(version / repo.MODEL))
    onnx.checker.check_model(made, full_check=True)
    for before, after in ((graph.graph.input, made.graph.input), (graph.graph.output, made.graph.output)):
        signatures = [[(v.name, v.type.tensor_type.elem_type) for v in values] for values in (before, after)]
        assert signatures[0] == signatures[1]
    assert [reason for reason in operators.reasons(made) if "at the graph's edge" not in reason] == []
    convolved = {node.input[0] for node in made.graph.node if node.op_type == "Conv"}
    types = operators.tensor_types(made)
    assert {types[name] for name in convolved} == {TensorProto.FLOAT16}


@of_shipped
def test_half_precision_agrees_with_the_golden_batch(model: str) -> None:
    """Every tensor in 16 bits, as on a GPU, moves what floats answer by no more than `gpu_atol` allows."""
    spec = catalog.spec(model)
    version = repo.REPOSITORY / model / str(repo.newest(repo.REPOSITORY, model))
    golden = dict(np.load(version / repo.GOLDEN))
    graph = rounded(tensorrt.for_gpus(onnx.load(version / repo.MODEL)))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    names = [tensor.name for tensor in spec.outputs]
    answers = session.run(names, {tensor.name: golden[tensor.name] for tensor in spec.inputs})
    floats = [golden[name + repo.IN_FLOATS * spec.quantized] for name in names]
    worst = max(np.abs(answer.astype(float) - truth).max() for answer, truth in zip(answers, floats, strict=True))
    assert 0 < worst <= spec.gpu_atol


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, with what each operator takes and gives cast to 16 bits and back.

    ONNX Runtime leaves out the casts that it puts around operators itself: it would compute tensorrt.half() in 32 bits.
    """
    types, nodes = operators.tensor_types(model), []

    def pair(name: str, to: str) -> list[onnx.NodeProto]:
        short = f"{to}_short"
        return [
            helper.make_node("Cast", [name], [short], to=TensorProto.FLOAT16),
            helper.make_node("Cast", [short], [to], to=TensorProto.FLOAT),
        ]

    for node in model.graph.node:
        after = []
        if node.op_type not in ("Constant", "Cast", "Shape"):
            for k, name in enumerate(node.input):
                if types.get(name) == TensorProto.FLOAT and not (node.op_type == "Resize" and k):
                    node.input[k] = f"{name}_into_{len(nodes)}"
                    nodes += pair(name, node.input[k])
            for k, name in enumerate(node.output):
                if types.get(name) == TensorProto.FLOAT:
                    node.output[k] = f"{name}_from"
                    after += pair(node.output[k], name)
        nodes += [node, *after]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    return model


def test_a_graph_that_can_not_be_read_is_a_reason(tmp_path: Path) -> None:
    """Not a traceback."""
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(PlanError, match=r"^model.onnx can't be read"):
        tensorrt.half(tmp_path / "model.onnx")


def test_a_model_with_no_limit_has_one_in_its_plan() -> None:
    """A free side must end somewhere."""
    config = pbtxt.config(replace(stand_in.UPSCALER, max_pixels=0))
    ((smallest, _, largest),) = tensorrt.profile(config, Path("none")).values()
    assert (smallest, largest) == ([1, 16, 16, 3], [8, 2048, 2048, 3])
