"""Where the SDK looks for a model on this machine, before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from atelier import local, tasks
from atelier.errors import InvalidInput


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
