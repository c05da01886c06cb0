"""Convolutions in 8-bit integers: that they are, what it costs, and that the floats come back as they were."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.numpy_helper import to_array
from torch import nn

from serving import repository, tensorrt
from training import export, quantize
from training.models.classifier.net import SURE, Cascade, Ensemble, ResidualNet, Served, folded
from training.models.classifier.spec import CLASSES, SIZE, SPEC

import onnxruntime


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """One that ships, untrained, with answers that depend on the picture."""
    torch.manual_seed(0)
    made = ResidualNet()
    for _ in range(3):
        made(torch.rand(64, 1, SIZE, SIZE))
    return Served(folded(made), temperature=0.2).eval()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """uint8 (64, 28, 28, 1): smooth blobs, as garments are, no noise that a mean makes alike."""
    coarse = torch.rand(64, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    smooth = nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic").clamp(0, 1)
    return (smooth * 255).byte().permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def golden(net: nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {"image": images[:8], "probabilities": net(torch.from_numpy(images[:8])).numpy()}


@pytest.fixture(scope="module")
def graphs(
    net: nn.Module, images: np.ndarray, golden: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The same graph before and after."""
    folder = tmp_path_factory.mktemp("graphs")
    before, after = folder / "floats.onnx", folder / "integers.onnx"
    export.write_onnx(net, SPEC, golden, before)
    after.write_bytes(before.read_bytes())
    how = quantize.Quantization(inputs={"image": list(images)}, operators=("Conv", "Relu", "Add", "MaxPool"))
    quantize.quantize(after, how)
    return before, after


def answers(graph: Path | bytes, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    probabilities: np.ndarray = session.run(None, {"image": images})[0]
    return probabilities


def test_all_convolutions_compute_in_integers(graphs: tuple[Path, Path], tmp_path: Path) -> None:
    """In the graph as ONNX Runtime runs it, no convolution of floats is left, and no rounding of weights."""
    ran = kinds(optimized(graphs[1], tmp_path))
    assert ran["QLinearConv"] == kinds(onnx.load(graphs[0]))["Conv"] > 0
    assert not {"Conv", "FusedConv"} & set(ran)


@pytest.mark.parametrize(
    ("model", "in_floats"),
    [
        ("classifier", 0),
        ("colorizer", 1),  # that which mixes light into colours
        ("style", 2),  # the first, which sees pixels, and the last, which makes them
        ("upscaler", 0),
    ],
)
def test_shipped_convolutions_compute_in_integers(model: str, in_floats: int, tmp_path: Path) -> None:
    graph = repository.REPOSITORY / model / str(repository.newest(repository.REPOSITORY, model)) / repository.MODEL
    all_of_them = kinds(tensorrt.for_gpus(onnx.load(graph)))["Conv"]
    ran = kinds(optimized(graph, tmp_path))
    assert ran["Conv"] + ran["FusedConv"] == in_floats
    assert ran["QLinearConv"] == all_of_them - in_floats > 0


def test_averaged_bounds_are_the_mean_of_each_inputs_own(graphs: tuple[Path, Path], tmp_path: Path) -> None:
    """One picture is black, the other white: in between lie the bounds of what enters the first convolution."""
    pictures = [np.full((SIZE, SIZE, 1), level, np.uint8) for level in (0, 255)]
    steps = {}
    for averaged in (False, True):
        graph = tmp_path / "graph.onnx"
        graph.write_bytes(graphs[0].read_bytes())
        quantize.quantize(graph, quantize.Quantization(inputs={"image": pictures}, averaged=averaged))
        made = onnx.load(graph).graph
        stored = {each.name: onnx.numpy_helper.to_array(each) for each in made.initializer}
        (of_picture,) = (n for n in made.node if n.op_type == "QuantizeLinear" and "Div" in n.input[0])
        steps[averaged] = float(stored[of_picture.input[1]])
    assert steps[False] == pytest.approx(1 / 255)
    assert steps[True] == pytest.approx(0.5 / 255)


def test_nodes_of_a_module_stay_in_floats(graphs: tuple[Path, Path], images: np.ndarray, tmp_path: Path) -> None:
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(graphs[0].read_bytes())
    first = next(node.name for node in onnx.load(graph).graph.node if node.op_type == "Conv")
    quantize.quantize(graph, quantize.Quantization(inputs={"image": list(images[:2])}, floats=(first,)))
    ran = kinds(optimized(graph, tmp_path))
    assert ran["Conv"] + ran["FusedConv"] == 1
    assert ran["QLinearConv"] == kinds(onnx.load(graphs[0]))["Conv"] - 1


def optimized(graph: Path, folder: Path) -> onnx.ModelProto:
    """As ONNX Runtime runs it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def kinds(model: onnx.ModelProto) -> Counter[str]:
    """How many operators of each kind there are."""
    return Counter(node.op_type for node in model.graph.node)


def test_answers_stay_close(graphs: tuple[Path, Path], images: np.ndarray) -> None:
    """Probabilities are moved, and by little beside how much they differ among pictures."""
    floats, integers = (answers(graph, images) for graph in graphs)
    moved = np.abs(floats - integers)
    assert 0 < moved.mean() < 0.1 * floats.std(0).mean()
    assert (floats.argmax(1) == integers.argmax(1)).mean() > 0.9


def test_products_of_two_fit_16_bits(graphs: tuple[Path, Path]) -> None:
    """CPUs without VNNI add up two products of an activation, up to 255, and a weight in 16 bits, saturating."""
    graph = onnx.load(graphs[1]).graph
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    weights = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in stored]
    assert len(weights) == 9
    for node in weights:
        steps = stored[node.input[0]] / stored[node.input[1]].reshape(-1, 1, 1, 1)
        assert 2 * 255 * np.abs(np.rint(steps)).max() < 2**15


def test_floats_come_back(graphs: tuple[Path, Path], images: np.ndarray) -> None:
    """The operators are those from before, and so are the answers, but for biases."""
    before = onnx.load(graphs[0])
    after = tensorrt.for_gpus(onnx.load(graphs[1]))
    onnx.checker.check_model(after, full_check=True)
    assert sorted(node.op_type for node in after.graph.node) == sorted(node.op_type for node in before.graph.node)
    differences = np.abs(answers(after.SerializeToString(), images) - answers(graphs[0], images))
    assert differences.max() < 1e-3


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    """Three nets, untrained, of which the first is sure of some images and not of others."""
    torch.manual_seed(3)
    nets = [ResidualNet() for _ in range(3)]
    for net in nets:
        for _ in range(3):
            net(torch.rand(64, 1, SIZE, SIZE))
    ensemble = folded(Ensemble([net.state_dict() for net in nets], "residual"))
    return Cascade(ensemble, temperature=0.015).eval()


def test_gpus_ask_all_nets_of_all_pictures(cascade: Cascade, images: np.ndarray, tmp_path: Path) -> None:
    """The graph of a cascade answers as that does, one by one and together; what GPUs get, as the ensemble does."""
    ensemble = Served(cascade.net, cascade.temperature).eval()
    assert isinstance(ensemble.net, Ensemble)
    given = torch.from_numpy(images)
    with torch.no_grad():
        of_first = Served(ensemble.net.nets[0], ensemble.temperature)(given).amax(1)
        plain, chosen = ensemble(given).numpy(), cascade(given).numpy()
    assert 0 < (of_first < SURE[0]).sum() < len(images)
    assert np.abs(plain - chosen).max() > 0.1

    path = tmp_path / "cascade.onnx"
    export.write_onnx(cascade, SPEC, {"image": images[:8]}, path)
    assert np.allclose(answers(path, images), chosen, atol=0.01)
    one_by_one = np.concatenate([answers(path, images[k : k + 1]) for k in range(len(images))])
    assert np.allclose(one_by_one, chosen, atol=0.01)

    quantize.quantize(path, quantize.Quantization(inputs={"image": list(images)}))
    after = tensorrt.for_gpus(onnx.load(path))
    onnx.checker.check_model(after, full_check=True)
    assert not {"NonZero", "ScatterND", "QuantizeLinear"} & set(kinds(after))
    assert np.allclose(answers(after.SerializeToString(), images), plain, atol=0.01)


def test_what_a_cascade_is_sure_of_bounds_all_its_nets(cascade: Cascade, images: np.ndarray, tmp_path: Path) -> None:
    """A net that learnt its training pictures by heart is sure of them all. The others' integers are of the same bounds
    as if they had been asked, and the graph asks them of what the first is unsure of, as before."""
    first = Served(cascade.net.nets[0], cascade.temperature)  # type: ignore[union-attr,index]
    with torch.no_grad():
        sure = (first(torch.from_numpy(images)).amax(1) >= SURE[0]).numpy()
    assert 0 < sure.sum() < len(images)
    floats, integers = tmp_path / "floats.onnx", tmp_path / "integers.onnx"
    export.write_onnx(cascade, SPEC, {"image": images[:8]}, floats)
    integers.write_bytes(floats.read_bytes())
    how = {"operators": ("Conv", "Relu", "Add", "MaxPool")}
    quantize.quantize(integers, quantize.Quantization(inputs={"image": list(images[sure])}, **how))
    stored = {weights.name: to_array(weights) for weights in onnx.load(integers).graph.initializer}
    assert not [name for name, value in stored.items() if name.endswith("_scale") and (value == 1).all()]
    rounded, plain = (answers(graph, images[~sure]) for graph in (integers, floats))
    assert np.median(np.abs(rounded - plain).max(1)) < 0.05


def test_graph_without_rounding_stays_as_it_is(graphs: tuple[Path, Path], images: np.ndarray) -> None:
    after = tensorrt.for_gpus(onnx.load(graphs[0])).SerializeToString()
    assert np.array_equal(answers(after, images), answers(graphs[0], images))


def test_recipe_asks_the_graph_as_it_asks_its_net(
    net: nn.Module, graphs: tuple[Path, Path], images: np.ndarray
) -> None:
    served = quantize.answered_by(graphs[1], SPEC, net)
    assert isinstance(served, Served)
    probabilities = served(torch.from_numpy(images))
    assert probabilities.shape == (len(images), len(CLASSES))
    assert np.array_equal(probabilities.numpy(), answers(graphs[1], images))


def test_gate_compares_the_floats_with_the_eager_model(
    graphs: tuple[Path, Path], golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """A graph that rounds right what was exported wrong is refused; so is one that answers otherwise to one alone."""
    (tmp_path / repository.MODEL).write_bytes(graphs[1].read_bytes())
    floats = f"probabilities{repository.IN_FLOATS}"
    right = {
        "image": golden["image"], "probabilities": answers(graphs[1], golden["image"]), floats: golden["probabilities"],
    }  # fmt: skip
    np.savez(tmp_path / repository.GOLDEN, **right)
    assert export.parity_reasons(tmp_path, SPEC) == []
    assert export.graph_reasons(tmp_path / repository.MODEL, SPEC) == []
    np.savez(tmp_path / repository.GOLDEN, **right | {floats: right[floats] + np.float32(0.002)})
    assert "probabilities differs from the eager model" in export.parity_reasons(tmp_path, SPEC)[0]
    swapped = right["probabilities"][:, ::-1]
    assert np.abs(swapped - right["probabilities"]).max() > SPEC.golden_atol
    np.savez(tmp_path / repository.GOLDEN, **right | {"probabilities": swapped})
    (reason,) = export.parity_reasons(tmp_path, SPEC)
    assert reason.startswith("probabilities differs from its own answers to all together by")


def test_candidate_of_before_is_refused_in_words(
    graphs: tuple[Path, Path], golden: dict[str, np.ndarray], tmp_path: Path
) -> None:
    (tmp_path / repository.MODEL).write_bytes(graphs[0].read_bytes())
    np.savez(tmp_path / repository.GOLDEN, **golden)
    (reason,) = export.parity_reasons(tmp_path, SPEC)
    assert reason.startswith("no probabilities.floats in golden.npz")
