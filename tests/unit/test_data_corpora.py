"""Drawn corpora: what a seed draws, what the pictures show, and the commands that write them as files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data import corpus, files, lines
from training.errors import BadInput

ROOT = Path(__file__).parents[2]
DRAWN = sorted(corpus.DRAWN)


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
    )


@pytest.mark.parametrize("name", DRAWN)
def test_a_seed_draws_the_same_pictures_and_another_seed_others(name: str) -> None:
    """The same arguments give the same bytes; other seeds, other pictures; all of the documented shape."""
    draw = corpus.DRAWN[name]
    once = draw(12, seed=3)
    assert once.shape == (12, 128, 128, 3)
    assert once.dtype == np.uint8
    assert np.array_equal(once, draw(12, seed=3))
    assert not np.array_equal(once, draw(12, seed=4))


@pytest.mark.parametrize("name", DRAWN)
def test_no_two_pictures_of_a_corpus_are_the_same(name: str) -> None:
    """A corpus has something to learn: its pictures differ from one another and none is blank."""
    images = corpus.DRAWN[name](40, seed=0)
    assert len({image.tobytes() for image in images}) == 40
    assert all(image.std() > 5 for image in images)


def test_lines_are_drawn_as_the_source_program_draws_them() -> None:
    """x and the first y are uniform in [10, 118), the second y is normal (48, 1.2), colours are uniform."""
    positions, colors = lines.truth(20_000, seed=1)
    assert positions[:, :2].min() == 10
    assert positions[:, :2].max() == 117
    assert np.allclose(positions[:, :2].mean(0), 63.5, atol=0.8)
    assert np.allclose(positions[:, :2].std(0), 108 / 12**0.5, atol=0.5)
    assert abs(positions[:, 2].mean() - 48) < 0.05
    # rounding to whole pixels adds 1/12 to the variance
    assert abs(positions[:, 2].std() - (1.2**2 + 1 / 12) ** 0.5) < 0.03
    shares = np.stack([(colors == k).mean(0) for k in range(4)])
    assert np.allclose(shares, 0.25, atol=0.015)


def test_the_all_uniform_variant_spreads_the_second_horizontal_too() -> None:
    """As the source's text has it: all three positions are uniform in [10, 118)."""
    positions, _ = lines.truth(20_000, seed=1, all_uniform=True)
    assert positions.min() == 10
    assert positions.max() == 117
    assert np.allclose(positions.std(0), 108 / 12**0.5, atol=0.5)


def test_a_picture_shows_its_truth() -> None:
    """Five rows or columns in palette colours on black; the second horizontal lies over the first over the vertical."""
    (positions, colors), images = lines.truth(50, seed=2), lines.draw(50, seed=2)
    for (x, first, second), ink, image in zip(positions, lines.COLORS[colors], images, strict=True):
        expected = np.zeros((128, 128, 3), np.uint8)
        expected[:, x - 2 : x + 3] = ink[0]
        expected[first - 2 : first + 3] = ink[1]
        expected[second - 2 : second + 3] = ink[2]
        assert np.array_equal(image, expected)


def test_held_out_pictures_are_others_than_those_to_train_on() -> None:
    """`load` holds out pictures of the same kind, drawn with seeds that no one can train on."""
    loaded = corpus.load("lines", count=64, seed=7)
    assert (loaded.name, len(loaded.images), len(loaded.held_out)) == ("lines", 64, 64)
    assert loaded.three_lines
    train = {image.tobytes() for image in loaded.images}
    assert not train & {image.tobytes() for image in loaded.held_out}


def test_the_checksum_is_of_the_pictures_and_their_shape() -> None:
    """One changed pixel or another shape is another corpus; the same load is the same corpus."""
    images = lines.draw(16, seed=0)
    changed = images.copy()
    changed[3, 4, 5, 1] ^= 1
    sums = {corpus.checksum(x) for x in (images, changed, images.reshape(8, 256, 128, 3))}
    assert len(sums) == 3
    assert corpus.load("lines", count=16).sha256 == corpus.checksum(images)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        pytest.param("linez", {}, ("--corpus: linez", "lines", "schotter", "folder"), id="unknown name"),
        pytest.param("lines", {"count": 3}, ("--pictures: 3", "16"), id="too few"),
    ],
)
def test_what_there_is_not_is_refused_in_one_line(name: str, options: dict[str, int], says: tuple[str, ...]) -> None:
    """The message names the flag and what there is instead."""
    with pytest.raises(BadInput) as refused:
        corpus.load(name, **options)
    assert all(word in str(refused.value) for word in says)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("training.data.lines",), id="lines"),
        pytest.param(("training.data.lines", "--all-uniform"), id="lines, all uniform"),
        *(pytest.param(("training.data.computer_art", name), id=name) for name in sorted(corpus.computer_art.CORPORA)),
    ],
)
def test_a_command_writes_pictures_and_a_contact_sheet(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """As many PNG files as asked for, which read back as drawn, and one sheet; the folders above are made."""
    out = tmp_path / "new" / "pictures"
    done = command(*arguments, "--out", out, "--count", "12", "--seed", "5")
    assert (done.returncode, done.stderr) == (0, "")
    assert str(out) in done.stdout
    pictures = sorted(out.glob("*-0*.png"))
    assert [*sorted(out.iterdir())] == sorted([*pictures, out / files.SHEET])
    name = {"training.data.lines": "lines_uniform" if "--all-uniform" in arguments else "lines"}
    drawn = corpus.DRAWN[name.get(arguments[0], arguments[-1])](12, seed=5)
    assert np.array_equal(np.stack([np.asarray(Image.open(p)) for p in pictures]), drawn)
    with Image.open(out / files.SHEET) as sheet:
        assert sheet.size == (10 * 134 + 6, 2 * 134 + 6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(("--count", "0"), "--count: '0'", id="no pictures"),
        pytest.param(("--count", "many"), "--count: 'many'", id="not a number"),
        pytest.param(("--seed", "-1"), "--seed: '-1'", id="negative seed"),
        pytest.param(("--uniform",), "--uniform", id="unknown flag"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    """The line names the flag; nothing is written."""
    done = command("training.data.lines", "--out", tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path: Path) -> None:
    """--out never mixes into or replaces what is there."""
    (tmp_path / "mine.txt").write_text("mine")
    done = command("training.data.lines", "--out", tmp_path, "--count", "2")
    assert done.returncode == 2
    assert done.stderr.startswith(f"--out: {tmp_path}")
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    """A place that can't be written is one line naming it, and leaves nothing behind."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="--out: can't write"):
        files.save(lines.draw(1, seed=0), tmp_path / "file" / "out", name="lines")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    """All of a corpus is written or none of it: a picture that can't be saved takes the others with it."""
    broken = np.zeros((1, 4, 4, 7), np.uint8)  # no file format has seven channels
    with pytest.raises(TypeError):
        files.save(broken, tmp_path / "out", name="broken")
    assert not any(tmp_path.iterdir())
