"""Tables as GitHub Markdown, to be pasted into a README."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mae_bench.aggregate import Cell, TableResult
from mae_bench.report import wording

SPECIAL = re.compile(r"([\\`*_\[\]|$~])")
AT_START = re.compile(r"^([#+=-]|\d+[.)](?=\s|$))")


def render(results: Sequence[TableResult]) -> str:
    """Return one section per table (a pipe table and its notes), and how to read them."""
    legend = "\n".join(f"{escape(note)}\n" for note in wording.legend(results))
    return "\n".join([*(_section(result) for result in results), legend])


def escape(text: str) -> str:
    """Make text show as it is, on one line: no emphasis, formula, HTML, link or list in it."""
    line = " ".join(wording.printable(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = SPECIAL.sub(r"\\\1", line).replace("://", "&#58;//")
    return AT_START.sub(lambda match: f"{match[0][:-1]}\\{match[0][-1]}", line)


def _section(result: TableResult) -> str:
    titles = [
        f"{column.column.group}: {wording.column_title(result, column)}"
        for column in result.columns
    ]
    lines = [
        f"### {escape(wording.title(result))}",
        "",
        _line(["Pretraining", *map(escape, titles)]),
        _line(["---", *("---:" for _ in titles)]),
    ]
    for row in result.rows:
        lines.append(_line([escape(row.row.title), *map(_score, row.cells)]))
        paper = wording.paper_scores(row.cells)
        if paper:
            lines.append(_line([f"*{wording.PAPER_LABEL}*", *(f"*{text}*" for text in paper)]))
    notes = [f"- {escape(note)}" for note in wording.notes(result)]
    return "\n".join([*lines, "", *notes, *([""] if notes else [])])


def _score(cell: Cell) -> str:
    text = escape(wording.score(cell))
    return f"**{text}**" if cell.best else text


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
