"""Tensors as TorchServe carries them: raw bytes, because its API has no tensors and JSON spells out each number.

A tensor is its dimensions as little-endian int32, then its elements; dtype and rank are known from the model. A reply
begins with the number of requests in its batch, as int32; after a 0 comes the text of a refusal instead of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "TYPE_FP32": np.dtype("<f4"),
    "TYPE_INT32": np.dtype("<i4"),
    "TYPE_UINT8": np.dtype("u1"),
}
"""By their names in config.pbtxt."""
INT32 = np.dtype("<i4")


def pack(array: Array) -> bytes:
    return np.array(array.shape, INT32).tobytes() + array.tobytes()


def unpack(data: bytes | memoryview, dtype: np.dtype[Any], rank: int) -> tuple[Array, int]:
    """The tensor at the start of `data`, a view of it, and how many bytes it takes up. Raises ValueError."""
    head = rank * INT32.itemsize
    if len(data) < head:
        raise ValueError(f"{len(data)} bytes, fewer than the dimensions take")
    shape = np.frombuffer(data, INT32, rank).tolist()
    count = math.prod(shape)
    if min(shape) < 0 or len(data) - head < count * dtype.itemsize:
        raise ValueError(f"{len(data) - head} bytes of elements, too few for {dtype} of {shape}")
    return np.frombuffer(data, dtype, count, head).reshape(shape), head + count * dtype.itemsize


def reply(batch: int, arrays: Iterable[Array]) -> bytes:
    return _int32(batch) + b"".join(map(pack, arrays))


def refusal(words: str) -> bytes:
    return _int32(0) + words.encode()


def unpack_reply(data: bytes) -> tuple[int, memoryview]:
    """How many requests shared the batch, 0 for a refusal, and what follows that number."""
    return int(np.frombuffer(data, INT32, 1)[0]), memoryview(data)[INT32.itemsize :]


def _int32(value: int) -> bytes:
    return np.array(value, INT32).tobytes()
