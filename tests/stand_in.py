"""A small model with wgan's contract, drawn without training, for tests of everything around a model.

Run: PYTHONPATH=. python tests/stand_in.py DIR   (writes a model repository with versions 1 and 2)
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving import pbtxt
from serving.spec import ModelSpec
from training.models.wgan.spec import LATENT, SIZE, SPEC

COARSE = 16
GOLDEN = 4

Latents = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]


def _weights(seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Latent -> 3 coarse planes, and the triangle filter that enlarges a plane's side."""
    project = np.random.default_rng(seed).normal(0, LATENT**-0.5, (LATENT, 3 * COARSE * COARSE))
    fine, coarse = np.linspace(0, COARSE - 1, SIZE), np.arange(COARSE)
    enlarge = np.clip(1 - np.abs(fine[:, None] - coarse), 0, 1)
    return project.astype(np.float32), enlarge.astype(np.float32)


def images(latents: Latents, version: int) -> Images:
    """What version `version` answers to latents (N, 100): uint8 (N, 128, 128, 3), without ONNX."""
    project, enlarge = _weights(version)
    planes = np.tanh(latents @ project).reshape(-1, 3, COARSE, COARSE)
    planes = enlarge @ planes @ enlarge.T
    return np.rint(planes * 127 + 128).astype(np.uint8).transpose(0, 2, 3, 1)


def graph(version: int) -> onnx.ModelProto:
    """The same as an ONNX model."""
    project, enlarge = _weights(version)
    constants = {
        "project": project,
        "planes": np.array([-1, 3, COARSE, COARSE]),
        "rows": enlarge,
        "columns": enlarge.T.copy(),
        "scale": np.float32(127),
        "middle": np.float32(128),
    }
    nodes = [
        helper.make_node("MatMul", ["latent", "project"], ["projected"]),
        helper.make_node("Tanh", ["projected"], ["flat"]),
        helper.make_node("Reshape", ["flat", "planes"], ["coarse"]),
        helper.make_node("MatMul", ["rows", "coarse"], ["tall"]),
        helper.make_node("MatMul", ["tall", "columns"], ["fine"]),
        helper.make_node("Mul", ["fine", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "middle"], ["levels"]),
        helper.make_node("Round", ["levels"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["pixels"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["pixels"], ["image"], perm=[0, 2, 3, 1]),
    ]
    made = helper.make_graph(
        nodes,
        "stand_in",
        [helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["batch", LATENT])],
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def candidate(folder: Path, version: int = 1) -> Path:
    """Writes model.onnx, card.json and golden.npz into `folder`, as an export does; returns `folder`."""
    folder.mkdir(parents=True)
    onnx.save(graph(version), folder / "model.onnx")
    latents = np.random.default_rng(0).standard_normal((GOLDEN, LATENT)).astype(np.float32)
    np.savez(folder / "golden.npz", latent=latents, image=images(latents, version))
    card = {
        "model": SPEC.name,
        "version": version,
        "preset": "stand-in",
        "options": {"seed": version},
        "corpus": {"name": "none", "sha256": ""},
        "metrics": {"structure": 0.5 + version / 10, "palette": 0.9},
        "commit": "0" * 40,
        "sha256": hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest(),
        "trained_on": "nothing",
        "command": "python tests/stand_in.py",
        "created": "2025-01-01T00:00:00+00:00",
    }
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return folder


def repository(folder: Path, versions: tuple[int, ...] = (1, 2), spec: ModelSpec = SPEC) -> Path:
    """A complete model repository in `folder` that serves `spec`; returns `folder`."""
    for version in versions:
        candidate(folder / spec.name / str(version), version)
    (folder / spec.name).mkdir(parents=True, exist_ok=True)
    (folder / spec.name / "config.pbtxt").write_text(pbtxt.render(spec))
    return folder


if __name__ == "__main__":
    print(repository(Path(sys.argv[1])))
