"""What the cells of a table say in words: the same in every form, escaped by none.

The forms (terminal, Markdown, LaTeX, page) escape what they take from here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mae_bench.aggregate import Cell, ColumnResult, RowResult, TableResult
from mae_bench.published import BACKBONES, Comparison
from mae_bench.significance import CONFIDENCE, POWER, SIGNIFICANCE, Difference

# Every table of the paper has these two; the page shows the larger ones as well.
PAPER_BACKBONES = ("vit-b16", "vit-l16")
PAPER_LABEL = "paper, ViT-B / L"
NOTHING = "\N{EN DASH}"
LONGEST_REASON = 160
LONGEST_NAME = 100
LINES = re.compile(r"[\n\t]")
SHORT_STATES = {"not available": "n/a", "not asked for": NOTHING, "missing": "not run"}
MINUS = "\N{MINUS SIGN}"
NO_VERDICT = "no verdict at mini scale"


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


def signed(value: float) -> str:
    """A difference with one decimal and its sign: "+0.4", "-0.2"."""
    text = number(abs(value))
    return text if float(text) == 0 else f"{'+' if value > 0 else MINUS}{text}"


def difference(found: Difference) -> str:
    """A difference with half its confidence interval: "+1.2 ± 0.4"; without where there is none."""
    if found.high is None:
        return signed(found.value)
    return f"{signed(found.value)} ± {number(found.high - found.value)}"


def verdict(found: Comparison | None) -> str:
    """The verdict beside the paper: "reproduced (-0.2, tolerance 0.3)", "not run"."""
    if found is None:
        return ""
    if found.difference is None or found.tolerance is None:
        return found.verdict
    tolerance = f"{found.tolerance.value:.2f}".removesuffix("0")
    return f"{found.verdict} ({signed(found.difference)}, tolerance {tolerance})"


def short_verdict(found: Comparison | None) -> str:
    """The verdict without its tolerance: "reproduced -0.2"; a dash for none."""
    if found is None:
        return NOTHING
    shift = "" if found.difference is None else f" {signed(found.difference)}"
    return f"{found.verdict}{shift}"


def below(result: TableResult, row: RowResult) -> list[tuple[str, list[str]]]:
    """The lines under a row, label and a text per column: the paper's values and the verdicts."""
    if result.scale == "mini":
        lines = [(PAPER_LABEL, [paper_score(cell) or NOTHING for cell in row.cells])]
    else:
        found = [cell.comparison for cell in row.cells]
        values = [one.paper if one else None for one in found]
        paper = [NOTHING if value is None else number(value) for value in values]
        lines = [("paper", paper), ("verdict", [short_verdict(one) for one in found])]
    return [(label, texts) for label, texts in lines if set(texts) != {NOTHING}]


def ties(result: TableResult, column: int, cell: Cell) -> str:
    """The letters to print at a cell; "" where all of its column would have the same."""
    return cell.ties if result.columns[column].several_groups else ""


def contrasts(result: TableResult) -> list[tuple[str, list[str]]]:
    """Lines below the rows, label and a text per column: "MAE - supervised" with differences, and
    what difference could have been found; none without any spread.
    """
    found: dict[str, list[str]] = {}
    if all(contrast.difference.high is None for contrast in result.contrasts):
        return []
    for contrast in result.contrasts:
        rows = f"{name(contrast.subject.title)} {MINUS} {name(contrast.other.title)}"
        line = found.setdefault(rows, [NOTHING] * len(result.columns))
        line[contrast.column] = difference(contrast.difference)
    lines = list(found.items())
    smallest = [column.minimum_difference for column in result.columns]
    if any(smallest):
        texts = [NOTHING if value is None else number(value) for value in smallest]
        lines.append(("detectable difference", texts))
    return lines


def paper_score(cell: Cell) -> str:
    """The published values of the usual two backbones, "50.3 / 53.3"; "" when there is none."""
    published = {reference.backbone: reference.value for reference in cell.published}
    found = [published.get(backbone) for backbone in PAPER_BACKBONES]
    if all(value is None for value in found):
        return ""
    return " / ".join(NOTHING if value is None else number(value) for value in found)


def paper_backbone(name: str) -> str:
    """A published backbone as the paper prints it: "vit-h14@448" -> "ViT-H@448"."""
    match = re.fullmatch(r"vit-([a-z])\d+(@\d+)?", name)
    return f"ViT-{match[1].upper()}{match[2] or ''}" if match else name


def kicker(result: TableResult) -> str:
    """The table's short name: "table4" -> "Table 4"."""
    match = re.fullmatch(r"(table|fig)(\w+)", result.table.name)
    kind = {"table": "Table", "fig": "Figure"}
    return f"{kind[match[1]]} {match[2]}" if match else result.table.name


def group(result: TableResult, column: ColumnResult) -> str:
    """A column's heading; at mini scale it says so: what is measured there is not "COCO"."""
    heading = name(column.column.group)
    return f"mini {heading}" if result.scale == "mini" and "mini" not in heading else heading


def title(result: TableResult) -> str:
    """The table's title with its scale: "Table 5 (mini): ADE20K semantic segmentation, ..."."""
    return f"{kicker(result)} ({result.scale}): {result.table.title}"


def column_title(result: TableResult, column: ColumnResult) -> str:
    """A column's title with its unit, and its backbone where there are several."""
    text = name(column.column.title)
    if column.unit and column.unit not in text:
        text += f" ({name(column.unit)})"
    return _of_backbone(result, column, text)


def short_title(result: TableResult, column: ColumnResult) -> str:
    """A column's title without its unit."""
    return _of_backbone(result, column, name(column.column.title))


def _of_backbone(result: TableResult, column: ColumnResult, text: str) -> str:
    several = len({other.backbone for other in result.columns}) > 1
    return f"{text}, {short_backbone(column.backbone)}" if several else text


def short_backbone(backbone: str) -> str:
    """One of ours as the paper prints its own: "vit_base_patch16" -> "ViT-B"."""
    return paper_backbone(BACKBONES.get(backbone, name(backbone)))


def direction(column: ColumnResult) -> str:
    """ "AP, higher is better"."""
    better = "higher is better" if column.higher_is_better else "lower is better"
    return f"{column.unit}, {better}" if column.unit else better


def groups(result: TableResult) -> list[tuple[str, int]]:
    """Headings over neighbouring columns, with the number of columns each spans."""
    spans: list[tuple[str, int]] = []
    for column in result.columns:
        heading = group(result, column)
        if spans and spans[-1][0] == heading:
            spans[-1] = (heading, spans[-1][1] + 1)
        else:
            spans.append((heading, 1))
    return spans


def legend(results: Sequence[TableResult]) -> list[str]:
    """How to read these tables: sentences that hold for all of them, once."""
    found = [_seeds_note(max((result.num_seeds for result in results), default=0))]
    if any(contrasts(result) for result in results):
        found.append(
            f"Lines with “{MINUS}”: difference of means ± half of its {CONFIDENCE:.0%} confidence "
            "interval (Welch). Detectable difference: the smallest true one that these seeds show "
            f"with {POWER:.0%} power."
        )
    with_paper = [result for result in results if any(below(result, row) for row in result.rows)]
    if with_paper:
        sources = ", ".join(dict.fromkeys(result.table.source for result in with_paper))
        note = f"Lines marked “paper” are published values at paper scale ({sources})"
        if any(result.scale == "mini" for result in with_paper):
            note += (
                ": other data and other models than here. They stand there for orientation; no "
                "difference and no verdict is drawn from them"
            )
        found.append(f"{note}.")
    if any(result.scale == "paper" for result in with_paper):
        found.append(
            "Verdicts: reproduced, no further from the paper than published re-runs have "
            f"scattered; within noise, no further than that and the {CONFIDENCE:.0%} interval of "
            "our mean together; otherwise above or below the paper's number."
        )
    return found


def _seeds_note(num_seeds: int) -> str:
    if num_seeds < 2:
        return "One seed: no spread, and nothing is marked as best."
    return (
        f"Mean ± sample standard deviation over {num_seeds} seeds. An incomplete cell lists the "
        "seeds it has and is not averaged. Cells of a column that share a letter are not told "
        "apart by t-tests (pooled spread with Holm's correction, and Welch's; "
        f"p < {SIGNIFICANCE}); without letters, none are. Bold: not told apart from the best of "
        "its column; nothing is bold beside an incomplete cell."
    )


def notes(result: TableResult) -> list[str]:
    """What belongs to one table: its own remark, and why a score or a verdict is not there."""
    own = [result.table.note, _not_here(result)]
    return [*filter(None, own), *_reasons(result), *_incomparable(result)]


def _not_here(result: TableResult) -> str:
    """The columns that this scale does not have at all."""
    names = [
        f"{column.group} {column.title}"
        for column in result.table.columns
        if result.scale not in column.scales
    ]
    return f"Out of scope at {result.scale} scale: {', '.join(names)}." if names else ""


def _reasons(result: TableResult) -> list[str]:
    """One sentence for each distinct reason, naming the rows that it stands in."""
    rows: dict[str, dict[str, None]] = {}
    for row in result.rows:
        for cell in row.cells:
            for state in cell.states:
                rows.setdefault(state, {})[row_title(row)] = None
    return [f"{', '.join(titles)}: {shorten(reason(state))}." for state, titles in rows.items()]


def _incomparable(result: TableResult) -> list[str]:
    """Why cells have no verdict that have a score and the paper's number."""
    rows: dict[str, dict[str, None]] = {}
    for row in result.rows:
        for cell in row.cells:
            found = cell.comparison
            if found and found.verdict == "not comparable":
                rows.setdefault(found.reason, {})[row_title(row)] = None
    return [f"{', '.join(titles)}: not comparable: {shorten(why)}." for why, titles in rows.items()]


def reason(state: str) -> str:
    """Why there is no score, as it is said to people."""
    word, colon, details = state.partition(":")
    return {"missing": "not run", "not available": "out of scope"}.get(word, word) + colon + details


def row_title(row: RowResult) -> str:
    """A row's name, as all forms print it."""
    return name(row.row.title)


def name(text: str, longest: int = LONGEST_NAME) -> str:
    """A name on one line; of one that nothing has room for, both ends."""
    line = " ".join(text.split())
    half = longest // 2
    return line if len(line) <= longest else f"{line[: half - 1]}…{line[-half:]}"


def shorten(text: str) -> str:
    """One line without control characters, cut to a readable length."""
    line = printable(" ".join(text.split())).rstrip(".")
    return line if len(line) <= LONGEST_REASON else f"{line[: LONGEST_REASON - 1]}…"


def printable(text: str) -> str:
    """Replace control characters (a terminal would obey them) by a visible mark."""
    if text.isprintable() or all(part.isprintable() for part in LINES.split(text)):
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)
