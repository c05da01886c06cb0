"""clients/paint.py as people run it: paintings and films, what an interrupted one leaves, bad input."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import runpy
import signal
import socket
import subprocess
import sys
import termios
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import painter_stand_in
import pytest
import traces
from conftest import need_tritonserver
from PIL import Image
from scripts import CLIENTS, ROOT, Done, copied, free_port, names, processes_of, refused, run, unchanged, worked

from atelier import Stroke
from serving.embedded import Embedded

PAINT = CLIENTS / "paint.py"
PATIENCE_S = 120.0

Paint = Callable[..., Done]


@pytest.fixture(scope="module")
def painter(tmp_path_factory) -> Iterator[Embedded]:
    need_tritonserver()
    with Embedded(painter_stand_in.repository(tmp_path_factory.mktemp("painter") / "repository")) as server:
        yield server


@pytest.fixture
def paint(painter, tmp_path) -> Paint:
    """Runs paint.py in a folder with two pictures against the shared server."""
    return lambda *arguments: run(PAINT, *arguments, "--url", painter.grpc, cwd=tmp_path)


@pytest.fixture(autouse=True)
def pictures(tmp_path) -> None:
    """A photo of 40 x 60 and a painting of 50 x 30, in the folder that paint.py runs in."""
    rng = np.random.default_rng(0)
    for name, (width, height) in {"photo.jpg": (40, 60), "wave.png": (50, 30)}.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(tmp_path / name)


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
    return picture


# --- what it makes


def test_a_painting(paint, tmp_path):
    """In the photo's size, unless told otherwise, with its losses in the line that names it."""
    done = worked(paint("photo.jpg", "wave.png", "--iterations", 3))
    said = r"out/photo-wave.png: 40 x 60, 3 of 3 iterations; content \d.\d+, style \d.\d+; painter version 1, \d+ s\n"
    assert re.fullmatch(said, done.stdout)
    assert opened(tmp_path / "out" / "photo-wave.png").size == (40, 60)
    assert names(tmp_path / "out") == {"photo-wave.png"}


def test_it_paints(paint, tmp_path):
    """More iterations are further from the photo; none are the photo itself."""
    away = []
    for count in (0, 1, 20):
        worked(paint("photo.jpg", "wave.png", "--iterations", count, "--out", "p.png", "--content-weight", 0))
        away.append(np.abs(pixels(tmp_path / "p.png") - pixels(tmp_path / "photo.jpg")).mean())
    assert 0 == away[0] < away[1] < away[2]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(opened(path).convert("RGB")).astype(int)


def test_every_knob_arrives(paint, tmp_path):
    """All of them together are a painting; each alone changes it."""
    every = {
        "--content-weight": 2, "--style-weight": 3, "--tv-weight": 50, "--content-layers": "conv4_2=1,conv5_2=0.5",
        "--style-layers": "conv1_1=1", "--start": "noise", "--seed": 4, "--scales": 2, "--optimizer": "adam",
    }  # fmt: skip
    common = ("photo.jpg", "wave.png", "--iterations", 4, "--out", "p.png", "--size", 48)
    worked(paint(*common, "--start", "noise"))
    plain = pixels(tmp_path / "p.png")
    for flag, value in every.items():
        if flag != "--start":
            worked(paint(*common, "--start", "noise", flag, value))
            assert (pixels(tmp_path / "p.png") != plain).any(), flag
    worked(paint(*common, *(word for pair in every.items() for word in pair), "--keep-color"))
    assert plain.shape == (48, 32, 3)


def test_a_film_has_every_canvas_and_ends_on_the_last(paint, tmp_path):
    """All in the size of the finished painting, coarse ones too; the last stays for a second."""
    done = worked(
        paint("photo.jpg", "wave.png", "--iterations", 6, "--every", 1, "--scales", 2, "--film", "f.mp4", "--fps", 5)
    )
    assert done.stdout.startswith("out/photo-wave.png, f.mp4: 40 x 60")
    with av.open(str(tmp_path / "f.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert video.streams.video[0].average_rate == 5
    assert [frame.shape for frame in frames] == [(120, 80, 3)] * (7 + 5)
    last = np.asarray(opened(tmp_path / "out" / "photo-wave.png").resize((80, 120), Image.Resampling.NEAREST))
    assert np.abs(frames[-1].astype(int) - last).mean() < 12


def test_a_film_as_a_folder(paint, tmp_path):
    """As walk.py saves one: each canvas once, as nothing is shown there for a moment."""
    worked(paint("photo.jpg", "wave.png", "--iterations", 2, "--every", 1, "--film", "frames", "--fps", 1))
    assert names(tmp_path / "frames") == {"walk.json", *(f"frame-{k:04}.png" for k in range(3))}
    start = opened(tmp_path / "frames" / "frame-0000.png")
    assert np.abs(np.asarray(start).astype(int) - pixels(tmp_path / "photo.jpg")).max() == 0


def test_alpha_is_kept(paint, tmp_path):
    """On the painting; a film has it over white."""
    photo = Image.open(tmp_path / "photo.jpg").convert("RGBA")
    photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    photo.save(tmp_path / "cut.png")
    worked(paint("cut.png", "wave.png", "--iterations", 1, "--out", "p.png", "--film", "frames", "--fps", 1))
    painted = opened(tmp_path / "p.png")
    np.testing.assert_array_equal(np.asarray(painted)[..., 3], np.asarray(photo)[..., 3])
    white = Image.new("RGBA", painted.size, "white")
    last = opened(tmp_path / "frames" / "frame-0001.png")
    assert last.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(last), np.asarray(Image.alpha_composite(white, painted))[..., :3])


def test_a_film_that_cannot_be_written_costs_no_painting(painter, tmp_path):
    """The line says what happened, and that the painting is there."""
    (tmp_path / "limited.py").write_text(
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
    )
    arguments = ("photo.jpg", "wave.png", "--iterations", 20, "--every", 1, "--out", "p.png", "--film", "f.zip")
    done = run(tmp_path / "limited.py", PAINT, *arguments, "--url", painter.grpc, cwd=tmp_path)
    refused(done, "--film: f.zip: cannot be written: File too large; p.png is saved")
    assert opened(tmp_path / "p.png").size == (40, 60)
    assert names(tmp_path) == {"limited.py", "p.png", "photo.jpg", "wave.png"}


def test_odd_pictures(paint, tmp_path):
    """Gray, CMYK and 16 bits are what they look like."""
    photo = Image.open(tmp_path / "photo.jpg")
    photo.convert("L").save(tmp_path / "gray.png")
    photo.convert("CMYK").save(tmp_path / "cmyk.tif")
    Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("gray.png", "cmyk.tif", "deep.png"):
        done = worked(paint(name, "gray.png", "--iterations", 1, "--out", "p.png"))
        assert ", 1 of 1 iteration;" in done.stdout
        assert opened(tmp_path / "p.png").size == (40, 60)


def test_help_names_every_knob():
    """As a flag."""
    done = worked(run(PAINT, "--help", cwd=ROOT))
    for flag in (
        "out", "film", "fps", "size", "keep-color", "iterations", "every", "content-weight", "style-weight",
        "tv-weight", "content-layers", "style-layers", "start", "seed", "scales", "optimizer", "url", "repository",
    ):  # fmt: skip
        assert f"--{flag}" in done.stdout
    assert "pixels of the long side (512; a smaller photo stays as it is)" in " ".join(done.stdout.split())


@pytest.mark.parametrize(("options", "most"), [((), 1), (("--film", "f.gif"), 9)], ids=["painting", "film"])
def test_without_a_film_no_canvas_is_kept_but_the_last(tmp_path, monkeypatch, options, most):
    """There may be a thousand; of those that came before the newest only one is in memory."""
    canvases: list[weakref.ref[Image.Image]] = []

    def strokes() -> Iterator[Stroke]:
        for count in range(9):
            image = Image.new("RGB", (40, 60))
            image.info.update(model="painter", version=1)
            canvases.append(weakref.ref(image))
            yield Stroke(image, count, 8, 0, 0, 0, 0)
            del image
        assert len([each for each in canvases if each() is not None]) == most

    client = SimpleNamespace(paint=lambda *_, **__: contextlib.closing(strokes()))
    monkeypatch.setattr("atelier.local.connect", lambda *_, **__: contextlib.nullcontext(client))
    monkeypatch.chdir(tmp_path)
    script = runpy.run_path(str(PAINT))
    script["paint"](script["parser"]().parse_args(["photo.jpg", "wave.png", *options]))
    assert len(canvases) == 9


# --- where it paints


def test_with_no_server_it_starts_one_and_ends_it(painter, tmp_path):
    """The checkout's own painter, for as long as the painting takes."""
    script = copied(PAINT, tmp_path / "checkout", painter.repository)
    done = run(script, "photo.jpg", "wave.png", "--iterations", 1, cwd=tmp_path, ATELIER_URL=f"localhost:{free_port()}")
    assert done.returncode == 0, done
    assert done.stderr.endswith("started the embedded Triton for this run; `make serve` keeps one running\n")
    assert not processes_of(script.parents[1])


def test_where_triton_cannot_run_it_says_that_painting_needs_a_server(painter, tmp_path):
    """One line with the reason and the flag: a painter does not run in the program itself."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import platform\nplatform.machine = lambda: 'aarch64'\n")
    arguments = ("photo.jpg", "wave.png", "--repository", painter.repository)
    done = run(PAINT, *arguments, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    refused(done, "--url", "this is Linux aarch64", "painter needs a server")


# --- interrupted


class Terminal:
    """A painting of minutes with a terminal for its progress, of which some strokes are to be seen already."""

    def __init__(self, server: Embedded, folder: Path, *arguments: str) -> None:
        Image.effect_noise((400, 400), 80).convert("RGB").save(folder / "large.png")
        command = [sys.executable, PAINT, "large.png", "wave.png", "--iterations", "1000", "--every", "1"]
        command += ["--scales", "1", "--url", server.grpc, *arguments]
        self._screen, side = pty.openpty()
        termios.tcsetwinsize(side, (24, 100))
        self.process = subprocess.Popen(command, cwd=folder, stdout=-1, stderr=side, text=True)
        os.close(side)
        self.shown = ""
        while not re.search(r" [2-9]/1000 .*content=\d.*style=\d", self.shown):
            assert self._more(), self.shown

    def ended(self) -> tuple[int, str, str]:
        """Exit status, stdout, and the last line on the screen."""
        while self._more():
            pass
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        os.close(self._screen)
        return self.process.returncode, out, self.shown.replace("\r", "\n").strip().splitlines()[-1]

    def _more(self) -> bool:
        try:
            part = os.read(self._screen, 4096)
        except OSError:  # what a terminal says when the program has gone
            return False
        self.shown += part.decode()
        return bool(part)


def test_ctrl_c_keeps_the_last_canvas(painter, tmp_path):
    """And the film up to there: status 130, and a line that says so."""
    terminal = Terminal(painter, tmp_path, "--out", "p.png", "--film", "f.gif")
    terminal.process.send_signal(signal.SIGINT)
    status, out, line = terminal.ended()
    assert (status, out) == (130, "")
    said = re.fullmatch(r"paint\.py: stopped; p\.png, f\.gif: 400 x 400, (\d+) of 1000 iterations; .*version 1", line)
    assert said, line
    assert opened(tmp_path / "p.png").size == (400, 400)
    with Image.open(tmp_path / "f.gif") as film:
        assert film.n_frames > int(said[1])


def test_ctrl_c_while_the_film_is_saved(tmp_path, monkeypatch):
    """The painting is there already; the line says so."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("atelier.saving.save", interrupted)
    monkeypatch.chdir(tmp_path)
    image = Image.new("RGB", (40, 60))
    image.info.update(model="painter", version=1)
    script = runpy.run_path(str(PAINT))
    options = script["parser"]().parse_args(["photo.jpg", "wave.png", "--film", "f.gif"])
    with pytest.raises(KeyboardInterrupt, match=r"^p\.png is saved, the film is not$"):
        script["save_last"](Path("p.png"), deque([Stroke(image, 1, 8, 0, 0, 0, 0)]), options)
    assert opened(tmp_path / "p.png").size == (40, 60)


def test_ctrl_c_before_the_first_canvas_leaves_nothing(painter, tmp_path):
    """What was there by that name stays as it was."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = [sys.executable, PAINT, "photo.jpg", "wave.png", "--url", f"127.0.0.1:{silent.getsockname()[1]}"]
        with subprocess.Popen(command, cwd=tmp_path, stdout=-1, stderr=-1, text=True) as process:
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (130, "", "paint.py: stopped; nothing was saved\n")
    assert names(tmp_path) == {"photo.jpg", "wave.png"}


def test_a_server_that_goes_away_costs_no_canvas(tmp_path):
    """What was painted is saved; the line says what happened and where it is."""
    need_tritonserver()
    with Embedded(painter_stand_in.repository(tmp_path / "repository")) as server:
        terminal = Terminal(server, tmp_path, "--out", "p.png")
        for number in traces.processes(traces.server_id(server.http), "server"):
            os.kill(number, signal.SIGKILL)
        status, out, line = terminal.ended()
        log = server.log
    log.unlink()  # it stays, to tell what happened
    assert (status, out) == (2, "")
    assert "what there was is kept: p.png: 400 x 400" in line
    assert opened(tmp_path / "p.png").size == (400, 400)


# --- bad input, one by one


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["missing.jpg", "wave.png"], ["missing.jpg: no such file"], id="no-photo"),
        pytest.param(["photo.jpg", "missing.jpg"], ["missing.jpg: no such file"], id="no-painting"),
        pytest.param(["words.txt", "wave.png"], ["words.txt: is not a picture"], id="no-picture"),
        pytest.param(["torn.jpg", "wave.png"], ["torn.jpg: cannot be decoded"], id="damaged"),
        pytest.param([".", "wave.png"], ["is a folder"], id="folder"),
        pytest.param(["small.png", "wave.png"], ["small.png", "16 or more"], id="too-small"),
        pytest.param(["tiny.png", "wave.png"], ["tiny.png: would be painted at 10 x 10", "--size 16"], id="tiny"),
        pytest.param(["dot.png", "wave.png"], ["dot.png: has 4 x 4", "16 x 16 or more"], id="dot"),
        pytest.param(["photo.jpg", "dot.png"], ["dot.png: has 4 x 4", "16 x 16 or more"], id="painting-dot"),
        pytest.param(["photo.jpg", "small.png"], ["small.png", "16 or more"], id="painting-too-small"),
        pytest.param(
            ["photo.jpg", "tiny.png"], ["tiny.png: has 10 x 10 pixels; give one of 16 or"], id="painting-tiny"
        ),
        pytest.param(["photo.jpg", "wave.png", "--size", 5000], ["photo.jpg", "--size"], id="too-large"),
        pytest.param(["photo.jpg", "wave.png", "--size", 8], ["--size", "16 or more"], id="size-8"),
        pytest.param(["photo.jpg"], ["PAINTING"], id="one-picture"),
        pytest.param(
            ["photo.jpg", "wave.png", "--iterations", 1001], ["--iterations 1001", "0 to 1000"], id="too-long"
        ),
        pytest.param(["photo.jpg", "wave.png", "--iterations", "many"], ["--iterations", "'many'"], id="a-word"),
        pytest.param(["photo.jpg", "wave.png", "--every", 0], ["--every 0"], id="every-0"),
        pytest.param(["photo.jpg", "wave.png", "--content-weight", -1], ["--content-weight -1.0"], id="negative"),
        pytest.param(["photo.jpg", "wave.png", "--style-weight", "nan"], ["--style-weight nan"], id="nan"),
        pytest.param(["photo.jpg", "wave.png", "--tv-weight", "inf"], ["--tv-weight inf"], id="infinite"),
        pytest.param(
            ["photo.jpg", "wave.png", "--content-weight", 0, "--style-weight", 0], ["--content-weight"], id="nothing"
        ),
        pytest.param(
            ["photo.jpg", "wave.png", "--style-layers", "conv9=1"], ["--style-layers", "conv9", "conv1_1"], id="layer"
        ),
        pytest.param(["photo.jpg", "wave.png", "--content-layers", "deep"], ["--content-layers", "deep"], id="layers"),
        pytest.param(["photo.jpg", "wave.png", "--start", "black"], ["--start", "'noise'"], id="start"),
        pytest.param(["photo.jpg", "wave.png", "--scales", 6], ["scales", "too many"], id="scales"),
        pytest.param(["photo.jpg", "wave.png", "--out", "p.xyz/"], ["--out"], id="out-taken"),
        pytest.param(
            ["photo.jpg", "wave.png", "--out", "photo.jpg"], ["--out", "photo.jpg", "replace"], id="out-photo"
        ),
        pytest.param(["photo.jpg", "wave.png", "--out", "/proc/p.png"], ["--out", "cannot be written"], id="out"),
        pytest.param(
            ["photo.jpg", "wave.png", "--out", "./wave.png"], ["--out", "wave.png: would replace"], id="out-painting"
        ),
        pytest.param(
            ["thin.png", "wave.png", "--size", 17_000, "--out", "p.webp"],
            ["--out: p.webp: .webp can have 16,383 pixels a side"],
            id="out-too-small",
        ),
        pytest.param(
            ["photo.jpg", "wave.png", "--film", "x/../wave.png"],
            ["--film", "wave.png: would replace a picture"],
            id="film-painting",
        ),
        pytest.param(
            ["photo.jpg", "wave.png", "--film", "p.png", "--out", "./p.png"],
            ["--film: p.png: would replace the painting itself"],
            id="film-out",
        ),
        pytest.param(
            ["thin.png", "wave.png", "--size", 17_000, "--film", "f.mp4"],
            ["--film: f.mp4: 17000 x 16 is more pixels than .mp4"],
            id="film-too-small",
        ),
        pytest.param(["photo.jpg", "wave.png", "--film", "f.avi"], ["--film", ".avi"], id="film"),
        pytest.param(["photo.jpg", "wave.png", "--film", "f.gif", "--fps", 60], ["--fps: f.gif", "50"], id="film-fast"),
        pytest.param(["photo.jpg", "wave.png", "--model", "wgan"], ["--model", "painter"], id="model"),
        pytest.param(["photo.jpg", "wave.png", "--version", 9], ["--version", "no version 9"], id="version"),
    ],
)
def test_bad_input_is_one_line_and_status_2(paint, tmp_path, arguments, says):
    """It names the flag or the file; nothing is written, and nothing that was there is changed."""
    Image.new("RGB", (12, 90)).save(tmp_path / "small.png")
    Image.new("RGB", (10, 10)).save(tmp_path / "tiny.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "dot.png")
    Image.new("RGB", (17_000, 16)).save(tmp_path / "thin.png")
    (tmp_path / "words.txt").write_text("hello")
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "photo.jpg").read_bytes()[:700])
    (tmp_path / "p.xyz").write_text("precious")
    with unchanged(tmp_path):
        refused(paint(*arguments), *says)
    assert not (tmp_path / "out").exists()
