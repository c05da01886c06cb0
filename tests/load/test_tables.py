"""The tables that people read, and the files which they are written into."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from conftest import mounted

from serving.errors import RepositoryError
from tests.load import side_by_side, tables, tune
from tests.load.plan import ClosedLoop, OpenLoop
from tests.load.result import Result
from tests.load.stand_ins import made

MARKED = "<!-- capacity -->\n<!-- /capacity -->\n"


def test_tables_go_between_their_markers_and_nowhere_else(tmp_path: Path) -> None:
    row, ceiling = (side_by_side.Row("classifier", way) for way in ("triton", "in-process"))
    for load in side_by_side.CALLERS:
        row.results[load], ceiling.results[load] = [made(ClosedLoop(load))], [made(ClosedLoop(load), requests=200)]
    readme, page = tmp_path / "README.md", tmp_path / "page.md"
    readme.write_text("before\n<!-- load-report -->\nold\n<!-- /load-report -->\nafter\n")
    page.write_text(f"{MARKED}after\n")
    tables.check_markers([readme, page])
    tables.write([readme, page], [ceiling, row], side_by_side.QUICK)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| classifier | triton | 20 | 20 | 20 | 20 | 0.50 |" in text
    assert "| classifier | 20 | - | 2 | 9 | 73 |" in page.read_text(), "ceil(target / (0.7 x 20)) + 1"
    tables.check_markers([readme, page])


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """In one line that names it."""
    path = tmp_path / "page.md"
    path.write_bytes(MARKED.encode() + b"\xff")
    with pytest.raises(RepositoryError, match=rf"^--write {path}: is not UTF-8[^\n]*$"):
        tables.check_markers([path])


def test_a_file_that_cannot_be_written_is_refused_before_measuring(tmp_path: Path) -> None:
    """In one line that names it. The check itself changes no file."""
    with mounted(tmp_path / "disk", "size=1m") as disk:
        path = disk / "page.md"
        path.write_text(MARKED)
        before = path.stat().st_mtime_ns
        tables.check_markers([path])
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(RepositoryError, match=rf"^--write {path}: Read-only file system$"):
            tables.check_markers([path])
        assert (path.read_text(), path.stat().st_mtime_ns) == (MARKED, before)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    """In one line, though the system has no words for it."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RepositoryError, match=rf"^--write {tmp_path / 'pipe'}: .*not seekable"):
        tables.check_markers([tmp_path / "pipe"])


def test_a_way_that_answered_nothing_has_its_row_in_every_table(tmp_path: Path) -> None:
    """Without latencies, of which 0 ms would be the best."""
    nothing: dict[float, list[Result]] = {load: [made(ClosedLoop(load), requests=0)] for load in side_by_side.CALLERS}
    nothing |= {share: [made(OpenLoop(1.0), requests=0)] for share in side_by_side.SHARES}
    row = side_by_side.Row("classifier", "triton", nothing)
    page = tmp_path / "page.md"
    page.write_text("<!-- load-report --><!-- /load-report -->\n<!-- capacity --><!-- /capacity -->\n")
    tables.write([page], [row], side_by_side.QUICK)
    assert "| classifier | triton | 0 | 0 | 0 | 0 | - | - | - | - | - | - |" in page.read_text()
    assert "| classifier | 0 | - | - | - | - |" in page.read_text()
    assert set(tables.data([row])["classifier"]["triton"]["p99_ms"].values()) == {None}


def test_a_row_of_the_sweep_tells_what_went_wrong_in_it() -> None:
    """How many requests failed, and how many windows the generator doubts."""
    doubted, sound = made(ClosedLoop(1), utilisation=0.95), made(ClosedLoop(32))
    row = tune.Row([sound, doubted], [sound, sound], [sound, sound], [doubted, doubted])
    sound.total.failures["overloaded"] = 2
    data = row.data(row)
    assert (data["errors"], data["doubtful"]) == (10, 3)
    assert tune.table({"one": data, "two": data | {"errors": 0, "doubtful": 0}})[2].startswith(
        "| one (10 errors, 3 doubtful) |"
    )
    assert tune.table({"two": data | {"errors": 0, "doubtful": 0}})[2].startswith("| two |")
