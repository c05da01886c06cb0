"""What finding the garment is worth on photos: accuracy with it, and with the source program's preprocessing.

Run: ATELIER_DATA=DIR python -m tests.load.bench_photos      (last line of stdout: one JSON object)

DIR/clothing holds labels.csv (file, label, fashion_mnist_hint, …, split) and clothing.tar with the photos. Their set's
own classes are mapped to the ten by the hint; photos without one are left out. Half `test` is for a final number only:
nothing was chosen by it.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
import sys
import tarfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

import atelier
from atelier import garments, pictures
from serving import cli
from serving.embedded import Embedded
from tests.load import benches
from training.data.files import home
from training.errors import BadInput

LABELS = garments.NAMES["en"]
METHODS: tuple[Literal["find", "source"], ...] = ("source", "find")


def photos(folder: Path, half: str) -> list[tuple[Image.Image, int]]:
    """Every photo of a half that has a hint, as RGB, with the label of its class."""
    with (folder / "labels.csv").open(newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file) if row["split"] == half}
    found = []
    with tarfile.open(folder / "clothing.tar") as tar:
        for member in tar:
            row = rows.get(member.name.removeprefix("./"))
            if row and row["fashion_mnist_hint"] and (content := tar.extractfile(member)):
                photo = pictures.as_rgb(Image.open(io.BytesIO(content.read())), name=member.name)
                found.append((photo, LABELS.index(row["fashion_mnist_hint"])))
    print(f"half {half}: {len(found)} photos of {len(rows)} have one of the ten classes")
    return found


def look(photo: Image.Image, method: Literal["find", "source"], took_s: list[float]) -> np.ndarray:
    begun = time.perf_counter()
    seen = garments.preprocess_garment(photo, method=method)
    took_s.append(time.perf_counter() - begun)
    return seen


def show(truth: np.ndarray, said: np.ndarray) -> None:
    """For each class there is: how many are right, and what the others are taken for."""
    for label in np.unique(truth):
        answers = np.bincount(said[truth == label], minlength=len(LABELS))
        wrong = [f"{LABELS[k]} {answers[k]}" for k in np.argsort(-answers) if answers[k] and k != label]
        print(f"  {LABELS[label]:12} {answers[label] / answers.sum():6.1%} of {answers.sum():3}; {', '.join(wrong)}")


def main() -> int:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--half", choices=("dev", "test"), default="dev")
    return benches.run(report, parser.parse_args())


def report(asked: argparse.Namespace) -> dict[str, Any]:
    half, folder = asked.half, home() / "clothing"
    for name in ("labels.csv", "clothing.tar"):
        if not (folder / name).is_file():
            raise BadInput(f"ATELIER_DATA: no clothing/{name} in {home()}; name the folder that holds it")
    given = photos(folder, half)
    truth = np.array([label for _, label in given])

    told: dict[str, Any] = {"bench": "photos", "half": half, "photos": len(given)}
    with Embedded(models=["classifier"]) as server, atelier.Client(server.grpc) as client:
        for method in METHODS:
            took_s: list[float] = []
            answers = client.classify(np.stack([look(photo, method, took_s) for photo, _ in given]))
            said = np.array([LABELS.index(answer.label) for answer in answers])
            accuracy, took_ms = float((said == truth).mean()), 1000 * statistics.median(took_s)
            print(f"{method}: {accuracy:.1%} right; {took_ms:.1f} ms a photo")
            show(truth, said)
            told |= {method: round(accuracy, 4), f"{method}_ms": round(took_ms, 1), "version": answers[0].version}
    return told


if __name__ == "__main__":
    sys.exit(main())
