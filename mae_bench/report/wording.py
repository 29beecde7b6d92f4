"""What the cells of a table say in words: the same in every form, escaped by none.

The forms (terminal, Markdown, LaTeX, page) escape what they take from here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mae_bench.aggregate import SIGNIFICANCE, Cell, ColumnResult, TableResult

# Every table of the paper has these two; the page shows the larger ones as well.
PAPER_BACKBONES = ("vit-b16", "vit-l16")
PAPER_LABEL = "paper, ViT-B / L"
NOTHING = "\N{EN DASH}"
LONGEST_REASON = 160
SHORT_STATES = {"not available": "n/a", "not asked for": NOTHING}


def number(value: float) -> str:
    """One decimal, as the paper prints its scores."""
    return f"{value:.1f}"


def score(cell: Cell) -> str:
    """The cell in a few characters: "47.9", "47.9 ± 0.3", "47.9, 48.1 (2/3 seeds)", "failed"."""
    if cell.complete:
        assert cell.mean is not None
        spread = "" if cell.sd is None else f" ± {number(cell.sd)}"
        return number(cell.mean) + spread
    if cell.values:
        return f"{values(cell)} ({share(cell)})"
    return short_state(cell)


def values(cell: Cell) -> str:
    """The scores that are there, seed by seed: "47.9, 48.1"."""
    return ", ".join(number(value) for value in cell.values)


def share(cell: Cell) -> str:
    """How many of the seeds are there: "2/3 seeds"."""
    return f"{len(cell.values)}/{len(cell.seeds)} seeds"


def short_state(cell: Cell) -> str:
    """The first reason why a cell is incomplete, without its details."""
    word = cell.states[0].partition(":")[0]
    return SHORT_STATES.get(word, word)


def paper_score(cell: Cell) -> str:
    """The published values of the usual two backbones, "50.3 / 53.3"; "" when there is none."""
    published = {reference.backbone: reference.value for reference in cell.published}
    found = [published.get(backbone) for backbone in PAPER_BACKBONES]
    if all(value is None for value in found):
        return ""
    return " / ".join(NOTHING if value is None else number(value) for value in found)


def paper_scores(cells: Sequence[Cell]) -> list[str] | None:
    """The line of published values under a row; None when the paper has no value in it."""
    scores = [paper_score(cell) for cell in cells]
    return [text or NOTHING for text in scores] if any(scores) else None


def paper_backbone(name: str) -> str:
    """A published backbone as the paper prints it: "vit-h14@448" -> "ViT-H@448"."""
    match = re.fullmatch(r"vit-([a-z])\d+(@\d+)?", name)
    return f"ViT-{match[1].upper()}{match[2] or ''}" if match else name


def kicker(result: TableResult) -> str:
    """The table's short name: "table4" -> "Table 4"."""
    match = re.fullmatch(r"(table|fig)(\w+)", result.table.name)
    kind = {"table": "Table", "fig": "Figure"}
    return f"{kind[match[1]]} {match[2]}" if match else result.table.name


def title(result: TableResult) -> str:
    """The table's title with its scale: "Table 5 (mini): ADE20K semantic segmentation, ..."."""
    return f"{kicker(result)} ({result.scale}): {result.table.title}"


def column_title(result: TableResult, column: ColumnResult) -> str:
    """A column's title with its unit, and its backbone where there are several."""
    text = column.column.title
    if column.unit and column.unit not in text:
        text += f" ({column.unit})"
    several = len({other.backbone for other in result.columns}) > 1
    return f"{text}, {column.backbone}" if several else text


def groups(result: TableResult) -> list[tuple[str, int]]:
    """Headings over neighbouring columns, with the number of columns each spans."""
    spans: list[tuple[str, int]] = []
    for column in result.columns:
        if spans and spans[-1][0] == column.column.group:
            spans[-1] = (spans[-1][0], spans[-1][1] + 1)
        else:
            spans.append((column.column.group, 1))
    return spans


def legend(results: Sequence[TableResult]) -> list[str]:
    """How to read these tables: sentences that hold for all of them, once."""
    found = [_seeds_note(max((result.num_seeds for result in results), default=0))]
    published = [
        result for result in results if any(paper_scores(row.cells) for row in result.rows)
    ]
    if published:
        sources = ", ".join(dict.fromkeys(result.table.source for result in published))
        note = f"Lines marked “paper” are published values at paper scale ({sources})"
        if any(result.scale == "mini" for result in published):
            note += (
                ": other data and other models than here. They stand there for orientation; no "
                "difference and no verdict is drawn from them"
            )
        found.append(f"{note}.")
    return found


def _seeds_note(num_seeds: int) -> str:
    if num_seeds < 2:
        return "One seed: no spread, and nothing is marked as best."
    return (
        f"Mean ± sample standard deviation over {num_seeds} seeds. An incomplete cell lists the "
        "seeds it has and is not averaged. Bold: the best of its column, where no cell is "
        "incomplete and Welch's t-test separates it from the runner-up "
        f"(p < {SIGNIFICANCE}); otherwise nothing is bold."
    )


def notes(result: TableResult) -> list[str]:
    """What belongs to one table: its own remark, and why something is not there."""
    return [*filter(None, [result.table.note]), *_reasons(result)]


def _reasons(result: TableResult) -> list[str]:
    """One sentence for each distinct reason, naming the rows that it stands in."""
    rows: dict[str, dict[str, None]] = {}
    for row in result.rows:
        for cell in row.cells:
            for state in cell.states:
                rows.setdefault(state, {})[row.row.title] = None
    return [f"{', '.join(titles)}: {shorten(state)}." for state, titles in rows.items()]


def shorten(text: str) -> str:
    """One line without control characters, cut to a readable length."""
    line = printable(" ".join(text.split())).rstrip(".")
    return line if len(line) <= LONGEST_REASON else f"{line[: LONGEST_REASON - 1]}…"


def printable(text: str) -> str:
    """Replace control characters (a terminal would obey them) by a visible mark."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)
