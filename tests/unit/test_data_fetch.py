"""Fetching a corpus: whole and checked or not at all, once, and from the next address where one fails."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.server
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from garment_files import TEST, TRAIN, TRAIN_IMAGES, TRAIN_LABELS, garments, kaggle, official, pictures, same

from training.data import fashion_mnist, files, natural
from training.errors import BadInput, Unreachable
from training.models.features import net as features


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official form, zipped, of 60 and 20 garments."""
    return official(tmp_path_factory.mktemp("corpora") / "garments", TRAIN, TEST)


class Mirror(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and remembers what it was asked for."""

    asked: list[str]

    def log_message(self, format: str, *arguments: object) -> None:
        self.asked.append(self.path)


@pytest.fixture
def mirror(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, list[str], Path]]:
    """A server of the 60 and 20 garments under /good/, its log, and the folder that it serves; none is official."""
    asked: list[str] = []
    served = tmp_path / "served"
    served.mkdir()
    (served / "good").symlink_to(folder)
    handler = partial(type("Logging", (Mirror,), {"asked": asked}), directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/"
        sums = {n: hashlib.sha256((folder / f"{n}.gz").read_bytes()).hexdigest() for n in fashion_mnist.OFFICIAL}
        monkeypatch.setattr(fashion_mnist, "OFFICIAL", sums)
        monkeypatch.setattr(fashion_mnist, "MIRRORS", (f"{url}good/",))
        monkeypatch.setenv("ATELIER_DATA", str(tmp_path / "kept"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield url, asked, served
        server.shutdown()
        thread.join()


def kept(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "kept").rglob("*") if path.is_file())


def test_it_is_fetched_once(
    mirror: tuple[str, list[str], Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All four files land under $ATELIER_DATA, alone and with their bytes; a second load asks for nothing."""
    loaded = fashion_mnist.load()
    assert loaded.name == "fashion-mnist"
    assert loaded.sha256 == fashion_mnist.load(folder).sha256
    assert kept(tmp_path) == sorted(path.name for path in folder.iterdir())
    assert len(mirror[1]) == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[0] == f"fetching {TRAIN_IMAGES}.gz into {tmp_path / 'kept' / 'fashion-mnist'}"
    assert same(fashion_mnist.load(), loaded)
    assert len(mirror[1]) == 4
    assert "fetching" not in capsys.readouterr().err


def test_only_what_is_missing_is_fetched(mirror: tuple[str, list[str], Path], tmp_path: Path) -> None:
    """A fetch that was stopped goes on; files that are there stay, unzipped ones too."""
    official(tmp_path / "kept" / "fashion-mnist", TRAIN, TEST, zipped=False)
    (tmp_path / "kept" / "fashion-mnist" / TRAIN_LABELS).unlink()
    fashion_mnist.load()
    assert mirror[1] == [f"/good/{TRAIN_LABELS}.gz"]


def test_kaggles_files_under_atelier_data_will_do(mirror: tuple[str, list[str], Path], tmp_path: Path) -> None:
    """Who has put the CSV form there needs no network."""
    kaggle(tmp_path / "kept" / "fashion-mnist", TRAIN, TEST)
    assert pictures(fashion_mnist.load().test) == pictures(TEST)
    assert mirror[1] == []


@pytest.mark.parametrize("first", ["absent/", "wrong/", "nowhere"])
def test_the_second_mirror_stands_in(
    first: str, mirror: tuple[str, list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror that is down, lacks a file or gives other bytes is passed over."""
    url, _, served = mirror
    official(served / "wrong", garments(60, seed=5), garments(20, seed=6))
    bad = "http://127.0.0.1:9/" if first == "nowhere" else url + first
    monkeypatch.setattr(fashion_mnist, "MIRRORS", (bad, f"{url}good/"))
    assert len(fashion_mnist.load().train.labels) == 48
    assert len(kept(tmp_path)) == 4


def test_what_has_another_checksum_is_not_kept(
    mirror: tuple[str, list[str], Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login page or a damaged file: every address with its fault, where to put the files, and it is not on disk."""
    url, _, served = mirror
    other = Path(shutil.copytree(folder, served / "wrong"))
    (other / f"{TRAIN_LABELS}.gz").write_bytes(b"<html>Please log in</html>")
    monkeypatch.setattr(fashion_mnist, "MIRRORS", (f"{url}wrong/", f"{url}absent/"))
    with pytest.raises(BadInput) as refused:
        fashion_mnist.load()
    message = str(refused.value)
    assert message.startswith(f"--corpus: can't fetch {TRAIN_LABELS}.gz (")
    assert f"{url}wrong/{TRAIN_LABELS}.gz: what came has another checksum" in message
    assert f"{url}absent/{TRAIN_LABELS}.gz: HTTP Error 404" in message
    assert f"into {tmp_path / 'kept' / 'fashion-mnist'} yourself" in message
    assert "\n" not in message
    assert kept(tmp_path) == [f"{TRAIN_IMAGES}.gz"]


class Failing(http.server.BaseHTTPRequestHandler):
    """Promises 1,000 bytes, gives ten, and hangs up: or, asked to, waits."""

    hang: threading.Event | None = None

    def do_GET(self) -> None:
        if self.hang:
            self.hang.wait()
            return
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"0123456789")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.mark.parametrize("hangs", [False, True], ids=["breaks off", "never answers"])
def test_a_fetch_that_breaks_off_leaves_nothing(hangs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a file is none, and no server is waited for without end."""
    done = threading.Event()
    handler = type("Handler", (Failing,), {"hang": done if hangs else None})
    monkeypatch.setattr(files, "TIMEOUT_S", 0.2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    to = tmp_path / "made" / "file.gz"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        with pytest.raises(OSError, match="timed out" if hangs else "another checksum"):
            files.fetch([f"http://127.0.0.1:{server.server_port}/file.gz"], to, sha256="0" * 64)
        done.set()
        server.shutdown()
        thread.join()
    assert list(to.parent.iterdir()) == []


def test_without_a_network_it_says_where_the_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line: what can't be fetched and why, which files, and the folder to put them into. It may work later."""
    monkeypatch.setenv("ATELIER_DATA", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fashion_mnist, "MIRRORS", ("http://127.0.0.1:9/",))
    with pytest.raises(Unreachable) as refused:
        fashion_mnist.load()
    message = str(refused.value)
    assert "Connection refused" in message
    assert all(f"{name}.gz" in message for name in fashion_mnist.OFFICIAL)
    assert f"into {tmp_path / 'fashion-mnist'} yourself" in message
    assert "\n" not in message
    assert kept(tmp_path) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ATELIER_DATA below a file: the path and the reason, no traceback."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ATELIER_DATA", str(tmp_path / "file"))
    with pytest.raises(BadInput, match=r"--corpus: .*Not a directory") as refused:
        fashion_mnist.load()
    assert not isinstance(refused.value, Unreachable)  # another try would do no better


@pytest.mark.parametrize("what", ["garments", "imagenette", "weights"])
def test_a_full_volume_is_not_tried_again(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Job ends at once there, where a network that is down makes it try again: by the class of what is raised."""
    url = f"{tmp_path.as_uri()}/"
    for name in (f"{TRAIN_IMAGES}.gz", "pictures.tgz", "vgg-0.pth"):
        (tmp_path / name).write_bytes(b"whatever")
    monkeypatch.setenv("ATELIER_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(fashion_mnist, "MIRRORS", (url, url))
    monkeypatch.setattr(natural, "ADDRESS", f"{url}pictures.tgz")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    fetch: dict[str, Callable[[], object]] = {
        "garments": fashion_mnist.load,
        "imagenette": natural.imagenette,
        "weights": lambda: features.fetched(f"{url}vgg-0.pth"),
    }
    with pytest.raises(BadInput, match="No space left on device") as refused:
        fetch[what]()
    assert not isinstance(refused.value, Unreachable)


def test_workers_that_want_imagenette_at_once_fetch_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of one torchrun, or pods that share a volume: the second waits, and finds what the first has unpacked."""
    (tmp_path / "dogs" / "train").mkdir(parents=True)
    with tarfile.open(tmp_path / "dogs.tgz", "w:gz") as packed:
        packed.add(tmp_path / "dogs", natural.NAME)
    fetching, second_came, go = threading.Event(), threading.Event(), threading.Event()
    asked: list[Path] = []

    def fetch(urls: object, to: Path, *, sha256: str) -> None:
        asked.append(to)
        (second_came if fetching.is_set() else fetching).set()
        go.wait()
        shutil.copy(tmp_path / "dogs.tgz", to)

    flock = fcntl.flock

    def flocked(lock: int, operation: int) -> None:
        if fetching.is_set():
            second_came.set()
        flock(lock, operation)

    monkeypatch.setenv("ATELIER_DATA", str(tmp_path / "kept"))
    monkeypatch.setattr(files, "fetch", fetch)
    monkeypatch.setattr(fcntl, "flock", flocked)
    with ThreadPoolExecutor(2) as workers:
        one = workers.submit(natural.imagenette)
        fetching.wait()
        other = workers.submit(natural.imagenette)
        second_came.wait()
        go.set()
        assert one.result() == other.result() == tmp_path / "kept" / natural.NAME / "train"
    assert one.result().is_dir()
    assert len(asked) == 1


@pytest.fixture
def imagenette(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive, as its address gives it: of one picture, which is none."""
    (tmp_path / "dogs" / "train").mkdir(parents=True)
    (tmp_path / "dogs" / "train" / "rex.jpg").write_bytes(np.random.default_rng(0).integers(0, 8, 200_000, np.uint8))
    with tarfile.open(tmp_path / "dogs.tgz", "w:gz") as packed:
        packed.add(tmp_path / "dogs", natural.NAME)
    monkeypatch.setenv("ATELIER_DATA", str(tmp_path / "kept"))
    monkeypatch.setattr(natural, "ADDRESS", (tmp_path / "dogs.tgz").as_uri())
    monkeypatch.setattr(natural, "SHA256", hashlib.sha256((tmp_path / "dogs.tgz").read_bytes()).hexdigest())
    return tmp_path / "dogs.tgz"


def altered(data: bytes) -> bytes:
    half = len(data) // 2
    return data[:half] + bytes(byte ^ 0xFF for byte in data[half:])


DAMAGED = pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], altered, lambda _: b""], ids=["cut short", "altered", "empty"]
)


@DAMAGED
def test_an_archive_that_is_damaged_is_fetched_anew(
    damage: Callable[[bytes], bytes], imagenette: Path, tmp_path: Path
) -> None:
    """As a crash leaves it: no next try would unpack it."""
    (tmp_path / "kept").mkdir()
    kept_archive = tmp_path / "kept" / f"{natural.NAME}.tgz"
    kept_archive.write_bytes(damage(imagenette.read_bytes()))
    assert (natural.imagenette() / "rex.jpg").is_file()
    assert not kept_archive.exists()


@DAMAGED
def test_an_archive_that_cannot_be_unpacked_is_told(
    damage: Callable[[bytes], bytes], imagenette: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, whatever of gzip, zlib or tar finds it so."""
    imagenette.write_bytes(damage(imagenette.read_bytes()))
    monkeypatch.setattr(natural, "SHA256", hashlib.sha256(imagenette.read_bytes()).hexdigest())
    with pytest.raises(BadInput, match=r"^--corpus: .*; try again, or name a folder of your own$") as refused:
        natural.imagenette()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
def test_without_atelier_data_corpora_are_kept_in_the_cache(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """~/.cache/atelier, as the README says."""
    monkeypatch.delenv("ATELIER_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("ATELIER_DATA", value)
    monkeypatch.setenv("HOME", "/home/someone")
    assert files.home() == Path("/home/someone/.cache/atelier")


def test_a_home_directory_that_nobody_has_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a line, with the variable that names it."""
    monkeypatch.setenv("ATELIER_DATA", "~nosuchuser/corpora")
    with pytest.raises(BadInput, match=r"^ATELIER_DATA: ~nosuchuser is nobody's home directory; give the whole path$"):
        fashion_mnist.load()


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a node that goes down could leave the name without the bytes, which nothing would fetch again."""
    (tmp_path / "source").write_bytes(b"whole")
    to, seen = tmp_path / "kept" / "file", []
    monkeypatch.setattr(files, "fsync", lambda path: seen.append((path.read_bytes(), to.exists())))
    files.fetch([(tmp_path / "source").as_uri()], to, sha256=hashlib.sha256(b"whole").hexdigest())
    assert (seen, to.read_bytes()) == ([(b"whole", False)], b"whole")
