"""Pictures as people have them: every kind that is decoded, and every one that is refused in a line."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import noise
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from atelier import sizing
from atelier.errors import InvalidInput
from atelier.pictures import as_rgb, open_picture

TOP, BOTTOM = (200, 60, 20), (20, 60, 200)
ORIENTATION = 0x0112


def picture(size: tuple[int, int] = (40, 60)) -> Image.Image:
    """Red above blue, so that it is seen which way is up."""
    made = Image.new("RGB", size, BOTTOM)
    made.paste(TOP, (0, 0, size[0], size[1] // 2))
    return made


def bytes_of(made: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    made.save(buffer, format=form, **options)
    return buffer.getvalue()


def ends(found: Image.Image) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The colours in the middle of the upper and the lower half."""
    assert found.mode == "RGB"
    width, height = found.size
    return found.getpixel((width // 2, height // 4)), found.getpixel((width // 2, 3 * height // 4))


def near(found: tuple[int, ...], expected: tuple[int, ...], tolerance: int) -> bool:
    return max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= tolerance


# --- what is decoded


@pytest.mark.parametrize(
    ("form", "options", "tolerance"),
    [
        ("PNG", {}, 0), ("BMP", {}, 0), ("TIFF", {}, 0), ("PPM", {}, 0), ("GIF", {}, 0),
        ("WEBP", {"lossless": True}, 0), ("JPEG", {}, 4), ("AVIF", {}, 6),
    ],
)  # fmt: skip
def test_the_formats_of_cameras_and_the_web(tmp_path, form, options, tolerance):
    """Each is told by its bytes, whatever its file is called, and comes as RGB."""
    path = tmp_path / "photo.of.boots"
    path.write_bytes(bytes_of(picture(), form, **options))
    found = open_picture(path)
    assert found.size == (40, 60)
    assert all(near(*pair, tolerance) for pair in zip(ends(found), (TOP, BOTTOM), strict=True))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_camera_was_held(tmp_path, orientation):
    """All eight orientations of EXIF come upright, and not mirrored."""
    upright = picture()
    upright.paste((250, 250, 250), (0, 0, 20, 30))  # upper left
    undoes = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # numbers of Pillow's transpositions
    stored = upright.transpose(Image.Transpose(undoes[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    (tmp_path / "a.jpg").write_bytes(bytes_of(stored, "JPEG", quality=95, subsampling=0, exif=exif))
    found = np.asarray(open_picture(tmp_path / "a.jpg")).astype(int)
    assert found.shape == (60, 40, 3)
    assert np.abs(found - np.asarray(upright)).mean() < 3


def test_exif_that_makes_no_sense_turns_nothing(tmp_path):
    """The picture is there all the same."""
    (tmp_path / "a.jpg").write_bytes(bytes_of(picture(), "JPEG", exif=b"Exif\0\0" + b"\xff" * 40))
    assert open_picture(tmp_path / "a.jpg").size == (40, 60)


@pytest.mark.parametrize(("mode", "form"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("LAB", "TIFF"), ("P", "GIF")])
def test_colours_of_other_kinds(tmp_path, mode, form):
    """Of printers, of measurements and from palettes: they come as the colours that are meant."""
    (tmp_path / "a").write_bytes(bytes_of(picture().convert(mode), form))
    tolerance = 40 if mode == "P" else 6  # a palette of 216
    assert all(near(*pair, tolerance) for pair in zip(ends(open_picture(tmp_path / "a")), (TOP, BOTTOM), strict=True))


GRAY_16 = [
    pytest.param("PNG", "<u2", id="png"),
    pytest.param("TIFF", "<u2", id="tiff"),
    pytest.param("TIFF", ">u2", id="tiff-big-endian"),
    pytest.param("PPM", "<u2", id="pgm"),
]


@pytest.mark.parametrize(("form", "order"), GRAY_16)
def test_gray_of_16_bits_is_scaled(tmp_path, form, order):
    """Its 65536 levels become 256; Pillow's own conversion would make all above 255 white."""
    levels = np.tile(np.linspace(0, 65535, 64, dtype=order), (64, 1))
    if form == "PPM":
        content = b"P5 64 64 65535\n" + levels.astype(">u2").tobytes()
    else:
        content = bytes_of(Image.fromarray(levels), form)
    (tmp_path / "a").write_bytes(content)
    found = np.asarray(open_picture(tmp_path / "a"))
    assert np.abs(found[..., 0] - levels / 257.0).max() <= 0.51
    assert (found == found[..., :1]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numbers_without_a_white_of_their_own_are_stretched(tmp_path, dtype):
    """The darkest is black, the brightest white, and one level alone is black."""
    levels = np.tile(np.linspace(-70_000, 90_000, 64, dtype=dtype), (64, 1))
    for name, stored in (("a.tiff", levels), ("b.tiff", np.full_like(levels, -5))):
        Image.fromarray(stored).save(tmp_path / name)
    found, flat = (np.asarray(open_picture(tmp_path / name)).astype(int) for name in ("a.tiff", "b.tiff"))
    assert (found.min(), found.max()) == (0, 255)
    assert (np.diff(found[0, :, 0]) > 0).all()
    assert not flat.any()


def see_through(mode: str) -> Image.Image:
    """The upper half as `picture` has it, the lower see-through, with black under it."""
    made = Image.new("RGBA", (40, 60), (0, 0, 0, 0))
    made.paste((*TOP, 255), (0, 0, 40, 30))
    return made.convert(mode)


@pytest.mark.parametrize(
    ("form", "made", "options"),
    [
        pytest.param("PNG", see_through("RGBA"), {}, id="rgba"),
        pytest.param("PNG", see_through("LA"), {}, id="gray"),
        pytest.param("WEBP", see_through("RGBA"), {"lossless": True}, id="webp"),
        pytest.param("GIF", see_through("RGBA"), {}, id="gif"),
        pytest.param("PNG", see_through("RGBA").quantize(4), {}, id="palette"),
        pytest.param("PNG", see_through("RGB"), {"transparency": (0, 0, 0)}, id="one-colour"),
    ],
)
def test_what_is_see_through_is_white(tmp_path, form, made, options):
    """As on paper, and not the black that is often stored under it."""
    (tmp_path / "a").write_bytes(bytes_of(made, form, **options))
    above, below = ends(open_picture(tmp_path / "a"))
    assert below == (255, 255, 255)
    assert max(above) < 230


@pytest.mark.parametrize(("mode", "kept"), [("RGBA", "RGBA"), ("LA", "RGBA"), ("RGB", "RGB"), ("L", "RGB")])
def test_transparency_can_be_kept(tmp_path, mode, kept):
    """RGBA where there is any, with the file's own colours and alpha; RGB where there is none."""
    levels = np.random.default_rng(0).integers(0, 256, (9, 11, len(mode)), np.uint8)
    given = Image.fromarray(levels.squeeze()).convert(mode)
    given.save(tmp_path / "a.png")
    found = open_picture(tmp_path / "a.png", alpha=True)
    assert found.mode == kept
    np.testing.assert_array_equal(found, given.convert(kept))


def test_half_see_through_is_half_white(tmp_path):
    """Black at half strength is gray."""
    Image.new("RGBA", (20, 20), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert ends(open_picture(tmp_path / "a.png"))[0] == (127, 127, 127)


def png(*head: int, clear: bytes = b"", rows: bytes = b"") -> bytes:
    """Written by hand: the seven numbers of its header, the one colour that is see-through, and its rows."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    chunks = {b"IHDR": struct.pack(">IIBBBBB", *head), b"tRNS": clear, b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks.items() if each[1] or each[0] != b"tRNS")


@pytest.mark.parametrize("bits", [8, 16])
def test_one_gray_of_a_png_may_be_see_through(tmp_path, bits):
    """Exactly that: of 16 bits, the next one is the same gray of 8."""
    white = 2**bits - 1
    clear = white // 3
    row = struct.pack(">10H" if bits == 16 else "10B", *[0, clear, clear + 1, clear, white] * 2)
    levels = struct.pack(">H", clear)
    (tmp_path / "a").write_bytes(png(10, 8, bits, 0, 0, 0, 0, clear=levels, rows=(b"\0" + row) * 8))
    kept, flat = open_picture(tmp_path / "a", alpha=True), open_picture(tmp_path / "a")
    assert (kept.mode, flat.mode) == ("RGBA", "RGB")
    assert [kept.getpixel((x, 7))[3] for x in range(5)] == [255, 0, 255, 0, 255]
    assert [flat.getpixel((x, 7)) for x in (0, 1, 3, 4)] == [(0, 0, 0), *[(255, 255, 255)] * 3]
    assert 85 <= flat.getpixel((2, 7))[0] <= 86


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXCHANGED = SRGB.replace(b"rXYZ", b"....").replace(b"bXYZ", b"rXYZ").replace(b"....", b"bXYZ")
EXCHANGED = EXCHANGED.replace("sRGB".encode("utf-16-be"), "sBGR".encode("utf-16-be"))
"""A colour space whose red is sRGB's blue, and whose blue is its red."""


@pytest.mark.parametrize(
    ("form", "made"),
    [
        pytest.param("PNG", see_through("RGB"), id="png"),
        pytest.param("PNG", see_through("RGBA"), id="rgba"),
        pytest.param("PNG", see_through("RGBA").quantize(4), id="palette"),
        pytest.param("JPEG", see_through("RGB"), id="jpeg"),
        pytest.param("TIFF", see_through("RGB"), id="tiff"),
        pytest.param("WEBP", see_through("RGBA"), id="webp"),
    ],
)
def test_a_profile_says_which_colours_are_meant(tmp_path, form, made):
    """A phone's are of a wider space than sRGB. They are made sRGB's once, and alpha stays."""
    (tmp_path / "a").write_bytes(bytes_of(made, form, icc_profile=EXCHANGED, lossless=True))
    found = open_picture(tmp_path / "a", alpha=True)
    assert near(found.convert("RGB").getpixel((20, 10)), TOP[::-1], 5)
    assert (found.mode == "RGBA") == made.has_transparency_data
    assert found.mode == "RGB" or found.getchannel("A").getextrema() == (0, 255)
    np.testing.assert_array_equal(as_rgb(found, alpha=True), found)


def linear_profile() -> bytes:
    """SRGB, and its name, but for the curve."""
    at = SRGB.index(b"para", 128)  # the one curve of all three channels, of type 3: g, a, b, c, d in 16.16
    curve = struct.pack(">4s4xHxx5i", b"para", 3, *(round(x * 65536) for x in (1, 1, 0, 1, 0)))
    return SRGB[:at] + curve + SRGB[at + len(curve) :]


def test_a_linear_profile_is_applied_whatever_its_name():
    """Painting programs call theirs linear sRGB; left out, its pictures are far too dark."""
    given = Image.open(io.BytesIO(bytes_of(Image.new("RGB", (9, 9), (55, 55, 55)), icc_profile=linear_profile())))
    assert near(as_rgb(given).getpixel((4, 4)), (128, 128, 128), 1)


def gray_profile(gamma: float) -> bytes:
    """A colour space of grays alone: a header, and one curve."""
    curve = struct.pack(">4s4xIHxx", b"curv", 1, round(gamma * 256))
    white = struct.pack(">3i", *(round(x * 65536) for x in (0.9642, 1, 0.8249)))
    head = struct.pack(
        ">I4xI4s4s4s12x4s28x12s48x", 144 + len(curve), 0x02100000, b"mntr", b"GRAY", b"XYZ ", b"acsp", white
    )
    return head + struct.pack(">I4sII", 1, b"kTRC", 144, len(curve)) + curve


@pytest.mark.parametrize(("level", "seen"), [(0, 0), (64, 81), (128, 146), (255, 255)])
@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_profile_of_grays_says_which_are_meant(mode, level, seen):
    """As scanners have; the levels are those of gamma 1.8 in sRGB's curve, and alpha stays."""
    pixel = {"L": np.uint8(level), "LA": np.uint8([level, 99]), "I;16": np.uint16(257 * level)}[mode]
    plain = Image.fromarray(np.tile(pixel, (9, 9, 1)).squeeze())
    assert plain.mode == mode
    given = Image.open(io.BytesIO(bytes_of(plain, icc_profile=gray_profile(1.8))))
    *colours, alpha = as_rgb(given, alpha=True).convert("RGBA").getpixel((4, 4))
    assert near(tuple(colours), (seen,) * 3, 1)
    assert alpha == (99 if mode == "LA" else 255)


def test_a_gray_picture_may_have_a_profile_of_colours():
    """Which is applied to its grays as well."""
    given = Image.open(io.BytesIO(bytes_of(Image.new("L", (9, 9), 55), icc_profile=linear_profile())))
    assert near(as_rgb(given).getpixel((4, 4)), (128, 128, 128), 1)


@pytest.mark.parametrize("profile", [SRGB, b"damaged", gray_profile(1.8)], ids=["srgb", "damaged", "of-grays"])
def test_another_profile_changes_nothing(profile):
    """To the bit; the picture that was given keeps it."""
    given = Image.open(io.BytesIO(bytes_of(NOISE, icc_profile=profile)))
    np.testing.assert_array_equal(as_rgb(given), NOISE)
    assert given.info["icc_profile"] == profile


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_of_an_animation_the_first_picture_is_taken_and_said(tmp_path, form):
    """One line that names the file."""
    path, said = tmp_path / "a", list[str]()
    frames = [picture(), *(Image.new("RGB", (40, 60), (0, shade, 0)) for shade in (90, 180))]
    path.write_bytes(bytes_of(frames[0], form, save_all=True, append_images=frames[1:]))
    found = open_picture(path, say=said.append)
    assert all(near(*pair, 6) for pair in zip(ends(found), (TOP, BOTTOM), strict=True))
    assert said == [f"{path}: holds more than one picture; the first is taken"]


@pytest.mark.parametrize("form", ["GIF", "PNG", "JPEG", "MPO"])
def test_of_one_picture_nothing_is_said(tmp_path, form):
    """Nor of the preview that a camera puts behind its photo."""
    options = {"save_all": True, "append_images": [picture((20, 30))]} if form == "MPO" else {}
    (tmp_path / "a").write_bytes(bytes_of(picture(), form, **options))
    said: list[str] = []
    assert open_picture(tmp_path / "a", say=said.append).size == (40, 60)
    assert said == []


@pytest.mark.parametrize("size", [(20_000, 10), (10, 20_000), (8, 8)], ids=str)
def test_odd_sizes_are_decoded(tmp_path, size):
    """20,000 pixels wide, 20,000 high, or hardly anything."""
    picture(size).save(tmp_path / "a.png")
    assert open_picture(tmp_path / "a.png").size == size


# --- what is refused


NOISE = noise.picture(64, 64)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"", "is empty; get the", id="empty"),
        pytest.param(b"hello", "is not a picture that can be read; PNG, JPEG,", id="text"),
        pytest.param(b"%PDF-1.7\n" * 9, "is not a picture that can be read", id="pdf"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture that can", id="eps"),
        pytest.param(b"\0\0\0\x18ftypheic" + bytes(99), "is HEIC, which cannot be read; save", id="heic"),
        pytest.param(bytes_of(NOISE)[:-3000], "cannot be decoded", id="half-a-png"),
        pytest.param(bytes_of(NOISE, "JPEG")[:-1500], "cannot be decoded", id="half-a-jpeg"),
        pytest.param(bytes_of(NOISE, "GIF")[:-2000], "cannot be decoded", id="half-a-gif"),
        pytest.param(bytes_of(NOISE, "WEBP")[:-900], "cannot be decoded", id="half-a-webp"),
        pytest.param(bytes_of(NOISE, "TIFF")[:-900], "cannot be decoded", id="half-a-tiff"),
        pytest.param(bytes_of(NOISE)[:30], "is ", id="a-head-alone"),
        pytest.param(png(30_000, 30_000, 8, 0, 0, 0, 0), "has more than 178 million pixels; make it", id="bomb"),
        pytest.param(bytes_of(Image.new("RGB", (1, 1))), "anything; give a picture of 8 x 8 or more", id="a-pixel"),
        pytest.param(bytes_of(Image.new("RGB", (900, 3))), "has 900 x 3 pixels, too few", id="a-line"),
        pytest.param(
            bytes_of(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF"), "are no numbers", id="nan",
        ),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_by_name(tmp_path, content, says):
    """InvalidInput: one line, the file first."""
    path = tmp_path / "boot.jpg"
    path.write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        open_picture(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.jpg", "no such file; check its name"),
        ("folder", "is a folder; name a picture in it"),
        ("pipe", "is not a file"),
        ("file/boot.jpg", "cannot be read: Not a directory"),
        ("x" * 300, "cannot be read: File name too long"),
        ("a\0b", "cannot be read: embedded null"),
    ],
    ids=["missing", "folder", "pipe", "below-a-file", "long", "nul"],
)
def test_what_is_no_file_is_refused_by_name(tmp_path, name, says):
    """And a pipe is not waited for."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInput) as caught:
        open_picture(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert says in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), form=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]))
def test_whatever_the_damage_it_is_a_picture_or_a_line(data, form, tmp_path_factory):
    """Bytes cut off or changed anywhere: RGB, or InvalidInput with the file's name; no warning, no other error."""
    content = bytearray(bytes_of(NOISE.resize((24, 16)), form))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "a"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with warnings.catch_warnings(action="error"):
        try:
            said, found = "", open_picture(path)
        except InvalidInput as exc:
            said, found = str(exc), None
    assert (found and found.mode == "RGB") or said.startswith(f"{path}: ")
    assert "\n" not in said


def test_a_picture_in_memory_is_refused_by_the_name_it_is_given():
    """`as_rgb` decodes what Pillow has only opened, and says what it was called."""
    cut = Image.open(io.BytesIO(bytes_of(NOISE)[:-3000]))
    with pytest.raises(InvalidInput, match="the boot: cannot be decoded"):
        as_rgb(cut, name="the boot")


def held() -> tuple[Image.Image, threading.Event, threading.Event]:
    """A picture that tells when it begins to be decoded, and then waits until it may."""
    made, begun, may = picture(), threading.Event(), threading.Event()

    def load() -> object:
        begun.set()
        assert may.wait(30)
        return Image.Image.load(made)

    made.load = load
    return made, begun, may


def test_threads_that_decode_leave_the_process_its_warnings():
    """Two that overlap, the first of which is done first, as in any server."""
    before = list(warnings.filters)
    with ThreadPoolExecutor(2) as threads:
        done = []
        for made, begun, may in (held(), held()):
            done.append((threads.submit(as_rgb, made), may))
            assert begun.wait(30)
        for found, may in done:
            may.set()
            assert found.result().mode == "RGB"
    assert list(warnings.filters) == before


def test_the_picture_given_stays_as_it_is():
    """`as_rgb` makes a new one."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    given = Image.open(io.BytesIO(bytes_of(picture(), "JPEG", exif=exif)))
    assert as_rgb(given).size == (60, 40)
    assert (given.size, given.getexif()[ORIENTATION]) == ((40, 60), 6)


@pytest.mark.parametrize("as_file", [bytes, io.BytesIO], ids=["bytes", "file"])
def test_an_upload_is_read_as_a_file_is(as_file):
    """A web handler has its bytes, or something to read them from; whatever is wrong with it is InvalidInput, too."""
    assert ends(open_picture(as_file(bytes_of(picture())))) == (TOP, BOTTOM)
    with pytest.raises(InvalidInput, match=r"^picture: is not a picture that can be read; "):
        open_picture(as_file(b"<html>"))
    with pytest.raises(InvalidInput, match=r"^picture: is empty; get it again$"):
        open_picture(as_file(b""))


@pytest.mark.parametrize("given", [None, 3, io.StringIO("text"), picture()], ids=["none", "number", "text", "picture"])
def test_what_is_neither_path_nor_bytes_is_refused(given):
    with pytest.raises(InvalidInput, match=r"^picture: a \w+ is none; give a file's path, or its bytes$"):
        open_picture(given)


def test_a_path_may_be_text(tmp_path):
    """Both name the same file."""
    picture().save(tmp_path / "a.png")
    assert open_picture(str(tmp_path / "a.png")).tobytes() == open_picture(Path(tmp_path / "a.png")).tobytes()


def test_the_size_that_an_error_asks_for_is_what_the_use_takes():
    """What is smaller than that can be seen, and is for the use to refuse."""
    small = picture((15, 15))
    assert open_picture(bytes_of(small), least=16).size == small.size
    for refused in (
        lambda made: as_rgb(made, least=16),
        lambda made: open_picture(bytes_of(made), least=16),
        lambda made: sizing.sized(made, size=64, done="stylised"),
    ):
        with pytest.raises(InvalidInput, match=r"^picture: has 7 x 7 pixels, .* give a picture of 16 x 16 or more$"):
            refused(picture((7, 7)))
