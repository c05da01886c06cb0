"""Photographs whole: of any shape, from folders and zips, upright, and no larger than asked for."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data import photos
from training.errors import BadInput


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A wide picture, a small gray one, and one that lies on its side by its EXIF."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 100, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(rng.integers(0, 255, (20, 31), dtype=np.uint8)).save(tmp_path / "b.png")
    lying = Image.new("RGB", (60, 20), "red")
    exif = lying.getexif()
    exif[0x0112] = 6  # orientation: turn by a quarter to see it
    lying.save(tmp_path / "c.jpg", exif=exif)
    return tmp_path


def test_pictures_keep_their_shapes_up_to_a_side(folder: Path) -> None:
    """Only what is larger is reduced, in proportion; gray becomes colour; what lies is put upright."""
    pictures = photos.read_whole(folder, photos.find(folder), side=50)
    assert [picture.shape for picture in pictures] == [(20, 50, 3), (20, 31, 3), (50, 17, 3)]
    assert np.array_equal(pictures[1][..., 0], np.asarray(Image.open(folder / "b.png")))


def test_a_zip_holds_the_same_pictures(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without being unpacked."""
    path = tmp_path_factory.mktemp("zips") / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in photos.find(folder):
            archive.write(folder / name, name)
    loose, packed = (photos.read_whole(source, photos.find(source), side=50) for source in (folder, path))
    assert all(np.array_equal(a, b) for a, b in zip(loose, packed, strict=True))


def test_a_picture_that_is_broken_is_named_with_the_flag(folder: Path) -> None:
    """In one line, and what to do."""
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:100])
    with pytest.raises(BadInput, match=r"^--test: .*b\.png can't be decoded .*; repair or remove it$"):
        photos.read_whole(folder, photos.find(folder), side=50, flag="--test")
