"""Latent vectors and their text files."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from atelier import latents
from atelier.errors import InvalidInput

ANY = st.integers(1, 4).flatmap(
    lambda n: arrays(np.float32, (n, 6), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
)
SEED_7 = [1.5219693183898926, -1.1441057920455933, 1.150161623954773]
ROW = " ".join(["0.5"] * 100)


@settings(max_examples=40, deadline=None)
@given(vectors=ANY)
def test_the_same_bits_come_back(vectors, tmp_path_factory):
    """Every finite float32, subnormal numbers and -0 too, survives its text."""
    path = tmp_path_factory.mktemp("latents") / "z.txt"
    latents.save(path, vectors, note="of a test\nwith two lines")
    assert latents.load(path, width=6).tobytes() == vectors.tobytes()


def test_numpy_reads_the_file_too(tmp_path):
    """It is what numpy.loadtxt reads: numbers between blanks under # comments."""
    vectors = latents.draw(3, seed=1)
    latents.save(tmp_path / "z.txt", vectors)
    assert np.loadtxt(tmp_path / "z.txt", dtype=np.float32).tobytes() == vectors.tobytes()


def test_the_file_says_what_it_is(tmp_path):
    """Its first lines are comments with the counts and the caller's note."""
    latents.save(tmp_path / "z.txt", latents.draw(3, seed=1), note="seed 1")
    first, second, *rest = (tmp_path / "z.txt").read_text().splitlines()
    assert first == "# 3 latent vectors of 100 numbers, one to a line"
    assert second == "# seed 1"
    assert len(rest) == 3
    latents.save(tmp_path / "z.txt", [[0.5]])
    assert (tmp_path / "z.txt").read_text().splitlines()[0] == "# 1 latent vector of 1 number, one to a line"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("1 2 3\n4 5 6\n", id="blanks"),
        pytest.param("1,2,3\n4, 5, 6", id="commas"),
        pytest.param("1;2;3\n4\t5\t6\n", id="semicolons-and-tabs"),
        pytest.param("# a note\r\n1 2 3\r\n\r\n  4 5 6  # the end\r\n", id="windows-and-comments"),
        pytest.param("\ufeff1 2 3\n4 5 6\n", id="byte-order-mark"),
        pytest.param("+1.0 2e0 .3e1\n4. 5 6", id="spellings"),
    ],
)
def test_what_people_and_spreadsheets_write_is_read(text, tmp_path):
    """Separators, comments, blank lines, line ends and a byte-order mark make no difference."""
    (tmp_path / "z.txt").write_bytes(text.encode("utf-8"))
    assert latents.load(tmp_path / "z.txt", width=3).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"# only\n\n   # comments\n", "empty", id="only-comments"),
        pytest.param(f"{ROW}\n{ROW} 1\n".encode(), "line 2: has 101 numbers, a vector has 100", id="too-wide"),
        pytest.param(f"# a\n\n{ROW[4:]}\n".encode(), "line 3: has 99 numbers", id="too-narrow"),
        pytest.param(b"0.5\n", "line 1: has 1 number, a vector has 100", id="one-number"),
        pytest.param(f"{ROW}\n{ROW[4:]} nan\n".encode(), "line 2: 'nan' is not a finite", id="nan"),
        pytest.param(f"{ROW[4:]} -inf\n".encode(), "line 1: '-inf' is not a finite", id="infinity"),
        pytest.param(f"{ROW[4:]} 1e39\n".encode(), "line 1: '1e39' is not a finite", id="beyond-float32"),
        pytest.param(f"{ROW[4:]} red\n".encode(), "line 1: 'red' is not a number", id="a-word"),
        pytest.param(b"GIF89a\x80\x00\xff", "not a text file", id="a-picture"),
        pytest.param("1 2".encode("utf-16"), "not a text file", id="utf-16"),
        pytest.param(b"1\x002", "not a text file", id="nul"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_line(content, says, tmp_path):
    """InvalidInput begins with the file and says what is wrong where."""
    path = tmp_path / "z.txt"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=says) as caught:
        latents.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.txt", "."])
def test_no_file_or_a_folder_is_refused(name, tmp_path):
    """What the system says of the path is passed on."""
    with pytest.raises(InvalidInput, match="cannot be read"):
        latents.load(tmp_path / name)


def test_an_ending_may_be_as_long_as_the_system_takes(tmp_path):
    """Vectors are saved under any name."""
    path = tmp_path / ("a." + "x" * 253)
    latents.save(path, latents.draw(1, seed=1))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("vectors", [[[1.0, np.nan]], [[1.0], [1.0, 2.0]], None], ids=["nan", "ragged", "none"])
def test_a_refused_save_leaves_the_file_as_it_was(vectors, tmp_path):
    """What are no finite vectors is not written, and nothing is left beside."""
    path = tmp_path / "z.txt"
    path.write_text("precious")
    with pytest.raises(InvalidInput):
        latents.save(path, vectors)
    assert [p.name for p in tmp_path.iterdir()] == ["z.txt"]
    assert path.read_text() == "precious"


def test_a_pipe_is_not_replaced(tmp_path):
    """Nor a device: root, who may, would put a file in the place of /dev/null."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(InvalidInput, match="pipe: is a device or a pipe; name a file"):
        latents.save(path, latents.draw(1, seed=1))
    assert path.is_fifo()


def test_a_seed_means_the_same_vectors_for_ever():
    """Stored numbers: saved seeds must go on giving the same pictures."""
    vectors = latents.draw(3, seed=7)
    assert vectors.shape == (3, 100)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors[0, :3], np.float32(SEED_7))
    np.testing.assert_array_equal(latents.draw(2, seed=7), vectors[:2])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"count": 0, "seed": 1}, "count 0: must be a whole number, 1 or more", id="none"),
        pytest.param({"count": 2.5, "seed": 1}, r"count 2\.5: must be a whole number", id="between"),
        pytest.param({"count": "2", "seed": 1}, "count '2': must be a whole number", id="text"),
        pytest.param({"count": 2, "seed": -1}, "seed -1: must be a whole number, 0 or more", id="negative-seed"),
        pytest.param({"count": 2, "seed": None}, "seed None: must be a whole number", id="no-seed"),
        pytest.param({"count": 2, "seed": 0.5}, r"seed 0\.5: must be a whole number", id="seed-between"),
    ],
)
def test_bad_draws_are_refused(options, says):
    """InvalidInput names the argument."""
    with pytest.raises(InvalidInput, match=says):
        latents.draw(**options)


@pytest.mark.parametrize(
    ("vectors", "shape"),
    [
        pytest.param(np.zeros((2, 100)), (2, 100), id="float64"),
        pytest.param(np.zeros(100, np.float16), (1, 100), id="one-vector"),
        pytest.param(np.zeros((0, 100)), (0, 100), id="none"),
        pytest.param([], (0, 100), id="an-empty-list"),
        pytest.param([[1] * 100], (1, 100), id="lists"),
    ],
)
def test_check_makes_float32_rows(vectors, shape):
    """Anything array-like of the right width passes, as float32 (N, 100)."""
    found = latents.check(vectors)
    assert (found.shape, found.dtype) == (shape, np.float32)


@pytest.mark.parametrize(
    "vectors",
    [
        pytest.param(np.zeros((2, 99)), id="width"),
        pytest.param(np.zeros((2, 2, 100)), id="dimensions"),
        pytest.param("abc", id="text"),
        pytest.param([["1"] * 100], id="texts"),
        pytest.param(np.ones((1, 100), np.complex64), id="complex"),
        pytest.param([[1j] * 100], id="complex-lists"),
        pytest.param(np.zeros((1, 100), "M8[s]"), id="dates"),
        pytest.param(np.zeros((1, 100), "m8[s]"), id="durations"),
        pytest.param([[1.0], [1.0, 2.0]], id="ragged"),
        pytest.param(np.full((1, 100), np.inf), id="infinite"),
        pytest.param(np.full((1, 100), 1e300), id="beyond-float32"),
        pytest.param(None, id="none"),
        pytest.param([[10**400] * 100], id="beyond-float64"),
    ],
)
def test_check_refuses_what_is_no_latent(vectors):
    """InvalidInput names the argument."""
    with pytest.raises(InvalidInput, match="latents: "):
        latents.check(vectors)
