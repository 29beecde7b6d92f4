"""Records and references to tables: nothing is averaged with a hole in it, or marked by chance."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import made_up
import pytest
from made_up import record, run, world
from scipy import stats

import configs
from mae_bench.aggregate import Cell, TableResult, aggregate
from mae_bench.plan import CellKey, CellPlan, load_tables
from mae_bench.published import published_results
from mae_bench.records import Column, Metric, Row, Setting, Table

SEEDS = (0, 1, 2)


def one_column(*inits: str, backbones: tuple[str, ...] = ("vit_mini_patch8",)) -> Table:
    setting = Setting(dataset="mini-coco", backbones=backbones, recipe="detection/mini")
    column = Column(
        title="AP box", group="COCO", task="detection", metric="box_ap", scales={"mini": setting}
    )
    rows = tuple(Row(init=init, title=init) for init in inits)
    return Table(name="table4", title="T", source="S", rows=rows, columns=(column,))


def by_init(values: dict[str, list[float]], higher_is_better: bool = True) -> TableResult:
    """A one-column table with these scores, one per seed; None leaves the seed missing."""
    cells, records = {}, {}
    for init, scores in values.items():
        for seed, score in enumerate(scores):
            which = run(init=init, seed=seed)
            cells[CellKey("table4", init, 0, "vit_mini_patch8", seed)] = CellPlan(which.id)
            if score is not None:
                metric = Metric(value=score, unit="AP", higher_is_better=higher_is_better)
                records[which.id] = record(which, {"box_ap": metric})
    return aggregate([one_column(*values)], "mini", cells, records, {})[0]


def cell_of(result: TableResult, init: str) -> Cell:
    return next(row.cells[0] for row in result.rows if row.row.init == init)


def test_mean_and_spread_are_those_of_the_seeds():
    scores = [20.123456789, 21.5, 19.75]
    cell = cell_of(by_init({"random": scores}), "random")
    assert cell.values == tuple(scores)
    assert cell.mean == pytest.approx(sum(scores) / 3, rel=1e-15)
    assert cell.sd == pytest.approx(statistics.stdev(scores), rel=1e-15)
    assert cell.complete and cell.states == ()


def test_one_seed_has_no_spread_and_no_mark():
    result = by_init({"random": [10.0], "supervised": [90.0]})
    assert cell_of(result, "supervised").mean == 90.0
    assert cell_of(result, "supervised").sd is None
    assert not any(row.cells[0].best for row in result.rows)


def test_values_follow_the_seeds_whatever_order_the_plan_has():
    cells, records = world([one_column("random")], SEEDS, lambda init, metric, seed: 10.0 + seed)
    backwards = dict(reversed(cells.items()))
    result = aggregate([one_column("random")], "mini", backwards, records, {})[0]
    assert cell_of(result, "random").values == (10.0, 11.0, 12.0)


@pytest.mark.parametrize("hole", range(3))
def test_an_incomplete_cell_is_never_averaged(hole: int):
    scores: list[float | None] = [20.0, 21.0, 22.0]
    scores[hole] = None
    cell = cell_of(by_init({"random": scores}), "random")
    assert cell.mean is None and cell.sd is None and not cell.complete
    assert cell.values == tuple(score for score in scores if score is not None)
    assert cell.states == ("missing",)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_no_score(value: float):
    cell = cell_of(by_init({"random": [20.0, value, 21.0]}), "random")
    assert cell.mean is None
    assert cell.values == (20.0, 21.0)
    assert cell.states == (f"not finite: {value}",)


def test_states_name_what_is_not_there():
    table = one_column("random")
    seeds = {seed: run(seed=seed) for seed in range(5)}
    key = CellKey("table4", "random", 0, "vit_mini_patch8", 0)
    cells = {key._replace(seed=seed): CellPlan(which.id) for seed, which in seeds.items()}
    cells[key._replace(seed=5)] = CellPlan(None, "only imported")
    ids = {seed: which.id for seed, which in seeds.items()}
    records = {
        ids[1]: record(seeds[1], status="failed", error="out of memory", outcome=None),
        ids[2]: record(seeds[2], {"mask_ap": 3.0}),
        ids[4]: record(seeds[4], {"box_ap": 3.0}),
    }
    states = {ids[0]: "running", ids[4]: "running"}
    cell = aggregate([table], "mini", cells, records, states)[0].rows[0].cells[0]
    assert [result.state for result in cell.seeds] == [
        "running",
        "failed: out of memory",
        "failed: its record has no metric 'box_ap'",
        "missing",
        "ok",
        "not available: only imported",
    ]


def test_a_cell_that_nobody_asked_for_is_not_complete():
    result = aggregate([one_column("random")], "mini", {}, {}, {})[0]
    assert cell_of(result, "random").states == ("not asked for",)
    assert cell_of(result, "random").mean is None


def test_a_column_that_the_scale_lacks_stays_with_its_reason():
    table = one_column("random")
    lacking = table.columns[0].model_copy(update={"scales": {}})
    table = table.model_copy(update={"columns": (table.columns[0], lacking)})
    cells = {CellKey("table4", "random", 1, "vit_mini_patch8", 0): CellPlan(None, "has no scale")}
    result = aggregate([table], "mini", cells, {}, {})[0]
    assert [column.setting is None for column in result.columns] == [False, True]
    assert result.rows[0].cells[1].states == ("not available: has no scale",)


def test_backbones_are_columns_of_their_own():
    table = one_column("random", backbones=("vit_a", "vit_b"))
    cells, records = {}, {}
    for name, value in (("vit_a", 1.0), ("vit_b", 2.0)):
        which = run(backbone=name)
        cells[CellKey("table4", "random", 0, name, 0)] = CellPlan(which.id)
        records[which.id] = record(which, {"box_ap": value})
    result = aggregate([table], "mini", cells, records, {})[0]
    assert [column.backbone for column in result.columns] == ["vit_a", "vit_b"]
    assert [cell.mean for cell in result.rows[0].cells] == [1.0, 2.0]


def test_a_clear_winner_is_marked_in_either_direction():
    values = {"random": [10.0, 10.1, 9.9], "supervised": [20.0, 20.2, 19.9]}
    best = {row.row.init: row.cells[0].best for row in by_init(values).rows}
    assert best == {"random": False, "supervised": True}
    best = {row.row.init: row.cells[0].best for row in by_init(values, False).rows}
    assert best == {"random": True, "supervised": False}


def test_nothing_is_marked_inside_the_noise_or_beside_a_hole():
    close = {"random": [10.0, 12.0, 11.0], "supervised": [11.0, 13.0, 12.0]}
    assert not any(row.cells[0].best for row in by_init(close).rows)
    hole = {"random": [1.0, 1.1], "supervised": [9.0, 9.1], "mae-pixel": [50.0, None]}
    assert not any(row.cells[0].best for row in by_init(hole).rows)
    same = {"random": [10.0, 10.0], "supervised": [10.0, 10.0]}
    assert not any(row.cells[0].best for row in by_init(same).rows)


def test_a_cell_that_the_scale_cannot_have_does_not_hinder_the_mark():
    table = one_column("random", "supervised", "beit")
    base = {"random": 10.0, "supervised": 20.0}
    cells, records = world([table], SEEDS, lambda i, m, s: base[i] + s / 10, imported=["beit"])
    result = aggregate([table], "mini", cells, records, {})[0]
    assert cell_of(result, "supervised").best
    assert cell_of(result, "beit").not_available


def test_ties_are_lettered_and_the_tied_best_are_bold():
    values = {
        "random": [10.0, 10.1, 9.9],
        "supervised": [30.0, 30.2, 29.9],
        "mae-pixel": [30.1, 30.3, 29.8],
    }
    cells = {row.row.init: row.cells[0] for row in by_init(values).rows}
    assert {init: cell.ties for init, cell in cells.items()} == {
        "random": "b",
        "supervised": "a",
        "mae-pixel": "a",
    }
    assert {init for init, cell in cells.items() if cell.best} == {"supervised", "mae-pixel"}
    lower = {row.row.init: row.cells[0] for row in by_init(values, False).rows}
    assert lower["random"].ties == "a" and lower["random"].best


def test_a_hole_is_in_no_group():
    hole = {"random": [1.0, 1.1], "supervised": [9.0, 9.1], "mae-pixel": [50.0, None]}
    result = by_init(hole)
    assert cell_of(result, "mae-pixel").ties == ""
    assert cell_of(result, "supervised").ties == "a"


def test_differences_are_of_mae_s_row_against_each_other_and_leave_out_holes():
    values = {
        "random": [10.0, 10.5, 9.5],
        "supervised": [20.0, None, 19.0],
        "mae-pixel": [25.0, 25.5, 26.0],
        "mae-norm-pixel": [30.0, 31.0, 32.0],
    }
    found = {one.other.init: one for one in by_init(values).contrasts}
    assert set(found) == {"random", "mae-pixel"}
    assert {one.subject.init for one in found.values()} == {"mae-norm-pixel"}
    expected = stats.ttest_ind(
        values["mae-norm-pixel"], values["random"], equal_var=False
    ).confidence_interval(0.95)
    assert found["random"].difference.value == pytest.approx(21.0)
    assert found["random"].difference.low == pytest.approx(expected.low, rel=1e-9)
    assert by_init({"random": [1.0], "beit": [2.0]}).contrasts == ()


def test_a_column_says_what_it_could_have_found():
    wide = by_init({"random": [10.0, 12.0, 11.0], "supervised": [11.0, 13.0, 12.0]})
    narrow = by_init({"random": [10.0, 10.2, 10.1], "supervised": [11.0, 11.2, 11.1]})
    assert wide.columns[0].minimum_difference == pytest.approx(
        10 * narrow.columns[0].minimum_difference, rel=1e-6
    )
    assert by_init({"random": [10.0]}).columns[0].minimum_difference is None


def test_a_score_in_another_unit_cannot_stand_in_the_column():
    table, key = one_column("random", "beit"), CellKey("table4", "random", 0, "vit_mini_patch8", 0)
    first, second = run(init="random"), run(init="beit")
    records = {
        first.id: record(first, {"box_ap": Metric(value=20.0, unit="AP")}),
        second.id: record(second, {"box_ap": Metric(value=0.2, unit="share")}),
    }
    cells = {key: CellPlan(first.id), key._replace(init="beit"): CellPlan(second.id)}
    result = aggregate([table], "mini", cells, records, {})[0]
    assert result.columns[0].unit == "AP"
    assert cell_of(result, "beit").mean is None
    assert "not in 'AP'" in cell_of(result, "beit").states[0]


def test_unit_and_direction_are_the_task_s_and_published_until_there_is_a_score():
    lower = by_init({"random": [10.0]}, higher_is_better=False).columns[0]
    assert (lower.unit, lower.higher_is_better) == ("AP", False)
    result = aggregate(load_tables(["table5"]), "mini", {}, {}, {})[0]
    assert result.columns[0].unit == "mIoU"


def test_the_paper_stands_beside_every_row_under_its_own_name():
    tables = made_up.tables()
    cells, records = world(tables, [0], lambda *_: 1.0)
    results = {
        result.table.name: result for result in aggregate(tables, "mini", cells, records, {})
    }

    def paper(table: str, init: str, column: int) -> dict[str, float | None]:
        row = next(row for row in results[table].rows if row.row.init == init)
        return {published.backbone: published.value for published in row.cells[column].published}

    assert paper("table4", "mae-norm-pixel", 0) == {"vit-b16": 50.3, "vit-l16": 53.3}
    assert paper("table4", "supervised", 1) == {"vit-b16": 42.9, "vit-l16": 43.9}
    assert paper("table4", "random", 0) == {}
    assert paper("table5", "beit", 0) == {"vit-b16": 47.1, "vit-l16": 53.3}
    assert list(paper("table6", "mae-norm-pixel", 0)) == [
        *("vit-b16", "vit-l16", "vit-h14", "vit-h14@448")
    ]
    assert paper("table6", "mae-norm-pixel", 1) == {}
    assert paper("table7", "mae-dvae-token", 2) == {"vit-b16": 48.1, "vit-l16": 53.4}


def test_every_published_column_is_found_for_at_least_one_row():
    tables = load_tables(["all"])
    for result in aggregate(tables, "mini", {}, {}, {}):
        for index, column in enumerate(result.columns):
            if column.column.published:
                assert any(row.cells[index].published for row in result.rows), (
                    f"{result.table.name}: {column.column.title}"
                )


def test_every_published_number_is_read():
    path = Path(configs.__path__[0]) / "tables" / "paper_results.json"
    written = json.loads(path.read_text())["records"]
    assert len(published_results()) == len(written) > 380
    assert [one.value for one in published_results()] == [entry["value"] for entry in written]
