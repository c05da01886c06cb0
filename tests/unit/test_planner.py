"""serving.planner against NVIDIA's own bindings, whose types are real and which have no TensorRT behind them here."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
import tensorrt_stand_in as fake
from conftest import need
from scripts import ROOT

from serving import tensorrt

# What the bindings ask of TensorRT's libraries; they call none of it while they are imported.
ENTRIES = """createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL getPluginRegistry
createNvOnnxParserRefitter_INTERNAL createNvOnnxParser_INTERNAL getBuilderPluginRegistry getNvOnnxParserVersion
initLibNvInferPlugins""".split()  # noqa: SIM905
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
USED = {
    "Builder": ["create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"],
    "IBuilderConfig": ["add_optimization_profile", "create_timing_cache", "set_timing_cache", "get_timing_cache"],
    "OnnxParser": ["parse_from_file", "num_errors", "get_error"],
    "ParserError": ["desc", "node_operator"],
    "IOptimizationProfile": ["set_shape"],
    "ITimingCache": ["serialize"],
    "NetworkDefinitionCreationFlag": ["STRONGLY_TYPED"],
    "Logger": ["ERROR"],
}


@pytest.fixture(scope="module")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the bindings can be imported: TensorRT's libraries are stand-ins, empty but for names."""
    need(find_spec("tensorrt_bindings"), "tensorrt_bindings is missing: pip install '.[dev]'")
    need(shutil.which("gcc"), "gcc is missing: apt install gcc libc6-dev")
    folder = tmp_path_factory.mktemp("empty")
    (folder / "empty.c").write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRIES))
    for name in LIBRARIES:
        file = f"{name}.so.11"
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{file}", "-o", file, "empty.c"]
        subprocess.run(command, cwd=folder, check=True)
    return {**os.environ, "LD_LIBRARY_PATH": str(folder)}


def run(environment: dict[str, str], *command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_all_that_is_used_is_there(bindings: dict[str, str]) -> None:
    """Every class, method and flag, in the version of TensorRT that the Triton image has."""
    names = [f"{owner}.{name}" for owner, used in USED.items() for name in used]
    lacking = f"[name for name in {names} if not eval('hasattr(trt.' + name.replace('.', ', \"') + '\")')]"
    done = run(bindings, sys.executable, "-c", f"import tensorrt_bindings as trt; print(trt.__version__, {lacking})")
    assert (done.returncode, done.stdout) == (0, "11.1.0.106 []\n"), done


def test_types(bindings: dict[str, str], tmp_path: Path) -> None:
    """mypy, strict, with the stubs that it makes from the bindings themselves."""
    made = tmp_path / "tensorrt_bindings"
    command = [str(Path(sys.executable).with_name("stubgen")), "--inspect-mode", "--quiet", "--output", str(tmp_path)]
    done = run(bindings, *command, "--module", "tensorrt_bindings.tensorrt")
    assert done.returncode == 0, done
    (made / "__init__.pyi").write_text("from tensorrt_bindings.tensorrt import *\n")
    stubs = made / "tensorrt.pyi"
    stubs.write_text(mended(stubs.read_text()))
    mypy = [sys.executable, "-m", "mypy", "--config-file=", "--strict", f"--cache-dir={tmp_path / 'cache'}"]
    planner = Path(shutil.copy(ROOT / "serving" / "planner.py", tmp_path))
    assert type_errors(run({**bindings, "MYPYPATH": str(tmp_path)}, *mypy, str(planner))) == []
    planner.write_text(planner.read_text().replace("builder.create_network(", "builder.create_graph("))
    (error,) = type_errors(run({**bindings, "MYPYPATH": str(tmp_path)}, *mypy, str(planner)))
    assert '"Builder" has no attribute "create_graph"' in error


def mended(stubs: str) -> str:
    """Without what no type checker can read, and with what only the bindings' documentation tells."""
    stubs = re.sub(r"(?m)^ +def add_scale_nd\(.*\n|^bool\b.*\n", "", stubs)
    stubs = stubs.replace(
        "def get_error(self, *args, **kwargs): ...", "def get_error(self, index: int) -> ParserError: ..."
    )
    return stubs.replace(
        "class IHostMemory:\n", "class IHostMemory:\n    def __buffer__(self, flags: int, /) -> memoryview: ...\n"
    )


def type_errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Of the planner; the stubs have their own, which concern nobody."""
    assert done.returncode in (0, 1), done
    return [line for line in done.stdout.splitlines() if "planner.py" in line and " error: " in line]


def test_without_tensorrt_it_ends_with_one_line(bindings: dict[str, str], tmp_path: Path) -> None:
    """NVIDIA's own builder, which finds no TensorRT: no plan, and no plan file."""
    order = tmp_path / "order.json"
    order.write_text(f'{{"graph": "g", "plan": "{tmp_path}/plan", "timing_cache": "t", "shapes": {{}}}}')
    done = run(bindings, sys.executable, "-m", "serving.planner", str(order))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("TensorRT does not start")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "plan").exists()


# --- the order of calls, with a stand-in for TensorRT


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Takes every call, and notes it."""
    made = MagicMock(spec=ModuleType, **dict.fromkeys(USED), **{"Dims": tuple})
    for name in USED:
        setattr(made, name, MagicMock())
    made.NetworkDefinitionCreationFlag.STRONGLY_TYPED = 1
    builder = made.Builder.return_value
    builder.build_serialized_network.return_value = b"plan"
    builder.create_builder_config.return_value.get_timing_cache.return_value.serialize.return_value = b"timings"
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", made)
    return made


@pytest.fixture
def planner(trt: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """serving.planner over that; nobody else gets to see it."""
    monkeypatch.delitem(sys.modules, "serving.planner", raising=False)
    yield importlib.import_module("serving.planner")
    del sys.modules["serving.planner"]


def ordered(planner: ModuleType, tmp_path: Path) -> str:
    shapes = {"latent": ([1, 100], [32, 100], [32, 100])}
    path = tmp_path / "order.json"
    planner.Order("model.onnx", str(tmp_path / "plan"), str(tmp_path / "timings"), shapes).write(path)
    return str(path)


def test_a_plan_and_its_timings_are_written(trt: Any, planner: ModuleType, tmp_path: Path) -> None:
    """Strongly typed, with the order's shapes, and with what was measured before."""
    (tmp_path / "timings").write_bytes(b"before")
    assert planner.main([ordered(planner, tmp_path)]) == 0
    assert ((tmp_path / "plan").read_bytes(), (tmp_path / "timings").read_bytes()) == (b"plan", b"timings")
    builder = trt.Builder.return_value
    config = builder.create_builder_config.return_value
    builder.create_network.assert_called_once_with(1 << 1)
    profile = builder.create_optimization_profile.return_value
    profile.set_shape.assert_called_once_with("latent", (1, 100), (32, 100), (32, 100))
    config.add_optimization_profile.assert_called_once_with(profile)
    config.create_timing_cache.assert_called_once_with(b"before")


def test_the_api_is_asked_where_it_is(
    trt: Any, planner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than trtexec: serving.tensorrt starts this module, with all that it needs in a file."""
    fake.install(tmp_path / "tools", monkeypatch)
    trt.__version__ = "11.1.0.106"
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", trt)
    by = tensorrt.builder()
    assert str(by.target) == "TensorRT 11.1.0.106 on NVIDIA L4, compute capability 8.9"
    shapes = {"latent": ([1, 100], [32, 100], [32, 100])}
    command = by.command(tmp_path / "model.onnx", tmp_path / "plan", tmp_path / "timings", shapes)
    assert command[:3] == [sys.executable, "-m", "serving.planner"]
    assert planner.main(command[3:]) == 0
    assert (tmp_path / "plan").read_bytes() == b"plan"


def test_timings_of_another_gpu_are_measured_anew(trt: Any, planner: ModuleType, tmp_path: Path) -> None:
    """TensorRT does not take them; it starts with none."""
    (tmp_path / "timings").write_bytes(b"before")
    config = trt.Builder.return_value.create_builder_config.return_value
    config.set_timing_cache.return_value = False
    assert planner.main([ordered(planner, tmp_path)]) == 0
    assert [call.args for call in config.create_timing_cache.call_args_list] == [(b"before",), (b"",)]


def test_a_graph_that_is_not_taken_is_told_in_a_line_for_each_error(
    trt: Any, planner: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The operator and the parser's words; no plan."""
    parser = trt.OnnxParser.return_value
    parser.parse_from_file.return_value, parser.num_errors = False, 2
    errors = [MagicMock(), MagicMock()]
    for error, operator, words in zip(errors, ("GridSample", ""), ("not supported", "no weights"), strict=True):
        error.node_operator.return_value, error.desc.return_value = operator, words
    parser.get_error.side_effect = errors
    assert planner.main([ordered(planner, tmp_path)]) == 1
    assert capsys.readouterr().err == "GridSample: not supported\ngraph: no weights\n"
    assert not (tmp_path / "plan").exists()


def test_no_plan_is_told(trt: Any, planner: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The builder answers with nothing where it finds no kernels or no memory, and logs why."""
    trt.Builder.return_value.build_serialized_network.return_value = None
    assert planner.main([ordered(planner, tmp_path)]) == 1
    assert capsys.readouterr().err == "TensorRT built none\n"
