"""Garments of a test's own, in the forms that Fashion-MNIST comes in."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

from training.data import fashion_mnist
from training.data.fashion_mnist import Garments, Split

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = fashion_mnist.OFFICIAL
TRAIN_CSV, TEST_CSV = fashion_mnist.KAGGLE


def garments(count: int, *, seed: int = 0) -> Split:
    """Noise with labels: every picture another, every class there from 10 on."""
    rng = np.random.default_rng(seed)
    return Split(rng.integers(0, 256, (count, 28, 28), np.uint8), (np.arange(count) % 10).astype(np.uint8))


def idx(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def csv(split: Split, *, header: bool = True) -> bytes:
    rows = [",".join(map(str, (label, *image.ravel()))) for image, label in zip(*split, strict=True)]
    title = ["label," + ",".join(f"pixel{k}" for k in range(1, 785))]
    return "".join(f"{row}\n" for row in (title if header else []) + rows).encode()


def write(folder: Path, contents: dict[str, bytes], *, zipped: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data, 1))
        else:
            (folder / name).write_bytes(data)
    return folder


def official(folder: Path, train: Split, test: Split, *, zipped: bool = True) -> Path:
    values = (train.images, train.labels, test.images, test.labels)
    return write(folder, {n: idx(v) for n, v in zip(fashion_mnist.OFFICIAL, values, strict=True)}, zipped=zipped)


def kaggle(folder: Path, train: Split, test: Split, *, zipped: bool = False) -> Path:
    return write(folder, {TRAIN_CSV: csv(train), TEST_CSV: csv(test)}, zipped=zipped)


def same(a: Garments, b: Garments) -> bool:
    pairs = zip((*a.train, *a.validation, *a.test), (*b.train, *b.validation, *b.test), strict=True)
    return a.sha256 == b.sha256 and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


def pictures(split: Split) -> set[bytes]:
    return {image.tobytes() for image in split.images}


TRAIN, TEST = garments(60, seed=1), garments(20, seed=2)
