"""clients/walk.py as people run it: what they get, what they are told, and what is never lost."""

from __future__ import annotations

import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
import stand_in
from conftest import need_tritonserver
from PIL import Image
from scripts import CLIENTS, ROOT, Done, copied, frames, free_port, names, processes_of, refused, run, unchanged, worked

from atelier import latents, saving
from atelier.recipe import Recipe

WALK = CLIENTS / "walk.py"
ROW = " ".join(["0.5"] * 100)

Walk = Callable[..., Done]


@pytest.fixture
def walk(server, tmp_path) -> Walk:
    """Runs walk.py in an empty folder against the shared server."""
    return lambda *arguments: run(WALK, "--url", server.grpc, *arguments, cwd=tmp_path)


@pytest.fixture
def near(server, tmp_path) -> Walk:
    """Runs walk.py in an empty folder, the model in its own process."""
    where = ("--repository", server.repository, "--in-process")
    return lambda *arguments: run(WALK, *where, *arguments, cwd=tmp_path)


def truth(vectors: latents.Latents, version: int = 2) -> npt.NDArray[np.int64]:
    return stand_in.images(vectors, version).astype(np.int64)


# --- what comes out


def test_the_shortest_command_makes_a_loop(walk, tmp_path):
    """`walk.py --steps 20`: a GIF of a closed walk at 20 frames a second, and one line that says where."""
    done = worked(walk("--steps", 20))
    assert done.stdout == "out/walk.gif: 80 frames, 4.0 s; wgan version 2, seed 1\n"
    assert names(tmp_path) == {"out", "out/walk.gif"}
    recipe = saving.read(tmp_path / "out" / "walk.gif")
    assert (recipe.loop, recipe.path, recipe.steps, recipe.version) == (True, "spline", 20, 2)
    with Image.open(tmp_path / "out" / "walk.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"], gif.info["duration"]) == (80, (128, 128), 0, 50)


def test_the_frames_are_those_of_the_walk_s_vectors(walk, tmp_path):
    """Frame by frame the model's picture of the recipe's vectors, in order."""
    worked(walk("--steps", 15, "--keyframes", 3, "--seed", 9, "--path", "slerp", "--out", "w.png"))
    recipe = saving.read(tmp_path / "w.png")
    np.testing.assert_array_equal(recipe.keyframes, latents.draw(3, seed=9))
    assert np.abs(frames(tmp_path / "w.png") - truth(recipe.latents())).max() <= 1


@pytest.mark.parametrize("out", ["w.gif", "w.webp", "w.png", "w.mp4", "w.zip", "w", "deep/er/w.gif"])
def test_every_format_and_again(near, tmp_path, out):
    """Each is saved where asked, and `--again` makes the same frames from it."""
    worked(near("--steps", 3, "--out", "first.png"))
    worked(near("--again", "first.png", "--out", out))
    done = worked(near("--again", out, "--out", "again.png"))
    assert done.stdout == "again.png: 12 frames, 0.6 s; wgan version 2, seed 1\n"
    np.testing.assert_array_equal(frames(tmp_path / "again.png"), frames(tmp_path / "first.png"))
    assert names(tmp_path) >= {"first.png", "again.png", out}


def test_again_keeps_everything_but_what_is_asked_otherwise(near, tmp_path):
    """Version, path, steps, rate and heat maps come from the file; flags given anew win."""
    worked(near("--steps", 3, "--path", "lerp", "--no-loop", "--fps", 8, "--latent", "--version", 1, "--out", "a.gif"))
    worked(near("--again", "a.gif", "--out", "b.gif"))
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    worked(near("--again", "a.gif", "--steps", 5, "--loop", "--out", "c.gif"))
    before, after = (vars(saving.read(tmp_path / name)) for name in ("a.gif", "c.gif"))
    assert {name for name in before if name != "keyframes" and before[name] != after[name]} == {"steps", "loop"}
    np.testing.assert_array_equal(before["keyframes"], after["keyframes"])


def test_vectors_kept_as_text_make_the_same_picture(near, tmp_path):
    """--save-vectors, then --vectors: the same frames to the pixel. They may lie beside the frames."""
    worked(near("--steps", 2, "--out", "a.png", "--save-vectors", "kept/mine.txt"))
    done = worked(near("--steps", 2, "--out", "b.png", "--vectors", "kept/mine.txt"))
    assert done.stdout.endswith("own vectors\n")
    np.testing.assert_array_equal(frames(tmp_path / "a.png"), frames(tmp_path / "b.png"))
    worked(near("--steps", 2, "--out", "b", "--save-vectors", "b/mine.txt"))
    assert (tmp_path / "b" / "mine.txt").read_text() == (tmp_path / "kept" / "mine.txt").read_text()


def test_vectors_of_a_walk_made_again(near, tmp_path):
    """Whatever its name is, as it is only read; beside its frames, and not among them."""
    worked(near("--steps", 2, "--out", "w.png", "--save-vectors", "first.txt"))
    (tmp_path / "w.png").rename(tmp_path / "w.apng")
    worked(near("--again", "w.apng", "--out", "frames", "--save-vectors", "frames/v.txt"))
    worked(near("--again", "frames", "--out", "w.gif", "--save-vectors", "frames/v.txt"))
    assert (tmp_path / "frames" / "v.txt").read_text() == (tmp_path / "first.txt").read_text()
    for name in ("w.apng", "frames/frame-0001.png"):
        done = near("--again", Path(name).parts[0], "--out", "w.gif", "--save-vectors", name)
        refused(done, f"--save-vectors: {name}: {Path(name).parts[0]} is in the way")


def test_a_strip_is_all_frames_in_one_picture(near, tmp_path):
    """A row for each leg, each frame in its place."""
    done = worked(near("--steps", 3, "--keyframes", 2, "--strip"))
    assert done.stdout.startswith("out/walk.png: 6 frames")
    (sheet,) = frames(tmp_path / "out" / "walk.png")
    expected = truth(saving.read(tmp_path / "out" / "walk.png").latents())
    for index, picture in enumerate(expected):
        top, left = 4 + 132 * (index // 3), 4 + 132 * (index % 3)
        assert np.abs(sheet[top : top + 128, left : left + 128] - picture).max() <= 1


def test_pairs_are_a_row_each(near, tmp_path):
    """--pairs 3 --strip: three rows that begin and end with drawn vectors."""
    worked(near("--pairs", 3, "--steps", 4, "--strip", "--out", "p.png"))
    (sheet,) = frames(tmp_path / "p.png")
    assert sheet.shape == (4 + 3 * 132, 4 + 5 * 132, 3)
    ends = truth(latents.draw(6, seed=1))
    for index, picture in enumerate(ends):
        top, left = 4 + 132 * (index // 2), 4 + 132 * 4 * (index % 2)
        assert np.abs(sheet[top : top + 128, left : left + 128] - picture).max() <= 1


def test_latent_shows_the_numbers_beside_each_frame(near, tmp_path):
    """The picture stays as it is; to its right is the heat map, which another scale changes."""
    for name, options in {"walk": (), "frame": ("--latent-scale", "frame"), "none": None}.items():
        worked(near("--steps", 2, "--out", f"{name}.png", *(["--latent", *options] if options is not None else [])))
    walk, frame, none = (frames(tmp_path / f"{name}.png") for name in ("walk", "frame", "none"))
    assert walk.shape == (8, 128, 264, 3)
    np.testing.assert_array_equal(walk[:, :, :128], none)
    assert (walk[:, :, 136:] != frame[:, :, 136:]).any()


def test_a_video_has_every_frame(near, tmp_path):
    """80 frames at the rate asked for."""
    worked(near("--fps", 25, "--out", "w.mp4"))
    with av.open(str(tmp_path / "w.mp4")) as video:
        stream = video.streams.video[0]
        assert (sum(1 for _ in video.decode(stream)), stream.average_rate) == (80, 25)


def test_help_names_every_option():
    """Its examples are commands that parse."""
    done = worked(run(WALK, "--help", cwd=ROOT))
    for flag in (
        "steps", "keyframes", "seed", "path", "loop", "fps", "out", "strip", "latent", "latent-scale", "model",
        "version", "url", "vectors", "save-vectors", "pairs", "again", "upscale",
    ):  # fmt: skip
        assert f"--{flag}" in done.stdout


# --- where it finds a model


def test_with_no_server_it_starts_one_says_so_and_ends_it(repository, tmp_path):
    """The checkout's own models are served by the embedded Triton for as long as the walk takes."""
    need_tritonserver()
    script, url = copied(WALK, tmp_path / "checkout", repository), f"localhost:{free_port()}"
    done = run(script, "--steps", 1, cwd=tmp_path, ATELIER_URL=url)
    assert done.stdout == "out/walk.gif: 4 frames, 0.2 s; wgan version 2, seed 1\n"
    assert done.stderr.splitlines() == [
        f"walk.py: no server is ready at {url}",
        "walk.py: started the embedded Triton for this run; `make serve` keeps one running",
    ]
    assert not processes_of(script.parents[1])


def test_it_takes_the_server_at_the_default_address(server, tmp_path):
    """`make serve` in one window, walk.py in another: no --url, no models of its own, and nothing to say."""
    script = copied(WALK, tmp_path / "checkout", None)
    done = worked(run(script, "--steps", 1, "--out", "w.png", cwd=tmp_path, ATELIER_URL=server.grpc))
    assert done.stdout.startswith("w.png: 4 frames")


def test_something_else_at_the_default_address_is_left_alone(repository, tmp_path):
    """A web server there, say: it starts the embedded one on free ports, and says why, as the client does."""
    need_tritonserver()
    script = copied(WALK, tmp_path / "checkout", repository)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        url = f"127.0.0.1:{other.server_port}"
        done = run(script, "--steps", 1, cwd=tmp_path, ATELIER_URL=url)
        other.shutdown()
    assert done.returncode == 0, done
    first, second = done.stderr.splitlines()
    assert first.startswith(f"walk.py: {url}: something answers there, but not as Triton's gRPC port does")
    assert "started the embedded Triton" in second


def test_a_default_address_that_is_none_is_named_with_its_variable(tmp_path):
    """Nobody has given it on this command line."""
    refused(run(WALK, cwd=tmp_path, ATELIER_URL="http://localhost:8001"), "ATELIER_URL: 'http://", "HOST:PORT")
    assert names(tmp_path) == set()


class Silent(http.server.BaseHTTPRequestHandler):
    """A web server that keeps its log to itself."""

    def log_message(self, *_: object) -> None:
        pass


def elsewhere(tmp_path: Path, *lines: str) -> dict[str, str]:
    """An environment in which Python finds itself on another machine."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("\n".join(["import platform, sys", *lines]))
    return {"PYTHONPATH": str(tmp_path / "site")}


ARM = "platform.machine = lambda: 'aarch64'"
NO_WHEEL = """
import importlib.util as util
found = util.find_spec
util.find_spec = lambda name, package=None: None if name == "pytriton" else found(name, package)
"""
NO_RUNTIME = "sys.modules['onnxruntime'] = None"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(ARM, "tritonserver runs on Linux x86_64, and this is Linux aarch64", id="arm"),
        pytest.param(NO_WHEEL, "nvidia-pytriton, which holds tritonserver, is not installed", id="no-wheel"),
    ],
)
def test_where_triton_cannot_run_the_model_runs_in_process(repository, tmp_path, change, says):
    """It says why, and the frames are the same."""
    environment = elsewhere(tmp_path, change)
    done = run(WALK, "--repository", repository, "--steps", 1, "--out", "w.png", cwd=tmp_path, **environment)
    assert done.returncode == 0, done
    assert done.stderr.startswith("walk.py: running the model in this process with ONNX Runtime: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert np.abs(frames(tmp_path / "w.png") - truth(latents.draw(4, seed=1))).max() <= 1


def test_where_neither_can_run_it_says_what_to_install(repository, tmp_path):
    """One line with the pip command, and the flag for a server elsewhere."""
    environment = elsewhere(tmp_path, ARM, NO_RUNTIME)
    done = run(WALK, "--repository", repository, cwd=tmp_path, **environment)
    refused(done, "pip install onnxruntime", "--url")


def test_a_server_that_does_not_start_is_no_reason_to_stop(repository, tmp_path):
    """Where the embedded Triton fails, here for a config.pbtxt it cannot read, the model runs in process."""
    need_tritonserver()
    (repository / "wgan" / "config.pbtxt").write_text("not a config")
    done = run(WALK, "--repository", repository, "--steps", 1, cwd=tmp_path)
    assert done.returncode == 0, done
    assert "the embedded Triton did not start" in done.stderr
    assert done.stderr.count("\n") == 1


def test_ctrl_c_leaves_nothing_behind(repository, tmp_path):
    """Interrupted in the middle of a long walk: status 130, one line more, no file, no server."""
    need_tritonserver()
    command = [sys.executable, WALK, "--repository", repository, "--keyframes", "2000", "--out", "w.gif"]
    work = tmp_path / "work"
    work.mkdir()
    with subprocess.Popen(command, cwd=work, stdout=-1, stderr=-1, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        assert "started the embedded Triton" in process.stderr.readline()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the whole group
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (130, "", "walk.py: stopped; nothing was saved\n")
    assert names(work) == set()
    assert not processes_of(repository)


# --- bad input, one by one


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["--steps", 0], ["--steps", "1 or more"], id="steps-0"),
        pytest.param(["--steps", -5], ["--steps", "1 or more"], id="steps-negative"),
        pytest.param(["--steps", "many"], ["--steps", "'many'"], id="steps-a-word"),
        pytest.param(["--steps", 10**9], ["--steps", "100000 or less"], id="too-many-steps"),
        pytest.param(["--steps", 60_000], ["240,000 frames is too long", "fewer steps"], id="too-many-frames"),
        pytest.param(["--keyframes", 10**12], ["--keyframes", "100000 or less"], id="too-many-keyframes"),
        pytest.param(["--keyframes", 1], ["--keyframes", "2 or more"], id="one-keyframe"),
        pytest.param(["--pairs", 0], ["--pairs", "1 or more"], id="no-pairs"),
        pytest.param(["--seed", -1], ["--seed", "0 or more"], id="seed-negative"),
        pytest.param(["--path", "zigzag"], ["--path", "'lerp', 'slerp', 'spline'"], id="unknown-path"),
        pytest.param(["--out", "walk.avi"], ["--out", ".avi", ".gif .webp .png .mp4 .zip"], id="unknown-format"),
        pytest.param(["--model", "nope"], ["--model", "'nope'", "wgan"], id="unknown-model"),
        pytest.param(["--model", "classifier"], ["--model", "'classifier'", "wgan"], id="model-of-another-kind"),
        pytest.param(["--version", 9], ["--version", "no version 9", "served: wgan 1, 2"], id="unknown-version"),
        pytest.param(["--version", 0], ["--version", "1 or more"], id="version-0"),
        pytest.param(["--upscale"], ["--model", "has no wgan_x4", "wgan and upscaler"], id="upscale-not-there"),
        pytest.param(["--upscale", "--model", "style"], ["--upscale", "'style'", "wgan"], id="upscale-other-model"),
        pytest.param(["--no-upscale", "--model", "wgan_x4"], ["--no-upscale", "--model wgan_x4"], id="upscaled-model"),
        pytest.param(["--fps", 0], ["--fps", "above 0"], id="fps-0"),
        pytest.param(["--fps", "nan"], ["--fps", "above 0"], id="fps-nan"),
        pytest.param(["--fps", 60], ["--fps: out/walk.gif", "at most 50", ".mp4"], id="gif-too-fast"),
        pytest.param(["--fps", 0.001], ["--fps: out/walk.gif", "at least 1 a minute"], id="too-slow"),
        pytest.param(["--version", 2**63], ["--version", f"{2**63 - 1} or less"], id="version-of-65-bits"),
        pytest.param(
            ["--strip", "--steps", 125, "--out", "w.webp"],
            ["--out: w.webp: 16504 x 532 is more pixels than .webp", ".png"],
            id="strip-too-wide",
        ),
        pytest.param(["--latent-scale", "big"], ["--latent-scale", "'walk', 'frame'"], id="unknown-scale"),
        pytest.param(["--strip", "--out", "w.mp4"], ["--out", "one picture"], id="strip-as-video"),
        pytest.param(["--stepz", 3], ["--stepz"], id="unknown-flag"),
        pytest.param(["--step", 3], ["--step"], id="shortened-flag"),
        pytest.param(["--again", "missing.gif"], ["--again", "missing.gif: no such file"], id="again-missing"),
        pytest.param(["--again", "photo.gif"], ["--again", "photo.gif: holds no walk"], id="again-a-photo"),
        pytest.param(["--again", "words.txt"], ["--again", "words.txt"], id="again-a-text"),
        pytest.param(["--again", "nope.png"], ["--again: nope.png: no model 'nope'", "wgan"], id="again-no-model"),
        pytest.param(["--pairs", 2, "--keyframes", 4], ["--keyframes", "--pairs"], id="pairs-and-keyframes"),
        pytest.param(["--again", "a.gif", "--vectors", "b"], ["--vectors", "--again"], id="again-and-vectors"),
        pytest.param(
            ["--vectors", "one.txt", "--seed", 3], ["--vectors", "out --keyframes and --seed\n"], id="vectors-with-seed"
        ),
        pytest.param(["--again", "photo.gif", "--seed", 3], ["--again", "leave out"], id="again-with-seed"),
        pytest.param(["--vectors", "words.txt"], ["--vectors", "words.txt, line 1: 'hello'"], id="vectors-words"),
        pytest.param(["--vectors", "empty.txt"], ["--vectors", "empty.txt: empty"], id="vectors-empty"),
        pytest.param(["--vectors", "nan.txt"], ["--vectors", "nan.txt, line 2: 'nan'"], id="vectors-nan"),
        pytest.param(["--vectors", "wide.txt"], ["--vectors", "wide.txt, line 1: has 101"], id="vectors-width"),
        pytest.param(["--vectors", "photo.gif"], ["--vectors", "photo.gif: is not a text"], id="vectors-binary"),
        pytest.param(["--vectors", "missing.txt"], ["--vectors", "missing.txt"], id="vectors-missing"),
        pytest.param(["--vectors", "one.txt"], ["--vectors", "2 keyframes or more"], id="vectors-one"),
        pytest.param(
            ["--vectors", "one.txt", "--pairs", 2], ["--pairs 2: needs 4 vectors, not 1\n"], id="vectors-no-pairs"
        ),
        pytest.param(["--out", "words.txt/w.gif"], ["--out", "words.txt/w.gif: cannot be written"], id="out-file"),
        pytest.param(["--out", "/proc/w.gif"], ["--out", "/proc/w.gif: cannot be written"], id="out-read-only"),
        pytest.param(["--out", "/proc/frames/"], ["--out", "/proc/frames: cannot be written"], id="out-folder"),
        pytest.param(["--out", "taken"], ["--out", "taken/frame-0000.png", "no walk made it"], id="out-taken"),
        pytest.param(["--out", "link"], ["--out: link: is a link to what is not there"], id="out-link"),
        pytest.param(["--save-vectors", "words.txt/v"], ["--save-vectors", "cannot be written"], id="save-vectors"),
        pytest.param(["--save-vectors", "taken"], ["--save-vectors", "taken: is a folder"], id="save-vectors-folder"),
        pytest.param(
            ["--save-vectors", "circle"], ["--save-vectors: circle", "Too many levels"], id="save-vectors-circle"
        ),
        pytest.param(
            ["--vectors", "two.txt", "--save-vectors", "./two.txt"],
            ["--save-vectors: two.txt: would replace the vectors"],
            id="save-vectors-given",
        ),
        pytest.param(
            ["--save-vectors", "out/walk.gif"], ["--save-vectors", "out/walk.gif is in the way"], id="save-vectors-out"
        ),
        pytest.param(
            ["--save-vectors", "x/../w.gif/v", "--out", "w.gif"],
            ["--save-vectors", "w.gif is in"],
            id="save-vectors-in",
        ),
        pytest.param(
            ["--save-vectors", "w", "--out", "w/w.gif"], ["--save-vectors", "w/w.gif is in"], id="save-vectors-around"
        ),
        pytest.param(
            ["--save-vectors", "w/frame-0001.png", "--out", "w"], ["--save-vectors", "w is in"], id="save-vectors-frame"
        ),
        pytest.param(["--url", "http://localhost:8000"], ["--url", "HOST:PORT"], id="url-http"),
        pytest.param(["--url", "localhost:99999"], ["--url", "1 to 65535"], id="url-port"),
        pytest.param(["--url", "localhost:1"], ["localhost:1", "leave out"], id="url-and-in-process"),
        pytest.param(["--repository", "nowhere"], ["nowhere: no such folder"], id="no-repository"),
        pytest.param(["--repository", "x" * 300], ["cannot be read: File name too long"], id="long-repository"),
        pytest.param(["--repository", "taken"], ["taken: no version of wgan"], id="empty-repository"),
    ],
)
def test_bad_input_is_one_line_and_status_2(near, tmp_path, arguments, says):
    """It names the flag or the file and what to do; nothing is written, and nothing that was there is changed."""
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.gif")
    texts = {
        "words.txt": "hello world\n", "empty.txt": "# nothing\n", "nan.txt": f"{ROW}\n{ROW[4:]} nan\n",
        "wide.txt": f"{ROW} 1\n", "one.txt": f"{ROW}\n", "two.txt": f"{ROW}  # mine\n" * 2,
        "taken/frame-0000.png": "precious",
    }  # fmt: skip
    (tmp_path / "taken").mkdir()
    unknown = Recipe(keyframes=latents.draw(2, seed=1), model="nope")
    saving.save(tmp_path / "nope.png", [Image.new("RGB", (8, 8))], recipe=unknown)
    for link, to in {"link": "gone", "circle": "circle"}.items():
        (tmp_path / link).symlink_to(to)
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    with unchanged(tmp_path):
        refused(near(*arguments), *says)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "circle").is_symlink()


def test_an_address_that_is_not_triton_s(server, tmp_path):
    """Triton's own HTTP port, for one; the line says which port is meant."""
    refused(run(WALK, "--url", server.http, cwd=tmp_path), "--url", server.http, "8001")


def test_a_walk_whose_version_is_gone_says_so(near, repository, tmp_path):
    """--again with a version that is no longer served; --version takes another."""
    worked(near("--version", 1, "--steps", 1, "--out", "w.gif"))
    shutil.rmtree(repository / "wgan" / "1")
    again = ("--again", "w.gif", "--repository", repository, "--out", "x.gif")
    refused(near(*again), "--version", "no version 1", "served: wgan 2")
    worked(near(*again, "--version", 2))
