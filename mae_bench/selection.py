"""The cells of tables at a scale, on their way into a plan, and `--only`, which keeps some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from mae_bench.errors import UserError, unknown
from mae_bench.records import Column, Scale, Setting, Table


class CellKey(NamedTuple):
    """One seed of one number in a table."""

    table: str
    init: str
    column: int
    backbone: str
    seed: int


class Cell(NamedTuple):
    """A cell before its run is planned."""

    key: CellKey
    column: Column
    setting: Setting

    def field(self, name: str) -> str:
        """What `--only` compares for this field."""
        if name == "column":
            return self.column.title
        if name in CellKey._fields:
            return str(getattr(self.key, name))
        if name in COLUMN_FIELDS:
            return str(getattr(self.column, name))
        return str(getattr(self.setting, name))


COLUMN_FIELDS = ("group", "task", "metric")
# A field that settings get later can be asked for at once.
SETTING_FIELDS = tuple(name for name in Setting.model_fields if name != "backbones")
FIELDS = (*CellKey._fields, *COLUMN_FIELDS, *SETTING_FIELDS)


def lacks(table: Table, scale: Scale) -> str | None:
    """Return why a table cannot be had at a scale at all, None if it can."""
    scales = sorted({name for column in table.columns for name in column.scales})
    if scale in scales:
        return None
    return (
        f"{table.name} has no scale {scale!r}. It has: {', '.join(scales)}. "
        f"Give --scale {scales[0]} or another table"
    )


def at_scale(table: Table, scale: Scale) -> Table:
    """Leave out the columns that a scale does not have, and say so below the table."""
    columns = tuple(column for column in table.columns if scale in column.scales)
    if len(columns) == len(table.columns):
        return table
    names = [f"{c.group} {c.title}" for c in table.columns if c not in columns]
    note = f"{table.note} Only at another scale: {'; '.join(names)}.".strip()
    return table.model_copy(update={"columns": columns, "note": note})


def note_changes(table: Table, overrides: Mapping[str, Any], smoke: bool) -> Table:
    """Say below the table what makes it another than the published command gives."""
    notes = [table.note] if table.note else []
    if smoke:
        notes.append("Smoke run: two iterations of everything; the numbers mean nothing.")
    if overrides:
        settings = ", ".join(f"{key}={value!r}" for key, value in overrides.items())
        notes.append(f"Overrides: {settings}.")
    return table.model_copy(update={"note": " ".join(notes)})


def cells_of(table: Table, scale: Scale, seeds: Sequence[int]) -> list[Cell]:
    """Return the cells of a table whose columns all have the scale."""
    return [
        Cell(CellKey(table.name, row.init, index, backbone, seed), column, column.scales[scale])
        for row in table.rows
        for index, column in enumerate(table.columns)
        for backbone in column.scales[scale].backbones
        for seed in seeds
    ]


def select(cells: list[Cell], only: Sequence[str]) -> list[Cell]:
    """Return the cells that pass every filter FIELD=GLOB; "|" stands between alternatives.

    Raises:
        UserError: a filter of another form, an unknown field, or one that nothing passes.
    """
    for expression in only:
        name, equals, patterns = expression.partition("=")
        if not equals:
            raise UserError(f"--only {expression!r} is not of the form FIELD=GLOB, e.g. init=mae*")
        if name not in FIELDS:
            raise unknown("field in --only", name, FIELDS)
        globs = patterns.split("|")
        kept = [cell for cell in cells if any(fnmatchcase(cell.field(name), g) for g in globs)]
        if not kept:
            raise unknown(f"{name} in --only", patterns, {cell.field(name) for cell in cells})
        cells = kept
    return cells
