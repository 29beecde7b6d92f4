"""Published numbers: which one stands beside a cell, how re-runs of it scattered, a verdict."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import configs
from mae_bench import significance
from mae_bench.records import Column, Reference, Row, Setting

# Published numbers name a method as the paper does; every other init has the same name there.
METHODS = {"supervised": "supervised-in1k", "random": "random-init"}
BACKBONES = {
    "vit_base_patch16": "vit-b16",
    "vit_large_patch16": "vit-l16",
    "vit_huge_patch14": "vit-h14",
}
USUAL_SIZE = 224
# Papers print one decimal: a published number is known to that much.
ROUNDING = 0.05
# "<metric>-std" is a published standard deviation over seeds, "<metric>-spread" what re-runs of
# one setting are said to differ by.
STD, SPREAD = "-std", "-spread"
HARDWARE_UNITS = ("hours", "s/image", "GB")
VERDICTS = ("reproduced", "within noise", "above", "below", "not run", "not comparable")


@dataclass(frozen=True)
class Tolerance:
    """How far from a published number counts as the same, and where that is published."""

    value: float
    source: str


@dataclass(frozen=True)
class Comparison:
    """A cell beside the paper's number for it.

    Attributes:
        paper: the published value; None if it could not be run there.
        difference: ours minus the paper's; None unless there is a verdict on it.
        verdict: one of `VERDICTS`. "above" and "below" are about the number, not about its worth.
        reason: for "not run" and "not comparable"; "" otherwise.
    """

    paper: float | None
    verdict: str
    difference: float | None = None
    tolerance: Tolerance | None = None
    reason: str = ""


@cache
def published_results() -> tuple[Reference, ...]:
    """Return every number of configs/tables/paper_results.json."""
    path = Path(configs.__path__[0]) / "tables" / "paper_results.json"
    return tuple(
        Reference.model_validate(entry) for entry in json.loads(path.read_text())["records"]
    )


def published(row: Row, column: Column) -> tuple[Reference, ...]:
    """The paper's values for an init, one per backbone, in the paper's order."""
    if column.published is None:
        return ()
    method = row.init.partition("/")[0]
    wanted: dict[str, Any] = column.published.model_dump(exclude_none=True)
    wanted["method"] = METHODS.get(method, method)
    if row.ablation is not None or column.ablation is not None:
        wanted["ablation"] = {**(row.ablation or {}), **(column.ablation or {})}
    return _matching(wanted)


def of_backbone(
    references: Iterable[Reference], backbone: str, setting: Setting
) -> Reference | None:
    """The published value for one of our backbones at a column's image size."""
    name = BACKBONES.get(backbone, backbone)
    size = setting.overrides.get("data.image_size", USUAL_SIZE)
    wanted = name if size == USUAL_SIZE else f"{name}@{size}"
    return next((reference for reference in references if reference.backbone == wanted), None)


def compare(
    reference: Reference, values: Sequence[float], state: str, hindrance: str | None
) -> Comparison:
    """Return the verdict on a cell.

    Args:
        values: every asked-for score; empty when one of them is not there.
        state: why not, then.
        hindrance: why the cell is not the paper's, whatever came out; None if it is.
    """
    if reference.value is None:
        return Comparison(None, "not comparable", reason="the paper has no number")
    if reference.unit in HARDWARE_UNITS:
        hindrance = "measured on other hardware"
    if hindrance is not None:
        return Comparison(reference.value, "not comparable", reason=hindrance)
    if not values:
        return Comparison(reference.value, "not run", reason=state)
    difference = fmean(values) - reference.value
    allowed = tolerance(reference)
    return Comparison(reference.value, _verdict(difference, allowed, values), difference, allowed)


def _verdict(difference: float, allowed: Tolerance, values: Sequence[float]) -> str:
    if abs(difference) <= allowed.value:
        return "reproduced"
    if abs(difference) <= allowed.value + (significance.margin(values) or 0.0):
        return "within noise"
    return "above" if difference > 0 else "below"


def tolerance(reference: Reference) -> Tolerance:
    """How far re-runs of a published number, or of its like, have scattered.

    The largest of: twice a published standard deviation over seeds; what re-runs are said to
    differ by; the distance of independent re-runs from the published number. Looked for with this
    backbone, then on another dataset, then with another backbone. Rounding comes on top.
    """
    return _tolerance(reference.task, reference.dataset, reference.metric, reference.backbone)


@cache
def _tolerance(task: str, dataset: str, metric: str, backbone: str) -> Tolerance:
    kind = {"task": task, "metric": metric}
    for wanted, what in (
        ({**kind, "dataset": dataset, "backbone": backbone}, "this backbone and dataset"),
        ({**kind, "backbone": backbone}, "this backbone, another dataset"),
        ({**kind, "dataset": dataset}, "this dataset, another backbone"),
        (kind, "another backbone and dataset"),
    ):
        found = [*_stated(wanted), *_rerun(wanted, what)]
        if found:
            widest = max(found, key=lambda one: one.value)
            return Tolerance(round(widest.value + ROUNDING, 4), widest.source)
    return Tolerance(ROUNDING, "rounding only: no spread is published")


def _stated(wanted: Mapping[str, Any]) -> Iterable[Tolerance]:
    """Spreads as their authors give them; those of another backbone are better than none."""
    anyhow = {name: value for name, value in wanted.items() if name != "backbone"}
    for suffix, factor, word in ((STD, 2, "2 sd over seeds"), (SPREAD, 1, "spread of re-runs")):
        for found in _matching({**anyhow, "metric": wanted["metric"] + suffix}):
            yield Tolerance(factor * (found.value or 0.0), f"{word}: {_cite(found)}")


def _rerun(wanted: Mapping[str, Any], what: str) -> Iterable[Tolerance]:
    """Distances of re-runs, by the authors or by others, from the paper's number."""
    alike = [found for found in _matching(wanted) if found.value is not None]
    for rerun in alike:
        for original in alike:
            same = (original.method, original.backbone) == (rerun.method, rerun.backbone)
            if same and original.table == rerun.rerun_of:
                distance = abs((rerun.value or 0.0) - (original.value or 0.0))
                yield Tolerance(distance, f"re-run, {what}: {_cite(rerun)}")


def _cite(reference: Reference) -> str:
    return f"{reference.source}, {reference.table}"


def _matching(wanted: Mapping[str, Any]) -> tuple[Reference, ...]:
    table = wanted.get("table")
    return tuple(
        reference
        for reference in (published_results() if table is None else _of_table(table))
        if all(getattr(reference, name) == value for name, value in wanted.items())
    )


@cache
def _of_table(table: str) -> tuple[Reference, ...]:
    return tuple(reference for reference in published_results() if reference.table == table)
