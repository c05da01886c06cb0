"""One self-contained HTML page of a load test: the table, the plots, and what the server and the generator used."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from tests.load import result as results_of
from tests.load.result import HEAD, Result

TEMPLATE = Path(__file__).with_name("page.html")


def write(
    path: Path, title: str, about: str, verdict: str, results: Sequence[Result], pictures: Sequence[Path]
) -> None:
    lines = [HEAD, *(row for result in results for row in results_of.rows(result))]
    cells = (["th" if line is HEAD else "td"] * len(line) for line in lines)
    table = [
        "<tr>" + "".join(f"<{tag}>{escape(text)}</{tag}>" for tag, text in zip(tags, line, strict=True)) + "</tr>"
        for tags, line in zip(cells, lines, strict=True)
    ]
    notes = [
        f"<li>{escape(f'{result.plan.load}: {line}')}</li>"
        for result in results
        for line in results_of.server_lines(result)
    ]
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        about=escape(about),
        verdict=escape(verdict),
        table="\n".join(table),
        pictures="\n".join(map(_picture, pictures)),
        notes="\n".join(notes),
    )
    path.write_text(text, encoding="utf-8")


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{escape(path.stem)}" src="data:image/png;base64,{data}"></p>'
