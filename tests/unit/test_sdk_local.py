"""Where the SDK looks for a model on this machine, before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from atelier import local, tasks
from atelier.errors import InvalidInput, ServerUnreachable
from atelier.inprocess import InProcessClient


def test_a_folder_of_models_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    """InvalidInput with the system's words, as for any file."""
    (tmp_path / "wgan").mkdir()

    def iterdir(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", iterdir)
    where = {"checkout": tmp_path, "repository": tmp_path, "in_process": True}
    with (
        pytest.raises(InvalidInput, match=f"{tmp_path}: cannot be read: Permission denied"),
        local.connect(task=tasks.GENERATE, model="wgan", say=print, **where),
    ):
        pass


def test_a_folder_of_models_that_is_gone_is_named(tmp_path):
    """After the client was made: an error of the SDK, as of every method."""
    folder = tmp_path / "models"
    folder.mkdir()
    with InProcessClient(folder) as client:
        folder.rmdir()
        with pytest.raises(InvalidInput, match=f"{folder}: cannot be read: No such file or directory"):
            client.models()


EMBEDDED = """
import sys
print('{{"grpc": "127.0.0.1:1"}}', flush=True)
{}
"""
ENDS = "sys.exit('error: tritonserver ended by itself')"
STAYS = "sys.stdin.read()"


@pytest.mark.parametrize(
    ("then", "patience_s", "says"),
    [
        pytest.param(ENDS, 30, r"the embedded Triton broke down \(error: .* by itself\); try again", id="it-ends"),
        pytest.param(STAYS, 0.1, "away", id="it-stays"),
    ],
)
def test_an_embedded_server_that_ends_says_why(then, patience_s, says, tmp_path, monkeypatch):
    """In the place of an address that nobody chose; while it runs the client's own error stays."""
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "embedded.py").write_text(EMBEDDED.format(then))
    monkeypatch.setattr(local, "_cannot_embed", lambda: None)
    monkeypatch.setattr(local, "END_TIMEOUT_S", patience_s)
    with pytest.raises(ServerUnreachable, match=f"^{says}$"), local._embedded(tmp_path, tmp_path, "wgan"):
        raise ServerUnreachable("away")


def test_the_default_server_is_that_of_the_environment_now(tmp_path, monkeypatch):
    """As of a client without an address; where nobody answers, that is what is said."""
    said: list[str] = []
    for url in ("127.0.0.1:1", "127.0.0.1:2"):
        monkeypatch.setenv("ATELIER_URL", url)
        with (
            pytest.raises(InvalidInput, match="no such folder of models"),
            local.connect(task=tasks.GENERATE, model="wgan", checkout=tmp_path, say=said.append),
        ):
            pass
    assert said == [f"no server is ready at {url}" for url in ("127.0.0.1:1", "127.0.0.1:2")]
