"""The onnxruntime backend: shapes that differ, errors that stay with their request, and what it takes from config."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import counts
import failures
import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from conftest import need_tritonserver
from onnx import TensorProto, helper, numpy_helper
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from serving.embedded import Embedded

Array = np.ndarray[Any, Any]

# A batch that fills only with eight requests, so that these run together.
BATCH_OF_EIGHT = "dynamic_batching { max_queue_delay_microseconds: 20000000 }"


def write(folder: Path, config: str, model: onnx.ModelProto) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(f'backend: "onnxruntime"\nname: "{folder.name}"\n{config}')
    onnx.save(model, folder / "1" / "model.onnx")


def model(
    nodes: list[onnx.NodeProto], given: onnx.ValueInfoProto, made: onnx.ValueInfoProto, **constants: Array
) -> onnx.ModelProto:
    initial = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "test", [given], [made], initial)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def turn(folder: Path, batch: str, dims: str = "[-1, -1, 3]") -> None:
    """Any picture, turned upside down."""
    nodes = [helper.make_node("Slice", ["image", "start", "end", "axis", "step"], ["turned"])]
    sizes = ["batch", "height", "width", 3]
    value = helper.make_tensor_value_info
    minus = np.array([-1])
    write(
        folder,
        f"input {{ name: 'image' data_type: TYPE_UINT8 dims: {dims} }}\n"
        f"output {{ name: 'turned' data_type: TYPE_UINT8 dims: {dims} }}\n{batch}",
        model(
            nodes,
            value("image", TensorProto.UINT8, sizes),
            value("turned", TensorProto.UINT8, sizes),
            start=minus,
            end=np.array([-(2**31)]),
            axis=np.array([1]),
            step=minus,
        ),
    )


def twice(folder: Path) -> None:
    """A picture above itself, without batches: its answer is longer than what it is given."""
    value = helper.make_tensor_value_info
    write(
        folder,
        "input { name: 'image' data_type: TYPE_UINT8 dims: [-1, 3] }\n"
        "output { name: 'both' data_type: TYPE_UINT8 dims: [-1, 3] }",
        model(
            [helper.make_node("Concat", ["image", "image"], ["both"], axis=0)],
            value("image", TensorProto.UINT8, ["height", 3]),
            value("both", TensorProto.UINT8, ["twice", 3]),
        ),
    )


def pick(folder: Path) -> None:
    """The i-th of ten numbers, stored in half precision: an error for an i beyond."""
    nodes = [
        helper.make_node("Cast", ["index"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Cast", ["halves"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["numbers", "whole"], ["number"]),
    ]
    value = helper.make_tensor_value_info
    write(
        folder,
        "max_batch_size: 8\ninput { name: 'index' data_type: TYPE_FP32 dims: [1] }\n"
        f"output {{ name: 'number' data_type: TYPE_FP32 dims: [1] }}\n{BATCH_OF_EIGHT}",
        model(
            nodes,
            value("index", TensorProto.FLOAT, ["batch", 1]),
            value("number", TensorProto.FLOAT, ["batch", 1]),
            halves=(np.arange(10) / 2).astype(np.float16),
        ),
    )


def count(folder: Path) -> None:
    """How many pictures ran together, of at most 30,000 pixels each."""
    nodes = [
        helper.make_node("Shape", ["image"], ["members"], start=0, end=1),
        helper.make_node("Cast", ["members"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["members", "one"], ["shape"], axis=0),
        helper.make_node("Expand", ["number", "shape"], ["together"]),
    ]
    value = helper.make_tensor_value_info
    write(
        folder,
        "max_batch_size: 8\ninput { name: 'image' data_type: TYPE_UINT8 dims: [-1, -1, 3] allow_ragged_batch: true }\n"
        f"output {{ name: 'together' data_type: TYPE_FP32 dims: [1] }}\n{BATCH_OF_EIGHT}\n"
        "parameters { key: 'max_pixels' value { string_value: '30000' } }",
        model(
            nodes,
            value("image", TensorProto.UINT8, ["batch", "height", "width", 3]),
            value("together", TensorProto.FLOAT, ["batch", 1]),
            one=np.array([1]),
        ),
    )


def weigh(folder: Path) -> None:
    """The sum of three numbers, which config.pbtxt names and the graph alone counts; two instances."""
    value = helper.make_tensor_value_info
    write(
        folder,
        "max_batch_size: 8\ninput { name: 'weights' data_type: TYPE_FP32 dims: [-1] }\n"
        "output { name: 'sum' data_type: TYPE_FP32 dims: [1] }\ninstance_group { count: 2 kind: KIND_CPU }\n"
        "parameters { key: 'weights' value { string_value: 'scream,starry-night,water-lilies' } }",
        model(
            [helper.make_node("MatMul", ["weights", "ones"], ["sum"])],
            value("weights", TensorProto.FLOAT, ["batch", "members"]),
            value("sum", TensorProto.FLOAT, ["batch", 1]),
            ones=np.ones((3, 1), np.float32),
        ),
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    need_tritonserver()
    root = tmp_path_factory.mktemp("backend")
    turn(root / "turn", f"max_batch_size: 8\n{BATCH_OF_EIGHT}")
    turn(root / "turn_ragged", f"max_batch_size: 8\n{BATCH_OF_EIGHT}")
    ragged = root / "turn_ragged" / "config.pbtxt"
    ragged.write_text(ragged.read_text().replace("3] }", "3] allow_ragged_batch: true }", 1))
    turn(root / "turn_unbatched", "", dims="[-1, -1, -1, 3]")
    twice(root / "twice")
    pick(root / "pick")
    count(root / "count")
    weigh(root / "weigh")
    with Embedded(root) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Embedded) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc) as client:
        yield client


def ask(client: triton.InferenceServerClient, name: str, array: Array) -> Array:
    given = {"pick": "index", "weigh": "weights"}.get(name, "image")
    tensor = triton.InferInput(given, array.shape, np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    answer = client.infer(name, [tensor], client_timeout=60)
    made = answer.as_numpy(answer.get_response().outputs[0].name)
    assert made is not None
    return made


def pictures(sizes: list[tuple[int, int]]) -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (1, height, width, 3), np.uint8) for height, width in sizes]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        pytest.param("turn", [(33, 17)] * 8, id="one size"),
        pytest.param(
            "turn_ragged",
            [(16, 16), (20, 31), (16, 16), (1, 1), (20, 31), (64, 5), (16, 16), (5, 64)],
            id="sizes that differ",
        ),
    ],
)
def test_requests_of_one_batch(client: triton.InferenceServerClient, name: str, sizes: list[tuple[int, int]]) -> None:
    """Pictures that come together run together, and each request gets its own, in its own size."""
    given = pictures(sizes)
    answered, run = counts.inferences(client, name), counts.executions(client, name)
    with concurrent.futures.ThreadPoolExecutor(len(given)) as pool:
        made = list(pool.map(lambda image: ask(client, name, image), given))
    counts.reached(lambda: counts.inferences(client, name), answered + len(given))
    assert counts.executions(client, name) == run + 1
    for image, turned in zip(given, made, strict=True):
        np.testing.assert_array_equal(turned, image[:, ::-1])


def test_no_batching(client: triton.InferenceServerClient) -> None:
    """A model that does not batch gets each request as it is; its first dimension is its own."""
    (image,) = pictures([(9, 4)])
    three = np.repeat(image, 3, axis=0)
    np.testing.assert_array_equal(ask(client, "turn_unbatched", three), three[:, ::-1])
    row = image[0, :4, 0]
    np.testing.assert_array_equal(ask(client, "twice", row), np.concatenate([row, row]))


def test_error_stays_with_its_request(client: triton.InferenceServerClient) -> None:
    """A request that ONNX Runtime cannot run fails alone, with the reason; those beside it are answered."""
    indices = [0, 1, 99, 3, 4, -99, 6, 7]

    def outcome(index: int) -> float | str:
        try:
            return float(ask(client, "pick", np.array([[index]], np.float32)).item())
        except InferenceServerException as error:
            return error.message()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(outcome, indices))
    for index, got in zip(indices, made, strict=True):
        if 0 <= index < 10:
            assert got == index / 2
        else:
            assert f"idx={index}" in str(got)


def outcomes(client: triton.InferenceServerClient, given: list[Array]) -> list[float | str]:
    """What `count` answers to requests that come together: a number, or an error's text."""

    def outcome(image: Array) -> float | str:
        try:
            return float(ask(client, "count", image).item())
        except InferenceServerException as error:
            return error.message()

    with concurrent.futures.ThreadPoolExecutor(len(given)) as pool:
        return list(pool.map(outcome, given))


def test_large_pictures_of_one_batch_run_in_parts(client: triton.InferenceServerClient) -> None:
    """So many together as have 16,384 pixels, whether in eight requests or in one; of larger ones each alone."""
    assert outcomes(client, pictures([(64, 64)] * 8)) == [4] * 8
    assert sorted(outcomes(client, pictures([(64, 65)] * 8))) == [2, 2, 3, 3, 3, 3, 3, 3]
    together = ask(client, "count", np.concatenate(pictures([(64, 65)] * 8)))
    assert together.ravel().tolist() == [3, 3, 3, 3, 3, 3, 2, 2]
    assert outcomes(client, pictures([(128, 129)] * 8)) == [1] * 8


def test_a_picture_that_is_too_large_is_refused_alone(client: triton.InferenceServerClient) -> None:
    """One line with the tensor, its size and the limit; the others of its batch are answered, the largest too."""
    sizes = [(150, 200), (150, 201), (10, 10), (30001, 1), (10, 10), (300, 100), (4, 4), (5, 9)]
    assert outcomes(client, pictures(sizes)) == [
        1.0,
        "image: 201 x 150 pixels are more than the 30,000 of max_pixels; send a smaller picture",
        2.0,
        "image: 1 x 30001 pixels are more than the 30,000 of max_pixels; send a smaller picture",
        2.0,
        1.0,
        1.0,
        1.0,
    ]


# --- what failed is counted, as Triton takes every answer for a success


def test_nothing_has_failed_yet(server: Embedded, client: triton.InferenceServerClient) -> None:
    """Each reason is there from the start, at 0, so that the first failure is an increase; answers add nothing."""
    assert ask(client, "weigh", np.ones((1, 3), np.float32)).item() == 3
    assert failures.counted(server, "weigh") == failures.counted(server, "turn") == {"BACKEND": 0, "INVALID": 0}


def test_failures_are_counted_by_whose_fault_they_are(server: Embedded, client: triton.InferenceServerClient) -> None:
    """One for each request, though eight run together: the model's, and those whose pictures are too large."""
    before = {name: failures.counted(server, name) for name in ("pick", "count")}
    indices = [np.array([[index]], np.float32) for index in (0, 1, 99, 3, 4, -99, 6, 7)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, client, "pick", index) for index in indices]
    refused = [each.exception() for each in asked if each.exception()]
    assert [error.status() for error in refused] == ["StatusCode.INTERNAL"] * 2
    outcomes(client, pictures([(150, 201)] * 3 + [(10, 10)] * 5))
    for name, more in (("pick", {"BACKEND": 2, "INVALID": 0}), ("count", {"BACKEND": 0, "INVALID": 3})):
        assert failures.counted(server, name) == {reason: before[name][reason] + more[reason] for reason in more}


def test_instances_count_together_and_a_reload_goes_on(server: Embedded, client: triton.InferenceServerClient) -> None:
    """Two instances have one counter; the model that comes back has it, too."""

    def fail(times: int) -> None:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, client, "weigh", np.ones((1, 4), np.float32)) for _ in range(times)]
        for error in (each.exception() for each in asked):
            assert error.status() == "StatusCode.INVALID_ARGUMENT"
            assert error.message() == "weights: 4 numbers, and this version takes 3"

    before = failures.counted(server, "weigh")["INVALID"]
    fail(40)
    assert failures.counted(server, "weigh") == {"BACKEND": 0, "INVALID": before + 40}
    client.unload_model("weigh")
    counts.reached(lambda: not client.is_model_ready("weigh"), True)
    client.load_model("weigh")
    fail(1)
    assert failures.counted(server, "weigh") == {"BACKEND": 0, "INVALID": before + 41}
