"""Cells on their way into a plan, and `--only`, which keeps some of them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from mae_bench.errors import UserError, unknown
from mae_bench.records import Column, Setting


class CellKey(NamedTuple):
    """One seed of one number in a table."""

    table: str
    init: str
    column: int
    backbone: str
    seed: int


class Cell(NamedTuple):
    """A cell before its run is planned; no setting where the column lacks the scale."""

    key: CellKey
    column: Column
    setting: Setting | None

    def field(self, name: str) -> str:
        """What `--only` compares for this field."""
        if name == "column":
            return self.column.title
        if name in CellKey._fields:
            return str(getattr(self.key, name))
        if name in COLUMN_FIELDS:
            return str(getattr(self.column, name))
        return str(getattr(self.setting, name)) if self.setting else ""


COLUMN_FIELDS = ("group", "task", "metric")
# A field that settings get later can be asked for at once.
SETTING_FIELDS = tuple(name for name in Setting.model_fields if name != "backbones")
FIELDS = (*CellKey._fields, *COLUMN_FIELDS, *SETTING_FIELDS)


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
