"""The load generator's command, and the benches beside it: mistakes, and what their last line holds."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tests.load import __main__ as command
from tests.load import benches, knee, measure, tables, tune
from tests.load.plan import ClosedLoop, OpenLoop, Plan
from tests.load.stand_ins import made
from tests.load.targets import Target

ABOUT = {"date": "2026-11-30", "machine": "AMD EPYC", "cores": 2}
BENCHES = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))


@pytest.mark.parametrize(
    ("bench", "arguments"),
    [
        ("bench_fast_slow", ["--side", "0"]),
        ("bench_painter", ["--size", "0"]),
        ("bench_quantized", ["--rounds", "0"]),
        ("bench_serving", ["--rounds", "0"]),
        ("bench_serving", ["--model", "classifier", "--requests", "0"]),
        ("bench_serving", ["--model", "style", "--side", "15"]),
        ("bench_training", ["--rounds", "0"]),
        ("bench_serving", ["--model", "upscaler", "--side", "1024"]),
        ("bench_fast_slow", ["--out", "/proc/nowhere/x.png"]),
        ("bench_training", ["--steps", "-1"]),
        ("bench_training", ["--steps", "1"]),
        ("bench_training", ["--out", "/proc/nowhere/x.png"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_bench_refuses_what_it_cannot_measure(
    bench: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [bench, *arguments])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(f"tests.load.{bench}").main()
    said = capsys.readouterr().err
    assert arguments[-2] in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "walrus"], "no model 'walrus'"),
        (["--model", "wgan=0"], "--model"),
        (["--rate", "-1"], "--rate"),
        (["--callers", "0"], "--callers: '0' must be a whole number, 1 or more"),
        (["--callers", "two"], "--callers: 'two' must be a whole number, 1 or more"),
        (["--rate", "nan"], "--rate: 'nan' must be a number above 0"),
        (["--model", "painter", "--way", "in-process"], "--model painter"),
        (["--way", "in-process", "--url", "localhost:1"], "--url"),
        (["--url", ""], "--url: is empty; give the address of a Triton"),
        (["--callers", "1", "--processes", "2"], "--callers 1"),
        (["--report", "--write", "/nowhere/README.md"], "--write /nowhere/README.md"),
        (["--repository", "/nowhere"], "/nowhere"),
        (["--url", "localhost:1", "--callers", "1", "--requests", "1"], "localhost:1"),
        (["--agree", "--url", "localhost:1"], "--url: goes with a plain load, not with --agree"),
        (["--agree", "--seed", "0"], "--seed: goes with a plain load, not with --agree"),
        (["--agree", "--callers", "1", "--callers", "2"], "--callers: --agree takes one number"),
        (["--agree", "--way", "in-process"], "--way in-process"),
        (["--report", "--callers", "1"], "--callers: goes with a plain load or --agree, not with --report"),
        (["--report", "--p99-ms", "1"], "--p99-ms: goes with a plain load, not with --report"),
        (["--report", "--model", "painter"], "--model painter"),
        (["--report", "--model", "wgan=3"], "--model NAME=WEIGHT: makes a mix"),
        (["--write", "README.md"], "--write: goes with --report, not with a plain load"),
        (["--quick"], "--quick: goes with --agree or --report"),
        (["--model", "wgan=1", "--model", "wgan=3"], "--model wgan: given more than once"),
        (["--requests", "1", "--duration-s", "1"], "--requests: instead of --duration-s"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    try:
        status = command.main([*arguments, "--out", str(tmp_path / "out")])
    except SystemExit as exc:
        status = exc.code
    said = capsys.readouterr().err
    assert (status, said.count("\n")) == (2, 1), said
    assert says in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("main", "first"), [(command.main, []), (tune.main, ["classifier"])], ids=["load", "tune"])
def test_a_folder_that_cannot_be_written_is_refused_before_measuring(
    main: Callable[[list[str]], int], first: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what is in its place stays."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        main([*first, "--out", str(tmp_path / "file" / "deeper")])
    said = capsys.readouterr().err
    assert f"--out: {tmp_path / 'file'}: Not a directory" in said
    assert said.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_the_command_says_its_options_without_a_server() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.load", "--model", "classifier=3", "--dry-run"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["model"] == [["classifier", 3.0]]


@pytest.mark.parametrize(
    "given",
    [{}, {"warmup_s": 0.5, "duration_s": 2.0, "processes": 2, "seed": 3}, {"requests": 7, "seed": 0}],
    ids=["nothing", "a duration", "requests"],
)
def test_a_load_is_planned_as_its_options_say(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left out is as of any plan."""
    planned: list[Plan] = []
    target = Target(name="none")
    monkeypatch.setattr(command, "_target", lambda options, names: contextlib.nullcontext(target))
    monkeypatch.setattr(command, "Generator", contextlib.nullcontext)
    monkeypatch.setattr(knee, "stages", lambda generator, plan, *_: planned.append(plan) or [])
    monkeypatch.setattr(command, "_write_results", lambda *_: "")
    flags = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    assert command.main(["--model", "classifier", *flags]) == 0
    (plan,) = planned
    assert plan == Plan(target=target, load=ClosedLoop(1), mix=plan.mix, **given)


def test_what_a_load_leaves_behind_names_day_and_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last line, its file and its page."""
    monkeypatch.setattr(command, "machine", lambda: ABOUT)
    options = argparse.Namespace(out=tmp_path, way="grpc", p99_ms=100.0)
    line = command._write_results(options, "stand-in", [made(OpenLoop(10.0)), made(OpenLoop(20.0), failed=1)])
    report, folder = json.loads(line), tmp_path / "stand-in-grpc"
    assert json.loads((folder / "results.json").read_text()) == report
    assert {name: report[name] for name in ABOUT} == ABOUT
    assert "2026-11-30, 2 cores of AMD EPYC, generator beside the server" in (folder / "report.html").read_text()
    assert report["knee_per_s"] == 10
    assert capsys.readouterr().out.startswith("Knee: 10/s")


def test_the_machine_is_its_processor_and_its_cores() -> None:
    """For machines; tables say the same in words."""
    about = measure.machine()
    assert set(about) == {"date", "machine", "cores"}
    assert date.fromisoformat(about["date"])
    assert about["machine"] == measure.processor()
    assert tables.worded(ABOUT) == "2 cores of AMD EPYC, generator beside the server"


@pytest.mark.parametrize("name", BENCHES)
def test_the_last_line_of_every_bench_names_day_and_machine(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = importlib.import_module(f"tests.load.{name}")
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.setattr(bench, "report", lambda options: {"bench": name})
    monkeypatch.setattr(benches, "machine", lambda: ABOUT)
    assert bench.main() == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"bench": name, **ABOUT}
