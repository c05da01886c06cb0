"""clients/stylize.py as people run it: one photo, folders of them, sheets, and what it says of bad input."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

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
from truth import STYLES
from waiting import until

STYLIZE = CLIENTS / "stylize.py"
SIZES = {"photo.png": (60, 40), "frames/1.png": (48, 32), "frames/2.png": (48, 32), "frames/late/3.png": (32, 48)}

repository = models(stand_in.STYLE)
stylize = asking(STYLIZE, "style_server")
near = in_process(STYLIZE)
photos = saved(SIZES)


def assert_right(made: Path, source: Path, style: str | dict[str, float], version: int = 2) -> None:
    """A file holds what the stand-in makes of another."""
    expected = truth.styled(opened(source), style, version)
    np.testing.assert_allclose(np.asarray(opened(made), int), expected.astype(int), atol=1)


# --- what comes out


def test_the_shortest_command_paints_a_photo(stylize, tmp_path):
    """Beside nothing else, in out/, under its own name and the style's; the line says what it is."""
    done = worked(stylize("photo.png", "--style", "faded"))
    assert done.stdout == "out/photo-faded.png: faded; style version 2\n"
    assert_right(tmp_path / "out" / "photo-faded.png", tmp_path / "photo.png", "faded")
    assert names(tmp_path) - {"out", "out/photo-faded.png"} == {*SIZES, "frames", "frames/late"}


def test_the_styles_are_listed(stylize):
    """A line for each, as --style takes them."""
    assert worked(stylize("--list")).stdout.split() == list(STYLES)


def test_a_blend_an_older_version_and_a_file_of_ones_own(near, tmp_path):
    """Weights of any sum, version 1, and the name that was asked for, over what was there."""
    (tmp_path / "mine.png").write_bytes(b"old")
    done = worked(near("photo.png", "--blend", "ink-red=1,Negative=3", "--version", 1, "--out", "mine.png"))
    assert done.stdout == "mine.png: negative=0.75,ink-red=0.25; style version 1\n"
    assert_right(tmp_path / "mine.png", tmp_path / "photo.png", {"negative": 3, "ink-red": 1}, version=1)


def test_size_strength_and_colour(near, tmp_path):
    """The long side; 0 is the photo; the brightness alone."""
    worked(near("photo.png", "--style", "negative", "--size", 30, "--out", "small.png"))
    assert opened(tmp_path / "small.png").size == (30, 20)
    worked(near("photo.png", "--style", "negative", "--strength", 0, "--out", "same.png"))
    np.testing.assert_array_equal(opened(tmp_path / "same.png"), opened(tmp_path / "photo.png"))
    worked(near("photo.png", "--style", "ink-red", "--keep-color", "--out", "kept.png"))
    chroma = np.asarray(opened(tmp_path / "kept.png").convert("YCbCr"))[..., 1:]
    assert chroma.std() > 20  # ink-red alone has one colour


def test_transparency_is_kept_and_jpeg_lies_on_white(near, tmp_path):
    """The alpha of the photo, bit for bit, or white where a format has none."""
    clear = opened(tmp_path / "photo.png")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size).point(lambda level: level if level > 99 else 0))
    clear.save(tmp_path / "clear.png")
    worked(near("clear.png", "--style", "ink-red", "--out", "made.png"))
    made = opened(tmp_path / "made.png")
    np.testing.assert_array_equal(made.getchannel("A"), clear.getchannel("A"))
    worked(near("clear.png", "--style", "ink-red", "--out", "made.jpg"))
    np.testing.assert_allclose(np.asarray(opened(tmp_path / "made.jpg"))[:8], 255, atol=3)


def test_folders_in_folders_out(stylize, tmp_path):
    """The same names in the same folders below; once more replaces them, and nothing is half done."""
    for style in ("negative", "faded"):
        done = worked(stylize("frames", "--style", style, "--out", "painted"))
        assert done.stdout == f"painted: 3 pictures: {style}; style version 2\n"
        assert names(tmp_path / "painted") == {"1.png", "2.png", "late", "late/3.png"}
        for name in ("1.png", "2.png", "late/3.png"):
            assert_right(tmp_path / "painted" / name, tmp_path / "frames" / name, style)


def test_many_frames_are_painted_each_in_its_place(near, tmp_path):
    """More than are in memory at once."""
    for index in range(20):
        Image.new("RGB", (16, 16), (12 * index, 9, 200)).save(tmp_path / "frames" / f"f{index:02}.png")
    worked(near("frames", "--style", "negative"))
    for index in range(20):
        made = opened(tmp_path / "out" / "frames-negative" / f"f{index:02}.png")
        assert made.getpixel((3, 3)) == (255 - 12 * index, 246, 55)


def test_all_is_a_sheet_of_every_style(near, tmp_path):
    """The photo and its paintings, 384 pixels or --size wide, each pixel by pixel in its place below its name."""
    done = worked(near("photo.png", "--all", "--size", 60))
    assert done.stdout == "out/photo-styles.png: 3 styles; style version 2\n"
    drawn = np.asarray(opened(tmp_path / "out" / "photo-styles.png"))
    photo = np.asarray(opened(tmp_path / "photo.png"))
    cells = [photo, *(stand_in.styled(photo[None], row[None], 2)[0] for row in np.eye(3, dtype=np.float32))]
    for place, cell in enumerate(cells):
        left, top = 16 + place % 2 * (drawn.shape[1] - 16) // 2, 64 + place // 2 * 80
        np.testing.assert_allclose(drawn[top : top + 40, left : left + 60].astype(int), cell, atol=1)
    worked(near("photo.png", "frames", "--all", "--out", "sheets"))
    assert opened(tmp_path / "sheets" / "photo-styles.png").width == 2 * 400 + 16
    assert names(tmp_path / "sheets" / "frames") == {"1.png", "2.png", "late", "late/3.png"}


def test_help_names_every_option_and_the_exit_statuses():
    """So that scripts can rely on them."""
    done = worked(run(STYLIZE, "--help", cwd=ROOT))
    for words in (
        "--style", "--blend", "--all", "--list", "--size", "--strength", "--keep-color", "--out", "--model",
        "--version", "--url", "--repository", "--in-process", "Exit status",
    ):  # fmt: skip
        assert words in done.stdout
    assert "pixels of the long side (as given; 384 with --all)" in " ".join(done.stdout.split())


# --- good and bad in one call


def test_the_others_are_painted(stylize, tmp_path):
    """Every broken picture has its line, every good one its painting, and the status says that some failed."""
    frames = tmp_path / "frames"
    (frames / "0.jpg").write_bytes(b"words")
    (frames / "late" / "cut.png").write_bytes((frames / "1.png").read_bytes()[:900])
    Image.new("RGB", (90, 12)).save(frames / "thin.png")
    Image.new("L", (3000, 2000)).save(frames / "vast.png")
    Image.new("CMYK", (48, 32)).save(frames / "cmyk.jpg")
    done = stylize("gone.jpg", "frames", "--style", "faded", "--out", "painted")
    assert done.returncode == 1
    lines = [line.split(": ", 2) for line in done.stderr.splitlines()]
    assert [path for _, path, _ in lines] == [
        "gone.jpg", "frames/0.jpg", "frames/late/cut.png", "frames/thin.png", "frames/vast.png"
    ]  # fmt: skip
    assert "--size 120" in done.stderr
    assert "--size 1773" in done.stderr
    made = {"1.png", "2.png", "late", "late/3.png", "cmyk.jpg"}
    assert names(tmp_path / "painted" / "frames") == made
    assert done.stdout == "painted/frames: 4 pictures: faded; style version 2\n"
    assert_right(tmp_path / "painted" / "frames" / "2.png", frames / "2.png", "faded")


def test_when_every_picture_is_bad_nothing_is_started(tmp_path, repository):
    """No server, nothing made, and the status is 1."""
    (tmp_path / "words.jpg").write_bytes(b"hello")
    done = run(STYLIZE, "--repository", repository, "--style", "faded", "words.jpg", "gone.jpg", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 2)
    assert not (tmp_path / "out").exists()


def test_what_someone_else_made_is_not_replaced(near, tmp_path):
    """Before anything is painted: one line that names it."""
    shutil.copytree(tmp_path / "frames", tmp_path / "painted")
    with unchanged(tmp_path):
        refused(near("frames", "--style", "faded", "--out", "painted"), "painted/1.png: is there already", "--out")


def test_ctrl_c_keeps_what_is_done(style_server, tmp_path):
    """The line says how many; each file is whole; the status is a shell's for Ctrl-C."""
    for index in range(300):
        Image.effect_noise((256, 256), 90).save(tmp_path / "frames" / f"f{index:03}.png")
    command = [sys.executable, STYLIZE, "--url", style_server.grpc, "frames", "--style", "faded", "--out", "painted"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    def begun() -> bool:
        assert process.poll() is None
        return any((tmp_path / "painted").glob("f*.png"))

    with process:
        try:
            until(begun, lambda: "no picture is done", pause_s=0.01)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    found = re.fullmatch(r"stylize\.py: stopped; (\d+) of 303 (?:is|are) done\n", said)
    assert found, said
    made = sorted((tmp_path / "painted").rglob("*.png"))
    assert int(found[1]) <= len(made) <= int(found[1]) + 8
    for path in made:
        opened(path)
    assert not [name for name in names(tmp_path / "painted") if Path(name).name.startswith(".")]


# --- where it finds a model


def test_with_no_server_it_starts_one_with_its_own_model_and_ends_it(repository, tmp_path):
    """And leaves no process."""
    need_tritonserver()
    script, url = copied(STYLIZE, tmp_path / "checkout", repository), f"localhost:{free_port()}"
    done = run(script, "photo.png", "--style", "negative", cwd=tmp_path, ATELIER_URL=url)
    assert done.stdout == "out/photo-negative.png: negative; style version 2\n"
    assert done.stderr.splitlines() == [
        f"stylize.py: no server is ready at {url}",
        "stylize.py: started the embedded Triton for this run; `make serve` keeps one running",
    ]
    assert_right(tmp_path / "out" / "photo-negative.png", tmp_path / "photo.png", "negative")
    assert not processes_of(script.parents[1])


# --- bad flags, one by one

STYLE = ["--style", "faded"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(STYLE, ["PHOTO: name a picture"], id="no-photo"),
        pytest.param(["photo.png"], ["--style", "--blend", "--all", "--list", "required"], id="no-style"),
        pytest.param(["photo.png", *STYLE, "--all"], ["--all", "not allowed with", "--style"], id="two-ways"),
        pytest.param(["photo.png", "--style", "nope"], ["--style: no style 'nope'", *STYLES], id="unknown-style"),
        pytest.param(["photo.png", "--style", ""], ["--style: no style ''", *STYLES], id="empty-style"),
        pytest.param(["photo.png", "--blend", "nope=1"], ["--blend: no style 'nope'", *STYLES], id="unknown-in-blend"),
        pytest.param(["photo.png", "--blend", "faded"], ["--blend", "NAME=WEIGHT"], id="no-blend"),
        pytest.param(["photo.png", "--blend", "faded=-1"], ["--blend", "weight of faded is -1"], id="negative"),
        pytest.param(["photo.png", "--blend", "faded=nan"], ["--blend", "weight of faded is nan"], id="nan"),
        pytest.param(["photo.png", "--blend", "faded=0"], ["--blend", "above 0"], id="all-zero"),
        pytest.param(["photo.png", *STYLE, "--size", 15], ["--size", "16 or more"], id="size"),
        pytest.param(["photo.png", *STYLE, "--strength", 2], ["--strength", "from 0 to 1"], id="strength"),
        pytest.param(["photo.png", *STYLE, "--strength", "nan"], ["--strength", "'nan'"], id="strength-nan"),
        pytest.param(["photo.png", *STYLE, "--out", "x.gif"], ["--out: x.gif", ".webp"], id="format"),
        pytest.param(["photo.png", *STYLE, "--out", "photo.png"], ["photo.png: would replace", "--out"], id="itself"),
        pytest.param(["frames", *STYLE, "--out", "x.png"], ["--out: x.png is one picture"], id="many-into-one"),
        pytest.param(["photo.png", *STYLE, "--out", "photo.png/x"], ["photo.png/x"], id="into-a-file"),
        pytest.param(["photo.png", *STYLE, "--out", "/proc/x.png"], ["/proc/x.png: cannot be written"], id="read-only"),
        pytest.param(["empty", *STYLE], ["empty: holds no pictures"], id="empty-folder"),
        pytest.param(["photo.png", *STYLE, "--model", "nope"], ["--model", "'nope'", "style"], id="unknown-model"),
        pytest.param(["photo.png", *STYLE, "--model", "wgan"], ["--model", "'wgan'", "style"], id="another-kind"),
        pytest.param(["photo.png", *STYLE, "--version", 9], ["--version", "served: style 1, 2"], id="unknown-version"),
        pytest.param(["photo.png", *STYLE, "--url", "localhost:99999"], ["--url", "1 to 65535"], id="url-port"),
        pytest.param(["photo.png", *STYLE, "--url", "localhost:1"], ["localhost:1", "leave out"], id="url-and-near"),
        pytest.param(["photo.png", *STYLE, "--repository", "empty"], ["empty: no version of style"], id="no-models"),
        pytest.param(["photo.png", *STYLE, "--kep-color"], ["--kep-color"], id="unknown-flag"),
    ],
)
def test_bad_flags_are_one_line_and_status_2(near, tmp_path, arguments, says):
    """It names the flag and what to do; nothing is written, and nothing that was there is changed."""
    (tmp_path / "empty").mkdir()
    with unchanged(tmp_path):
        refused(near(*arguments), *says)


def test_a_server_without_the_model_is_no_fault_of_the_style(classifier_server, tmp_path):
    """The line names the model's flag, and what is served."""
    done = run(STYLIZE, "--url", classifier_server.grpc, "photo.png", *STYLE, cwd=tmp_path)
    refused(done, "stylize.py: --model: ", "there is no model style (served: classifier 1, 2)")
