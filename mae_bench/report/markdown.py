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
        f"{wording.group(result, column)}: {wording.column_title(result, column)}"
        for column in result.columns
    ]
    lines = [
        f"### {escape(wording.title(result))}",
        "",
        _line(["Pretraining", *map(escape, titles)]),
        _line(["---", *("---:" for _ in titles)]),
    ]
    for row in result.rows:
        scores = (_score(result, index, cell) for index, cell in enumerate(row.cells))
        lines.append(_line([escape(wording.row_title(row)), *scores]))
        for label, texts in wording.below(result, row):
            lines.append(_line(f"*{escape(text)}*" for text in (label, *texts)))
    lines += [_line(map(escape, (title, *texts))) for title, texts in wording.contrasts(result)]
    notes = [f"- {escape(note)}" for note in wording.notes(result)]
    return "\n".join([*lines, "", *notes, *([""] if notes else [])])


def _score(result: TableResult, column: int, cell: Cell) -> str:
    text = escape(wording.score(cell))
    letters = wording.ties(result, column, cell)
    return (f"**{text}**" if cell.best else text) + (f" <sup>{letters}</sup>" if letters else "")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
