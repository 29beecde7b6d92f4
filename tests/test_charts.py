"""Charts: what is drawn, and where; nothing that was not measured."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import made_up
import pytest
import worlds
from made_up import record, run, world
from worlds import BASE

from mae_bench.aggregate import aggregate
from mae_bench.plan import CellKey, CellPlan
from mae_bench.records import Outcome, Published, Row, Table, Upstream
from mae_bench.report import charts, curves, plots
from mae_bench.report.axes import ticks


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 61.9), (-3, 7), (0.31, 0.3101), (5, 5), (0, 0), (1e-9, 3e-9)]
)
def test_ticks_cover_the_range_evenly(low: float, high: float):
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high
    assert 2 <= len(found) <= 6
    steps = [after - before for before, after in itertools.pairwise(found)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)


def test_a_curve_takes_the_last_line_of_a_step_and_drops_what_is_not_finite():
    points = [
        {"step": 0, "loss": 9.0},
        {"step": 1, "loss": 5.0},
        {"step": 0, "loss": 4.0},
        {"step": 2, "loss": math.nan},
        {"step": 3, "loss": 2.0, "lr": 1.0},
    ]
    found = curves.curve(points)
    assert found is not None
    assert found.name == "loss" and found.last == "2"
    assert found.path.count("L") == 2
    assert found == curves.curve([points[2], points[1], points[4]])
    assert curves.curve(points[:1]) is None
    assert curves.curve([]) is None


def test_bars_show_only_what_is_measured():
    panels = {panel.title: panel for panel in charts.panels(worlds.measured()[0])}
    assert list(panels)[:3] == ["mini COCO, AP box", "mini COCO, AP mask", "mini ADE20K, mIoU"]
    assert len(panels) == 9
    bars = {bar.init: bar for bar in panels["mini COCO, AP box"].bars}
    assert set(bars) == set(BASE)
    assert bars["random"].length is None and len(bars["random"].dots) == 2
    lengths = [bars[init].length / (BASE[init] + 0.1) for init in BASE if init != "random"]
    assert lengths == pytest.approx([lengths[0]] * 4, rel=1e-3)


def figure(over_columns: bool = False) -> Table:
    """A table with an axis, as in the paper: ratios as rows, or blocks as columns."""
    table = made_up.tables()[0]
    column = table.columns[0]
    blocks = Published(
        table="Figure 9 partial fine-tuning",
        task="partial-finetune",
        dataset="imagenet-1k",
        metric="top1",
    )
    if over_columns:
        columns = tuple(
            column.model_copy(
                update={
                    "title": f"{x} blocks",
                    "x": x,
                    "published": blocks,
                    "ablation": {"blocks_tuned": x},
                }
            )
            for x in (0, 6, 24)
        )
        rows = (Row(init="mae-pixel", title="MAE"), Row(init="supervised", title="supervised"))
        return table.model_copy(update={"columns": columns, "rows": rows, "x_title": "blocks"})
    ratios = Published(
        table="Figure 5 masking ratio", task="finetune", dataset="imagenet-1k", metric="top1"
    )
    columns = tuple(one.model_copy(update={"published": ratios}) for one in table.columns)
    rows = tuple(
        Row(init=f"mae-pixel/{x}", title=f"{x}%", x=x, ablation={"mask_ratio": x / 100})
        for x in (10, 50, 75)
    )
    return table.model_copy(update={"rows": rows, "columns": columns, "x_title": "masked, %"})


@pytest.mark.parametrize(
    ("over_columns", "names", "published", "distances"),
    [
        (False, ["AP box", "AP mask"], ["paper, ViT-L: AP box", "paper, ViT-L: AP mask"], 40 / 25),
        (True, ["MAE", "supervised"], ["paper, ViT-L: MAE"], 6 / 18),
    ],
)
def test_a_table_with_an_axis_is_drawn_over_it(over_columns, names, published, distances):
    table = figure(over_columns)
    cells, records = world([table], (0, 1), lambda *what: len(what[0]) + what[2])
    results = aggregate([table], "mini", cells, records, {})
    ours, paper = plots.figures(results)
    assert [line.name for line in ours.lines] == names
    assert [line.name for line in paper.lines] == published
    for line in (*ours.lines, *paper.lines):
        first, middle, last = (mark.x for mark in line.marks)
        assert (middle - first) / (last - middle) == pytest.approx(distances, rel=0.02)
    assert not any(line.published for line in ours.lines)
    assert all(line.published for line in paper.lines) and "paper" in paper.title
    assert charts.shared_columns(results) == []


def test_at_paper_scale_the_paper_s_curve_is_among_ours_in_the_same_colour():
    table = figure()
    setting = (
        table
        .columns[0]
        .scales["mini"]
        .model_copy(update={"backbones": ("vit_large_patch16", "vit_base_patch16")})
    )
    columns = tuple(one.model_copy(update={"scales": {"paper": setting}}) for one in table.columns)
    table = table.model_copy(update={"columns": columns[:1]})
    cells, records = {}, {}
    for row in table.rows:
        for backbone in setting.backbones:
            which = run(init=row.init, backbone=backbone)
            cells[CellKey(table.name, row.init, 0, backbone, 0)] = CellPlan(which.id)
            records[which.id] = record(which, {"box_ap": 80.0})
    (plot,) = plots.figures(aggregate([table], "paper", cells, records, {}))
    assert [(line.name, line.colour) for line in plot.lines] == [
        ("AP box, ViT-L", 1),
        ("AP box, ViT-B", 2),
        ("paper, ViT-L: AP box", 1),
    ]


def test_a_published_number_that_does_not_vary_is_no_curve():
    table = figure(over_columns=True)
    columns = tuple(
        made_up.tables()[0].columns[0].model_copy(update={"x": column.x, "title": column.title})
        for column in table.columns
    )
    table = table.model_copy(update={"columns": columns})
    cells, records = world([table], [0], worlds.score)
    results = aggregate([table], "mini", cells, records, {})
    assert any(cell.published for row in results[0].rows for cell in row.cells)
    assert len(plots.figures(results)) == 1


def test_a_table_without_an_axis_is_no_figure():
    assert plots.figures(worlds.measured()[0]) == []


def test_cost_is_the_device_time_of_all_that_came_before():
    table = made_up.tables()[1]
    cells, records = world([table], [0], worlds.score, imported=("moco-v3", "beit"))
    tokenizer = run("tokenizer", "tokenizer")
    mae = run("pretraining", upstream={"tokenizer": Upstream(run_id=tokenizer.id)})
    two = made_up.provenance(seconds=600.0, world_size=2)
    records |= {tokenizer.id: record(tokenizer), mae.id: record(mae, provenance=two)}
    seconds = {"random": None, "mae-norm-pixel": mae.id}
    for run_id, found in list(records.items()):
        if found.run.init in seconds and found.run.task == "segmentation":
            made_from = seconds[found.run.init]
            upstream = {"backbone": Upstream(run_id=made_from)} if made_from else {}
            changed = found.run.model_copy(update={"upstream": upstream})
        elif found.run.task == "segmentation":
            upstream = {"backbone": Upstream(checkpoint="x", sha256="y")}
            changed = found.run.model_copy(update={"upstream": upstream})
        else:
            continue
        records[run_id] = found.model_copy(update={"run": changed})
    results = aggregate([table], "mini", cells, records, {})
    plot = plots.costs(results, records)[0]
    assert {mark.init for mark in plot.marks} == {"random", "mae-norm-pixel"}
    assert plot.x_title == "pretraining, device minutes"
    low, *_, high = plot.x_ticks
    per_minute = (high.at - low.at) / (float(high.text) - float(low.text))
    places = {mark.init: (mark.x - low.at) / per_minute for mark in plot.marks}
    # 61.25 s for the tokenizer, 600 s on two devices.
    assert places["random"] == pytest.approx(0, abs=0.02)
    assert places["mae-norm-pixel"] == pytest.approx(21.02, abs=0.02)


def test_tasks_stand_against_each_other_where_both_are_complete():
    found = plots.tasks(worlds.measured()[0])
    assert [plot.title for plot in found] == [
        "mini ADE20K, mIoU against mini COCO, AP box",
        "mini iNat 2018, fine-tuned against mini COCO, AP box",
        "mini iNat 2018, fine-tuned against mini ADE20K, mIoU",
    ]
    # random has no complete detection, supervised no complete segmentation.
    assert {mark.init for mark in found[0].marks} == {
        "mae-norm-pixel",
        "mae-pixel",
        "mae-dvae-token",
    }


def test_a_validation_curve_stands_beside_the_recipe_s_reference():
    which = run(recipe_values={"reference": {"curve": [[16000, 38.65], [32000, 43.97]]}})
    facts = {"validation_miou": {"16000": 30.0, "32000": 40.0, "x": "y"}}
    found = curves.validation_curve(record(which, outcome=Outcome(metrics={}, facts=facts)))
    assert found is not None and found.name == "miou" and found.last == "40"
    assert found.path.count("L") == found.reference.count("L") == 1
    own = [float(pair.split()[1]) for pair in found.path[1:].split("L")]
    reference = [float(pair.split()[1]) for pair in found.reference[1:].split("L")]
    assert all(ours > theirs for ours, theirs in zip(own, reference, strict=True))  # lower scores
    assert curves.validation_curve(record(run())) is None


def test_inits_learn_over_each_other_beside_the_reference(tmp_path: Path):
    values = {"reference": {"curve": [[10, 20.0], [20, 30.0]]}}
    facts = {"validation_miou": {"10": 15.0, "20": 25.0}}
    runs = [run("segmentation", init, seed) for init in ("random", "beit") for seed in (0, 1)]
    runs = [which.model_copy(update={"recipe_values": values}) for which in runs]
    outcome = Outcome(metrics={}, facts=facts)
    (plot,) = curves.learning(
        [record(which, outcome=outcome) for which in runs], tmp_path, {"random": 0, "beit": 1}
    )
    assert plot.title == "segmentation on mini-coco" and plot.y_title.startswith("miou;")
    assert [(line.name, line.colour, line.published) for line in plot.lines] == [
        ("random", 0, False),
        ("beit", 1, False),
        ("reference of the recipe", 0, True),
    ]
    losses = [record(run("detection", init)) for init in ("random", "beit", "mae-pixel")]
    for one in losses[:2]:
        (tmp_path / one.id).mkdir()
        lines = [json.dumps({"step": step, "loss": 1 / (step + 1)}) for step in range(1000)]
        (tmp_path / one.id / "metrics.jsonl").write_text("\n".join(lines))
    (plot,) = curves.learning(losses, tmp_path, {})
    assert [line.name for line in plot.lines] == ["random", "beit"]
    assert all(line.path.count("L") <= 101 for line in plot.lines)
    assert curves.learning(losses[1:], tmp_path, {}) == []
