"""Tables 1(a-f), Figures 5 and 7: every published number has its cell, defaults are one run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae_bench import published
from mae_bench.errors import UserError
from mae_bench.plan import GROUPS, Plan, load_tables, make_plan
from mae_bench.records import Run, Scale
from tasks.pretraining import INITS

NAMES = (*GROUPS["table1"], "fig5", "fig7")


def plan(scale: Scale, tmp_path: Path, names: tuple[str, ...] = NAMES, **options: object) -> Plan:
    return make_plan(load_tables(names), scale, [0], tmp_path, **options)


def pretraining(made: Plan, table: str, init: str) -> Run:
    """The pretraining behind a row."""
    runs = {planned.run.id: planned.run for planned in made.runs}
    (run_id,) = {
        runs[cell.run_id].upstream["backbone"].run_id
        for key, cell in made.cells.items()
        if (key.table, key.init) == (table, init) and "backbone" in runs[cell.run_id].upstream
    }
    return runs[run_id]


def test_the_paper_s_table_1_is_six_tables() -> None:
    assert GROUPS["table1"] == tuple(f"table1{letter}" for letter in "abcdef")


@pytest.mark.parametrize("name", NAMES)
def test_every_published_number_stands_beside_one_cell(name: str) -> None:
    (table,) = load_tables([name])
    found = [
        reference
        for row in table.rows
        for column in table.columns
        for reference in published.published(row, column)
    ]
    source = table.columns[0].published.table
    wanted = [reference for reference in published.published_results() if reference.table == source]
    assert len(found) == len(table.rows) * len(table.columns) == len(wanted) > 3
    assert all(reference in found for reference in wanted)


@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_defaults_of_all_tables_are_one_pretraining(scale: Scale, tmp_path: Path) -> None:
    made = plan(scale, tmp_path)
    trained = [planned.run for planned in made.runs if planned.run.task == "pretraining"]
    settings = [repr(sorted(run.recipe_values.items())) for run in trained]
    assert len(set(settings)) == len(settings) == 32
    default = "mae-pixel" if scale == "mini" else "mae-pixel/baseline"
    for table, init in (
        ("table1a", f"mae-pixel/decoder-depth-{1 if scale == 'mini' else 8}"),
        ("table1b", "mae-pixel/decoder-width-512"),
        ("table1c", "mae-pixel/baseline"),
        ("table1d", "mae-pixel/baseline"),
        ("fig5", "mae-pixel/mask-ratio-75"),
        ("fig7", "mae-pixel/epochs-800"),
    ):
        assert pretraining(made, table, init).init == default


def test_ablations_have_the_paper_s_lengths(tmp_path: Path) -> None:
    made = plan("paper", tmp_path, (*NAMES, "table3"))
    of_transfers = [run.run for run in made.runs if run.run.init == "mae-norm-pixel"]
    trained = [run.recipe_values for run in of_transfers if run.task == "pretraining"]
    assert {values["solver"]["epochs"] for values in trained} == {1600}
    for table in load_tables(NAMES[:-1]):
        for row in table.rows:
            values = pretraining(made, table.name, row.init).recipe_values
            assert values["solver"]["epochs"] == 800
    for row in load_tables(["fig7"])[0].rows:
        assert pretraining(made, "fig7", row.init).recipe_values["solver"]["epochs"] == row.x
    longest = pretraining(made, "fig7", "mae-pixel/epochs-1600")
    assert longest.init == "mae-pixel"  # as behind the transfer tables


def test_figure_9_tunes_the_default_of_the_ablations(tmp_path: Path) -> None:
    """Its last point, 84.9, is the paper's baseline: raw pixels, 800 epochs."""
    made = plan("paper", tmp_path, ("table1a", "fig9"))
    (init,) = (row.init for row in load_tables(["fig9"])[0].rows if row.init.startswith("mae"))
    trained = pretraining(made, "fig9", init)
    assert trained == pretraining(made, "table1a", "mae-pixel/decoder-depth-8")
    assert trained.recipe_values["solver"]["epochs"] == 800
    mini = plan("mini", tmp_path, ("fig9",))
    assert pretraining(mini, "fig9", init).init == "mae-pixel"


@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_rows_are_what_they_are_called(scale: Scale, tmp_path: Path) -> None:
    made = plan(scale, tmp_path)

    def value(table: str, init: str, key: str) -> object:
        section, name = key.split(".")
        return pretraining(made, table, f"mae-pixel/{init}").recipe_values[section][name]

    for depth in (1, 2, 4, 8, 12):
        assert value("table1a", f"decoder-depth-{depth}", "model.decoder_depth") == depth
    shrunk = 8 if scale == "mini" else 1
    for width in (128, 256, 512, 768, 1024):
        found = value("table1b", f"decoder-width-{width}", "model.decoder_width")
        assert found == width // shrunk
    for percent in (10, 50, 75, 90):
        assert value("fig5", f"mask-ratio-{percent}", "model.mask_ratio") == percent / 100
    assert value("table1c", "mask-tokens", "model.encoder_mask_tokens") is True
    assert value("table1e", "augmentation-none", "data.augmentation") == "none"
    assert value("table1f", "grid-75", "model.sampling") == "grid"


def test_what_a_row_varies_cannot_be_overridden(tmp_path: Path) -> None:
    override = {"model.decoder_depth": 3}
    with pytest.raises(UserError, match="decoder_depth is set by the init itself"):
        plan("mini", tmp_path, ("table1a",), overrides=override)
    assert plan("mini", tmp_path, ("table1f",), overrides=override).runs


def test_a_file_for_the_default_does_not_stand_in_for_an_ablation(tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from torch import zeros

    path = tmp_path / "weights.safetensors"
    save_file({"cls_token": zeros(1, 1, 8)}, path)
    made = plan("mini", tmp_path, ("fig5",), inits={"mae-pixel": path})
    assert pretraining(made, "fig5", "mae-pixel/mask-ratio-75").init == "mae-pixel/baseline"


def test_ablations_of_every_init_are_known_by_the_init_s_name() -> None:
    for name in INITS:
        init, slash, ablation = name.partition("/")
        assert init in INITS and bool(slash) == bool(ablation)
