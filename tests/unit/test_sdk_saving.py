"""Saved walks: every format is opened again and compared with what was put in."""

from __future__ import annotations

import io
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, PngImagePlugin

from atelier import _gif, files, latents, saving
from atelier.errors import InvalidInput, MissingPackage
from atelier.recipe import Recipe

RECIPE = Recipe(keyframes=latents.draw(3, seed=1), steps=4, version=2, seed=1)
COUNT, SIZE = 12, 32
LONG = "x" * 300
EXACT = ["walk.png", "walk.webp", "walk.zip", "walk"]
ALL = [*EXACT, "walk.gif", "walk.mp4"]
FLAT = [(0, 0, 0), (255, 255, 255), (224, 184, 7), (185, 33, 19), (54, 79, 179)]


def smooth_frames(count: int = COUNT) -> list[Image.Image]:
    """Moving gradients: more colours than a GIF has."""
    across, down = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    planes = [[(across * 7 + t * 5), (down * 7 + t * 9), (across + down) * 3 + t] for t in range(count)]
    return [Image.fromarray((np.stack(p, axis=2) % 256).astype(np.uint8)) for p in planes]


def flat_frames(count: int = COUNT) -> list[Image.Image]:
    """Black ground and crossing lines in four flat colours, like the model's corpus."""
    frames = []
    for t in range(count):
        pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
        for i, colour in enumerate(FLAT[1:]):
            start = (7 * i + t) % (SIZE - 3)
            pixels[(slice(None), slice(start, start + 3)) if i % 2 else slice(start, start + 3)] = colour
        frames.append(Image.fromarray(pixels))
    return frames


def opened(path: Path) -> list[Image.Image]:
    """The frames of anything that was saved, as RGB."""
    if path.is_dir():
        return [Image.open(p).convert("RGB") for p in sorted(path.glob("frame-*.png"))]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as file:
            names = sorted(n for n in file.namelist() if n.endswith(".png"))
            return [Image.open(file.open(n)).convert("RGB") for n in names]
    if path.suffix == ".mp4":
        with av.open(str(path)) as file:
            return [frame.to_image() for frame in file.decode(video=0)]
    with Image.open(path) as picture:
        return [frame(picture, i) for i in range(picture.n_frames)]


def frame(picture: Image.Image, index: int) -> Image.Image:
    picture.seek(index)
    return picture.convert("RGB")


def stack(frames: list[Image.Image]) -> npt.NDArray[np.int64]:
    return np.stack([np.asarray(f) for f in frames]).astype(np.int64)


def durations_ms(path: Path) -> list[float]:
    with Image.open(path) as picture:
        found = []
        for index in range(picture.n_frames):
            picture.seek(index)
            picture.load()
            found.append(picture.info["duration"])
        return found


# --- pixels


@pytest.mark.parametrize("name", EXACT)
def test_every_pixel_comes_back(name, tmp_path):
    """Formats without loss are without loss."""
    frames = smooth_frames()
    saving.save(tmp_path / name, frames, fps=20, recipe=RECIPE)
    np.testing.assert_array_equal(stack(opened(tmp_path / name)), stack(frames))


def test_flat_colours_stay_exact_and_flat_in_a_gif(tmp_path):
    """No dithering and no drift: a picture of five colours comes back as it was."""
    frames = flat_frames()
    saving.save(tmp_path / "walk.gif", frames)
    np.testing.assert_array_equal(stack(opened(tmp_path / "walk.gif")), stack(frames))


def test_noise_in_a_black_ground_does_not_speckle_a_gif(tmp_path):
    """A generator's ground is black only nearly; it takes one colour of the palette."""
    noise = np.random.default_rng(0).integers(0, 6, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
    flat = stack(flat_frames())
    frames = [Image.fromarray(p) for p in np.maximum(flat, noise).astype(np.uint8)]
    saving.save(tmp_path / "walk.gif", frames)
    ground = stack(opened(tmp_path / "walk.gif"))[(flat == 0).all(axis=3)]
    assert len(np.unique(ground, axis=0)) == 1


def test_a_gif_of_many_colours_is_close_and_better_than_pillow_s_own(tmp_path):
    """The shared palette beats the octree that Pillow would use, on average and at its worst."""
    frames = smooth_frames()
    saving.save(tmp_path / "walk.gif", frames)
    tall = Image.fromarray(np.concatenate([np.asarray(f) for f in frames]))
    octree = tall.quantize(256, method=Image.Quantize.FASTOCTREE)
    theirs = [f.quantize(palette=octree, dither=Image.Dither.NONE).convert("RGB") for f in frames]
    ours, others = (np.abs(stack(f) - stack(frames)) for f in (opened(tmp_path / "walk.gif"), theirs))
    assert ours.mean() < others.mean()
    assert ours.mean() < 10


def test_a_gif_has_one_palette_and_loops_for_ever(tmp_path):
    """No frame brings colours of its own, so none flickers against the next."""
    saving.save(tmp_path / "walk.gif", smooth_frames())
    content = (tmp_path / "walk.gif").read_bytes()
    assert content[10] & 0x80
    assert b"NETSCAPE2.0\x03\x01\x00\x00" in content
    assert local_palettes(content) == [False] * COUNT


def local_palettes(gif: bytes) -> list[bool]:
    """Of each image in a GIF, whether it has a colour table of its own."""
    at, found = 13 + 3 * (2 << (gif[10] & 7)), []
    while gif[at] != 0x3B:
        if gif[at] == 0x2C:
            found.append(bool(gif[at + 9] & 0x80))
            at += 11 + (3 * (2 << (gif[at + 9] & 7)) if found[-1] else 0)
        else:
            at += 2
        while gif[at]:
            at += 1 + gif[at]
        at += 1
    return found


def test_an_mp4_keeps_thin_coloured_lines(tmp_path):
    """Half-resolution colour does not wash out lines of 3 pixels; the frames come enlarged, all of them."""
    frames = flat_frames()
    saving.save(tmp_path / "walk.mp4", frames, fps=25)
    found = opened(tmp_path / "walk.mp4")
    assert len(found) == COUNT
    assert {f.size for f in found} == {(2 * SIZE, 2 * SIZE)}
    small = [f.resize((SIZE, SIZE), Image.Resampling.BOX) for f in found]
    assert np.abs(stack(small) - stack(frames)).mean() < 8


# --- time


@pytest.mark.parametrize("fps", [1, 7, 12, 15, 20, 24, 25, 30, 33.3, 50])
def test_a_gif_plays_at_the_rate_asked_for(fps, tmp_path):
    """A GIF counts hundredths of a second: after every frame the clock is right to half of one."""
    saving.save(tmp_path / "walk.gif", smooth_frames(), fps=fps)
    ends = np.cumsum(durations_ms(tmp_path / "walk.gif"))
    np.testing.assert_allclose(ends, 1000 * np.arange(1, COUNT + 1) / fps, atol=5.001)


@pytest.mark.parametrize("name", ["walk.png", "walk.webp"])
@pytest.mark.parametrize("fps", [12, 30])
def test_animations_play_at_the_rate_asked_for(name, fps, tmp_path):
    """To half a millisecond, after every frame."""
    saving.save(tmp_path / name, smooth_frames(), fps=fps)
    ends = np.cumsum(durations_ms(tmp_path / name))
    np.testing.assert_allclose(ends, 1000 * np.arange(1, COUNT + 1) / fps, atol=0.51)


@pytest.mark.parametrize("fps", [12, 23.976, 30, np.float32(25)], ids=str)
def test_an_mp4_plays_at_the_rate_asked_for(fps, tmp_path):
    """The stream's own rate."""
    saving.save(tmp_path / "walk.mp4", flat_frames(), fps=fps)
    with av.open(str(tmp_path / "walk.mp4")) as file:
        assert float(file.streams.video[0].average_rate) == pytest.approx(fps, rel=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_every_format_shows_a_frame_for_a_minute(name, tmp_path):
    """The slowest that is taken."""
    saving.save(tmp_path / name, smooth_frames(3), fps=saving.SLOWEST_FPS)
    if name.endswith((".gif", ".webp", ".png")):
        assert durations_ms(tmp_path / name) == [60_000] * 3
    assert len(opened(tmp_path / name)) == 3


@pytest.mark.parametrize("after", [[], ["blue"]], ids=["alone", "before-another"])
def test_a_gif_that_shows_one_picture_for_too_long_is_refused(after, tmp_path):
    """Pillow makes one of equal frames; 655 s can be shown, and of other formats more."""
    shown, after = [Image.new("RGB", (8, 8), "red")], [Image.new("RGB", (8, 8), each) for each in after]
    saving.save(tmp_path / "walk.gif", shown * 655 + after, fps=1)
    assert durations_ms(tmp_path / "walk.gif")[0] == 655_000
    with pytest.raises(InvalidInput, match=r"walk\.gif: shows one picture for 656 s or more; use \.webp"):
        saving.save(tmp_path / "walk.gif", shown * 656 + after, fps=1)
    saving.save(tmp_path / "walk.webp", shown * 656 + after, fps=1)


# --- metadata


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("count", [1, COUNT], ids=["still", "animation"])
def test_the_recipe_comes_back_from_every_format(name, count, tmp_path):
    """What `--again` reads is what was saved, for a strip and for an animation."""
    saving.save(tmp_path / name, smooth_frames(count), recipe=RECIPE)
    assert saving.read(tmp_path / name).to_json() == RECIPE.to_json()


@pytest.mark.parametrize("name", ALL)
def test_a_long_recipe_comes_back_too(name, tmp_path):
    """A thousand keyframes are half a megabyte of metadata; no format cuts it short."""
    long = Recipe(keyframes=latents.draw(1000, seed=1), steps=1)
    saving.save(tmp_path / name, smooth_frames(2), recipe=long)
    assert saving.read(tmp_path / name).to_json() == long.to_json()


@pytest.mark.parametrize("name", ALL)
def test_frames_without_a_recipe_have_none(name, tmp_path):
    """Frames of an app that has no recipe save as well; reading says that there is none."""
    saving.save(tmp_path / name, smooth_frames())
    with pytest.raises(InvalidInput, match="holds no walk"):
        saving.read(tmp_path / name)


def test_the_same_walk_makes_the_same_bytes(tmp_path):
    """Nothing in a file depends on when it was made."""
    for name in ("a.gif", "b.gif", "a.zip", "b.zip"):
        saving.save(tmp_path / name, smooth_frames(), recipe=RECIPE)
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        assert {entry.date_time for entry in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("height", [2400, 4800], ids=["over Pillow's warning", "over its limit"])
def test_a_strip_with_more_pixels_than_pillow_opens_is_read(height, tmp_path):
    """As of a long walk in large pictures; only its header is."""
    target = tmp_path / "walk.png"
    saving.save(target, smooth_frames(1), recipe=RECIPE)
    written = target.read_bytes()
    header = struct.pack(">4sII", b"IHDR", 41_000, height) + written[24:29]
    target.write_bytes(written[:12] + header + struct.pack(">I", zlib.crc32(header)) + written[33:])
    assert saving.read(target).to_json() == RECIPE.to_json()


@pytest.mark.filterwarnings("error")
def test_a_webp_with_more_pixels_than_pillow_opens_is_read(tmp_path):
    """Its decoder would refuse it by itself."""
    target = tmp_path / "walk.webp"
    saving.save(target, smooth_frames(1), recipe=RECIPE)
    written = bytearray(target.read_bytes())
    assert written[12:16] == b"VP8X"
    written[24:30] = (16_382).to_bytes(3, "little") * 2  # both sides, less one
    target.write_bytes(written)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(target)
    assert saving.read(target).to_json() == RECIPE.to_json()


def test_a_large_picture_without_a_walk_is_not_decoded(tmp_path, monkeypatch):
    """To find that it holds none, gigabytes of pixels need not be read."""
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    decoded: list[Image.Image] = []
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", decoded.append)
    with pytest.raises(InvalidInput, match="holds no walk"):
        saving.read(tmp_path / "photo.png")
    assert not decoded


def zipped(*, flags: int = 0, method: int = 0) -> bytes:
    """A zip of a walk.json that says so of it, with what is no such thing."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("walk.json", "{}")
    content = bytearray(buffer.getvalue())
    for head, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        struct.pack_into("<HH", content, content.index(head) + at, flags, method)
    return bytes(content)


def webp(exif: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format="WEBP", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        pytest.param("missing.gif", None, "no such file", id="missing"),
        pytest.param("a.gif", b"hello", "neither a picture", id="text"),
        pytest.param("a.mp4", b"hello", "cannot be read as a video", id="no-video"),
        pytest.param("a.zip", b"PK\x03\x04broken", "neither a picture", id="broken-zip"),
        pytest.param("a.gif", b"GIF89a", "cannot be read|neither", id="cut-short"),
        pytest.param(f"{LONG}.gif", None, "cannot be reached: File name too long", id="long"),
        pytest.param("a.zip", zipped(flags=1), "cannot be read .*encrypted", id="encrypted-zip"),
        pytest.param("a.zip", zipped(method=99), "cannot be read .*compression method", id="zip-of-another-kind"),
        pytest.param("a.webp", webp(b"hello"), "cannot be read", id="damaged-exif"),
        pytest.param("a.webp", webp(b"")[:-9], "cannot be read", id="half-a-webp"),
    ],
)
def test_what_is_no_walk_is_refused(name, content, says, tmp_path):
    """InvalidInput begins with the path."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=says) as caught:
        saving.read(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_a_picture_of_another_program_holds_no_walk(tmp_path):
    """Its own comment is not taken for a recipe."""
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.gif", comment=b"made by hand")
    number = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x10E, 3, 1, 7, 0, 0)
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg", exif=number)
    for name in ("photo.gif", "photo.jpg"):
        with pytest.raises(InvalidInput, match=rf"{name}: holds no walk"):
            saving.read(tmp_path / name)


# --- files


@pytest.mark.parametrize("name", ALL)
def test_saving_leaves_exactly_one_thing(name, tmp_path):
    """Missing folders are made, and nothing is left beside."""
    target = tmp_path / "new" / "deep" / name
    saving.save(target, smooth_frames(), recipe=RECIPE)
    assert list(target.parent.iterdir()) == [target]


def test_a_video_s_name_may_have_a_colon(tmp_path, monkeypatch):
    """What is before it is no protocol of FFmpeg's, in a path without a folder."""
    monkeypatch.chdir(tmp_path)
    saving.save("12:30.mp4", smooth_frames(2), recipe=RECIPE)
    assert saving.read("12:30.mp4").seed == RECIPE.seed
    assert [path.name for path in tmp_path.iterdir()] == ["12:30.mp4"]


@pytest.mark.parametrize(
    "fps", [0, 1e9, 10**400, float("nan"), "20"], ids=["none", "many", "beyond float64", "no number", "text"]
)
def test_a_rate_that_no_file_can_have_is_refused(fps, tmp_path):
    """Before anything is written, naming the file."""
    with pytest.raises(InvalidInput, match=r"walk\.gif: fps .* must be"):
        saving.check(tmp_path / "walk.gif", fps=fps)


@pytest.mark.parametrize("ending", [".gif", ".mp4", ""], ids=["file", "video", "folder"])
def test_a_name_may_be_as_long_as_the_system_takes(ending, tmp_path):
    """255 bytes: what `check` lets through can be written, when all the work is done."""
    target = tmp_path / ("x" * (255 - len(ending)) + ending)
    saving.check(target, fps=20)
    saving.save(target, smooth_frames(2))
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["walk.gif", "walk.png", "walk.webp", "walk.zip", "walk.mp4", "walk"])
def test_a_disk_that_fills_up_loses_nothing(name, tmp_path):
    """When writing fails midway the older file is as it was, and no half of a new one lies about."""
    target = tmp_path / name
    saving.save(target, smooth_frames(2), recipe=RECIPE)
    before = contents(tmp_path)
    program = (
        "import resource, sys; from PIL import Image; import numpy as np; from atelier import errors, saving\n"
        "noise = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: saving.save(sys.argv[1], [Image.fromarray(p) for p in noise])\n"
        "except errors.InvalidInput as exc: print(exc)"
    )
    done = subprocess.run([sys.executable, "-c", program, target], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{target}: cannot be written")
    assert contents(tmp_path) == before
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_loses_nothing_that_was_in_it(tmp_path):
    """Other files stay; of an earlier, longer walk no frame stays between the new ones."""
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "notes.txt").write_text("precious")
    (folder / "sub").mkdir()
    saving.save(folder, smooth_frames(9), recipe=RECIPE)
    saving.save(folder, smooth_frames(3), recipe=RECIPE)
    names = {p.name for p in folder.iterdir()}
    assert names == {"notes.txt", "sub", "walk.json", *(f"frame-{i:04}.png" for i in range(3))}
    assert (folder / "notes.txt").read_text() == "precious"


def test_a_folder_takes_a_walk_again_after_a_kill_in_the_middle(tmp_path, monkeypatch):
    """Of a longer walk, whose first frames are there already and are listed nowhere but among all that may be."""
    folder = tmp_path / "frames"
    saving.save(folder, smooth_frames(2), recipe=RECIPE)
    replace, replaced = Path.replace, []

    def killed(path: Path, target: Path) -> Path:
        if len(replaced) == 5:  # of the longer walk four frames lie there then
            raise KeyboardInterrupt
        replaced.append(target)
        return replace(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            saving.save(folder, smooth_frames(9), recipe=RECIPE)
    assert (folder / "frame-0003.png").is_file()
    saving.save(folder, smooth_frames(3), recipe=RECIPE)
    assert {path.name for path in folder.iterdir()} == {"walk.json", *(f"frame-{i:04}.png" for i in range(3))}
    assert saving.read(folder).to_json() == RECIPE.to_json()


@pytest.mark.parametrize("other", ["frame-0000.png", "walk.json"])
def test_other_people_s_frames_are_not_replaced(other, tmp_path):
    """A file that has the name of one of ours, and that no walk made, stops the save."""
    (tmp_path / other).write_text("precious")
    with pytest.raises(InvalidInput, match="no walk made it"):
        saving.save(tmp_path, smooth_frames(3))
    assert contents(tmp_path) == {other: b"precious"}


@pytest.mark.parametrize(
    "listed",
    [
        pytest.param('["../precious.png"]', id="outside-its-folder"),
        pytest.param('["frame-0000.png", "holiday.jpg"]', id="no-frame"),
        pytest.param('["frame-1.png"]', id="no-frame-of-ours"),
        pytest.param("[]", id="nothing"),
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_walk_json_of_another_program_has_nothing_removed(listed, tmp_path):
    """Only frames are ever removed: one that lists anything else stops the save."""
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "walk.json").write_text(f'{{"files": {listed}}}')
    for path in (tmp_path / "precious.png", folder / "holiday.jpg", folder / "frame-1.png"):
        path.write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(InvalidInput, match=r"walk\.json: is there already, and no walk made it"):
        saving.save(folder, smooth_frames(1))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        pytest.param("walk.avi", {}, r"unknown format \.avi; use \.gif", id="unknown-format"),
        pytest.param("file/walk.gif", {}, "cannot be written", id="under-a-file"),
        pytest.param("file/frames/", {}, "cannot be written", id="folder-under-a-file"),
        pytest.param("file", {}, "is a file; name a folder", id="folder-is-a-file"),
        pytest.param("/", {}, "is the root", id="root"),
        pytest.param("folder.gif", {}, "is a folder; name a file", id="file-is-a-folder"),
        pytest.param("walk.gif", {"fps": 51}, "at most 50; .webp", id="gif-too-fast"),
        pytest.param("walk.gif", {"fps": 241}, "at most 50$", id="too-fast-for-any"),
        pytest.param("walk.png", {"fps": 241}, "at most 240", id="too-fast"),
        pytest.param("walk.png", {"fps": 0}, "at least 1 a minute", id="no-fps"),
        pytest.param("walk.gif", {"fps": 0.01}, "at least 1 a minute, and at most 50$", id="too-slow"),
        pytest.param("walk.webp", {"sides": (8, 16384)}, "8 x 16384 is more pixels than .webp", id="webp-too-large"),
        pytest.param("walk.mp4", {"sides": (8193, 8)}, "8193 x 8 is more pixels than .mp4", id="mp4-too-large"),
        pytest.param(f"{LONG}.gif", {}, "cannot be reached: File name too long", id="long-file"),
        pytest.param(LONG, {}, "cannot be reached: File name too long", id="long-folder"),
        pytest.param(f"new/{LONG}.gif", {}, "cannot be reached: File name too long", id="long-file-in-a-new-folder"),
        pytest.param("walk.mp4", {"still": True}, "one picture", id="still-video"),
        pytest.param("walk/", {"still": True}, "one picture", id="still-folder"),
        pytest.param("/proc/walk.gif", {}, "cannot be written", id="read-only"),
        pytest.param("link", {}, "link: is a link to what is not there", id="link-as-folder"),
        pytest.param("link/walk.gif", {}, "cannot be written: .*link is a link to what", id="below-a-link"),
        pytest.param("link/deep/frames", {}, "cannot be written: .*link is a link to", id="folder-below-a-link"),
        pytest.param("circle.gif", {}, "cannot be written: Too many levels of symbolic links", id="circle"),
    ],
)
def test_check_finds_it_before_any_work_is_done(name, options, says, tmp_path):
    """InvalidInput names the path, and nothing was made."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.gif").mkdir()
    for link, to in {"link": "gone", "circle.gif": "circle.gif"}.items():
        (tmp_path / link).symlink_to(to)
    with pytest.raises(InvalidInput, match=says) as caught:
        saving.check(f"{tmp_path}/{name}" if name[0] != "/" else name, **{"fps": 20, **options})
    assert name.rstrip("/") in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder.gif", "link", "circle.gif"}


def test_a_file_takes_the_place_of_a_link_to_what_is_not_there(tmp_path):
    """In which it is, and not where the link points."""
    target = tmp_path / "walk.gif"
    target.symlink_to("gone.gif")
    saving.save(target, smooth_frames(2))
    assert [path.name for path in tmp_path.iterdir() if not path.is_symlink()] == ["walk.gif"]


@pytest.mark.parametrize("name", ["a\0b.gif", "a\0b", "a\ud800b.png"], ids=["file", "folder", "no-text"])
def test_a_name_that_nothing_can_have_is_refused(name, tmp_path):
    """Where the system says only that there is no such file."""
    for refused in (
        lambda path: saving.save(path, smooth_frames(1)),
        lambda path: latents.save(path, latents.draw(1, seed=1)),
        latents.load,
    ):
        with pytest.raises(InvalidInput, match="cannot be") as caught:
            refused(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: cannot be ")
    with pytest.raises(InvalidInput, match="no such file"):
        saving.read(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_drive_that_is_not_there_is_named(tmp_path, monkeypatch):
    """Of which not even the root exists, on Windows."""
    monkeypatch.setattr(files, "exists", lambda path: False)
    with pytest.raises(InvalidInput, match=r"walk\.gif: cannot be written: there is no /$"):
        files.check_writable(tmp_path / "walk.gif")


def test_check_leaves_nothing_behind(tmp_path):
    """Not even the folders that saving would make."""
    saving.check(tmp_path / "a" / "b" / "walk.gif", fps=20)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "suffix"),
    [("a.gif", ".gif"), ("a.GIF", ".gif"), ("a", ""), ("a.b/", ""), ("a.d/b", ""), (".", ""), ("out/x.zip", ".zip")],
)
def test_the_ending_says_the_format(path, suffix):
    """A trailing slash is always a folder."""
    assert saving.format_of(path) == suffix


def test_frames_may_come_one_by_one(tmp_path):
    """As `Client.walk` gives them; not before it is known that they can be written."""
    asked = iter(smooth_frames())
    with pytest.raises(InvalidInput, match="unknown format"):
        saving.save(tmp_path / "walk.avi", asked)
    saving.save(tmp_path / "walk.png", asked, recipe=RECIPE)
    np.testing.assert_array_equal(stack(opened(tmp_path / "walk.png")), stack(smooth_frames()))


@pytest.mark.parametrize(
    "frames",
    [None, Image.new("RGB", (8, 8)), [None], np.zeros((2, 8, 8, 3), np.uint8)],
    ids=["none", "one-picture", "none-in-a-list", "an-array"],
)
def test_what_are_no_frames_is_refused(frames, tmp_path):
    """Neither one picture, nor what are none."""
    with pytest.raises(InvalidInput, match=r"^frames: needs one or more pictures, all of one size$"):
        saving.save(tmp_path / "a.gif", frames)


def test_frames_of_different_sizes_are_refused(tmp_path):
    """And so is no frame at all."""
    with pytest.raises(InvalidInput, match="one size"):
        saving.save(tmp_path / "a.gif", [Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))])
    with pytest.raises(InvalidInput, match="one or more"):
        saving.save(tmp_path / "a.gif", [])


def test_a_strip_too_long_for_its_format_is_refused(tmp_path):
    """WebP ends at 16383 pixels."""
    with pytest.raises(InvalidInput, match=r"16384 x 1 is more pixels than \.webp can hold; use \.png"):
        saving.save(tmp_path / "a.webp", [Image.new("RGB", (16384, 1))])


def test_without_pyav_an_mp4_is_refused_with_the_command_that_helps(tmp_path, monkeypatch):
    """PyAV is optional; the error comes before any work."""
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackage, match="pip install av"):
        saving.check(tmp_path / "walk.mp4", fps=20)


def test_delays_add_up():
    """No rounding error grows, and no frame is shown for no time at all."""
    assert _gif.delays(3, 30, per_second=100) == [3, 4, 3]
    assert sum(_gif.delays(1000, 30, per_second=100)) == 3333
    assert min(_gif.delays(10, 50, per_second=100)) == 2
