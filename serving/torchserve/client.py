"""TorchServe's REST inference API as bytes in and out, to be sent by any HTTP client.

path, headers, body = request("wgan", {"latent": latents}, server.token)
arrays, batch = response(post(server.http, path, headers, body), outputs)
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping

from tritonclient.grpc import model_config_pb2 as pb

from serving.errors import ServingError
from serving.torchserve.tensors import DTYPES, Array, pack, unpack, unpack_reply


class Refused(ServingError):
    """The handler refused a request; the message is the handler's."""


def request(model: str, arrays: Mapping[str, Array], token: str) -> tuple[str, dict[str, str], bytes]:
    """Path, headers and body of a POST: a multipart form with one file per tensor."""
    boundary = secrets.token_hex(16)
    parts = [_part(boundary, name, pack(array)) for name, array in arrays.items()]
    headers = {"Authorization": f"Bearer {token}", "Content-Type": f"multipart/form-data; boundary={boundary}"}
    return f"/predictions/{model}", headers, b"".join([*parts, f"--{boundary}--\r\n".encode()])


def _part(boundary: str, name: str, content: bytes) -> bytes:
    """One part of the form. Without a filename, TorchServe would take it for text."""
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n'
    return f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + content + b"\r\n"


def response(body: bytes, outputs: Iterable[pb.ModelOutput]) -> tuple[dict[str, Array], int]:
    """The outputs by name, and how many requests shared their batch. Raises Refused."""
    batch, data = unpack_reply(body)
    if not batch:
        raise Refused(bytes(data).decode())
    arrays = {}
    for tensor in outputs:
        dtype = DTYPES[pb.DataType.Name(tensor.data_type)]
        arrays[tensor.name], taken = unpack(data, dtype, len(tensor.dims) + 1)
        data = data[taken:]
    return arrays, batch
