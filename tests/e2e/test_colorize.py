"""clients/colorize.py as people run it: one photo, folders of them, comparisons, and what it says of bad input."""

from __future__ import annotations

from pathlib import Path

import noise
import numpy as np
import pytest
import stand_in
import truth
from conftest import need_tritonserver
from PIL import Image
from scripts import (
    CLIENTS,
    ROOT,
    asking,
    copied,
    free_port,
    in_process,
    models,
    names,
    opened,
    processes_of,
    refused,
    run,
    saved,
    unchanged,
    worked,
)

from atelier import colorizing, pictures

COLORIZE = CLIENTS / "colorize.py"
SIZES = {"photo.png": (60, 40), "album/1.png": (48, 32), "album/2.png": (48, 32), "album/late/3.png": (32, 48)}

repository = models(stand_in.COLORIZER)
colorize = asking(COLORIZE, "colorizer_server")
near = in_process(COLORIZE)
photos = saved(SIZES, gray="album/2.png")


def assert_right(made: Path, source: Path, stage: float = 2, version: int = 2) -> None:
    expected = truth.colored(pictures.open_picture(source), stage, version).astype(int)
    np.testing.assert_allclose(np.asarray(opened(made), int), expected, atol=1)


# --- what comes out


def test_the_shortest_command_colours_a_photo(colorize, tmp_path):
    """Beside nothing else, in out/, under its own name; the line says what made it, and so does the file."""
    done = worked(colorize("photo.png"))
    assert done.stdout == "out/photo-color.png: colorizer version 2, stage 2\n"
    assert_right(tmp_path / "out" / "photo-color.png", tmp_path / "photo.png")
    assert names(tmp_path) - {"out", "out/photo-color.png"} == {*SIZES, "album", "album/late"}
    said = opened(tmp_path / "out" / "photo-color.png").getexif()[0x010E]
    assert said == "Made with Atelier: colorizer version 2, stage 2"


@pytest.mark.parametrize("stage", ["1", "2", "1.5"])
def test_stages(near, tmp_path, stage):
    """The first, the second, and half of each."""
    done = worked(near("photo.png", "--stage", stage))
    assert done.stdout == f"out/photo-color.png: colorizer version 2, stage {stage}\n"
    assert_right(tmp_path / "out" / "photo-color.png", tmp_path / "photo.png", stage=float(stage))


def test_an_older_version_a_size_and_a_file_of_ones_own(near, tmp_path):
    """Version 1, 30 pixels wide, and the name that was asked for, over what was there."""
    (tmp_path / "mine.tif").write_bytes(b"old")
    done = worked(near("photo.png", "--version", 1, "--size", 30, "--out", "mine.tif"))
    assert done.stdout == "mine.tif: colorizer version 1, stage 2\n"
    small = opened(tmp_path / "photo.png").resize((30, 20), Image.Resampling.LANCZOS)
    np.testing.assert_allclose(np.asarray(opened(tmp_path / "mine.tif"), int), truth.colored(small, version=1), atol=1)


def test_saturation(near, tmp_path):
    """0 is gray; half is half as far from it."""
    gray = np.asarray(colorizing.grayed(opened(tmp_path / "photo.png")), float)[..., None]
    for factor in (0, 0.5):
        worked(near("photo.png", "--saturation", factor, "--out", "made.png"))
        expected = gray + factor * (truth.colored(opened(tmp_path / "photo.png")) - gray)
        np.testing.assert_allclose(np.asarray(opened(tmp_path / "made.png")), expected, atol=1)


def test_folders_in_folders_out(colorize, tmp_path):
    """The same names in the same folders below; once more replaces them, and nothing is half done."""
    for version in (1, 2):
        done = worked(colorize("album", "--out", "coloured", "--version", version))
        assert done.stdout == f"coloured: 3 pictures: colorizer version {version}, stage 2\n"
        assert names(tmp_path / "coloured") == {"1.png", "2.png", "late", "late/3.png"}
        for name in ("1.png", "2.png", "late/3.png"):
            assert_right(tmp_path / "coloured" / name, tmp_path / "album" / name, version=version)


def test_compared_with_before_and_with_the_truth(near, tmp_path):
    """A sheet, pixel by pixel, instead of the picture alone; of a gray photo nobody knows the truth."""
    done = worked(near("photo.png", "album/2.png", "--compare"))
    assert done.stdout == "out: 2 pictures: colorizer version 2, stage 2\n"
    assert names(tmp_path / "out") == {"photo-color-compare.png", "2-color-compare.png"}
    for source, columns in (("photo.png", 3), ("album/2.png", 2)):
        picture = pictures.open_picture(tmp_path / source)
        width, height = picture.size
        drawn = np.asarray(opened(tmp_path / "out" / f"{Path(source).stem}-color-compare.png"), int)
        assert drawn.shape == (16 + 24 + 24 + height + 16, 16 + columns * (width + 16), 3)
        cells = [colorizing.grayed(picture).convert("RGB"), truth.colored(picture), picture]
        for place, cell in enumerate(cells[:columns]):
            left = 16 + place * (width + 16)
            np.testing.assert_allclose(drawn[64 : 64 + height, left : left + width], np.asarray(cell, int), atol=1)


def test_transparency_is_kept(near, tmp_path):
    """The alpha of the photo, bit for bit, or white where a format has none; on a sheet, too."""
    clear = opened(tmp_path / "photo.png")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size).point(lambda level: level if level > 99 else 0))
    clear.save(tmp_path / "clear.png")
    worked(near("clear.png", "--out", "made.png"))
    np.testing.assert_array_equal(opened(tmp_path / "made.png").getchannel("A"), clear.getchannel("A"))
    worked(near("clear.png", "--out", "made.jpg"))
    np.testing.assert_allclose(np.asarray(opened(tmp_path / "made.jpg"))[:8], 255, atol=3)
    worked(near("clear.png", "--compare", "--out", "sheet.png"))
    paper = np.asarray(opened(tmp_path / "sheet.png"))[64:72, 16:-16]
    assert (paper == (244, 241, 232)).all()


@pytest.mark.parametrize("name", ["cmyk.jpg", "16-bit.png", "16-bit.tif", "palette.png", "animated.gif", "gray.webp"])
def test_pictures_of_every_kind(near, tmp_path, name):
    """Printed, of more bits, indexed with one colour clear, moving: each as `open_picture` has it."""
    path, gray = tmp_path / name, np.asarray(noise.picture(48, 32).convert("L"))
    match path.stem:
        case "cmyk":
            noise.picture(48, 32).convert("CMYK").save(path)
        case "16-bit":
            Image.fromarray(gray.astype(np.uint16) * 257).save(path)
        case "palette":
            noise.picture(48, 32).quantize(8).save(path, transparency=3)
        case "animated":
            noise.picture(48, 32, seed=1).save(path, save_all=True, append_images=[noise.picture(48, 32, seed=2)])
        case _:
            Image.fromarray(gray).save(path, lossless=True)
    done = near(name, "--out", "made.png")
    assert (done.returncode, done.stdout) == (0, "made.png: colorizer version 2, stage 2\n")
    first = "colorize.py: animated.gif: holds more than one picture; the first is taken\n"
    assert done.stderr == (first if path.stem == "animated" else "")
    seen, made = pictures.open_picture(path, alpha=True), opened(tmp_path / "made.png")
    np.testing.assert_allclose(np.asarray(made.convert("RGB"), int), truth.colored(seen).astype(int), atol=1)
    assert made.mode == seen.mode == ("RGBA" if path.stem == "palette" else "RGB")


def test_help_names_every_option_and_the_exit_statuses():
    """So that scripts can rely on them."""
    done = worked(run(COLORIZE, "--help", cwd=ROOT))
    for words in (
        "--stage", "--saturation", "--size", "--compare", "--out", "--model", "--version", "--url", "--repository",
        "--in-process", "Exit status",
    ):  # fmt: skip
        assert words in done.stdout


# --- good and bad in one call


def test_the_others_are_coloured(colorize, tmp_path):
    """Every broken picture has its line, every good one its result, and the status says that some failed."""
    album = tmp_path / "album"
    (album / "0.jpg").write_bytes(b"words")
    (album / "cut.png").write_bytes((album / "1.png").read_bytes()[:900])
    Image.new("RGB", (1, 1)).save(album / "dot.png")
    Image.new("RGB", (90, 12)).save(album / "thin.png")
    Image.new("L", (3000, 2000)).save(album / "vast.png")
    noise.picture(20_000, 16).save(album / "wide.png")
    Image.new("L", (20_000, 16)).save(album / "wide.tif")
    done = colorize("gone.jpg", "album", "--out", "coloured")
    assert done.returncode == 1
    lines = dict(line.split(": ", 2)[1:] for line in done.stderr.splitlines())
    assert list(lines) == [
        "gone.jpg", "album/0.jpg", "album/cut.png", "album/dot.png", "album/thin.png", "album/vast.png"
    ]  # fmt: skip
    assert "give a picture of 16 x 16 or more" in lines["album/dot.png"]
    assert "--size 120" in lines["album/thin.png"]
    assert "--size 2508" in lines["album/vast.png"]
    assert done.stdout == "coloured/album: 5 pictures: colorizer version 2, stage 2\n"
    assert names(tmp_path / "coloured" / "album") == {"1.png", "2.png", "late", "late/3.png", "wide.png", "wide.tif"}
    for name in ("2.png", "wide.png", "wide.tif"):
        assert_right(tmp_path / "coloured" / "album" / name, album / name)
    assert worked(colorize("photo.png")).stdout  # the server is as well as before


def test_when_every_picture_is_bad_nothing_is_started(tmp_path, repository):
    """No server, nothing made, and the status is 1."""
    (tmp_path / "words.jpg").write_bytes(b"hello")
    done = run(COLORIZE, "--repository", repository, "words.jpg", "gone.jpg", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 2)
    assert not (tmp_path / "out").exists()


# --- where it finds a model


def test_with_no_server_it_starts_one_with_its_own_model_and_ends_it(repository, tmp_path):
    """And leaves no process."""
    need_tritonserver()
    script, url = copied(COLORIZE, tmp_path / "checkout", repository), f"localhost:{free_port()}"
    done = run(script, "photo.png", cwd=tmp_path, ATELIER_URL=url)
    assert done.stdout == "out/photo-color.png: colorizer version 2, stage 2\n"
    assert done.stderr.splitlines() == [
        f"colorize.py: no server is ready at {url}",
        "colorize.py: started the embedded Triton for this run; `make serve` keeps one running",
    ]
    assert_right(tmp_path / "out" / "photo-color.png", tmp_path / "photo.png")
    assert not processes_of(script.parents[1])


# --- bad flags, one by one


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param([], ["PHOTO", "required"], id="no-photo"),
        pytest.param(["photo.png", "--stage", 3], ["--stage", "'3' must be a number from 1 to 2"], id="stage-3"),
        pytest.param(["photo.png", "--stage", "gan"], ["--stage", "'gan'"], id="stage-a-word"),
        pytest.param(["photo.png", "--stage", "nan"], ["--stage", "'nan'"], id="stage-nan"),
        pytest.param(["photo.png", "--saturation", -1], ["--saturation", "from 0 to 3"], id="saturation"),
        pytest.param(["photo.png", "--size", 15], ["--size", "16 or more"], id="size"),
        pytest.param(["photo.png", "--out", "x.gif"], ["--out: x.gif", ".webp"], id="format"),
        pytest.param(["photo.png", "--out", "photo.png"], ["photo.png: would replace", "--out"], id="itself"),
        pytest.param(["album", "--out", "x.png"], ["--out: x.png is one picture"], id="many-into-one"),
        pytest.param(["photo.png", "--out", "/proc/x.png"], ["/proc/x.png: cannot be written"], id="read-only"),
        pytest.param(["empty"], ["empty: holds no pictures"], id="empty-folder"),
        pytest.param(["photo.png", "--model", "nope"], ["--model", "'nope'", "colorizer"], id="unknown-model"),
        pytest.param(["photo.png", "--model", "style"], ["--model", "'style'", "colorizer"], id="another-kind"),
        pytest.param(["photo.png", "--version", 9], ["--version", "served: colorizer 1, 2"], id="unknown-version"),
        pytest.param(["photo.png", "--url", "localhost:99999"], ["--url", "1 to 65535"], id="url-port"),
        pytest.param(["photo.png", "--url", "localhost:1"], ["localhost:1", "leave out"], id="url-and-near"),
        pytest.param(["photo.png", "--repository", "empty"], ["empty: no version of colorizer"], id="no-models"),
        pytest.param(["photo.png", "--sat", 1], ["--sat"], id="unknown-flag"),
    ],
)
def test_bad_flags_are_one_line_and_status_2(near, tmp_path, arguments, says):
    """It names the flag and what to do; nothing is written, and nothing that was there is changed."""
    (tmp_path / "empty").mkdir()
    with unchanged(tmp_path):
        refused(near(*arguments), *says)
