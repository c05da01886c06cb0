"""TorchServe's gRPC inference API, as bytes in and out: no stubs, and no client of its own.

call = grpc.insecure_channel(server.grpc).unary_unary(PREDICTIONS)
arrays, batch = answer(call(question("wgan", {"latent": latents}), metadata=bearer(server.token)), outputs)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tritonclient.grpc import model_config_pb2 as pb

from serving.errors import ServingError
from serving.torchserve.tensors import DTYPES, Array, opened, packed, unpacked

PACKAGE = "org.pytorch.serve.grpc.inference"
PREDICTIONS = f"/{PACKAGE}.InferenceAPIsService/Predictions"

Field = descriptor_pb2.FieldDescriptorProto


class Refused(ServingError):
    """The handler's words about a request that it does not answer."""


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata that every call needs."""
    return (("protocol", "gRPC"), ("authorization", f"Bearer {token}"))


def question(model: str, arrays: Mapping[str, Array]) -> bytes:
    fields = {name: packed(array) for name, array in arrays.items()}
    return bytes(Request(model_name=model, input=fields).SerializeToString())


def answer(message: bytes, outputs: Iterable[pb.ModelOutput]) -> tuple[dict[str, Array], int]:
    """The outputs by name, and how many requests shared their batch. Raises Refused."""
    batch, data = opened(Response.FromString(message).prediction)
    if not batch:
        raise Refused(bytes(data).decode())
    arrays = {}
    for tensor in outputs:
        dtype = DTYPES[pb.DataType.Name(tensor.data_type)]
        arrays[tensor.name], taken = unpacked(data, dtype, len(tensor.dims) + 1)
        data = data[taken:]
    return arrays, batch


def _file() -> descriptor_pb2.FileDescriptorProto:
    """The two messages of TorchServe's inference.proto, as far as they are used."""
    file = descriptor_pb2.FileDescriptorProto(name="torchserve.proto", package=PACKAGE, syntax="proto3")
    request = file.message_type.add(name="PredictionsRequest")
    request.field.add(name="model_name", number=1, type=Field.TYPE_STRING, label=Field.LABEL_OPTIONAL)
    entry = request.nested_type.add(name="InputEntry", options={"map_entry": True})
    entry.field.add(name="key", number=1, type=Field.TYPE_STRING, label=Field.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=Field.TYPE_BYTES, label=Field.LABEL_OPTIONAL)
    kind = f".{PACKAGE}.PredictionsRequest.InputEntry"
    request.field.add(name="input", number=3, type=Field.TYPE_MESSAGE, label=Field.LABEL_REPEATED, type_name=kind)
    response = file.message_type.add(name="PredictionResponse")
    response.field.add(name="prediction", number=1, type=Field.TYPE_BYTES, label=Field.LABEL_OPTIONAL)
    return file


_MESSAGES = message_factory.GetMessages([_file()], descriptor_pool.DescriptorPool())
Request, Response = (_MESSAGES[f"{PACKAGE}.{name}"] for name in ("PredictionsRequest", "PredictionResponse"))
