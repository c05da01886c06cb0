"""Fashion-MNIST: both forms give the same garments, and no garment is on two sides of the split."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import need
from garment_files import (
    TEST,
    TEST_LABELS,
    TRAIN,
    TRAIN_CSV,
    TRAIN_LABELS,
    garments,
    idx,
    kaggle,
    official,
    pictures,
    same,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from serving import repository
from training.data import fashion_mnist, files
from training.data.fashion_mnist import Split
from training.errors import BadInput

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official form, zipped, of 60 and 20 garments."""
    return official(tmp_path_factory.mktemp("corpora") / "garments", TRAIN, TEST)


# --- both forms ----------------------------------------------------------------------------------------


def test_every_garment_comes_once_with_its_label(folder: Path) -> None:
    """Train and validation together are the training file, test is the test file; nothing changes its label."""
    loaded = fashion_mnist.load(folder)
    for came, went in (([loaded.train, loaded.validation], TRAIN), ([loaded.test], TEST)):
        known = {image.tobytes(): label for image, label in zip(*went, strict=True)}
        pairs = [(image.tobytes(), label) for split in came for image, label in zip(*split, strict=True)]
        assert len(pairs) == len(known)
        assert dict(pairs) == known


def test_arrays_are_as_promised(folder: Path) -> None:
    """uint8 (N, 28, 28) and (N,), four to one, in order in memory and free to write to."""
    loaded = fashion_mnist.load(folder)
    assert (loaded.name, len(loaded.sha256)) == ("garments", 64)
    for split, count in ((loaded.train, 48), (loaded.validation, 12), (loaded.test, 20)):
        assert (split.images.shape, split.labels.shape) == ((count, 28, 28), (count,))
        for array in split:
            assert array.dtype == np.uint8
            assert array.flags.c_contiguous
            assert array.flags.writeable


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("form", [official, kaggle])
def test_every_form_gives_the_same_bytes(form: Callable[..., Path], zipped: bool, folder: Path, tmp_path: Path) -> None:
    """IDX or CSV, zipped or not: the same splits in the same order, and the same checksum."""
    assert same(fashion_mnist.load(form(tmp_path, TRAIN, TEST, zipped=zipped)), fashion_mnist.load(folder))


def test_the_order_in_a_file_changes_nothing(folder: Path, tmp_path: Path) -> None:
    """Kaggle's rows are in another order than the official ones; the same garments are held out all the same."""
    order = np.random.default_rng(3).permutation(len(TRAIN.images))
    kaggle(tmp_path, Split(TRAIN.images[order], TRAIN.labels[order]), Split(TEST.images[::-1], TEST.labels[::-1]))
    assert same(fashion_mnist.load(tmp_path), fashion_mnist.load(folder))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: data[data.index(b"\n") + 1 :], id="no header"),
        pytest.param(lambda data: data.replace(b"label", b'"label"', 1), id="quoted header"),
        pytest.param(lambda data: data.replace(b"\n", b"\r\n"), id="Windows line ends"),
        pytest.param(lambda data: b"\xef\xbb\xbf" + data, id="byte order mark"),
        pytest.param(lambda data: data.rstrip(b"\n"), id="no last line end"),
        pytest.param(lambda data: data + b"\n\n", id="blank lines at the end"),
    ],
)
def test_a_csv_may_be_written_in_other_ways(change: Callable[[bytes], bytes], folder: Path, tmp_path: Path) -> None:
    """What other programs do to a CSV when they save it makes no difference."""
    kaggle(tmp_path, TRAIN, TEST)
    (tmp_path / TRAIN_CSV).write_bytes(change((tmp_path / TRAIN_CSV).read_bytes()))
    assert same(fashion_mnist.load(tmp_path), fashion_mnist.load(folder))


def test_a_file_that_a_browser_unpacked_keeps_its_name(folder: Path, tmp_path: Path) -> None:
    """What is called .gz and is none is read as what it is, and the other way round."""
    official(tmp_path, TRAIN, TEST)
    (tmp_path / f"{TRAIN_LABELS}.gz").write_bytes(idx(TRAIN.labels))
    (tmp_path / f"{TEST_LABELS}.gz").rename(tmp_path / TEST_LABELS)
    assert same(fashion_mnist.load(tmp_path), fashion_mnist.load(folder))


def test_where_both_forms_lie_the_official_one_is_read(folder: Path, tmp_path: Path) -> None:
    """Kaggle's archive holds both. An official form that lacks a file leaves the other to be read."""
    kaggle(tmp_path, garments(30, seed=8), garments(20, seed=9))
    official(tmp_path, TRAIN, TEST)
    assert same(fashion_mnist.load(tmp_path), fashion_mnist.load(folder))
    (tmp_path / f"{TEST_LABELS}.gz").unlink()
    assert pictures(fashion_mnist.load(tmp_path).test) == pictures(garments(20, seed=9))


# --- the split -----------------------------------------------------------------------------------------


@given(
    count=st.integers(16, 60),
    limit=st.none() | st.integers(16, 80),
    validation=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**64),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_garment_is_on_two_sides(
    count: int, limit: int | None, validation: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any share, seed and limit: both sides have some, none is on both or twice, and all asked for are there. A
    share that leaves fewer than two to train on is refused."""
    whole = garments(count)
    rows = np.concatenate([whole.labels[:, None], whole.images.reshape(count, -1)], 1)
    monkeypatch.setattr(fashion_mnist, "read", lambda _folder: (rows, rows[:16]))
    taken = min(count, limit or count)
    if taken - round(validation * taken) < 2:
        with pytest.raises(BadInput, match=rf"^--validation: .* of {taken} pictures leaves 1 to train on"):
            fashion_mnist.load("anywhere", pictures=limit, validation=validation, seed=seed)
        return
    loaded = fashion_mnist.load("anywhere", pictures=limit, validation=validation, seed=seed)
    train, held = pictures(loaded.train), pictures(loaded.validation)
    assert len(train) > 1
    assert held
    assert not train & held
    assert len(train) + len(held) == len(loaded.train.labels) + len(loaded.validation.labels)
    assert len(train) + len(held) == min(count, limit or count)
    assert abs(len(held) - validation * min(count, limit or count)) <= 1


def test_the_seed_alone_says_which_are_held_out(folder: Path) -> None:
    """The same arguments hold out the same garments; another seed others; the test set is the same for all."""
    once, again, other = (fashion_mnist.load(folder, seed=seed) for seed in (13, 13, 14))
    assert same(once, again)
    assert same(once, fashion_mnist.load(folder))
    assert pictures(once.validation) != pictures(other.validation)
    assert once.sha256 != other.sha256
    assert pictures(once.test) == pictures(other.test)


def test_a_smaller_share_is_held_out_of_a_larger_one(folder: Path) -> None:
    """What options were chosen by is not learnt from later, whole; and the test set stays."""
    small, large = fashion_mnist.load(folder, validation=0.05), fashion_mnist.load(folder)
    assert pictures(small.validation) < pictures(large.validation)
    assert pictures(small.train) > pictures(large.train)
    assert pictures(small.test) == pictures(large.test)


def test_parted_anew_both_sets_share_their_garments(folder: Path) -> None:
    """As many of each as before, all of them once; those of each side come from both files, by the seed."""
    once, again, other = (fashion_mnist.load(folder, part_anew=True, seed=seed) for seed in (13, 13, 14))
    assert same(once, again)
    assert pictures(once.test) != pictures(other.test)
    assert [len(split.labels) for split in (once.train, once.validation, once.test)] == [48, 12, 20]
    sides = [pictures(split) for split in (once.train, once.validation, once.test)]
    assert set.union(*sides) == pictures(TRAIN) | pictures(TEST)
    assert sum(map(len, sides)) == 80
    assert sides[2] & pictures(TRAIN)
    assert sides[2] & pictures(TEST)
    assert once.name != fashion_mnist.load(folder).name


def test_fewer_pictures_come_from_the_same_sides(folder: Path) -> None:
    """A short run neither trains on what a long one is judged by, nor is judged by what a long one trains on."""
    whole, few = fashion_mnist.load(folder), fashion_mnist.load(folder, pictures=20)
    assert [len(split.labels) for split in (few.train, few.validation, few.test)] == [16, 4, 20]
    assert len(fashion_mnist.load(folder, pictures=16).test.labels) == 16
    for side in ("train", "validation", "test"):
        assert pictures(getattr(few, side)) <= pictures(getattr(whole, side))
    assert few.sha256 != whole.sha256


def test_the_checksum_is_of_the_pictures_the_labels_and_the_split(folder: Path, tmp_path: Path) -> None:
    """Another pixel, another label or another share is another corpus."""
    pixel, label = TRAIN.images.copy(), TRAIN.labels.copy()
    pixel[7, 5, 5] ^= 1
    label[7] = (label[7] + 1) % 10
    sums = {
        fashion_mnist.load(folder).sha256,
        fashion_mnist.load(folder, validation=0.3).sha256,
        fashion_mnist.load(official(tmp_path / "pixel", Split(pixel, TRAIN.labels), TEST)).sha256,
        fashion_mnist.load(official(tmp_path / "label", Split(TRAIN.images, label), TEST)).sha256,
    }
    assert len(sums) == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"pictures": 0}, "--pictures: 0 ", id="no pictures"),
        pytest.param({"pictures": 15}, "--pictures: 15 .* at least 16", id="too few pictures"),
        pytest.param({"validation": 0.0}, "--validation: 0 ", id="nothing held out"),
        pytest.param({"validation": 1.0}, "--validation: 1 ", id="all held out"),
        pytest.param({"validation": float("nan")}, "--validation: nan", id="no number"),
        pytest.param({"validation": 0.99, "pictures": 16}, "--validation: 0.99 of 16 .* leaves 1 ", id="all but one"),
    ],
)
def test_a_wrong_option_is_refused_by_its_name(options: dict[str, float], says: str, folder: Path) -> None:
    """The message names the flag and what would do."""
    with pytest.raises(BadInput, match=says):
        fashion_mnist.load(folder, **options)


# --- the command, and the real thing -------------------------------------------------------------------


def command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "training.data.fashion_mnist", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False, cwd=ROOT, env={**os.environ, **environment},
    )  # fmt: skip


def test_the_command_writes_pictures_and_a_sheet_of_the_classes_in_turn(folder: Path, tmp_path: Path) -> None:
    """As many garments as asked for, those that are trained on, the first of each class first. That there are fewer
    than Fashion-MNIST has, is said: a table that was cut between two lines looks like a smaller one."""
    done = command("--corpus", folder, "--out", tmp_path / "out", "--count", "12")
    assert (done.returncode, done.stderr) == (
        0,
        f"{folder}: 60 and 20 pictures, not Fashion-MNIST's 60,000 and 10,000\n",
    )
    written = sorted((tmp_path / "out").glob("garment-*.png"))
    assert [path.name for path in (tmp_path / "out").glob("*") if path not in written] == [files.SHEET]
    split = fashion_mnist.load(folder).train
    known = {image.tobytes(): label for image, label in zip(*split, strict=True)}
    labels = [known[np.asarray(Image.open(path)).tobytes()] for path in written]
    assert labels == [*range(10), 0, 1]


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    """A broken folder: status 2, one line, nothing written."""
    done = command("--corpus", tmp_path / "absent", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr == f"--corpus: {tmp_path / 'absent'} is not there; name the folder\n"
    assert not (tmp_path / "out").exists()


def test_it_does_without_torch() -> None:
    """Corpora load where torch is not installed."""
    code = "import sys; import training.data.fashion_mnist; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, timeout=60).returncode == 0


def test_the_official_files_load_as_they_should() -> None:
    """60,000 and 10,000 garments, every class in equal parts, and each file with the checksum that a fetch asks for."""
    where = files.home() / "fashion-mnist"
    need(all((where / f"{name}.gz").is_file() for name in fashion_mnist.OFFICIAL), f"no Fashion-MNIST in {where}")
    for name, checksum in fashion_mnist.OFFICIAL.items():
        assert repository.sha256(where / f"{name}.gz") == checksum
    loaded = fashion_mnist.load()
    sizes = [len(split.labels) for split in (loaded.train, loaded.validation, loaded.test)]
    assert sizes == [48_000, 12_000, 10_000]
    known = np.bincount(loaded.train.labels) + np.bincount(loaded.validation.labels)
    assert known.tolist() == [6_000] * 10
    assert np.bincount(loaded.test.labels).tolist() == [1_000] * 10
    # By chance, not class by class; still no class is far from a fifth.
    assert np.bincount(loaded.validation.labels).min() > 1_100
    assert len(pictures(loaded.train) | pictures(loaded.validation) | pictures(loaded.test)) == 70_000
