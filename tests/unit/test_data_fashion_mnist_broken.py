"""Fashion-MNIST files that can't be used: each is named in one line, with what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import need
from garment_files import (
    TEST,
    TEST_CSV,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN,
    TRAIN_CSV,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    csv,
    garments,
    idx,
    kaggle,
    official,
    write,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data import fashion_mnist, files
from training.data.fashion_mnist import Split
from training.errors import BadInput

# --- broken files --------------------------------------------------------------------------------------


def changed(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], str]:
    """A way to break one official file: what it holds, unpacked, is changed, and it is left unzipped."""

    def apply(folder: Path) -> str:
        official(folder, TRAIN, TEST, zipped=False)
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        return name

    return apply


def zipped(change: Callable[[bytes], bytes]) -> Callable[[Path], str]:
    """A way to break the zipped pictures."""

    def apply(folder: Path) -> str:
        official(folder, TRAIN, TEST)
        archive = folder / f"{TRAIN_IMAGES}.gz"
        archive.write_bytes(change(archive.read_bytes()))
        return archive.name

    return apply


def csv_with(change: Callable[[bytes], bytes]) -> Callable[[Path], str]:
    """A way to break the training CSV."""

    def apply(folder: Path) -> str:
        kaggle(folder, TRAIN, TEST)
        (folder / TRAIN_CSV).write_bytes(change((folder / TRAIN_CSV).read_bytes()))
        return TRAIN_CSV

    return apply


def field(line: int, column: int, value: bytes) -> Callable[[bytes], bytes]:
    """Put a value in a CSV's line and column, counted from 1."""

    def change(data: bytes) -> bytes:
        lines = [row.split(b",") for row in data.split(b"\n")]
        lines[line - 1][column - 1] = value
        return b"\n".join(b",".join(row) for row in lines)

    return change


def swapped(folder: Path) -> str:
    write(folder, {TRAIN_IMAGES: idx(TRAIN.labels), TRAIN_LABELS: idx(TRAIN.images)}, zipped=True)
    write(folder, {TEST_IMAGES: idx(TEST.images), TEST_LABELS: idx(TEST.labels)}, zipped=True)
    return f"{TRAIN_IMAGES}.gz"


def other_counts(folder: Path) -> str:
    official(folder, Split(TRAIN.images, TRAIN.labels[:-5]), TEST)
    return f"{TRAIN_LABELS}.gz"


def other_size(folder: Path) -> str:
    official(folder, Split(np.zeros((60, 32, 24), np.uint8), TRAIN.labels), TEST)
    return f"{TRAIN_IMAGES}.gz"


def eleventh_class(folder: Path) -> str:
    official(folder, TRAIN, Split(TEST.images, np.where(np.arange(20) == 6, 10, TEST.labels).astype(np.uint8)))
    return f"{TEST_LABELS}.gz"


def three_only(folder: Path) -> str:
    official(folder, TRAIN, garments(3))
    return f"{TEST_LABELS}.gz"


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        pytest.param(zipped(lambda data: data[: len(data) // 2]), "cut short or damaged", id="gzip cut"),
        pytest.param(zipped(lambda data: data[:500] + b"\0\0" + data[502:]), "cut short or damaged", id="gzip damaged"),
        pytest.param(zipped(lambda data: data + b"more"), "cut short or damaged", id="gzip with more behind"),
        pytest.param(zipped(lambda _: b""), "is empty", id="empty gzip"),
        pytest.param(zipped(lambda _: b"<html>Not found</html>"), "no IDX file of pictures", id="a web page"),
        pytest.param(changed(TEST_IMAGES, lambda data: data[:-1]), "cut short: 15,679 .* 15,680", id="IDX cut"),
        pytest.param(changed(TEST_LABELS, lambda data: data[:6]), "cut short within its header", id="header cut"),
        pytest.param(changed(TEST_LABELS, lambda data: data + b"\1"), "longer than it should be", id="IDX too long"),
        pytest.param(changed(TRAIN_IMAGES, lambda d: b"\0\0\x0d" + d[3:]), "begins with .* 00 00 0d 03", id="floats"),
        pytest.param(
            changed(TEST_IMAGES, lambda d: d[:4] + b"\xff" * 4 + d[8:]),
            "cut short: .* 3,367,254,359,", id="huge header",
        ),
        pytest.param(swapped, "holds labels, not pictures", id="labels for pictures"),
        pytest.param(
            changed(TEST_LABELS, lambda _: idx(garments(20).images)),
            "holds pictures, not labels", id="pictures for labels",
        ),
        pytest.param(other_counts, r"55 labels for the 60 pictures of train-images", id="counts differ"),
        pytest.param(other_size, "24 x 32 pixels, not 28 x 28", id="another size"),
        pytest.param(eleventh_class, "garment 7 as 10; labels go from 0 to 9", id="label of no class"),
        pytest.param(three_only, "has 3 garments, too few", id="too few"),
        pytest.param(csv_with(lambda _: b""), "is empty", id="empty CSV"),
        pytest.param(csv_with(lambda data: data[: data.index(b"\n") + 1]), "has 0 garments", id="CSV of a header"),
        pytest.param(csv_with(lambda data: data[:-2000]), "columns in line 61, not 785", id="CSV cut"),
        pytest.param(csv_with(lambda data: data + b"1,2,3\n"), "has 3 columns in line 62, not 785", id="short line"),
        pytest.param(csv_with(lambda data: data.replace(b",", b";")), "column of labels", id="semicolons"),
        pytest.param(
            csv_with(lambda data: b"\n".join(row.rpartition(b",")[0] for row in data.split(b"\n"))),
            "has 784 columns in line 2", id="a column too few",
        ),
        pytest.param(csv_with(lambda data: data.replace(b"label", b"id", 1)), "column of labels .*'id'", id="no label"),
        pytest.param(csv_with(field(2, 1, b"12")), "garment 1 as 12; labels go from 0 to", id="CSV label of no class"),
        pytest.param(csv_with(field(5, 9, b"256")), "'256' in line 5, column 9,", id="256"),
        pytest.param(csv_with(field(5, 9, b"-1")), "'-1' in line 5, column 9,", id="negative"),
        pytest.param(csv_with(field(61, 785, b"0.5")), "'0.5' in line 61, column 785,", id="fraction"),
        pytest.param(csv_with(field(9, 2, b"7.0")), "'7.0' in line 9, column 2,", id="float"),
        pytest.param(csv_with(field(9, 2, b"")), "'' in line 9, column 2,", id="left out"),
        pytest.param(csv_with(field(9, 2, b"\x00\xff\n" * 9)), r"columns in line 9", id="binary"),
        pytest.param(csv_with(field(9, 2, b"\x1b[31mdark" * 9)), r"'\\x1b\[31mdark", id="text"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")  # as a user runs it: what is refused must not rest on a warning being an error
def test_a_broken_file_is_named_in_one_line(break_it: Callable[[Path], str], says: str, tmp_path: Path) -> None:
    """The line begins with the flag and the file, says what is wrong and where, and what to do next."""
    name = break_it(tmp_path)
    with pytest.raises(BadInput, match=says) as refused:
        fashion_mnist.load(tmp_path)
    assert str(refused.value).startswith(f"--corpus: {tmp_path / name} ")
    assert str(refused.value).endswith("; replace it with the original file")
    assert "\n" not in str(refused.value)


def test_more_to_test_on_than_to_learn_from_are_swapped(tmp_path: Path) -> None:
    """Each file is sound, under the other's name."""
    official(tmp_path, TEST, TRAIN)
    with pytest.raises(BadInput, match=r"^--corpus: .* has 60 pictures to test on and 20 to learn from, as if swapped"):
        fashion_mnist.load(tmp_path)


@given(place=st.integers(0, 20 * 785), byte=st.sampled_from(b'0129,\n\r -+.e"x\0\xff'), how=st.sampled_from("=-+"))
@settings(max_examples=150, deadline=None)
def test_a_csv_with_one_byte_changed_is_read_or_refused(place: int, byte: int, how: str) -> None:
    """Whatever byte goes wrong: rows of 785 bytes with labels of the ten classes, or one line that names the file."""
    whole = csv(garments(20), header=False)
    k = place % len(whole)
    data = whole[:k] + (b"" if how == "-" else bytes([byte])) + whole[k + (how != "+") :]
    path = Path("in-memory.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fashion_mnist, "contents", lambda _path: data)
        message, rows = "--corpus: in-memory.csv ", np.zeros((1, 785), np.uint8)
        try:
            rows = fashion_mnist.from_csv(path)
        except BadInput as refused:
            message = str(refused)
    assert message.startswith("--corpus: in-memory.csv ")
    assert "\n" not in message
    assert (rows.dtype, rows.shape[1]) == (np.uint8, 785)
    assert rows[:, 0].max() <= 9


# --- folders -------------------------------------------------------------------------------------------


def absent(folder: Path) -> Path:
    return folder / "absent"


def a_file(folder: Path) -> Path:
    (folder / "archive.zip").write_bytes(b"PK")
    return folder / "archive.zip"


def other_things(folder: Path) -> Path:
    (folder / "cat.jpg").write_bytes(b"")
    return folder


def two_of_four(folder: Path) -> Path:
    official(folder, TRAIN, TEST)
    for name in (TRAIN_LABELS, TEST_IMAGES):
        (folder / f"{name}.gz").unlink()
    return folder


def train_csv_only(folder: Path) -> Path:
    (kaggle(folder, TRAIN, TEST) / TEST_CSV).unlink()
    return folder


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (absent, ("absent is not there",)),
        (a_file, ("archive.zip is not a folder",)),
        (other_things, ("no Fashion-MNIST", f"{TRAIN_IMAGES}.gz", f"{TEST_LABELS}.gz", TRAIN_CSV, TEST_CSV)),
        (two_of_four, (f"lacks {TRAIN_LABELS}.gz, {TEST_IMAGES}.gz;",)),
        (train_csv_only, (f"lacks {TEST_CSV};",)),
    ],
)
def test_a_folder_of_ones_own_must_be_complete(
    make: Callable[[Path], Path],
    says: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is missing is named in one line, and nothing is ever fetched into it."""
    monkeypatch.setattr(files, "fetch", lambda *_args, **_options: pytest.fail("fetched into a folder that was given"))
    folder = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInput) as refused:
        fashion_mnist.load(folder)
    message = str(refused.value)
    assert message.startswith("--corpus: ")
    assert str(folder) in message
    assert all(part in message for part in says)
    assert "\n" not in message
    assert sorted(tmp_path.rglob("*")) == before


def test_what_the_system_will_not_read_is_told_in_one_line(tmp_path: Path) -> None:
    """A fault of the disk: where, and the system's own reason."""
    need(Path("/proc/self/mem").exists(), "no /proc/self/mem, which can be opened but not read, as on a bad disk")
    official(tmp_path, TRAIN, TEST)
    (tmp_path / f"{TRAIN_IMAGES}.gz").unlink()
    (tmp_path / f"{TRAIN_IMAGES}.gz").symlink_to("/proc/self/mem")
    with pytest.raises(BadInput, match=rf"--corpus: can't read {tmp_path} \(Input/output error\); "):
        fashion_mnist.load(tmp_path)
