"""Tables as LaTeX with booktabs: a fragment for \\input, one table environment per table."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mae_bench.aggregate import Cell, RowResult, TableResult
from mae_bench.report import wording

HEADER = "% Made by mae-bench. Needs \\usepackage{booktabs}; \\input this file.\n"
ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{EN DASH}": "--",
    "\N{MINUS SIGN}": "$-$",
    "—": "---",
    "“": "``",
    "”": "''",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "…": r"\ldots{}",
    "\n": " ",
    "\N{ZERO WIDTH SPACE}": "{}",
    **{char: f"\\{char}" for char in "&%$#_"},
}
ASCII = 128
ACCENTED = re.compile("[À-ÅÇ-ÏÑ-ÖÙ-Ýà-åç-ïñ-öù-ýÿ]")
NOTHING = "\N{ZERO WIDTH SPACE}"


def render(results: Iterable[TableResult]) -> str:
    """Return the fragment."""
    return "\n".join([HEADER, *(_table(result) for result in results)])


def escape(text: str) -> str:
    """Make text show as it is under plain pdfLaTeX.

    Of what lies outside ASCII it has Western letters with accents; the rest becomes "?".
    """
    kept = re.sub("-(?=-)", f"-{NOTHING}", wording.printable(text))  # "--" would become a dash
    found = (ESCAPES.get(char, char) for char in kept)
    return "".join(part if ord(part[0]) < ASCII or ACCENTED.match(part) else "?" for part in found)


def _table(result: TableResult) -> str:
    name = f"{result.table.name}-{result.scale}"
    rows = [line for row in result.rows for line in _row(result, row)]
    contrasts = [_line(map(escape, (title, *texts))) for title, texts in wording.contrasts(result)]
    titles = [escape(wording.column_title(result, column)) for column in result.columns]
    notes = [*wording.legend([result]), *wording.notes(result)]
    return "\n".join([
        r"\begin{table}[t]",
        r"\centering\small",
        rf"\caption{{{escape(wording.title(result))}}}",
        rf"\label{{tab:{name}}}",
        r"\smallskip",
        rf"\begin{{tabular}}{{l{'r' * len(result.columns)}}}",
        r"\toprule",
        *_group_lines(result),
        _line(["Pretraining", *titles]),
        r"\midrule",
        *rows,
        *([r"\midrule", *contrasts] if contrasts else []),
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip",
        r"\begin{minipage}{\linewidth}\footnotesize",
        *(rf"{escape(note)}\par" for note in notes),
        r"\end{minipage}",
        r"\end{table}",
        "",
    ])


def _group_lines(result: TableResult) -> list[str]:
    """The headings over the columns, with a rule under each."""
    headings, rules, first = [""], [], 2
    for group, width in wording.groups(result):
        headings.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(group)}}}")
        rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    return [_line(headings), " ".join(rules)]


def _row(result: TableResult, row: RowResult) -> list[str]:
    scores = (_score(result, index, cell) for index, cell in enumerate(row.cells))
    lines = [_line([escape(wording.row_title(row)), *scores])]
    for label, texts in wording.below(result, row):
        first, *others = (rf"{{\footnotesize {escape(text)}}}" for text in (label, *texts))
        lines.append(_line([rf"\quad{first}", *others]))
    return lines


def _score(result: TableResult, column: int, cell: Cell) -> str:
    text = escape(wording.score(cell))
    letters = wording.ties(result, column, cell)
    mark = rf"\textsuperscript{{{letters}}}" if letters else ""
    return (rf"\textbf{{{text}}}" if cell.best else text) + mark


def _line(cells: Iterable[str]) -> str:
    # A line that begins with "[" would be read as the optional argument of the "\\" before it.
    text = " & ".join(cells)
    return ("{}" if text.startswith("[") else "") + text + r" \\"
