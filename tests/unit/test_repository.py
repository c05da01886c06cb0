"""Publishing is all or nothing, numbers are never used twice, and the newest version can be taken back."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import stand_in
from conftest import mounted
from waiting import until

from atelier import _repository
from serving import configs, files, pbtxt, plans, reload
from serving import repository as repo
from serving.errors import RepositoryError
from serving.spec import ModelSpec

AWAY = 3600.0


def content(folder: Path) -> dict[str, bytes]:
    """Everything a reader could see of a repository; the lock is not content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


@pytest.fixture
def candidate(tmp_path: Path) -> Path:
    return stand_in.candidate(tmp_path / "candidate")


def rewrite(card: Path, **fields: object) -> None:
    card.write_text(json.dumps(json.loads(card.read_text()) | fields))


def test_first_version(candidate: Path, tmp_path: Path) -> None:
    """An empty volume becomes a repository: what stands beside the versions, and 1, whose card knows its number."""
    models = tmp_path / "new" / "models"
    beside = {"labels.txt": "one\ntwo\n", "config.pbtxt": "name: 'wgan'\n"}
    assert repo.publish(candidate, models, "wgan", beside=beside) == 1
    card = repo.card(models, "wgan", 1)
    assert (card.version, card.model, card.preset) == (1, "wgan", "stand-in")
    assert card.published.endswith("+00:00")
    assert {name: (models / "wgan" / name).read_text() for name in beside} == beside
    assert (models / "wgan" / "1" / "model.onnx").read_bytes() == (candidate / "model.onnx").read_bytes()
    assert repo.models(models) == ["wgan"]


def test_next_version(candidate: Path, repository: Path) -> None:
    """The next number is one above the newest; the versions before and the candidate stay as they were."""
    before, given = content(repository), content(candidate)
    assert repo.publish(candidate, repository, "wgan") == 3
    assert repo.versions(repository, "wgan") == [1, 2, 3]
    after = content(repository)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[1] for name in after.keys() - before.keys()} == {"3"}
    assert content(candidate) == given


def test_no_version_of_an_unknown_model(repository: Path) -> None:
    """A model that is not there has no versions, and asking for its newest says so."""
    assert repo.versions(repository, "other") == []
    with pytest.raises(RepositoryError, match="no version of other"):
        repo.newest(repository, "other")


@pytest.mark.parametrize("missing", repo.FILES)
def test_incomplete_candidate(candidate: Path, repository: Path, missing: str) -> None:
    """A version is three files; without one of them nothing is published."""
    (candidate / missing).unlink()
    before = content(repository)
    with pytest.raises(RepositoryError, match=f"no {missing}"):
        repo.publish(candidate, repository, "wgan")
    assert content(repository) == before


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(lambda c: rewrite(c / "card.json", model="other"), "'other', not 'wgan'", id="other model"),
        pytest.param(lambda c: rewrite(c / "card.json", sha256="0" * 64), "SHA-256", id="other checksum"),
        pytest.param(lambda c: rewrite(c / "card.json", metrics={"a": "x"}), "not a model card", id="metric"),
        pytest.param(lambda c: (c / "card.json").write_text("{"), "not a model card", id="no JSON"),
        pytest.param(lambda c: (c / "card.json").write_text("[]"), "not a model card", id="a list"),
        pytest.param(lambda c: (c / "card.json").write_text("{}"), "no field 'model'", id="no fields"),
        pytest.param(lambda c: (c / "model.onnx").write_bytes(b"cut"), "SHA-256", id="model cut short"),
    ],
)
def test_damaged_candidate(candidate: Path, repository: Path, damage: Callable[[Path], object], says: str) -> None:
    """What does not fit together is refused, and the message names the file."""
    damage(candidate)
    before = content(repository)
    with pytest.raises(RepositoryError, match=says) as error:
        repo.publish(candidate, repository, "wgan")
    assert str(candidate) in str(error.value)
    assert content(repository) == before


def wait_at(gate: str) -> None:
    """In a process of its own: says that it has come, and goes on once the gate is there."""
    Path(f"{gate}-{os.getpid()}").touch()
    while not os.path.exists(gate):  # noqa: PTH110 - the tightest loop, so that all start at once
        pass


def open_for(count: int, gate: Path) -> None:
    """Makes the gate once so many wait at it: to start Python takes longer than what they do after it."""

    def come() -> list[Path]:
        return list(gate.parent.glob(f"{gate.name}-*"))

    until(lambda: len(come()) >= count, lambda: f"{come()}, and never {count}")
    gate.touch()


def _publish_when_told(gate: str, candidate: Path, repository: Path) -> int:
    wait_at(gate)
    return repo.publish(candidate, repository, "wgan")


def test_publishers_at_once(candidate: Path, repository: Path, tmp_path: Path) -> None:
    """Any number of publishers at the same moment all succeed, each with a number of its own."""
    gate = tmp_path / "gate"
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        arguments = [(str(gate), candidate, repository)] * 4
        numbers = pool.starmap_async(_publish_when_told, arguments, chunksize=1)
        open_for(4, gate)
        assert sorted(numbers.get(60)) == [3, 4, 5, 6]
    for version in repo.versions(repository, "wgan"):
        assert repo.card(repository, "wgan", version).version == version
    assert not list((repository / "wgan").glob(f"{repo.STAGING}*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 1 MB."""
    with mounted(tmp_path / "small", "size=1m") as folder:
        yield folder


def test_disk_fills_up(candidate: Path, small_disk: Path) -> None:
    """A disk too small for the next version leaves the repository as it was, and serving goes on."""
    models = small_disk / "models"
    repo.publish(candidate, models, "wgan", beside={"config.pbtxt": "first"})
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
    before = content(models)
    with pytest.raises(RepositoryError, match=r"No space left on device.*nothing has changed"):
        repo.publish(candidate, models, "wgan", beside={"config.pbtxt": "second"})
    assert content(models) == before


@pytest.mark.parametrize("way", ["publish", "seed"])
def test_a_disk_that_was_full_from_the_beginning(way: str, candidate: Path, small_disk: Path, tmp_path: Path) -> None:
    """It names what could not be written, not what was to be copied; and no empty folder of a model stays."""
    stand_in.repository(tmp_path / "shipped")
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
    models = small_disk / "models"
    with pytest.raises(RepositoryError, match=rf"No space left on device \({models}/wgan/\S+\)"):
        repo.publish(candidate, models, "wgan") if way == "publish" else repo.seed(tmp_path / "shipped", models)
    assert list(models.iterdir()) == []


def test_read_only_volume(candidate: Path, small_disk: Path) -> None:
    """Nothing can be published or rolled back there, and the message says why; root is refused as anybody is."""
    models = small_disk / "models"
    repo.publish(candidate, models, "wgan")
    before = content(models)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for change in (lambda: repo.publish(candidate, models, "wgan"), lambda: repo.rollback(models, "wgan")):
        with pytest.raises(RepositoryError, match=r"Read-only file system.*nothing has changed"):
            change()
    assert content(models) == before


def test_publisher_waits_for_a_hand_over(candidate: Path, repository: Path) -> None:
    """While a model is locked no version of it appears; then it does, with the next number."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        with repo.locked(repository, "wgan"):
            number = pool.apply_async(repo.publish, (candidate, repository, "wgan"))
            until(lambda: list((repository / "wgan").glob(f"{repo.STAGING}*")), lambda: "no publisher came")
            with pytest.raises(multiprocessing.TimeoutError):
                number.get(0.5)
            assert repo.versions(repository, "wgan") == [1, 2]
        assert number.get(60) == 3


def test_file_too_large(candidate: Path, repository: Path) -> None:
    """The same where a limit on file sizes stands for the full disk, for machines without root."""
    before = content(repository)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RepositoryError, match=r"File too large.*nothing has changed"):
            repo.publish(candidate, repository, "wgan")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert content(repository) == before


def test_killed_publisher(candidate: Path, repository: Path) -> None:
    """What a killed publisher left is no version, does not stop the next one, and goes after a day."""
    left = repository / "wgan" / f"{repo.STAGING}dead"
    shutil.copytree(candidate, left)
    assert repo.publish(candidate, repository, "wgan") == 3
    assert left.exists()
    os.utime(left, (time.time() - repo.ABANDONED_S - AWAY,) * 2)
    assert repo.publish(candidate, repository, "wgan") == 4
    assert not left.exists()


def test_rollback(candidate: Path, repository: Path) -> None:
    """The newest goes out of service whole and can be put back; its number is not given to another."""
    before = content(repository / "wgan" / "2")
    assert repo.rollback(repository, "wgan") == 2
    assert repo.versions(repository, "wgan") == [1]
    assert content(repo.withdrawn(repository, "wgan", 2)) == before
    assert repo.publish(candidate, repository, "wgan") == 3
    with pytest.raises(RepositoryError, match="version 3 is newer; roll that back first"):
        repo.restore(repository, "wgan", 2)
    repo.rollback(repository, "wgan")
    repo.restore(repository, "wgan", 2)
    assert repo.versions(repository, "wgan") == [1, 2]
    assert content(repository / "wgan" / "2") == before


@pytest.mark.parametrize("change", ["withdrawn", "published"])
def test_rollback_means_the_version_that_was_newest(
    change: str, candidate: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two who roll one bad version back, or serving.reload and somebody, take one back; one that came is not meant."""
    locked = repo.locked

    @contextlib.contextmanager
    def late(models: Path, model: str) -> Iterator[None]:
        if change == "withdrawn":
            repo.withdraw(models, model)
        else:
            repo.publish(candidate, models, model)
        with locked(models, model):
            yield

    monkeypatch.setattr(repo, "locked", late)
    repo.publish(candidate, repository, "wgan")
    with pytest.raises(RepositoryError, match=r"[24] has become the newest in place of 3; nothing was rolled back"):
        repo.rollback(repository, "wgan")
    assert repo.versions(repository, "wgan") == ([1, 2] if change == "withdrawn" else [1, 2, 3, 4])


# --- versions whose inputs have members of their own: styles

MORE = stand_in.STYLE.with_members({"style_weights": ("negative", "ink-red", "faded", "blueprint")})
OTHERS = stand_in.STYLE.with_members({"style_weights": ("etching", "ink-red", "faded")})


@pytest.fixture
def styles(tmp_path: Path) -> Path:
    return stand_in.repository(tmp_path / "repository", spec=stand_in.STYLE)


def publish_styles(repository: Path, spec: ModelSpec) -> int:
    version = repo.newest(repository, "style") + 1
    candidate = stand_in.candidate(repository.with_name(f"candidate {version}"), version, spec)
    return repo.publish(candidate, repository, "style", beside=pbtxt.files(spec))


def told(repository: Path) -> tuple[str, list[int], int]:
    """Which styles config.pbtxt names, with how many weights it warms them up, and how many versions it serves."""
    config = repo.config(repository, "style")
    warm = [size for warmup in config.model_warmup for size in warmup.inputs["style_weights"].dims]
    return config.parameters["style_weights"].string_value, warm, config.version_policy.latest.num_versions


@pytest.mark.parametrize("spec", [MORE, OTHERS], ids=["one more", "as many others"])
def test_other_styles_are_served_alone(spec: ModelSpec, styles: Path) -> None:
    """config.pbtxt names the newest version's styles; one before it with others would be asked by wrong names."""
    before = (styles / "style" / "config.pbtxt").read_text()
    names = spec.inputs[1].members
    assert publish_styles(styles, spec) == 3
    assert told(styles) == (",".join(names), [len(names)] * 2, 1)
    assert publish_styles(styles, spec) == 4
    assert told(styles) == (",".join(names), [len(names)] * 2, 2)
    for back in (1, 2):
        repo.rollback(styles, "style")
        assert told(styles)[2] == back
    assert (styles / "style" / "config.pbtxt").read_text() == before


def test_styles_whose_publication_fails(styles: Path) -> None:
    """Nothing has changed, as the message says: config.pbtxt names the styles of the version that stays."""
    (styles / "style" / "3").write_text("in the way")
    before = content(styles)
    with pytest.raises(RepositoryError, match="nothing has changed"):
        publish_styles(styles, MORE)
    assert content(styles) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")], ids=repr)
@pytest.mark.parametrize("act", ["publish", "roll back", "restore"])
def test_an_error_after_styles_have_changed(
    act: str, error: BaseException, styles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What servers may have seen is not undone: config.pbtxt names the styles of the version that is the newest now,
    and nobody is told to run it again."""
    few, many = told(styles), (",".join(MORE.inputs[1].members), [4, 4], 1)
    if act != "publish":
        publish_styles(styles, MORE)
    if act == "restore":
        repo.rollback(styles, "style")
    fsync, newest = files.fsync, 2 if act == "roll back" else 3
    acts: dict[str, Callable[[], object]] = {
        "publish": lambda: publish_styles(styles, MORE),
        "roll back": lambda: repo.rollback(styles, "style"),
        "restore": lambda: repo.restore(styles, "style", 3),
    }

    def fail(path: Path) -> None:
        fsync(path)
        if path == styles / "style" and repo.newest(styles, "style") == newest:
            monkeypatch.undo()
            raise error

    monkeypatch.setattr(files, "fsync", fail)
    with pytest.raises((RepositoryError, KeyboardInterrupt)) as raised:
        acts[act]()
    assert told(styles) == (few if act == "roll back" else many)
    if isinstance(error, OSError):
        assert "Input/output error; " in str(raised.value)
        assert "was renamed all the same; don't run it again" in str(raised.value)


@pytest.mark.parametrize("change", [lambda at: publish_styles(at, MORE), lambda at: repo.rollback(at, "style")])
def test_what_a_server_finds_while_styles_change(
    change: Callable[[Path], int], styles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It warms nothing up, so that it starts with either version."""
    publish_styles(styles, OTHERS)
    seen = []

    def looked(path: Path, target: Path) -> Path:
        if path.parent.name == "style" and path.is_dir():
            seen.append(told(styles))
        return rename(path, target)

    rename = Path.rename
    monkeypatch.setattr(Path, "rename", looked)
    change(styles)
    assert seen == [("etching,ink-red,faded", [], 1)]


def test_a_seeded_volume_has_the_styles_of_its_version(styles: Path, tmp_path: Path) -> None:
    """The newest version of the source may be damaged, and the one that is copied have other styles."""
    before = (styles / "style" / "config.pbtxt").read_text()
    publish_styles(styles, MORE)
    (styles / "style" / "3" / "golden.npz").unlink()
    assert repo.seed(styles, tmp_path / "volume") == ["style 2"]
    assert (tmp_path / "volume" / "style" / "config.pbtxt").read_text() == before


@pytest.mark.parametrize("text", ["no configuration", "# mine\nname: 'wgan'  # and mine\n"])
def test_a_config_that_knows_no_members_stays(text: str, candidate: Path, repository: Path) -> None:
    """Whoever wrote it by hand finds it as it was."""
    (repository / "wgan" / configs.NAME).write_text(text)
    repo.publish(candidate, repository, "wgan")
    repo.rollback(repository, "wgan")
    assert (repository / "wgan" / configs.NAME).read_text() == text


def test_a_config_that_is_not_utf_8_is_named(candidate: Path, repository: Path) -> None:
    """And nothing changes."""
    config = repository / "wgan" / configs.NAME
    config.write_bytes("# café\n".encode("latin-1") + config.read_bytes())
    before = content(repository)
    for act in (lambda: repo.publish(candidate, repository, "wgan"), lambda: repo.rollback(repository, "wgan")):
        with pytest.raises(
            RepositoryError, match=r"config\.pbtxt: not in UTF-8 \(invalid continuation byte at byte 5\)"
        ):
            act()
        assert content(repository) == before


def test_what_is_a_version(repository: Path) -> None:
    """The same to all that ask: what tritonserver takes for one, and so not 02."""
    (repository / "wgan" / "02").mkdir()
    assert repo.versions(repository, "wgan") == [1, 2]
    assert [path.name for path in plans.in_service(repository / "wgan", repo.config(repository, "wgan"))] == ["1", "2"]
    assert _repository.versions(repository, "wgan") == [1, 2]


def test_a_number_that_was_put_away_by_hand(candidate: Path, repository: Path) -> None:
    """It is not given to another version, which servers that have the one before would take for theirs."""
    (repository / "wgan" / "2").rename(repository / "wgan" / "2.bak")
    assert repo.publish(candidate, repository, "wgan") == 3


def test_only_version_stays(repository: Path) -> None:
    """Rolling back the last version is refused: there would be nothing to serve."""
    repo.rollback(repository, "wgan")
    with pytest.raises(RepositoryError, match="nothing to serve"):
        repo.rollback(repository, "wgan")
    assert repo.versions(repository, "wgan") == [1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serving.repository", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_list(repository: Path) -> None:
    """`list` shows each version with its preset, commit and metrics, oldest first."""
    done = run("--repository", str(repository), "list")
    assert (done.returncode, done.stderr) == (0, "")
    head, first, second = done.stdout.splitlines()
    assert head.split() == ["model", "version", "published", "preset", "commit", "metrics"]
    assert first.split()[:2] == ["wgan", "1"]
    assert second.split()[:2] == ["wgan", "2"]
    assert "structure 0.7" in second


def test_list_with_half_a_version(repository: Path) -> None:
    """It is what one looks at just then: the other rows are there, and in this one's the reason."""
    (repository / "wgan" / "1" / "card.json").unlink()
    (repository / "wgan" / "2" / "card.json").write_text("{")
    stand_in.repository(repository, spec=stand_in.STYLE)
    done = run("--repository", str(repository), "list")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split(maxsplit=5) for line in done.stdout.splitlines()[1:]]
    assert [row[:2] for row in rows] == [["style", "1"], ["style", "2"], ["wgan", "1"], ["wgan", "2"]]
    assert rows[2][5] == f"{repository}/wgan/1/card.json: No such file or directory"
    assert rows[3][5].startswith(f"{repository}/wgan/2/card.json: not a model card")


def test_list_with_an_ensemble(tmp_path: Path) -> None:
    """An ensemble's row says what it asks; without a version of each step it has none, as a model without one."""
    root = stand_in.repository(tmp_path / "repository", spec=stand_in.WGAN_X4)
    rows = run("--repository", str(root), "list").stdout.splitlines()[1:]
    assert [row.split()[:2] for row in rows] == [
        ["upscaler", "1"], ["upscaler", "2"], ["wgan", "1"], ["wgan", "2"], ["wgan_x4", "1"],
    ]  # fmt: skip
    assert rows[-1].endswith("the newest wgan, then upscaler")
    for version in ("1", "2"):
        shutil.rmtree(root / "upscaler" / version)
    assert repo.lacking(root, "wgan_x4") == ["upscaler"]
    assert "wgan_x4" not in run("--repository", str(root), "list").stdout


def test_an_ensemble_is_not_rolled_back(tmp_path: Path) -> None:
    """One line that says which models can be; nothing has changed."""
    root = stand_in.repository(tmp_path / "repository", spec=stand_in.WGAN_X4)
    before = content(root)
    done = run("--repository", str(root), "rollback", "wgan_x4")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "wgan_x4: always the newest wgan and upscaler; roll back one of these" in done.stderr
    assert content(root) == before


def test_rollback_command(styles: Path) -> None:
    """`rollback` says what is newest now; the command it names brings the version back, with its styles, and the other
    tells the servers."""
    publish_styles(styles, OTHERS)
    before = content(styles)
    done = run("--repository", str(styles), "rollback", "style")
    assert (done.returncode, done.stderr) == (0, "")
    assert "style 2 is the newest now" in done.stdout
    again, tells = (shlex.split(each) for each in done.stdout.split("`")[1::4])
    assert run(*again[3:]).stdout.startswith("style 3 is the newest again; ")
    assert content(styles) == before
    assert tells[:3] == ["python", "-m", "serving.reload"]
    assert reload._parser().parse_args(tells[3:]).repository == styles


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["list"], "--repository", id="no such folder"),
        pytest.param(["rollback", "wgan"], "no model wgan", id="no such model"),
        pytest.param([], "list,rollback", id="no command"),
        pytest.param(["restore", "wgan", "2"], "absent/wgan: no such folder", id="nothing to restore"),
        pytest.param(["purge"], "invalid choice: 'purge'", id="unknown command"),
    ],
)
def test_bad_input(tmp_path: Path, arguments: list[str], says: str) -> None:
    """A mistake is one line on stderr and status 2."""
    done = run("--repository", str(tmp_path / "absent"), *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
