"""Any grouping of records: only seeds share a cell; everything that differs stands apart."""

from __future__ import annotations

import pytest
from made_up import record, run

from mae_bench.aggregate import TableResult
from mae_bench.errors import UserError
from mae_bench.grouping import grouped
from mae_bench.recipes import load_recipe
from mae_bench.records import Record, Upstream
from mae_bench.report import terminal
from mae_bench.report.terminal import render

RECIPES = {"detection": "detection/mini", "segmentation": "segmentation/mini"}
METRICS = {"detection": {"box_ap": 20.0, "box_ap50": 99.0, "mask_ap": 10.0}}


def scored(
    task: str = "detection",
    init: str = "random",
    seed: int = 0,
    backbone: str = "vit_mini_patch8",
    changes: dict[str, object] | None = None,
    **fields: object,
) -> Record:
    recipe = RECIPES[task]
    values = load_recipe(recipe, changes, backbone=backbone, init=init)
    which = run(task, init, seed, backbone=backbone, recipe=recipe, recipe_values=values, **fields)
    base = METRICS.get(task, {"miou": 30.0})
    return record(which, {name: value + seed for name, value in base.items()})


def table_of(records: list[Record], *by: str) -> TableResult:
    """The table of the first task, detection where there is one."""
    return grouped({one.id: one for one in records}, by)[0]


def cells(result: TableResult) -> dict[tuple[str, str, str], tuple[float, ...]]:
    return {
        (row.row.title, column.column.group, column.column.title): cell.values
        for row in result.rows
        for column, cell in zip(result.columns, row.cells, strict=True)
        if cell.values
    }


def test_seeds_share_a_cell_with_mean_sd_n_and_values():
    result = table_of([scored(seed=seed) for seed in (2, 0, 1)], "init")
    (box, mask) = result.rows[0].cells
    assert box.values == (20.0, 21.0, 22.0)
    assert (box.mean, box.sd) == (21.0, 1.0)
    assert mask.values == (10.0, 11.0, 12.0)
    assert [column.column.group for column in result.columns] == ["mini-coco"] * 2


@pytest.mark.parametrize(
    ("by", "rows", "columns"),
    [
        (("init",), {"random", "beit"}, 4),
        (("backbone",), {"vit_a", "vit_b"}, 2),
        (
            ("init", "backbone"),
            {f"{init}, vit_{letter}" for init in ("random", "beit") for letter in "ab"},
            2,
        ),
        (("dataset", "init"), {"mini-coco, random", "mini-coco, beit"}, 4),
        (("protocol", "init", "backbone"), None, 2),
    ],
)
def test_rows_are_what_is_asked_for(by: tuple[str, ...], rows: set[str] | None, columns: int):
    inits = ("random",) if by == ("backbone",) else ("random", "beit")
    records = [
        scored(task, init, backbone=f"vit_{letter}")
        for task in RECIPES
        for init in inits
        for letter in "ab"
    ]
    detection, segmentation = grouped({one.id: one for one in records}, by)
    if rows is not None:
        assert {row.row.title for row in detection.rows} == rows
    assert len(detection.columns) == columns
    assert len(segmentation.columns) == columns / 2
    values = [
        cell.values
        for result in (detection, segmentation)
        for row in result.rows
        for cell in row.cells
    ]
    assert sum(map(len, values)) == len(records) // 2 * 3


def test_what_differs_is_never_averaged():
    changed = scored(changes={"solver.iterations": 20})
    other_data = scored(data_fingerprint="ffff0000")
    result = table_of([scored(), changed, other_data], "init")
    assert all(len(values) == 1 for values in cells(result).values())
    assert {column.column.group for column in result.columns} == {
        "mini-coco",
        "mini-coco #2",
    }
    assert {
        column.column.title for column in result.columns if "box_ap" in column.column.title
    } == {
        "box_ap, mini",
        "box_ap, mini #2",
    }
    assert "detection/mini #2: detection: solver.iterations 20 instead of 500" in result.table.note


def test_files_of_one_name_are_inits_of_their_own():
    first, second = (
        scored(init="mine", upstream={"backbone": Upstream(checkpoint="x", sha256=sha)})
        for sha in ("a" * 64, "b" * 64)
    )
    result = table_of([first, second], "init")
    assert [row.row.title for row in result.rows] == ["mine", "mine #2"]
    assert "mine: from a file with SHA-256 aaaaaaaaaaaa." in result.table.note


def test_a_failed_run_is_a_hole_and_what_prepares_others_has_no_row():
    made = record(run("pretraining", "mae-pixel"), {"val_loss": 1.0})
    failed = record(
        run(
            init="mae-pixel",
            seed=1,
            recipe_values=load_recipe(
                "detection/mini", backbone="vit_mini_patch8", init="mae-pixel"
            ),
            upstream={"backbone": Upstream(run_id=made.id)},
        ),
        status="failed",
        outcome=None,
        error="out of memory",
    )
    good = scored(init="mae-pixel", upstream={"backbone": Upstream(run_id=made.id)})
    result = table_of([made, good, failed], "init")
    assert [row.row.title for row in result.rows] == ["mae-pixel"]
    cell = result.rows[0].cells[0]
    assert (cell.values, cell.mean) == ((20.0,), None)
    assert cell.states == ("failed: out of memory",)


def test_a_grouping_prints_like_any_table():
    assert render([table_of([scored()], "init")]) is not None
    assert terminal.render([table_of([scored()], "dataset", "init")]) is not None


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (("colour",), "unknown field to group by 'colour'"),
        ((), "group by nothing"),
        (("init", "init"), "once at most"),
    ],
)
def test_bad_groupings_are_one_clear_error(by, message):
    with pytest.raises(UserError, match=message):
        table_of([scored()], *by)
    with pytest.raises(UserError, match="no scored runs"):
        grouped({}, ["init"])
