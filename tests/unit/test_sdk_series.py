"""A series of pictures through a model: what is in memory at a time, what is left out, what is said in the end."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

from atelier import Client, cli, errors, folders, series, sizing


class Model:
    """Stands in for a server and what is asked of it; remembers that. A picture comes back negative, version 3.

    After so many handfuls as `until` it has too much to do.
    """

    def __init__(self, size: tuple[int, int] | None = None, *, until: int | None = None) -> None:
        self.size, self.until = size, until
        self.handfuls: list[list[str]] = []
        self.versions: list[int | None] = []
        self.open = False

    @contextlib.contextmanager
    def server(self) -> Iterator[Client]:
        self.open = True
        with Client("localhost:1") as client:
            yield client
        self.open = False

    def made(self, client: Client, looks: Sequence[series.Look], version: int | None) -> list[Image.Image]:
        assert self.open
        if len(self.handfuls) == self.until:
            raise errors.Overloaded("full", retry_after_s=1.5)
        self.handfuls.append([job.source.name for job, _ in looks])
        self.versions.append(version)
        results = [Image.fromarray(255 - np.asarray(picture)) for _, picture in looks]
        results = [each.resize(self.size) for each in results] if self.size else results
        for each in results:
            each.info.update(model="negative", version=3)
        return results

    def run(self, *given: str, out: str | None = None, scale: int = 1, version: int | None = None) -> cli.Outcome:
        jobs = folders.plan(given, out=out, tag="made")
        about = "{model} version {version}"
        return series.run(
            jobs,
            self.server(),
            title="test",
            fitted=partial(sizing.sized, done="made negative"),
            made=self.made,
            about=about,
            scale=scale,
            version=version,
        )


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """The folder that the test runs in, with a folder of twenty small pictures."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for index in range(20):
        Image.new("RGB", (32, 16), (index, 0, 0)).save(f"in/{index:02}.png")
    return tmp_path


def test_every_picture_gets_its_result_a_few_at_a_time():
    """Eight together, in order; the last may be fewer; the line says where they are."""
    model = Model()
    assert model.run("in", out="x") == cli.Outcome("x: 20 pictures: negative version 3")
    assert [len(handful) for handful in model.handfuls] == [8, 8, 4]
    for index in range(20):
        with Image.open(f"x/{index:02}.png") as made:
            assert made.getpixel((0, 0)) == (255 - index, 255, 255)


def test_the_line_names_this_folder_too():
    """Which has no other name than a dot."""
    assert Model().run("in", out=".") == cli.Outcome(".: 20 pictures: negative version 3")


@pytest.mark.parametrize(("until", "says"), [(0, "full"), (2, "full; 16 of 20 are done")], ids=["first", "later"])
def test_a_server_that_fails_says_how_many_are_done(until, says):
    """If there are any; the error is as it was."""
    with pytest.raises(errors.Overloaded) as caught:
        Model(until=until).run("in")
    assert str(caught.value) == says
    assert caught.value.retry_after_s == 1.5


def test_all_are_of_the_version_of_the_first():
    """Whether it was asked for or not."""
    model = Model()
    model.run("in")
    assert model.versions == [None, 3, 3]
    model = Model()
    model.run("in", version=3)
    assert model.versions == [3, 3, 3]


def test_of_large_results_fewer_are_in_memory(monkeypatch):
    """As many as stay below the limit together, and one that is larger comes alone, wherever it is."""
    monkeypatch.setattr(series, "PIXELS_AT_ONCE", 3 * 32 * 16 * 16)
    for name in ("in/0.png", "in/04a.png"):
        Image.new("RGB", (320, 160)).save(name)
    model = Model()
    model.run("in", scale=4)
    first, *others = model.handfuls
    assert first == ["0.png"]
    assert others[:3] == [["00.png", "01.png", "02.png"], ["03.png", "04.png"], ["04a.png"]]
    assert [len(handful) for handful in others[3:]] == [3] * 5


def test_a_result_that_its_file_cannot_hold_is_not_asked_for(capsys):
    """A line names it; the others are made."""
    Image.new("RGB", (5000, 16)).save("in/03a.webp")
    model = Model()
    outcome = model.run("in", out="x", scale=4)
    assert outcome == cli.Outcome("x: 20 pictures: negative version 3", partial=True)
    assert all("03a.webp" not in handful for handful in model.handfuls)
    said = capsys.readouterr().err
    assert "x/03a.webp: .webp can have 16,383 pixels a side, and this would have 20000 x 64; " in said
    assert said.count("\n") == 1


def test_nor_is_one_saved_that_comes_larger(capsys):
    """As sheets may, which show more than one."""
    outcome = Model(size=(16384, 16)).run("in/00.png", "in/01.png", out="x")
    assert outcome.partial is False
    assert Model(size=(16384, 16)).run("in/00.png", out="x.webp") == cli.Outcome("", partial=True)
    assert "x.webp: .webp can have 16,383 pixels a side" in capsys.readouterr().err
    assert not Path("x.webp").exists()


def test_without_a_picture_no_server_is_asked(capsys):
    """Every one has its line."""
    Path("words.png").write_text("words")
    model = Model()
    assert model.run("words.png", "gone.png") == cli.Outcome("", partial=True)
    assert not model.handfuls
    assert not model.open
    assert capsys.readouterr().err.count("\n") == 2


def test_one_result_of_several_is_one_picture(capsys):
    """The other has its line, which asks for a size that a model takes."""
    Image.new("RGB", (4, 4)).save("dot.png")
    assert Model().run("in/00.png", "dot.png") == cli.Outcome("out: 1 picture: negative version 3", partial=True)
    assert "dot.png: has 4 x 4 pixels, too few to see anything; give a picture of 16 x 16" in capsys.readouterr().err


def test_the_progress_bar_counts_what_is_done(monkeypatch):
    """What is written or left out, and not what has only been opened."""
    bars: list[tqdm] = []

    def bar(*things: object, **options: object) -> tqdm:
        bars.append(tqdm(*things, **{**options, "disable": False, "file": io.StringIO(), "mininterval": 0}))
        return bars[-1]

    class Watched(Model):
        def made(self, *asked: object) -> list[Image.Image]:
            counts.append(bars[0].n)
            return super().made(*asked)

    counts: list[int] = []
    monkeypatch.setattr(series, "tqdm", bar)
    Path("in/03a.png").write_text("words")
    Image.new("RGB", (5000, 16)).save("in/03b.webp")
    Watched().run("in", out="x", scale=4)
    assert counts == [2, 10, 18]
    assert (bars[0].n, bars[0].total) == (22, 22)
