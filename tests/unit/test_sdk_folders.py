"""Which pictures a script takes, where each result goes, and what it must not touch."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from noise import picture
from PIL import Image, PngImagePlugin

from atelier import folders
from atelier.errors import InvalidInput
from atelier.files import check_apart
from atelier.pictures import open_picture

LONG = "x" * 300
PHOTO = picture(30, 20)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """The folder that the test runs in: two photos, and two folders of them with other things."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.PNG", "in/2.jpg", "in/10.jpg", "in/sub/x.gif", "in/sub/y.webp", "other/2.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        PHOTO.save(name)
    for name in ("in/notes.txt", "dull/notes.txt", "in/.hidden.png", "in/.cache/z.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"")
    return tmp_path


def plan(*given: str, out: str | None = None) -> dict[str, str]:
    return {str(job.source): str(job.target) for job in folders.plan(given, out=out, tag="scream")}


@pytest.mark.parametrize(
    ("given", "out", "expected"),
    [
        pytest.param(["a.jpg"], None, {"a.jpg": "out/a-scream.png"}, id="a-photo"),
        pytest.param(["a.jpg"], "x/made.WEBP", {"a.jpg": "x/made.WEBP"}, id="a-file"),
        pytest.param(["a.jpg"], "x", {"a.jpg": "x/a-scream.png"}, id="into-a-folder"),
        pytest.param(["a.jpg"], "x.d/", {"a.jpg": "x.d/a-scream.png"}, id="into-a-folder-with-a-dot"),
        pytest.param(["a.jpg", "a.jpg"], None, {"a.jpg": "out/a-scream.png"}, id="named-twice"),
        pytest.param(["a.jpg", "./a.jpg"], None, {"a.jpg": "out/a-scream.png"}, id="named-in-two-ways"),
        pytest.param(
            ["b.PNG", "a.jpg"], None, {"b.PNG": "out/b-scream.png", "a.jpg": "out/a-scream.png"}, id="two-photos"
        ),
        pytest.param(["gone.jpg"], None, {"gone.jpg": "out/gone-scream.png"}, id="one-that-is-not-there"),
        pytest.param(["other"], None, {"other/2.jpg": "out/other-scream/2.jpg"}, id="a-folder"),
        pytest.param(["other"], "x", {"other/2.jpg": "x/2.jpg"}, id="a-folder-into-a-folder"),
        pytest.param(["in/sub"], ".", {"in/sub/x.gif": "x.png", "in/sub/y.webp": "y.webp"}, id="into-the-folder-above"),
        pytest.param(
            ["in"],
            "x",
            {
                "in/10.jpg": "x/10.jpg",
                "in/2.jpg": "x/2.jpg",
                "in/sub/x.gif": "x/sub/x.png",
                "in/sub/y.webp": "x/sub/y.webp",
            },
            id="folders-below",
        ),
        pytest.param(
            ["other", "a.jpg"], "x", {"other/2.jpg": "x/other/2.jpg", "a.jpg": "x/a-scream.png"}, id="of-both-kinds"
        ),
    ],
)
def test_where_each_result_goes(given, out, expected):
    """In order; a folder's keep their names, or end in .png where the ending is none to write; nothing is made."""
    assert list(plan(*given, out=out).items()) == list(expected.items())
    assert not Path("out").exists()
    assert not Path("x").exists()


def test_results_are_not_taken_for_pictures(here):
    """What was made in a folder that is searched is left out the next time."""
    for job in folders.plan(["."], out="painted", tag="scream"):
        folders.write(job.target, PHOTO, about="scream")
    assert not any("painted" in source for source in plan(".", out="painted"))
    assert (here / "painted" / "in" / "2.jpg").is_file()


def test_nor_are_those_of_another_run(here):
    """What was made in out/ is left out of a search that comes by, and someone else's picture there is not."""
    before = plan(".")
    for job in folders.plan(["."], out=None, tag="faded"):
        folders.write(job.target, PHOTO, about="faded")
    assert plan(".") == before
    PHOTO.save("out/mine.png")
    assert plan(".").keys() - before.keys() == {"out/mine.png"}
    assert len(plan("out", out="x")) == len(before) + 1


def test_what_was_made_before_is_replaced_and_nothing_else():
    """A folder of results may be made again; a file of someone else's in it stops all of it, before it begins."""
    for job in folders.plan(["in"], out="x", tag="scream"):
        folders.write(job.target, PHOTO, about="scream")
    assert plan("in", out="x")
    for name in ("x/2.jpg", "x/sub/x.png"):
        kept = Path(name).read_bytes()
        PHOTO.save(name)
        with pytest.raises(InvalidInput, match=f"{name}: is there already, without a mark of Atelier's"):
            plan("in", out="x")
        Path(name).write_bytes(kept)
    Path("x/2.jpg").write_text("words")
    with pytest.raises(InvalidInput, match=r"x/2\.jpg: is there already"):
        plan("in", out="x")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("height", [2400, 4800], ids=["over Pillow's warning", "over its limit"])
def test_a_sheet_with_more_pixels_than_pillow_opens_is_ours(height):
    """As of a panorama beside what was made of it; only its header is read."""
    target = Path("sheet.png")
    folders.write(target, PHOTO, about="sheet")
    written = target.read_bytes()
    header = struct.pack(">4sII", b"IHDR", 41_000, height) + written[24:29]
    target.write_bytes(written[:12] + header + struct.pack(">I", zlib.crc32(header)) + written[33:])
    folders.check_free(target)


def test_what_was_made_here_is_ours_whatever_its_ending():
    """Its bytes say which format it has."""
    folders.write(Path("made.png"), PHOTO, about="scream")
    folders.check_free(Path("made.png").rename("made.jpg"))


def test_a_large_picture_of_someone_else_is_not_decoded(monkeypatch):
    """To find that it has no mark, gigabytes of pixels need not be read."""
    PHOTO.save("theirs.png")
    decoded: list[Image.Image] = []
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", decoded.append)
    with pytest.raises(InvalidInput, match="without a mark of Atelier's"):
        folders.check_free(Path("theirs.png"))
    assert not decoded


def test_links_in_a_circle_are_no_picture():
    """No traceback: what opens them says so by name."""
    Path("circle.jpg").symlink_to("circle.jpg")
    assert plan("circle.jpg") == {"circle.jpg": "out/circle-scream.png"}
    with pytest.raises(InvalidInput, match=r"circle\.jpg: cannot be read: Too many levels of symbolic links"):
        open_picture("circle.jpg")
    check_apart(Path("circle.jpg"), ["a.jpg"])


def test_a_file_that_is_named_is_replaced():
    """As whoever names it says."""
    PHOTO.save("mine.png")
    assert plan("a.jpg", out="mine.png") == {"a.jpg": "mine.png"}


@pytest.mark.parametrize(
    ("given", "out", "says"),
    [
        pytest.param(["a.jpg"], "a.jpg", "a.jpg: would replace a picture that was given", id="itself"),
        pytest.param(["in"], "in", "in/10.jpg: would replace a picture that was given", id="a-folder-itself"),
        pytest.param(["a.jpg", "b.PNG"], "x.png", "--out: x.png is one picture", id="two-into-one"),
        pytest.param(["in"], "x.png", "--out: x.png is one picture", id="a-folder-into-one"),
        pytest.param(["a.jpg"], "x.gif", "--out: x.gif: unknown format .gif; use .png .jpg", id="format"),
        pytest.param(
            ["a.jpg", "b.PNG", "in/../a.jpg"],
            None,
            "out/a-scream.png: would come of more than one picture (a.jpg, in/../a.jpg); "
            "do them one by one, each with an --out of its own",
            id="one-name",
        ),
        pytest.param(["dull"], None, "dull: holds no pictures (looked for .png", id="nothing-to-see"),
        pytest.param(["a.jpg"], "b.PNG/x", "b.PNG/x", id="into-a-file"),
        pytest.param(["a.jpg"], "/proc/x.png", "/proc/x.png: cannot be written", id="where-nothing-can-be"),
        pytest.param(["a.jpg"], f"{LONG}.png", f"{LONG}.png: cannot be reached: File name too long", id="long-file"),
        pytest.param(["a.jpg"], LONG, f"{LONG}/a-scream.png: cannot be reached: File name too long", id="long-folder"),
        pytest.param([LONG], None, f"{LONG}: cannot be reached: File name too long", id="long-picture"),
        pytest.param([LONG], "x.png", f"{LONG}: cannot be reached: File name too long", id="long-picture-into-one"),
        pytest.param(
            [f"{LONG[:250]}.jpg"], None, f"File name too long; rename {LONG[:250]}.jpg, or do it by", id="long-result"
        ),
        pytest.param([LONG, "a.jpg"], "link", "link is a link to what is not there", id="the-out-of-several"),
        pytest.param(
            ["a.jpg"], "link", "link/a-scream.png: cannot be written: link is a link to what", id="link-as-folder"
        ),
        pytest.param(["in"], "link/x", "link/x/10.jpg: cannot be written: link is a link to what", id="below-a-link"),
        pytest.param(["a.jpg"], "circle.png", "circle.png: cannot be written: Too many levels", id="circle"),
    ],
)
def test_results_that_can_go_nowhere_are_refused(given, out, says, here):
    """InvalidInput names the path before any work is done, and nothing is left behind."""
    for link, to in {"link": "gone", "circle.png": "circle.png"}.items():
        Path(link).symlink_to(to)
    before = sorted(here.rglob("*"))
    with pytest.raises(InvalidInput) as caught:
        plan(*given, out=out)
    assert says in str(caught.value)
    assert sorted(here.rglob("*")) == before


@pytest.fixture
def closed(monkeypatch) -> list[str]:
    """The folders that may not be read."""
    scandir, those = os.scandir, ["in/.cache"]

    def refusing(path: str | Path) -> object:
        if str(path) in those:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    return those


def refused(*given: str, out: str | None = None) -> dict[str, str]:
    return {str(job.source): job.refused for job in folders.plan(given, out=out, tag="scream") if job.refused}


def test_a_folder_that_may_not_be_read_is_named(closed):
    """Nothing is done if no other was given; into one that is hidden nobody looks."""
    closed.append("in")
    with pytest.raises(InvalidInput, match=r"^in: cannot be searched: Permission denied$"):
        plan("in", out="x")


def test_a_folder_below_that_may_not_be_read_is_left_out(closed):
    """Not in silence, and the others' pictures are done."""
    closed.append("in/sub")
    assert refused("in", out="x") == {"in/sub": "in/sub: cannot be searched: Permission denied"}
    assert plan("in", out="x").keys() == {"in/10.jpg", "in/2.jpg", "in/sub"}


def test_a_folder_that_may_not_be_entered_has_pictures_that_cannot_be_opened(monkeypatch):
    """Its names can be read: what opens each says why it cannot."""

    def refusing(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refusing)
    assert plan("in/sub", out="x").keys() == {"in/sub/x.gif", "in/sub/y.webp"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        pytest.param("dull", "dull: holds no pictures (looked for .png", id="an-empty-folder"),
        pytest.param(LONG, f"{LONG}: cannot be reached: File name too long", id="a-long-name"),
        pytest.param(f"{LONG[:250]}.jpg", "File name too long; rename xxx", id="a-long-result"),
    ],
)
def test_one_of_several_that_gives_nothing_is_left_out(given, says):
    """As a file that is not there is: the others are done, and the call goes on where there are no others."""
    found = refused("a.jpg", given, "in/sub")
    assert found.keys() == {given}
    assert says in found[given]
    assert [target for source, target in plan(given, "a.jpg").items() if source != given] == ["out/a-scream.png"]
    assert refused("dull", given, LONG[:299]).keys() == {"dull", given, LONG[:299]}


@pytest.mark.parametrize("ending", [".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_every_format_holds_the_picture_and_what_made_it(ending, mode):
    """Its size, transparency where the format has that, and the line that tells it from others' files."""
    smooth = Image.linear_gradient("L").resize((30, 20))
    given = Image.merge(mode, [smooth] * len(mode))
    target = Path(f"x/made{ending}")
    folders.write(target, given, about="scream; style version 3")
    with Image.open(target) as found:
        assert found.size == given.size
        assert found.mode == ("RGB" if ending in (".jpg", ".jpeg") else mode)
        assert found.getexif()[0x010E] == "Made with Atelier: scream; style version 3"
        if mode == "RGB":
            np.testing.assert_allclose(np.asarray(found, int), np.asarray(given, int), atol=8)
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".tif"])
def test_a_full_disk_is_named_whatever_the_format(ending):
    """By the system's words; nothing half-written is left."""
    program = (
        "import resource, sys; from pathlib import Path; from PIL import Image; from atelier import errors, folders\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: folders.write(Path(sys.argv[1]), Image.effect_noise((300, 300), 99).convert('RGB'), about='scream')\n"
        "except errors.InvalidInput as exc: print(exc)"
    )
    done = subprocess.run([sys.executable, "-c", program, f"x/made{ending}"], capture_output=True, text=True)
    assert done.stdout == f"x/made{ending}: cannot be written: File too large\n"
    assert not list(Path("x").iterdir())


@pytest.mark.parametrize(("ending", "most"), [(".jpg", 65500), (".JPEG", 65500), (".webp", 16383)])
def test_a_picture_that_a_format_cannot_hold_is_refused(ending, most):
    """One line that names the file, before anything is made; the longest that it can hold is written."""
    target = Path(f"x/made{ending}")
    for size in ((most + 1, 8), (8, most + 1)):
        with pytest.raises(
            InvalidInput, match=rf"x/made{ending}: .* {most:,} pixels a side, .* {size[0]} x {size[1]};"
        ):
            folders.write(target, Image.new("RGB", size), about="scream")
    assert not Path("x").exists()
    folders.write(target, Image.new("RGB", (most, 8)), about="scream")
    with Image.open(target) as found:
        assert found.size == (most, 8)


def test_other_formats_hold_what_they_are_given():
    """PNG and TIFF, of any size."""
    for ending in (".png", ".tif", ".tiff"):
        folders.check_holds(Path(f"made{ending}"), (1_000_000, 8))


def test_the_pictures_in_a_folder(here):
    """By name, with those of folders below, whatever else is there; of what was made here before one may be named."""
    found, refused = folders.pictures_in(Path("in"))
    assert list(map(str, found)) == ["in/10.jpg", "in/2.jpg", "in/sub/x.gif", "in/sub/y.webp"]
    assert not refused
    assert folders.pictures_in(Path("in"), but=Path("in/10.jpg"))[0] == found[1:]
    assert folders.pictures_in(Path("in"), but=Path("in/sub"))[0] == found[:2]
    found, refused = folders.pictures_in(Path("dull"))
    assert not found
    assert refused[Path("dull")].startswith("dull: holds no pictures")
