"""A folder or zip of the user's pictures: every kind that Pillow knows, and what is refused and how."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data import corpus, photos
from training.errors import BadInput

ROOT = Path(__file__).parents[2]
RED = (200, 30, 40)


def saved(
    path: Path, mode: str = "RGB", color: object = RED, size: tuple[int, int] = (60, 40), **options: object
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)
    return path


def only(folder: Path, **options: object) -> np.ndarray:
    """The one picture in a folder, as it goes to training at 32 pixels."""
    images, skipped = photos.load(folder, size=32, **options)
    assert (images.shape, images.dtype, skipped) == ((1, 32, 32, 3), np.uint8, ())
    return images[0]


def deep_gray(path: Path, level: int) -> None:
    Image.fromarray(np.full((40, 60), level, np.uint16)).save(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".JPG"])
def test_every_suffix_is_found_and_decoded(suffix: str, tmp_path: Path) -> None:
    """One red picture of each format comes out red, to within what JPEG and WebP lose."""
    saved(tmp_path / f"one{suffix}")
    assert np.abs(only(tmp_path).astype(int) - RED).max() <= 8


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        pytest.param("1", 1, (255, 255, 255), id="black and white"),
        pytest.param("L", 90, (90, 90, 90), id="gray"),
        pytest.param("LA", (90, 0), (255, 255, 255), id="transparent gray"),
        pytest.param("RGBA", (*RED, 255), RED, id="opaque"),
        pytest.param("RGBA", (*RED, 0), (255, 255, 255), id="transparent"),
        pytest.param("RGBA", (0, 0, 0, 51), (204, 204, 204), id="a fifth black"),
    ],
)
def test_gray_and_transparency_become_colour_on_white(
    mode: str, color: object, expected: tuple[int, int, int], tmp_path: Path
) -> None:
    """Gray is gray in three channels; what is transparent shows the ground."""
    saved(tmp_path / "one.png", mode, color)
    assert np.abs(only(tmp_path).astype(int) - expected).max() <= 1


def test_the_ground_shows_through_a_transparent_palette(tmp_path: Path) -> None:
    """A palette picture with one transparent entry, as GIF and PNG have it, on a ground of one's own."""
    picture = Image.new("P", (40, 40), 0)
    picture.putpalette([*RED, 1, 2, 3])
    picture.paste(1, (0, 0, 20, 40))
    picture.save(tmp_path / "one.png", transparency=1)
    image = only(tmp_path, ground=(9, 99, 199))
    assert tuple(image[16, 4]) == (9, 99, 199)
    assert tuple(image[16, 28]) == RED


def test_cmyk_is_converted(tmp_path: Path) -> None:
    """Print colours come out as what they look like: no ink is white, all of cyan is cyan."""
    saved(tmp_path / "a.jpg", "CMYK", (255, 0, 0, 0), quality=95)
    assert np.abs(only(tmp_path).astype(int) - (0, 255, 255)).max() <= 8


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(("level", "expected"), [(0, 0), (32768, 128), (65535, 255)])
def test_16_bit_gray_keeps_its_brightness(suffix: str, level: int, expected: int, tmp_path: Path) -> None:
    """Half of 65,535 is half of 255, not clipped to white."""
    deep_gray(tmp_path / f"one{suffix}", level)
    assert np.all(only(tmp_path) == expected)


def test_a_camera_held_sideways_is_turned_upright(tmp_path: Path) -> None:
    """EXIF orientation 6: the file's left side is the picture's top."""
    picture = Image.new("RGB", (40, 40), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 20, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "one.png", exif=exif)
    image = only(tmp_path)
    assert image[:14].min() > 240
    assert image[18:].max() < 15


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    """A GIF of red, then blue, is red."""
    frames = [Image.new("RGB", (40, 40), c) for c in (RED, (0, 0, 255))]
    frames[0].save(tmp_path / "one.gif", save_all=True, append_images=frames[1:])
    assert np.abs(only(tmp_path).astype(int) - RED).max() <= 2


@pytest.mark.parametrize("size", [(300, 100), (100, 300)])
def test_crop_takes_the_middle_and_pad_takes_all(size: tuple[int, int], tmp_path: Path) -> None:
    """A long picture with white ends: cropped they are gone, padded they are there, on the ground, undistorted."""
    width, height = size
    picture = Image.new("RGB", size, RED)
    long = max(size)
    for start in (0, long - 60):
        box = (start, 0, start + 60, height) if width > height else (0, start, width, start + 60)
        picture.paste((255, 255, 255), box)
    picture.save(tmp_path / "one.png")
    assert np.abs(only(tmp_path, fit="crop").astype(int) - RED).max() <= 2
    padded = only(tmp_path, fit="pad", ground=(0, 0, 0))
    padded = padded if width > height else padded.swapaxes(0, 1)
    assert padded[:9].max() == padded[-9:].max() == 0  # 32 / 3 rows of picture, in the middle
    assert padded[16, 2].min() > 240
    assert np.abs(padded[16, 16].astype(int) - RED).max() <= 2


def test_pictures_smaller_than_the_corpus_are_enlarged(tmp_path: Path) -> None:
    """Even one pixel is a picture."""
    saved(tmp_path / "dot.png", size=(1, 1))
    assert np.all(only(tmp_path) == RED)


def zipped(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as into:
        for file in sorted(folder.rglob("*")):
            into.write(file, file.relative_to(folder))
    return archive


def test_a_zip_gives_what_its_folder_gives(tmp_path: Path) -> None:
    """Same pictures in the same order, subfolders included; notes and what macOS adds are passed over."""
    folder = tmp_path / "pictures"
    for k in range(5):
        saved(folder / f"sub{k % 2}" / f"{k}.png", color=(k * 40, 0, 0))
    (folder / "notes.txt").write_text("no picture")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "._0.png").write_bytes(b"no picture either")
    images, _ = photos.load(folder, size=16)
    same, _ = photos.load(zipped(folder, tmp_path / "pictures.zip"), size=16)
    assert images[:, 0, 0, 0].tolist() == [0, 80, 160, 40, 120]
    assert np.array_equal(images, same)


def test_of_many_a_choice_by_seed_in_order(tmp_path: Path) -> None:
    """At most `count` pictures, the same for the same seed, others for another, still sorted by name."""
    for k in range(20):
        saved(tmp_path / f"{k:02}.png", color=(k, 0, 0), size=(16, 16))
    chosen = [photos.load(tmp_path, count=6, seed=seed, size=16)[0][:, 0, 0, 0].tolist() for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] == sorted(chosen[0])
    assert chosen[0] != chosen[2]
    assert len(chosen[2]) == 6


def broken_png(path: Path) -> None:
    saved(path)
    path.write_bytes(path.read_bytes()[:-30])


def truncated_jpeg(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1500])


def text_file(path: Path) -> None:
    path.write_text("I am not a picture")


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


def bomb(path: Path) -> None:
    # 20,000 x 20,000 pixels in a header of a few bytes: Pillow refuses to decode it
    saved(path, size=(8, 8))
    data = bytearray(path.read_bytes())
    data[16:24] = (20_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)


def float_tiff(path: Path) -> None:
    Image.new("F", (8, 8), 0.5).save(path.with_suffix(".tif"))


@pytest.mark.parametrize("break_it", [broken_png, truncated_jpeg, text_file, empty_file, bomb, float_tiff])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_a_broken_picture_is_named_and_can_be_left_out(break_it, packed: bool, tmp_path: Path) -> None:
    """One line with the file's name and, where that can be asked for, how to leave it out; left out, the others come,
    and its name is told."""
    folder = tmp_path / "pictures"
    saved(folder / "good.png")
    break_it(folder / ("bad.jpg" if break_it is truncated_jpeg else "bad.png"))
    source = zipped(folder, tmp_path / "pictures.zip") if packed else folder
    for asked in (False, None):
        with pytest.raises(BadInput) as refused:
            photos.load(source, size=32, skip_broken=asked)
        message = str(refused.value)
        assert message.startswith(f"--corpus: {source}/bad.")
        assert ("--skip-broken" in message) == (asked is False)
        assert "\n" not in message
    images, skipped = photos.load(source, size=32, skip_broken=True)
    assert len(images) == 1
    assert [Path(name).stem for name in skipped] == ["bad"]


def test_a_damaged_member_of_a_zip_is_a_broken_picture(tmp_path: Path) -> None:
    """A member whose checksum is wrong is named as any broken picture is."""
    saved(tmp_path / "in" / "a.bmp")
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.write(tmp_path / "in" / "a.bmp", "a.bmp")
    data = bytearray((tmp_path / "p.zip").read_bytes())
    data[2000] ^= 0xFF
    (tmp_path / "p.zip").write_bytes(data)
    with pytest.raises(BadInput, match=r"p\.zip/a\.bmp can't be decoded"):
        photos.load(tmp_path / "p.zip", size=32)


def test_only_broken_pictures_are_no_corpus(tmp_path: Path) -> None:
    """Leaving out what is broken must leave something."""
    text_file(tmp_path / "a.png")
    with pytest.raises(BadInput, match="none of the 1 pictures"):
        photos.load(tmp_path, skip_broken=True)


def nothing(path: Path) -> Path:
    return path / "absent"


def no_pictures(path: Path) -> Path:
    (path / "notes.txt").write_text("")
    return path


def not_a_zip(path: Path) -> Path:
    text_file(path / "notes.zip")
    return path / "notes.zip"


def cut_zip(path: Path) -> Path:
    saved(path / "in" / "a.png")
    archive = zipped(path / "in", path / "cut.zip")
    archive.write_bytes(archive.read_bytes()[:-40])
    return archive


def empty_zip(path: Path) -> Path:
    zipfile.ZipFile(path / "empty.zip", "w").close()
    return path / "empty.zip"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (nothing, "is not there"),
        (no_pictures, "no pictures in"),
        (not_a_zip, "neither a folder nor a zip"),
        (cut_zip, "neither a folder nor a zip"),
        (empty_zip, "no pictures in"),
    ],
)
def test_what_holds_no_pictures_is_refused_by_its_name(source, says: str, tmp_path: Path) -> None:
    """The message names the flag and the path and says what was looked for."""
    path = source(tmp_path)
    with pytest.raises(BadInput, match=says) as refused:
        photos.load(path)
    assert str(refused.value).startswith("--corpus: ")
    assert str(path) in str(refused.value)


def test_a_folder_becomes_a_corpus_with_one_in_five_held_out(tmp_path: Path) -> None:
    """No picture is both trained on and held out; name, checksum and left-out files are told; no truth is claimed."""
    folder = tmp_path / "lines"  # named like a drawn corpus, and yet not one
    for k in range(20):
        saved(folder / f"{k:02}.png", color=(k, 0, 0), size=(16, 16))
    text_file(folder / "broken.png")
    loaded = corpus.load(folder, size=16, skip_broken=True)
    train, held = (set(side[:, 0, 0, 0].tolist()) for side in (loaded.images, loaded.held_out))
    assert (len(train), len(held), train | held) == (16, 4, set(range(20)))
    assert (loaded.name, loaded.skipped, loaded.three_lines) == ("lines", ("broken.png",), False)
    assert loaded.sha256 == corpus.checksum(loaded.images) == corpus.load(folder, size=16, skip_broken=True).sha256


def test_too_few_pictures_are_no_corpus(tmp_path: Path) -> None:
    """Three pictures can't be trained on: said at once, not after an hour."""
    for k in range(3):
        saved(tmp_path / f"{k}.png")
    with pytest.raises(BadInput, match=r"3 pictures in .* too few"):
        corpus.load(tmp_path)


def test_the_command_shows_what_a_network_will_see(tmp_path: Path) -> None:
    """`python -m training.data.photos` writes the fitted pictures, and tells of those left out."""
    saved(tmp_path / "in" / "a.png")
    text_file(tmp_path / "in" / "b.png")
    arguments = [sys.executable, "-m", "training.data.photos", "--corpus", str(tmp_path / "in"), "--size", "64"]
    for extra, status, says in (([], 2, "b.png"), (["--skip-broken"], 0, "b.png")):
        done = subprocess.run(
            [*arguments, "--out", str(tmp_path / "out"), *extra],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == status
        assert says in done.stdout + done.stderr
        assert len(done.stderr.splitlines()) == (status > 0)
    with Image.open(tmp_path / "out" / "photo-00000.png") as picture:
        assert picture.size == (64, 64)


def test_decode_reads_a_stream() -> None:
    """From memory as from disk, at any size."""
    stream = io.BytesIO()
    Image.new("RGB", (30, 50), RED).save(stream, "PNG")
    stream.seek(0)
    assert np.all(photos.decode(stream, size=20) == RED)
