"""Small models with the contracts of the real ones, drawn without training, for tests of all around one.

Run: PYTHONPATH=. python tests/stand_in.py DIR   (writes a model repository with versions 1 and 2 of each)
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving import pbtxt
from serving.spec import ANY, Ensemble, ModelSpec, Served, Tensor
from training.models.classifier import spec as garments
from training.models.colorizer import spec as colours
from training.models.style import spec as paintings
from training.models.upscaler import spec as sizes
from training.models.wgan.spec import LATENT, SIZE, SPEC
from training.models.wgan_x4 import spec as enlarged

CLASSIFIER = garments.SPEC
STYLE = paintings.SPEC.with_members({"style_weights": ("negative", "ink-red", "faded")})
UPSCALER = sizes.SPEC
COLORIZER = colours.SPEC
WGAN_X4 = enlarged.SPEC
COARSE = 16
REACH = 16
GOLDEN = 4

Latents = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float32]


# --- the generator ---


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
    nodes = [
        helper.make_node("MatMul", ["latent", "project"], ["projected"]),
        helper.make_node("Tanh", ["projected"], ["flat"]),
        helper.make_node("Reshape", ["flat", "planes"], ["coarse"]),
        helper.make_node("MatMul", ["rows", "coarse"], ["tall"]),
        helper.make_node("MatMul", ["tall", "columns"], ["fine"]),
        helper.make_node("Mul", ["fine", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "middle"], ["levels"]),
        helper.make_node("Round", ["levels"], ["rounded"]),
        helper.make_node("Transpose", ["rounded"], ["pixels"], perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["pixels"], ["image"], to=TensorProto.UINT8),
    ]
    return _model(
        SPEC,
        nodes,
        project=project,
        planes=np.array([-1, 3, COARSE, COARSE]),
        rows=enlarge,
        columns=enlarge.T.copy(),
        scale=np.float32(127),
        middle=np.float32(128),
    )


# --- the classifier ---


def _readout(version: int) -> npt.NDArray[np.float32]:
    """Pixels -> logits."""
    rng = np.random.default_rng(version)
    return rng.normal(0, 0.3, (garments.SIZE**2, len(garments.CLASSES))).astype(np.float32)


def probabilities(pictures: Images, version: int) -> Probabilities:
    """What version `version` answers to pictures uint8 (N, 28, 28, 1): float32 (N, 10), without ONNX."""
    logits = pictures.reshape(len(pictures), -1) / np.float32(255) @ _readout(version)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True), np.float32)


def classifier_graph(version: int) -> onnx.ModelProto:
    """The same as an ONNX model."""
    nodes = [
        helper.make_node("Cast", ["image"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["levels", "row"], ["numbers"]),
        helper.make_node("Div", ["numbers", "white"], ["shares"]),
        helper.make_node("MatMul", ["shares", "readout"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    row, white = np.array([-1, garments.SIZE**2]), np.float32(255)
    return _model(CLASSIFIER, nodes, row=row, white=white, readout=_readout(version))


# --- the style network ---


def _manners(version: int, styles: int) -> tuple[Weights, Weights]:
    """What each style makes of a level, per channel: a factor of it, and what is added. After three they repeat."""
    factors = np.repeat(np.array([[-1], [0], [0.5]], np.float32), 3, axis=1)
    added = np.array([[255, 255, 255], [200, 10 * version, 30], [100, 100, 100 + version]], np.float32)
    which = np.arange(styles) % 3
    return factors[which], added[which]


def styled(pictures: Images, weights: Weights, version: int) -> Images:
    """What version `version` answers to pictures uint8 (N, H, W, 3) and weights (N, styles), without ONNX."""
    shares = weights / weights.sum(1, keepdims=True)
    factors, added = (np.expand_dims(shares @ each, (1, 2)) for each in _manners(version, weights.shape[1]))
    return np.rint(np.clip(pictures * factors + added, 0, 255)).astype(np.uint8)


def style_graph(version: int, styles: int) -> onnx.ModelProto:
    """The same as an ONNX model."""
    factors, added = _manners(version, styles)
    nodes = [
        helper.make_node("ReduceSum", ["style_weights", "last"], ["sums"], keepdims=1),
        helper.make_node("Div", ["style_weights", "sums"], ["shares"]),
        helper.make_node("MatMul", ["shares", "factors"], ["factor_rows"]),
        helper.make_node("MatMul", ["shares", "added"], ["added_rows"]),
        helper.make_node("Unsqueeze", ["factor_rows", "sides"], ["factor"]),
        helper.make_node("Unsqueeze", ["added_rows", "sides"], ["shift"]),
        helper.make_node("Cast", ["content"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["levels", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["shifted"]),
        helper.make_node("Clip", ["shifted", "black", "white"], ["clipped"]),
        helper.make_node("Round", ["clipped"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["image"], to=TensorProto.UINT8),
    ]
    black, white = np.float32(0), np.float32(255)
    axes = {"last": np.array([1]), "sides": np.array([1, 2])}
    return _model(STYLE, nodes, factors=factors, added=added, black=black, white=white, **axes)


# --- the upscaler ---


def upscaled(pictures: Images, version: int) -> Images:
    """What version `version` answers to pictures uint8 (N, H, W, 3), without ONNX.

    Each level is half the pixel's own and half that of those REACH to its upper left and lower right, black outside.
    """
    own = pictures.astype(np.float32)
    far = np.pad(own, ((0, 0), (REACH, REACH), (REACH, REACH), (0, 0)))
    upper_left, lower_right = far[:, : -2 * REACH, : -2 * REACH], far[:, 2 * REACH :, 2 * REACH :]
    shown = np.rint(np.clip((2 * own + upper_left + lower_right) / 4 + version, 0, 255)).astype(np.uint8)
    return shown.repeat(sizes.SCALE, 1).repeat(sizes.SCALE, 2)


def upscaler_graph(version: int) -> onnx.ModelProto:
    """The same as an ONNX model."""
    nodes = [
        helper.make_node("Cast", ["low_res"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Pad", ["levels", "margins"], ["far"]),
        helper.make_node("Slice", ["far", "first", "to_last", "sides"], ["upper_left"]),
        helper.make_node("Slice", ["far", "from_first", "last", "sides"], ["lower_right"]),
        helper.make_node("Sum", ["levels", "levels", "upper_left", "lower_right"], ["sums"]),
        helper.make_node("Div", ["sums", "four"], ["mixed"]),
        helper.make_node("Add", ["mixed", "shift"], ["shifted"]),
        helper.make_node("Clip", ["shifted", "black", "white"], ["clipped"]),
        helper.make_node("Round", ["clipped"], ["rounded"]),
        helper.make_node("Resize", ["rounded", "", "scales"], ["large"], mode="nearest", nearest_mode="floor",
                         coordinate_transformation_mode="asymmetric"),
        helper.make_node("Cast", ["large"], ["image"], to=TensorProto.UINT8),
    ]  # fmt: skip
    black, white, four, shift = (np.float32(level) for level in (0, 255, 4, version))
    return _model(
        UPSCALER,
        nodes,
        margins=np.array([0, REACH, REACH, 0] * 2),
        sides=np.array([1, 2]),
        first=np.array([0, 0]),
        to_last=np.array([-2 * REACH] * 2),
        from_first=np.array([2 * REACH] * 2),
        last=np.array([np.iinfo(np.int64).max] * 2),
        scales=np.array([1, sizes.SCALE, sizes.SCALE, 1], np.float32),
        black=black,
        white=white,
        four=four,
        shift=shift,
    )


# --- the colorizer ---


def _tint(version: int) -> tuple[Weights, Weights]:
    """What is added to a gray level, per channel: for each stage, and once. It leaves luminance nearly as it is."""
    return np.array([20, 0, -20], np.float32), np.array([version, 0, 0], np.float32)


def colored(pictures: Images, stages: Weights, version: int) -> Images:
    """What version `version` answers to pictures uint8 (N, H, W, 1) and stages (N, 1), without ONNX."""
    each, once = _tint(version)
    levels = pictures + np.expand_dims(stages * each, (1, 2)) + once
    return np.rint(np.clip(levels, 0, 255)).astype(np.uint8)


def colorizer_graph(version: int) -> onnx.ModelProto:
    """The same as an ONNX model."""
    each, once = _tint(version)
    nodes = [
        helper.make_node("Mul", ["stage", "each"], ["rows"]),
        helper.make_node("Unsqueeze", ["rows", "sides"], ["tint"]),
        helper.make_node("Cast", ["gray"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Sum", ["levels", "tint", "once"], ["tinted"]),
        helper.make_node("Clip", ["tinted", "black", "white"], ["clipped"]),
        helper.make_node("Round", ["clipped"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["image"], to=TensorProto.UINT8),
    ]
    black, white = np.float32(0), np.float32(255)
    return _model(COLORIZER, nodes, each=each, once=once, sides=np.array([1, 2]), black=black, white=white)


# --- what is in a repository ---


def _model(spec: ModelSpec, nodes: list[onnx.NodeProto], **constants: Any) -> onnx.ModelProto:
    given, made = (
        [
            helper.make_tensor_value_info(
                t.name, {"FP32": TensorProto.FLOAT, "UINT8": TensorProto.UINT8}[t.dtype], ["batch", *_sides(t)]
            )
            for t in tensors
        ]
        for tensors in (spec.inputs, spec.outputs)
    )
    initial = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    drawn = helper.make_graph(nodes, "stand_in", given, made, initial)
    return helper.make_model(drawn, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _sides(tensor: Tensor) -> list[int | str]:
    return [f"{tensor.name}_{place}" if side == ANY else side for place, side in enumerate(tensor.shape)]


def _drawn(spec: ModelSpec, version: int) -> tuple[onnx.ModelProto, dict[str, npt.NDArray[Any]]]:
    """A model and its golden batch."""
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, (GOLDEN, 24, 32, 3), np.uint8)
    match spec.name:
        case "classifier":
            pictures = rng.integers(0, 256, (GOLDEN, garments.SIZE, garments.SIZE, 1), np.uint8)
            return classifier_graph(version), {"image": pictures, "probabilities": probabilities(pictures, version)}
        case "style":
            styles = len(spec.inputs[1].members)
            weights = rng.random((GOLDEN, styles), np.float32)
            painted = styled(photos, weights, version)
            return style_graph(version, styles), {"content": photos, "style_weights": weights, "image": painted}
        case "upscaler":
            return upscaler_graph(version), {"low_res": photos, "image": upscaled(photos, version)}
        case "colorizer":
            gray, stages = photos[..., :1], rng.uniform(1, 2, (GOLDEN, 1)).astype(np.float32)
            return colorizer_graph(version), {"gray": gray, "stage": stages, "image": colored(gray, stages, version)}
        case _:
            latents = rng.standard_normal((GOLDEN, LATENT)).astype(np.float32)
            return graph(version), {"latent": latents, "image": images(latents, version)}


def candidate(folder: Path, version: int = 1, spec: ModelSpec = SPEC) -> Path:
    """Writes model.onnx, card.json and golden.npz into `folder`, as an export does; returns `folder`."""
    folder.mkdir(parents=True)
    model, golden = _drawn(spec, version)
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "golden.npz", **golden)
    card = {
        "model": spec.name,
        "version": version,
        "preset": "stand-in",
        "options": {"seed": version},
        "corpus": {"name": "none", "sha256": ""},
        "metrics": {"structure": 0.5 + version / 10, "palette": 0.9},
        "members": {tensor.name: list(tensor.members) for tensor in spec.inputs if tensor.members},
        "commit": "0" * 40,
        "sha256": hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest(),
        "trained_on": "nothing",
        "command": "python tests/stand_in.py",
        "created": "2025-01-01T00:00:00+00:00",
    }
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return folder


def repository(folder: Path, versions: tuple[int, ...] = (1, 2), spec: Served = SPEC) -> Path:
    """A complete model repository in `folder` that serves `spec`, and the steps of an ensemble; returns `folder`."""
    if isinstance(spec, Ensemble):
        for step in spec.steps:
            repository(folder, versions, step.model)
    else:
        for version in versions:
            candidate(folder / spec.name / str(version), version, spec)
    for name, text in pbtxt.files(spec).items():
        path = folder / spec.name / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


if __name__ == "__main__":
    for each in (CLASSIFIER, STYLE, COLORIZER, WGAN_X4):
        print(repository(Path(sys.argv[1]), spec=each) / each.name)
