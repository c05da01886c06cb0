"""Where the SDK looks for a model on this machine, before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from atelier import local, tasks
from atelier.errors import InvalidInput
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
