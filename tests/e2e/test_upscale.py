"""clients/upscale.py as people run it: one picture, folders of them, comparisons, and what it says of bad input."""

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

from atelier import pictures

UPSCALE = CLIENTS / "upscale.py"
SIZES = {"photo.png": (60, 40), "frames/1.png": (48, 32), "frames/2.png": (48, 32), "frames/late/3.png": (32, 48)}

repository = models(stand_in.UPSCALER)
upscale = asking(UPSCALE, "upscaler_server")
near = in_process(UPSCALE)
photos = saved(SIZES)


def assert_right(made: Path, source: Path, version: int = 2) -> None:
    np.testing.assert_array_equal(opened(made), truth.upscaled(pictures.open_picture(source), version))


# --- what comes out


def test_the_shortest_command_enlarges_a_picture(upscale, tmp_path):
    """Beside nothing else, in out/, under its own name; the line says what made it, and so does the file."""
    done = worked(upscale("photo.png"))
    assert done.stdout == "out/photo-x4.png: upscaler version 2\n"
    assert_right(tmp_path / "out" / "photo-x4.png", tmp_path / "photo.png")
    assert names(tmp_path) - {"out", "out/photo-x4.png"} == {*SIZES, "frames", "frames/late"}
    assert opened(tmp_path / "out" / "photo-x4.png").getexif()[0x010E] == "Made with Atelier: upscaler version 2"


@pytest.mark.parametrize("size", [(600, 500), (1500, 17)], ids=str)
def test_a_large_picture_has_no_seams(near, tmp_path, size):
    """Though it goes in tiles, and the stand-in sees as far as an upscaler may."""
    noise.picture(*size).save(tmp_path / "large.png")
    worked(near("large.png"))
    assert_right(tmp_path / "out" / "large-x4.png", tmp_path / "large.png")


def test_an_older_version_and_a_file_of_ones_own(near, tmp_path):
    """Version 1, and the name that was asked for, over what was there."""
    (tmp_path / "mine.tif").write_bytes(b"old")
    done = worked(near("photo.png", "--version", 1, "--out", "mine.tif"))
    assert done.stdout == "mine.tif: upscaler version 1\n"
    assert_right(tmp_path / "mine.tif", tmp_path / "photo.png", version=1)


def test_folders_in_folders_out(upscale, tmp_path):
    """The same names in the same folders below; once more replaces them, and nothing is half done."""
    for version in (1, 2):
        done = worked(upscale("frames", "--out", "large", "--version", version))
        assert done.stdout == f"large: 3 pictures: upscaler version {version}\n"
        assert names(tmp_path / "large") == {"1.png", "2.png", "late", "late/3.png"}
        for name in ("1.png", "2.png", "late/3.png"):
            assert_right(tmp_path / "large" / name, tmp_path / "frames" / name, version)


def test_compared_side_by_side(near, tmp_path):
    """A sheet with bicubic interpolation, then the upscaler, pixel by pixel, instead of the picture alone."""
    done = worked(near("photo.png", "--compare"))
    assert done.stdout == "out/photo-x4-compare.png: upscaler version 2\n"
    drawn = np.asarray(opened(tmp_path / "out" / "photo-x4-compare.png"))
    bicubic = opened(tmp_path / "photo.png").resize((240, 160), Image.Resampling.BICUBIC)
    assert drawn.shape == (16 + 24 + 24 + 160 + 16, 3 * 16 + 2 * 240, 3)
    np.testing.assert_array_equal(drawn[64:224, 16:256], bicubic)
    np.testing.assert_array_equal(drawn[64:224, 272:512], truth.upscaled(opened(tmp_path / "photo.png")))
    assert names(tmp_path / "out") == {"photo-x4-compare.png"}


def test_a_picture_whose_sheet_nothing_could_open_is_left_out(near, tmp_path):
    """It has its line, and the others their sheets; by itself it is enlarged all the same."""
    Image.new("RGB", (200_000, 16)).save(tmp_path / "ribbon.png")
    done = near("ribbon.png", "photo.png", "--compare")
    assert (done.returncode, done.stdout) == (1, "out: 1 picture: upscaler version 2\n")
    says = "upscale.py: ribbon.png: a sheet of it would have 1600048 x 144, more than 178 million pixels"
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1
    assert names(tmp_path / "out") == {"photo-x4-compare.png"}


def test_transparency_is_enlarged_too(near, tmp_path):
    """As alpha where there is one, and on white in a JPEG."""
    clear = opened(tmp_path / "photo.png")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size).point(lambda level: level if level > 99 else 0))
    clear.save(tmp_path / "clear.png")
    worked(near("clear.png", "--out", "made.png"))
    alpha = np.asarray(opened(tmp_path / "made.png"))[..., 3]
    assert alpha[:32].max() == 0
    assert alpha[-1].min() > 250
    worked(near("clear.png", "--out", "made.jpg"))
    np.testing.assert_allclose(np.asarray(opened(tmp_path / "made.jpg"))[:32], 255, atol=3)


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
    assert (done.returncode, done.stdout) == (0, "made.png: upscaler version 2\n")
    first = "upscale.py: animated.gif: holds more than one picture; the first is taken\n"
    assert done.stderr == (first if path.stem == "animated" else "")
    seen = pictures.open_picture(path, alpha=True)
    assert (seen.mode == "RGBA") == (path.stem == "palette")
    colours = pictures.opaque(seen) if seen.mode == "RGBA" else seen
    made = opened(tmp_path / "made.png")
    np.testing.assert_array_equal(made.convert("RGB"), truth.upscaled(colours))
    assert made.mode == seen.mode


def test_help_names_every_option_and_the_exit_statuses():
    """So that scripts can rely on them."""
    done = worked(run(UPSCALE, "--help", cwd=ROOT))
    for words in (
        "--compare", "--out", "--model", "--version", "--url", "--repository", "--in-process", "Exit status",
    ):  # fmt: skip
        assert words in done.stdout


# --- good and bad in one call


def test_the_others_are_enlarged(upscale, tmp_path):
    """Every broken picture has its line, every good one its result, and the status says that some failed."""
    frames = tmp_path / "frames"
    (frames / "0.jpg").write_bytes(b"words")
    (frames / "cut.png").write_bytes((frames / "1.png").read_bytes()[:900])
    Image.new("RGB", (1, 1)).save(frames / "dot.png")
    Image.new("RGB", (90, 12)).save(frames / "thin.png")
    Image.new("L", (3000, 2000)).save(frames / "vast.png")
    Image.new("RGB", (20_000, 16)).save(frames / "wide.jpg")
    noise.picture(20_000, 16).save(frames / "wide.png")
    (tmp_path / "empty").mkdir()
    done = upscale("gone.jpg", "empty", "frames", "--out", "large")
    assert done.returncode == 1
    lines = dict(line.split(": ", 2)[1:] for line in done.stderr.splitlines())
    assert list(lines) == [
        "gone.jpg", "empty", "frames/0.jpg", "frames/cut.png", "frames/dot.png", "frames/thin.png", "frames/vast.png",
        "large/frames/wide.jpg",
    ]  # fmt: skip
    assert "give a picture of 16 x 16 or more" in lines["frames/dot.png"]
    assert "limit of 67,108,864; reduce it to 2508 x 1672 or less" in lines["frames/vast.png"]
    assert ".jpg can have 65,500 pixels a side, and this would have 80000 x 64" in lines["large/frames/wide.jpg"]
    assert done.stdout == "large/frames: 4 pictures: upscaler version 2\n"
    assert names(tmp_path / "large" / "frames") == {"1.png", "2.png", "late", "late/3.png", "wide.png"}
    for name in ("2.png", "wide.png"):
        assert_right(tmp_path / "large" / "frames" / name, frames / name)
    assert worked(upscale("photo.png")).stdout  # the server is as well as before


def test_when_every_picture_is_bad_nothing_is_started(tmp_path, repository):
    """No server, nothing made, and the status is 1."""
    (tmp_path / "words.jpg").write_bytes(b"hello")
    done = run(UPSCALE, "--repository", repository, "words.jpg", "gone.jpg", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 2)
    assert not (tmp_path / "out").exists()


# --- where it finds a model


def test_with_no_server_it_starts_one_with_its_own_model_and_ends_it(repository, tmp_path):
    """And leaves no process."""
    need_tritonserver()
    script, url = copied(UPSCALE, tmp_path / "checkout", repository), f"localhost:{free_port()}"
    done = run(script, "photo.png", cwd=tmp_path, ATELIER_URL=url)
    assert done.stdout == "out/photo-x4.png: upscaler version 2\n"
    assert done.stderr.splitlines() == [
        f"upscale.py: no server is ready at {url}",
        "upscale.py: started the embedded Triton for this run; `make serve` keeps one running",
    ]
    assert_right(tmp_path / "out" / "photo-x4.png", tmp_path / "photo.png")
    assert not processes_of(script.parents[1])


# --- bad flags, one by one


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param([], ["PICTURE", "required"], id="no-picture"),
        pytest.param(["photo.png", "--out", "x.gif"], ["--out: x.gif", ".webp"], id="format"),
        pytest.param(["photo.png", "--out", "photo.png"], ["photo.png: would replace", "--out"], id="itself"),
        pytest.param(["frames", "--out", "x.png"], ["--out: x.png is one picture"], id="many-into-one"),
        pytest.param(["photo.png", "--out", "/proc/x.png"], ["/proc/x.png: cannot be written"], id="read-only"),
        pytest.param(["empty"], ["empty: holds no pictures"], id="empty-folder"),
        pytest.param(["photo.png", "--model", "nope"], ["--model", "'nope'", "upscaler"], id="unknown-model"),
        pytest.param(["photo.png", "--model", "style"], ["--model", "'style'", "upscaler"], id="another-kind"),
        pytest.param(["photo.png", "--version", 9], ["--version", "served: upscaler 1, 2"], id="unknown-version"),
        pytest.param(["photo.png", "--version", 0], ["--version", "1 or more"], id="version-0"),
        pytest.param(["photo.png", "--url", "localhost:99999"], ["--url", "1 to 65535"], id="url-port"),
        pytest.param(["photo.png", "--url", "localhost:1"], ["localhost:1", "leave out"], id="url-and-near"),
        pytest.param(["photo.png", "--repository", "empty"], ["empty: no version of upscaler"], id="no-models"),
        pytest.param(["photo.png", "--comp"], ["--comp"], id="unknown-flag"),
    ],
)
def test_bad_flags_are_one_line_and_status_2(near, tmp_path, arguments, says):
    """It names the flag and what to do; nothing is written, and nothing that was there is changed."""
    (tmp_path / "empty").mkdir()
    with unchanged(tmp_path):
        refused(near(*arguments), *says)
