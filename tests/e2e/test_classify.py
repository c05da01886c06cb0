"""clients/classify.py as people run it: what they get of good pictures, of bad ones, and of both in one call."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import stand_in
from conftest import need_tritonserver
from PIL import Image
from screen import shown
from scripts import (
    CLIENTS,
    ROOT,
    Done,
    asking,
    copied,
    free_port,
    in_process,
    names,
    processes_of,
    refused,
    run,
    unchanged,
    worked,
)

from atelier import garments, pictures

CLASSIFY = CLIENTS / "classify.py"
ENGLISH, FRENCH = garments.NAMES["en"], garments.NAMES["fr"]
SEEN = np.random.default_rng(0).integers(0, 256, (70, 28, 28), np.uint8)

classify = asking(CLASSIFY, "classifier_server")
near = in_process(CLASSIFY)


@pytest.fixture
def repository(tmp_path_factory) -> Path:
    return stand_in.repository(tmp_path_factory.mktemp("models") / "repository", spec=stand_in.CLASSIFIER)


@pytest.fixture(autouse=True)
def photos(tmp_path) -> None:
    """Two photos, boot.jpg and été/sac.png, in the folder that classify.py runs in."""
    (tmp_path / "été").mkdir()
    for name, colour in {"boot.jpg": (40, 30, 60), "été/sac.png": (150, 120, 20)}.items():
        picture = Image.new("RGB", (90, 120), "white")
        picture.paste(colour, (20, 10, 70, 100))
        picture.save(tmp_path / name, quality=95)


def truth(path: Path, method: str = "find", version: int = 2) -> dict[str, float]:
    """What the stand-in answers to a photo, best first."""
    seen = garments.preprocess_garment(pictures.open_picture(path), method=method)
    return ranked(seen, version)


def ranked(seen: np.ndarray, version: int = 2) -> dict[str, float]:
    shares = stand_in.probabilities(seen[None, ..., None], version)[0].tolist()
    return dict(sorted(zip(ENGLISH, shares, strict=True), key=lambda pair: -pair[1]))


def answers(done: Done) -> list[dict[str, object]]:
    return json.loads(done.stdout)


def assert_right(record: dict[str, object], expected: dict[str, float], file: str) -> None:
    assert (record["file"], record["class"]) == (file, next(iter(expected)))
    assert record["probability"] == next(iter(record["probabilities"].values()))
    assert record["probabilities"] == pytest.approx(expected, abs=1e-5)
    assert list(record["probabilities"].values()) == sorted(record["probabilities"].values(), reverse=True)


# --- what comes out


def test_the_shortest_command_says_the_class_and_all_percentages(classify, tmp_path):
    """The class after the file's name, then the other nine, falling; all from the newest version."""
    done = worked(classify("boot.jpg"))
    expected = truth(tmp_path / "boot.jpg")
    (label, best), *others = expected.items()
    first, *rest = done.stdout.splitlines()
    assert first == f"boot.jpg: {label} {100 * best:.1f} %"
    found = [re.fullmatch(r" +(\d+\.\d) %  (\S.*)", line).groups() for line in rest]
    assert {name: float(percent) for percent, name in found} == pytest.approx(
        {name: 100 * share for name, share in others}, abs=0.051
    )
    assert len({line.index("%") for line in rest}) == 1
    assert names(tmp_path) == {"boot.jpg", "été", "été/sac.png"}


def test_several_pictures_in_the_order_they_were_given(classify, tmp_path):
    """A line each with --top 1."""
    done = worked(classify("--top", 1, "été/sac.png", "boot.jpg"))
    assert done.stdout.splitlines() == [
        f"{name}: {label} {100 * share:.1f} %"
        for name in ("été/sac.png", "boot.jpg")
        for label, share in [next(iter(truth(tmp_path / name).items()))]
    ]


def test_json_is_one_document(classify, tmp_path):
    """File, class, its probability, all probabilities best first, model and version of every picture."""
    found = answers(worked(classify("--json", "boot.jpg", "été/sac.png")))
    for record, name in zip(found, ("boot.jpg", "été/sac.png"), strict=True):
        assert_right(record, truth(tmp_path / name), name)
        assert (record["model"], record["version"]) == ("classifier", 2)


def test_top_language_and_version(classify, tmp_path):
    """The K best, in French, of an older version."""
    options = ("--top", 3, "--language", "fr", "--version", 1)
    (record,) = answers(worked(classify("--json", *options, "boot.jpg")))
    english = list(truth(tmp_path / "boot.jpg", version=1))
    expected = [FRENCH[ENGLISH.index(label)] for label in english[:3]]
    assert (list(record["probabilities"]), record["class"], record["version"]) == (expected, expected[0], 1)
    text = worked(classify(*options, "boot.jpg")).stdout
    assert re.findall(r"(?:: |%  )([^\d%\n]+[^\d%\n ])", text) == expected


@pytest.mark.parametrize("method", ["find", "source"])
def test_the_method_is_how_a_photo_is_prepared(near, tmp_path, method):
    """The garment found first, or the source program's way."""
    (record,) = answers(worked(near("--json", "--method", method, "boot.jpg")))
    assert_right(record, truth(tmp_path / "boot.jpg", method), "boot.jpg")


def test_pictures_of_fashion_mnist_go_to_the_network_as_they_are(near, tmp_path):
    """--method raw, for more pictures than a batch has; each gets its own answer."""
    files = [f"{index}.png" for index in range(len(SEEN))]
    for name, seen in zip(files, SEEN, strict=True):
        Image.fromarray(seen).save(tmp_path / name)
    found = answers(worked(near("--json", "--method", "raw", *files)))
    for record, seen, name in zip(found, SEEN, files, strict=True):
        assert_right(record, ranked(seen), name)


def test_pictures_as_small_as_fashion_mnist_s_are_asked_about(near, tmp_path):
    """One line for all of them says which flag they may want; they are answered as photos."""
    for name in ("1.png", "2.png"):
        Image.fromarray(SEEN[0]).save(tmp_path / name)
    done = near("--json", "1.png", "boot.jpg", "2.png")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "--method raw" in done.stderr
    assert_right(answers(done)[0], truth(tmp_path / "1.png"), "1.png")


def test_the_sheet_shows_what_the_network_saw(near, tmp_path):
    """A card for each picture, in a folder that is made for it; the text is the same, and a line more says where."""
    given = ("boot.jpg", "été/sac.png")
    done = worked(near(*given, "--sheet", "out/sheet.png"))
    assert done.stdout == worked(near(*given)).stdout + "out/sheet.png: each picture beside its answer\n"
    with Image.open(tmp_path / "out" / "sheet.png") as drawn:
        for place, name in enumerate(given):
            seen = garments.preprocess_garment(pictures.open_picture(tmp_path / name))
            card = np.asarray(drawn)[64 + 210 * place :, 200:, 0]
            np.testing.assert_array_equal(card[:168, :168], seen.repeat(6, 0).repeat(6, 1))


def test_a_file_s_name_need_not_be_text(near, tmp_path):
    """It may hold any bytes; the answer is the same."""
    name = os.fsdecode(b"b\xff.jpg")
    shutil.copy(tmp_path / "boot.jpg", tmp_path / name)
    done = worked(near("--top", 1, name, "--sheet", "s.png"))
    assert done.stdout.startswith("b\\udcff.jpg: ")
    (record,) = answers(worked(near("--json", name)))
    assert_right(record, truth(tmp_path / "boot.jpg"), name)


def test_of_an_animation_the_first_picture_is_taken(near, tmp_path):
    """Which is said on stderr, and no failure."""
    first, second = Image.open(tmp_path / "boot.jpg"), Image.new("RGB", (90, 120))
    first.save(tmp_path / "a.webp", save_all=True, append_images=[second], lossless=True)
    done = near("--json", "a.webp")
    assert (done.returncode, done.stderr) == (
        0,
        "classify.py: a.webp: holds more than one picture; the first is taken\n",
    )
    assert_right(answers(done)[0], truth(tmp_path / "boot.jpg"), "a.webp")


def test_a_picture_named_twice_is_answered_once(near):
    """As with globs that overlap."""
    assert worked(near("--top", 1, "boot.jpg", "boot.jpg")).stdout.count("\n") == 1


def test_a_folder_is_the_pictures_in_it(near, tmp_path):
    """In order, with those of folders below, each by its name; neither what is named twice nor an older sheet again."""
    for name in ("10.png", "2.png"):
        shutil.copy(tmp_path / "été" / "sac.png", tmp_path / "été" / name)
    (tmp_path / "été" / "late").mkdir()
    shutil.copy(tmp_path / "boot.jpg", tmp_path / "été" / "late" / "boot.jpg")
    (tmp_path / "été" / "notes.txt").write_text("words")
    expected = ["boot.jpg", "été/10.png", "été/2.png", "été/late/boot.jpg", "été/sac.png"]
    for _ in range(2):
        found = answers(worked(near("--json", "boot.jpg", "été", "été/sac.png", "--sheet", "été/sheet.png")))
        for record, name in zip(found, expected, strict=True):
            assert_right(record, truth(tmp_path / name), name)


def test_progress_is_shown_on_a_terminal(repository, tmp_path):
    """A bar of all pictures below what is said of one."""
    (tmp_path / "words.jpg").write_bytes(b"hello")
    command = [sys.executable, CLASSIFY, "--repository", repository, "--in-process", "boot.jpg", "words.jpg", "été"]
    said, bar = shown(command, tmp_path)
    assert said.startswith("classify.py: words.jpg: is not a picture")
    assert re.fullmatch(r"classify: 100%.* 3/3 .*", bar)


def test_help_names_every_option_and_the_exit_statuses():
    """So that scripts can rely on them."""
    done = worked(run(CLASSIFY, "--help", cwd=ROOT))
    for words in (
        "--top", "--language", "--json", "--sheet", "--method", "--model", "--version", "--url", "--repository",
        "--in-process", "Exit status",
    ):  # fmt: skip
        assert words in done.stdout


# --- good and bad in one call


def content(form: str, made: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    made.save(buffer, format=form, **options)
    return buffer.getvalue()


NOISE = Image.fromarray(SEEN[:3, :28, :28].transpose(1, 2, 0).repeat(3, 0).repeat(3, 1))
BAD = {
    "words.jpg": b"hello",
    "empty.jpg": b"",
    "cut.jpg": content("JPEG", NOISE)[:-800],
    "cut.png": content("PNG", NOISE)[:-800],
    "dot.png": content("PNG", Image.new("RGB", (1, 1))),
    "photo.heic": b"\0\0\0\x18ftypheic" + bytes(99),
}
ODD = {
    "wide.png": content("PNG", Image.new("RGB", (20_000, 12), "white")),
    "cmyk.jpg": content("JPEG", NOISE.convert("CMYK")),
    "gray16.png": content("PNG", Image.fromarray(np.asarray(NOISE.convert("L"), np.uint16) * 257)),
    "palette.png": content("PNG", NOISE.convert("RGBA").quantize(9), transparency=0),
}


def test_folders_that_give_no_picture_cost_a_line_each(near, tmp_path):
    """And a name that no file can have; also in JSON, in their places. The status says that some were left out."""
    (tmp_path / "dull" / "below").mkdir(parents=True)
    done = near("--json", "dull", "boot.jpg", "x" * 300)
    says = {"dull": "dull: holds no pictures", "x" * 300: f"{'x' * 300}: cannot be reached: File name too long"}
    assert done.returncode == 1
    for line, say in zip(done.stderr.splitlines(), says.values(), strict=True):
        assert line.startswith(f"classify.py: {say}")
    first, boot, last = answers(done)
    assert_right(boot, truth(tmp_path / "boot.jpg"), "boot.jpg")
    for record, (name, error) in zip((first, last), says.items(), strict=True):
        assert record["file"] == name
        assert record["error"].startswith(error)


def test_the_others_in_the_call_still_get_their_answer(classify, tmp_path):
    """Every bad one has its line on stderr, every good one its answer, and the exit status says that some failed."""
    for name, written in {**BAD, **ODD}.items():
        (tmp_path / name).write_bytes(written)
    refused = [*BAD, "missing.jpg", "circle.jpg"]
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    given = [*refused[:4], "boot.jpg", *ODD, *refused[4:], "été/sac.png"]
    done = classify("--json", "--sheet", "s.png", *given)
    assert done.returncode == 1
    blank = "classify.py: wide.png: no garment was found, and nothing is what the network sees"
    lines = [line for line in done.stderr.splitlines() if line != blank]
    assert [line.split(": ")[:2] for line in lines] == [["classify.py", name] for name in refused]
    found = answers(done)
    assert [record["file"] for record in found] == given
    errors = {record["file"]: record["error"] for record in found if "error" in record}
    assert [f"classify.py: {said}" for said in errors.values()] == lines
    for record in found:
        if record["file"] not in errors:
            assert_right(record, truth(tmp_path / str(record["file"])), str(record["file"]))
    with Image.open(tmp_path / "s.png") as drawn:
        assert drawn.size == (2 * 694, 40 + 3 * 210)  # six cards


def test_text_has_the_answers_and_stderr_the_rest(near, tmp_path):
    """So that `2>/dev/null` leaves the answers."""
    (tmp_path / "words.jpg").write_bytes(b"hello")
    done = near("--top", 1, "words.jpg", "boot.jpg")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stdout == worked(near("--top", 1, "boot.jpg")).stdout


def test_where_there_is_no_garment_that_is_said(near, tmp_path):
    """The network answers whatever it sees; of a wall it sees nothing."""
    Image.new("RGB", (60, 80), "white").save(tmp_path / "wall.png")
    done = near("--top", 1, "wall.png")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert done.stderr == "classify.py: wall.png: no garment was found, and nothing is what the network sees\n"


def test_when_every_picture_is_bad_nothing_is_started(tmp_path, repository):
    """No server, no answer, an older sheet stays, and the status is 1; JSON still says why."""
    worked(run(CLASSIFY, "--repository", repository, "--in-process", "--sheet", "s.png", "boot.jpg", cwd=tmp_path))
    older = (tmp_path / "s.png").read_bytes()
    (tmp_path / "words.jpg").write_bytes(b"hello")
    arguments = ("--repository", repository, "--sheet", "s.png", "missing.jpg", "words.jpg")
    for options, records in (((), 0), (("--json",), 2)):
        done = run(CLASSIFY, *arguments, *options, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (1, 2)
        assert [sorted(record) for record in json.loads(done.stdout or "[]")] == [["error", "file"]] * records
    assert (tmp_path / "s.png").read_bytes() == older


def test_a_photo_is_not_what_raw_takes(near):
    """One line that says what it is and what is for photos."""
    done = near("--method", "raw", "boot.jpg")
    assert (done.returncode, done.stdout) == (1, "")
    said = "method raw takes a picture of 28 x 28, and this is 90 x 120; find is for photos"
    assert done.stderr == f"classify.py: boot.jpg: {said}\n"


# --- where it finds a model


def test_with_no_server_it_starts_one_with_its_own_model_and_ends_it(repository, tmp_path):
    """Only the classifier is loaded: another model of the checkout that cannot be is no obstacle."""
    need_tritonserver()
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "config.pbtxt").write_text("not a config")
    script, url = copied(CLASSIFY, tmp_path / "checkout", repository), f"localhost:{free_port()}"
    done = run(script, "--json", "boot.jpg", cwd=tmp_path, ATELIER_URL=url)
    assert_right(answers(done)[0], truth(tmp_path / "boot.jpg"), "boot.jpg")
    assert done.stderr.splitlines() == [
        f"classify.py: no server is ready at {url}",
        "classify.py: started the embedded Triton for this run; `make serve` keeps one running",
    ]
    assert not processes_of(script.parents[1])


# --- bad flags, one by one


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param([], ["PICTURE"], id="no-picture"),
        pytest.param(["empty"], ["empty: holds no pictures (looked for .png"], id="empty-folder"),
        pytest.param(["boot.jpg", "--top", 0], ["--top", "1 or more"], id="top-0"),
        pytest.param(["boot.jpg", "--top", "all"], ["--top", "'all'"], id="top-a-word"),
        pytest.param(["boot.jpg", "--language", "de"], ["--language", "'en', 'fr'"], id="language"),
        pytest.param(["boot.jpg", "--method", "guess"], ["--method", "'find', 'source', 'raw'"], id="method"),
        pytest.param(["boot.jpg", "--sheet", "s.gif"], ["--sheet", "s.gif: a sheet is a .png"], id="sheet-ending"),
        pytest.param(["boot.jpg", "--sheet", "boot.jpg/s.png"], ["--sheet", "cannot be written"], id="sheet-in-file"),
        pytest.param(["boot.jpg", "--sheet", "/proc/s.png"], ["--sheet", "cannot be written"], id="sheet-read-only"),
        pytest.param(
            ["boot.jpg", "été/sac.png", "--sheet", "été/sac.png"],
            ["--sheet: été/sac.png: would replace a picture that was given"],
            id="sheet-given",
        ),
        pytest.param(
            ["--sheet", "été/sac.png", "boot.jpg"],
            ["--sheet", "without a mark of Atelier's; remove it, or choose"],
            id="sheet-first-of-a-glob",
        ),
        pytest.param(["boot.jpg", "--model", "nope"], ["--model", "'nope'", "classifier"], id="unknown-model"),
        pytest.param(["boot.jpg", "--model", "wgan"], ["--model", "'wgan'", "classifier"], id="another-kind"),
        pytest.param(["boot.jpg", "--version", 9], ["--version", "served: classifier 1, 2"], id="unknown-version"),
        pytest.param(["boot.jpg", "--version", 0], ["--version", "1 or more"], id="version-0"),
        pytest.param(["boot.jpg", "--url", "localhost:99999"], ["--url", "1 to 65535"], id="url-port"),
        pytest.param(["boot.jpg", "--url", "localhost:1"], ["localhost:1", "leave out"], id="url-and-in-process"),
        pytest.param(["boot.jpg", "--repository", "été"], ["été: no version of classifier"], id="no-models"),
        pytest.param(["boot.jpg", "--jsn"], ["--jsn"], id="unknown-flag"),
    ],
)
def test_bad_flags_are_one_line_and_status_2(near, tmp_path, arguments, says):
    """It names the flag and what to do; nothing is written, and nothing that was there is changed."""
    (tmp_path / "empty").mkdir()
    with unchanged(tmp_path):
        refused(near(*arguments), *says)


def test_a_server_is_asked_for_before_all_pictures_are_looked_at(tmp_path):
    """Of many that takes a while; up to the first that can be read each has its line."""
    for name in ("1.jpg", "3.jpg"):
        (tmp_path / name).write_bytes(b"hello")
    done = run(CLASSIFY, "--url", f"127.0.0.1:{free_port()}", "1.jpg", "boot.jpg", "3.jpg", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == ["1.jpg", "--url"]
