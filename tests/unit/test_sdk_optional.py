"""Packages that the SDK can do without: whether they are there, and why they cannot be loaded if they are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from atelier import saving
from atelier.errors import MissingPackage
from atelier.inprocess import InProcessClient

LOADED = {
    "onnxruntime": lambda folder: InProcessClient(folder),
    "av": lambda folder: saving.check(folder / "walk.mp4", fps=20),
}
EACH = pytest.mark.parametrize("package", LOADED)


def broken(folder: Path, package: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a package of that name before the real one."""
    (folder / f"{package}.py").write_text(line)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, package, raising=False)


@EACH
def test_what_is_not_installed_is_named_with_the_command(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage, match=f"is not installed: pip install {package}"):
        LOADED[package](tmp_path)


@EACH
@pytest.mark.parametrize(
    ("line", "says"),
    [
        pytest.param("raise ImportError('DLL load failed:\\n no module')", "DLL load failed: no module", id="library"),
        pytest.param("import absent_dependency", "No module named 'absent_dependency'", id="dependency"),
    ],
)
def test_what_is_installed_and_cannot_be_loaded_says_why(package, line, says, tmp_path, monkeypatch):
    """In one line, and not that it has to be installed."""
    broken(tmp_path, package, line, monkeypatch)
    with pytest.raises(MissingPackage) as caught:
        LOADED[package](tmp_path)
    assert f" cannot be loaded: {says}" in str(caught.value)
    assert "pip install" not in str(caught.value)


def test_a_video_that_cannot_be_written_has_other_formats(tmp_path, monkeypatch):
    """Whatever the reason."""
    broken(tmp_path, "av", "raise ImportError('no libavformat')", monkeypatch)
    says = r"^an \.mp4 needs PyAV, which cannot be loaded: no libavformat \(or use \.webp, \.gif, \.png\)$"
    with pytest.raises(MissingPackage, match=says):
        saving.check(tmp_path / "walk.mp4", fps=20)
