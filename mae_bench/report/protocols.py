"""Protocol cards of a table: one per recipe, settings that depend on the init told apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

from mae_bench import protocol
from mae_bench.aggregate import ColumnResult, TableResult
from mae_bench.errors import UserError
from mae_bench.protocol import Card, Line, pick
from mae_bench.recipes import load_recipe
from mae_bench.records import Record


@dataclass(frozen=True)
class Share:
    """What one init got: `seconds` is the mean of its runs, None where none has finished."""

    init: str
    budget: str
    lr_trials: int
    seconds: float | None


@dataclass(frozen=True)
class Shown:
    """A recipe's card.

    Attributes:
        heading: what is done with it, e.g. "detection on mini-coco".
        lines: settings with the inits they hold for; none where they hold for all.
    """

    heading: str
    recipe: str
    backbone: str
    paper: str
    code: str
    lines: tuple[tuple[Line, tuple[str, ...]], ...]
    shares: tuple[Share, ...]

    @property
    def num_differences(self) -> int:
        return sum(line.differs is True for line, _ in self.lines)


@dataclass(frozen=True)
class _Use:
    """One init's use of a recipe."""

    heading: str
    backbone: str
    init: str
    card: Card
    seconds: float | None


def cards(result: TableResult, records: Mapping[str, Record]) -> list[Shown]:
    """The protocols of a table's columns, then those of the pretrainings behind them."""
    uses = [*_transfers(result, records), *_pretrainings(result, records)]
    grouped: dict[tuple[str, str, str], dict[str, _Use]] = {}
    for use in uses:
        place = (use.heading, use.card.recipe, use.backbone)
        grouped.setdefault(place, {}).setdefault(use.init, use)
    return [_shown(list(members.values())) for members in grouped.values()]


def _transfers(result: TableResult, records: Mapping[str, Record]) -> Iterator[_Use]:
    for index, column in enumerate(result.columns):
        for row in result.rows:
            cell = row.cells[index]
            if cell.not_available:
                continue
            found = [records.get(seed.run_id or "") for seed in cell.seeds]
            own = [record for record in found if record]
            yield from _use(_heading(column), column, row.row.init, own)


def _heading(column: ColumnResult) -> str:
    dataset = column.setting.dataset if column.setting else ""
    return f"{column.column.task} on {dataset}"


def _use(heading: str, column: ColumnResult, init: str, found: list[Record]) -> Iterator[_Use]:
    setting = column.setting
    if setting is None:
        return
    try:
        if found:
            recipe, values = found[0].run.recipe, found[0].run.recipe_values
        else:
            recipe, names = setting.recipe, (init, column.backbone)
            changes = {key: pick(value, names) for key, value in setting.overrides.items()}
            values = load_recipe(recipe, backbone=column.backbone, init=init, setting=changes)
        made = protocol.card(recipe, values, column.backbone, init)
    except UserError:  # of a recipe that is not known here, or no longer
        return
    yield _Use(heading, column.backbone, init, made, _seconds(found))


def _pretrainings(result: TableResult, records: Mapping[str, Record]) -> Iterator[_Use]:
    found: dict[tuple[str, str, str], dict[str, Record]] = {}
    for row in result.rows:
        for cell in row.cells:
            for seed in cell.seeds:
                record = records.get(seed.run_id or "")
                for made in _upstream(record, records):
                    place = (made.run.recipe, made.run.backbone, made.run.init)
                    found.setdefault(place, {})[made.id] = made
    for (recipe, backbone, init), runs in found.items():
        first, *_ = runs.values()
        try:
            made_card = protocol.card(recipe, first.run.recipe_values, backbone, init)
        except UserError:
            continue
        heading = f"{first.run.task} on {first.run.dataset}"
        yield _Use(heading, backbone, init, made_card, _seconds(runs.values()))


def _upstream(record: Record | None, records: Mapping[str, Record]) -> Iterator[Record]:
    for weights in record.run.upstream.values() if record else ():
        made = records.get(weights.run_id or "")
        if made is not None:
            yield made
            yield from _upstream(made, records)


def _seconds(found: Iterable[Record]) -> float | None:
    times = [record.provenance.seconds for record in found if record.status == "ok"]
    return fmean(times) if times else None


def _shown(uses: list[_Use]) -> Shown:
    first = uses[0]
    lines: dict[Line, list[str]] = {}
    for use in uses:
        for line in use.card.lines:
            lines.setdefault(line, []).append(use.init)
    order = {line.name: place for place, line in enumerate(first.card.lines)}
    ordered = sorted(lines.items(), key=lambda item: order.get(item[0].name, len(order)))
    return Shown(
        heading=first.heading,
        recipe=first.card.recipe,
        backbone=first.backbone,
        paper=first.card.paper,
        code=first.card.code,
        lines=tuple(
            (line, () if len(inits) == len(uses) else tuple(inits)) for line, inits in ordered
        ),
        shares=tuple(
            Share(use.init, use.card.budget, use.card.lr_trials, use.seconds) for use in uses
        ),
    )
