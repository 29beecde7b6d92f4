"""The paper beside a cell: which number, how far re-runs scatter, and each verdict."""

from __future__ import annotations

import pytest
from made_up import record, run

from mae_bench.aggregate import Cell, aggregate
from mae_bench.plan import CellKey, CellPlan, load_tables
from mae_bench.published import compare, of_backbone, published_results, tolerance
from mae_bench.recipes import load_recipe
from mae_bench.records import Reference, Setting, Table, Upstream

RECIPE = "classification/mini_finetune"
PAPER = 75.4  # iNat 2018, ViT-B, Table 6
TOLERANCE = 0.21  # twice the 0.08 of four published seeds, and rounding


def reference(**fields: object) -> Reference:
    found = [
        one
        for one in published_results()
        if all(getattr(one, name) == value for name, value in fields.items())
    ]
    assert len(found) == 1, found
    return found[0]


INAT = {"table": "Table 6 iNat and Places", "dataset": "inat-2018", "backbone": "vit-b16"}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([PAPER], "reproduced"),
        ([PAPER - TOLERANCE + 0.001], "reproduced"),
        ([PAPER + TOLERANCE + 0.001], "above"),
        ([PAPER - TOLERANCE - 0.001], "below"),
        ([PAPER - 1.0, PAPER - 0.1], "within noise"),
        ([PAPER - 1.0, PAPER - 1.1, PAPER - 0.9], "below"),
        ([], "not run"),
    ],
)
def test_each_verdict(values: list[float], verdict: str):
    found = compare(reference(**INAT), values, "running", None)
    assert found.verdict == verdict
    assert found.paper == PAPER
    if values:
        assert found.difference == pytest.approx(sum(values) / len(values) - PAPER)
        assert found.tolerance is not None and found.tolerance.value == TOLERANCE
    else:
        assert (found.difference, found.reason) == (None, "running")


def test_nothing_is_compared_with_a_hindrance_or_without_a_number():
    found = compare(reference(**INAT), [PAPER], "", "solver.epochs 1 instead of 100")
    assert (found.verdict, found.difference) == ("not comparable", None)
    none = reference(**INAT).model_copy(update={"value": None})
    assert compare(none, [PAPER], "", None).verdict == "not comparable"
    hours = reference(**INAT).model_copy(update={"unit": "hours"})
    assert compare(hours, [PAPER], "", None).reason == "measured on other hardware"


@pytest.mark.parametrize(
    ("fields", "value", "source"),
    [
        # Four seeds of ViT-L (sd 0.07), and a re-run 0.2 lower.
        ({"table": "Table 3 ImageNet-1K comparison", "backbone": "vit-l16"}, 0.25, "mmpretrain"),
        ({"table": "Table 3 ImageNet-1K comparison", "backbone": "vit-b16"}, 0.21, "four seeds"),
        ({"table": "Table 12 linear probing", "backbone": "vit-h14"}, 0.65, "linear probing"),
        (
            {"table": "Table 4 COCO", "metric": "AP-box", "backbone": "vit-l16"},
            0.25,
            "2 sd over seeds",
        ),
        ({"table": "Table 5 ADE20K", "backbone": "vit-b16"}, 0.55, "dysample"),
        (INAT, 0.21, "four seeds"),
    ],
)
def test_tolerances_come_from_published_spreads(fields: dict[str, str], value: float, source: str):
    found = tolerance(reference(method="mae-norm-pixel", **fields))
    assert found.value == pytest.approx(value)
    assert source in found.source


def test_no_published_spread_leaves_rounding():
    found = tolerance(reference(**INAT).model_copy(update={"task": "new", "metric": "new"}))
    assert found.value == 0.05 and "no spread" in found.source


@pytest.mark.parametrize(
    ("backbone", "overrides", "value"),
    [
        ("vit_base_patch16", {}, 75.4),
        ("vit_huge_patch14", {}, 83.0),
        ("vit_huge_patch14", {"data.image_size": 448}, 86.8),
        ("vit_huge_patch14", {"data.image_size": 336}, None),
        ("vit_mini_patch8", {}, None),
    ],
)
def test_the_paper_s_number_is_that_of_backbone_and_image_size(backbone, overrides, value):
    inat = [one for one in published_results() if one.dataset == "inat-2018"]
    setting = Setting(dataset="inat2018", backbones=(backbone,), recipe=RECIPE, overrides=overrides)
    found = of_backbone(inat, backbone, setting)
    assert (found.value if found else None) == value


def paper_scale(
    values: dict[str, object], score: float = PAPER, without: str = "", **fields: object
) -> Cell:
    """The MAE cell of a table with one column at paper scale, its run made with these settings.

    Args:
        without: solver setting that the run is older than.
    """
    recipe = load_recipe(RECIPE, values)
    recipe["solver"].pop(without, None)
    table = load_tables(["table6"])[0]
    column = next(column for column in table.columns if column.group == "iNat 2018")
    setting = Setting(dataset="inat2018", backbones=("vit_base_patch16",), recipe=RECIPE)
    column = column.model_copy(update={"scales": {"paper": setting}})
    rows = tuple(row for row in table.rows if row.init == "mae-norm-pixel")
    table = Table.model_validate(
        table.model_copy(update={"rows": rows, "columns": (column,)}).model_dump()
    )
    which = run(
        "classification",
        "mae-norm-pixel",
        backbone="vit_base_patch16",
        recipe=RECIPE,
        recipe_values=recipe,
        **fields,
    )
    made = run("pretraining", "mae-norm-pixel", recipe="pretraining/mini_mae")
    records = {which.id: record(which, {"top1": score}), "made": record(made)}
    key = CellKey("table6", "mae-norm-pixel", 0, "vit_base_patch16", 0)
    return aggregate([table], "paper", {key: CellPlan(which.id)}, records, {})[0].rows[0].cells[0]


def test_a_run_of_the_shipped_recipe_gets_a_verdict():
    found = paper_scale({"solver.num_workers": 7}).comparison
    assert found is not None and found.verdict == "reproduced"
    found = paper_scale({}, score=PAPER - 3).comparison
    assert found is not None and found.verdict == "below"


def test_a_run_with_another_setting_is_not_compared():
    found = paper_scale({"solver.base_lr": 0.5}).comparison
    assert found is not None and found.verdict == "not comparable"
    assert "solver.base_lr 0.5 instead of" in found.reason


def test_a_run_from_another_pretraining_is_not_compared():
    found = paper_scale({}, upstream={"backbone": Upstream(run_id="made")}).comparison
    assert found is not None and found.verdict == "not comparable"
    assert "pretraining: " in found.reason


def test_a_record_older_than_a_setting_is_compared():
    found = paper_scale({}, without="min_lr").comparison
    assert found is not None and found.verdict == "reproduced"


def test_mini_scale_has_no_verdict():
    table = load_tables(["table6"])[0]
    which = run("classification", "mae-norm-pixel")
    key = CellKey("table6", "mae-norm-pixel", 0, "vit_mini_patch8", 0)
    results = aggregate(
        [table], "mini", {key: CellPlan("x")}, {"x": record(which, {"top1": 1})}, {}
    )
    cells = [cell for row in results[0].rows for cell in row.cells]
    assert any(cell.published for cell in cells)
    assert all(cell.comparison is None for cell in cells)
