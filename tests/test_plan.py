"""The graph of runs: complete, in order, each run once, and only what was asked for."""

import copy
import hashlib
from collections import Counter
from pathlib import Path

import pytest

from mae_bench.errors import UserError
from mae_bench.plan import GROUPS, TABLES, Plan, check_scale, load_tables, make_plan
from mae_bench.recipes import keys, parse_override
from mae_bench.records import NO_EFFECT, Column, Row, Setting, Table

ROOT = Path("/nowhere")
# Begins as a pickle does, which is all that planning looks at.
WEIGHTS = b"\x80weights"
HEADER = b'{"weight":{"dtype":"F32","shape":[250],"data_offsets":[0,1000]}}'
CUT_SHORT = len(HEADER).to_bytes(8, "little") + HEADER + b"\0\0"
SMALL = Setting(dataset="mini-coco", backbones=("vit_mini_patch8",), recipe="detection/mini")


def plan(tables: str = "transfer", **options) -> Plan:
    seeds = options.pop("seeds", [0])
    return make_plan(load_tables(tables.split()), "mini", seeds, ROOT, **options)


def inits(found: Plan) -> set[str]:
    return {planned.run.init for planned in found.runs}


def test_dependencies_come_first_and_each_run_is_there_once() -> None:
    seen: set[str] = set()
    for planned in plan(seeds=[0, 1]).runs:
        assert set(planned.dependencies) <= seen
        assert planned.run.id not in seen
        named = {weights.run_id for weights in planned.run.upstream.values()}
        assert named == set(planned.dependencies)
        seen.add(planned.run.id)


def test_every_cell_has_a_run_or_a_reason() -> None:
    found = plan(seeds=[0, 1])
    ids = {planned.run.id for planned in found.runs}
    expected = sum(len(table.rows) * len(table.columns) * 2 for table in found.tables)
    assert len(found.cells) == expected
    for key, cell in found.cells.items():
        assert (cell.run_id in ids) != bool(cell.reason)
        assert bool(cell.reason) == (key.init in {"moco-v3", "beit"})


def test_cells_point_at_the_run_they_are_about() -> None:
    found = plan(seeds=[0, 3])
    tables = {table.name: table for table in found.tables}
    runs = {planned.run.id: planned.run for planned in found.runs}
    for key, cell in found.cells.items():
        if cell.run_id:
            run, table = runs[cell.run_id], tables[key.table]
            setting = table.columns[key.column].scales["mini"]
            assert (run.init, run.seed, run.backbone) == (key.init, key.seed, key.backbone)
            assert (run.dataset, run.recipe) == (setting.dataset, setting.recipe)


def test_tables_share_runs_and_columns_share_runs() -> None:
    both, four, seven = plan("table4 table7"), plan("table4"), plan("table7")
    assert len(both.runs) < len(four.runs) + len(seven.runs)
    box, mask = (four.cells["table4", "random", i, "vit_mini_patch8", 0] for i in (0, 1))
    assert box == mask


def test_pretraining_of_the_transfer_tables() -> None:
    made = Counter(run.run.task for run in plan().runs)
    assert made["tokenizer"] == 1 and made["supervised"] == 1 and made["pretraining"] == 3
    by_init = {run.run.init: run for run in plan().runs if run.run.task == "pretraining"}
    targets = {init: run.run.recipe_values["model"]["target"] for init, run in by_init.items()}
    assert targets == {f"mae-{target}": target for target in targets.values()}
    assert set(by_init["mae-dvae-token"].run.upstream) == {"tokenizer"}
    assert by_init["mae-pixel"].run.upstream == {}


def test_seeds_reach_the_pretraining() -> None:
    runs = {planned.run.id: planned.run for planned in plan(seeds=[0, 7]).runs}
    for run in runs.values():
        assert all(runs[weights.run_id].seed == run.seed for weights in run.upstream.values())
    assert {run.seed for run in runs.values()} == {0, 7}


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (["init=mae-pixel"], {"mae-pixel"}),
        (["init=mae*", "task=detection"], {"mae-pixel", "mae-norm-pixel", "mae-dvae-token"}),
        (["table=table4", "init=r*"], {"random"}),
        (["dataset=mini-inat", "init=supervised"], {"supervised"}),
        (["recipe=segmentation/*", "init=random|sup*", "metric=miou"], {"random", "supervised"}),
        (["column=AP box", "group=COCO", "init=random", "backbone=vit_mini*"], {"random"}),
    ],
)
def test_only(only: list[str], expected: set[str]) -> None:
    found = plan(only=only)
    assert {key.init for key in found.cells} == expected
    assert inits(found) - {"tokenizer"} == expected


def test_only_keeps_what_is_needed_upstream() -> None:
    found = plan(only=["init=mae-dvae-token", "task=segmentation"])
    assert [run.run.task for run in found.runs] == ["tokenizer", "pretraining", "segmentation"]


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("init=mae-pixl", "unknown init in --only 'mae-pixl'. Did you mean mae-pixel"),
        (
            "colour=red",
            r"unknown field in --only 'colour'.*Known: backbone, column",
        ),
        ("init", "not of the form FIELD=GLOB"),
    ],
)
def test_only_refuses(only: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(only=[only])


def overridden(*texts: str) -> Plan:
    return plan(overrides=dict(map(parse_override, texts)))


def test_override_reaches_every_recipe_that_has_the_key() -> None:
    found = overridden("solver.iterations=9")
    assert {run.run.recipe_values["solver"]["iterations"] for run in found.runs} == {9}


def test_override_of_one_task() -> None:
    found = overridden("detection:solver.iterations=9")
    for planned in found.runs:
        iterations = planned.run.recipe_values["solver"]["iterations"]
        assert (iterations == 9) == (planned.run.task == "detection")


def test_override_of_a_key_that_one_recipe_has() -> None:
    found = overridden("model.mask_ratio=0.5")
    changed = {run.run.id for run in found.runs} - {run.run.id for run in plan().runs}
    inits_changed = {run.run.init for run in found.runs if run.run.id in changed}
    assert inits_changed == {"mae-pixel", "mae-norm-pixel", "mae-dvae-token"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "solver.iteration=9",
            "unknown override key .*Did you mean solver.iterations.*Known: data",
        ),
        ("detection:model.mask_ratio=0.5", "unknown override key 'model.mask_ratio'"),
        (
            "detction:solver.iterations=9",
            "unknown task in --set 'detction'. Did you mean detection",
        ),
        ("solver.iterations=many", "is of type str; of type int is needed"),
        ("model.target=pixel", "set by the init itself"),
    ],
)
def test_override_refuses(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        overridden(text)


def test_override_of_a_task_that_is_not_asked_for() -> None:
    message = "none of the runs asked for is of task tokenizer. They are of: detection"
    with pytest.raises(UserError, match=message):
        plan("table4", only=["init=random"], overrides={"tokenizer:model.width": 32})


def test_smoke_is_another_set_of_runs() -> None:
    smoke, full = plan(smoke=True), plan()
    assert len(smoke.runs) == len(full.runs)
    assert not {run.run.id for run in smoke.runs} & {run.run.id for run in full.runs}


def test_tables_say_what_makes_them_another() -> None:
    plain, smoke = plan("table6"), plan("table6", smoke=True, overrides={"solver.iterations": 3})
    own = plain.tables[0].note
    assert own.startswith("Frozen: ")
    assert smoke.tables[0].note == (
        f"{own} Smoke run: two iterations of everything; the numbers mean nothing. "
        "Overrides: solver.iterations=3."
    )


def test_init_from_file_replaces_the_pretraining(tmp_path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(WEIGHTS)
    found = plan(inits={"mae-pixel": file, "beit": file, "mine": file})
    assert not any(
        run.run.task == "pretraining" and run.run.init == "mae-pixel" for run in found.runs
    )
    for table in found.tables:
        assert table.rows[-1].init == "mine"
    for key, cell in found.cells.items():
        assert bool(cell.reason) == (key.init == "moco-v3")
    mine = [run for run in found.runs if run.run.init == "mine"]
    assert mine and all(not run.dependencies for run in mine)
    expected = hashlib.sha256(WEIGHTS).hexdigest()
    assert {run.run.upstream["backbone"].sha256 for run in mine} == {expected}


def test_init_from_file_is_known_by_content(tmp_path) -> None:
    first, copy, other = (tmp_path / name for name in ("a.pth", "b.pth", "c.pth"))
    first.write_bytes(WEIGHTS)
    copy.write_bytes(WEIGHTS)
    other.write_bytes(WEIGHTS + b"others")
    ids = [
        {run.run.id for run in plan(inits={"mine": path}, only=["init=mine"]).runs}
        for path in (first, copy, other)
    ]
    assert ids[0] == ids[1] and not ids[0] & ids[2]


def test_tokenizer_from_file_replaces_its_training(tmp_path) -> None:
    path = tmp_path / "encoder.pkl"
    path.write_bytes(WEIGHTS)
    found = plan("table7", inits={"tokenizer": path})
    assert "tokenizer" not in {run.run.task for run in found.runs}
    made = next(run.run for run in found.runs if run.run.init == "mae-dvae-token")
    assert made.upstream["tokenizer"].checkpoint == str(path)
    assert all(row.init != "tokenizer" for table in found.tables for row in table.rows)


def test_init_refuses(tmp_path) -> None:
    with pytest.raises(UserError, match=r"--init mine=.*no such file"):
        plan(inits={"mine": tmp_path / "none.pth"})
    with pytest.raises(UserError, match="random weights come from no file"):
        plan(inits={"random": tmp_path / "none.pth"})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"<!doctype html>", "is a web page, not weights"),
        (b"epoch 1, loss 0.7", "is no file of weights"),
        (b"PK\x03\x04 half of a zip", "not a readable torch file: truncated or damaged"),
        (CUT_SHORT, "not a readable safetensors file: truncated .* has 74 bytes.* says 1072"),
    ],
)
def test_init_from_what_holds_no_weights_is_refused_before_anything_runs(
    tmp_path, content, reason
) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"--init mine={path}: .*{reason}"):
        plan(inits={"mine": path})


def test_table_without_the_scale_says_which_it_has() -> None:
    table = load_tables(["table4"])[0]
    only_mini = [
        column.model_copy(update={"scales": {"mini": column.scales["mini"]}})
        for column in table.columns
    ]
    table = table.model_copy(update={"columns": tuple(only_mini)})
    with pytest.raises(UserError, match=r"table4 has no scale 'paper'. It has: mini"):
        make_plan([table], "paper", [0], ROOT)


def paper_table(name: str, *datasets: str) -> Table:
    """A table at paper scale with one column per dataset and two backbones."""
    columns = [
        Column(
            title=dataset,
            group="made up",
            task="classification",
            metric="top1",
            scales={
                "paper": Setting(
                    dataset=dataset,
                    backbones=("vit_base_patch16", "vit_large_patch16"),
                    recipe="classification/mini_finetune",
                )
            },
        )
        for dataset in datasets
    ]
    rows = (Row(init="random", title="random"), Row(init="moco-v3", title="MoCo v3"))
    return Table(name=name, title=name, source="none", rows=rows, columns=tuple(columns))


def test_absent_data_stops_the_training_but_not_the_plan() -> None:
    table = paper_table("big", "mini-inat", "inat1900", "inat1901")
    found = make_plan([table], "paper", [0], ROOT)
    assert len(found.runs) == 6 and set(found.absent_data) == {"inat1900", "inat1901"}
    with pytest.raises(UserError, match=r"inat1900.*; .*inat1901"):
        found.check_data()
    make_plan([table], "paper", [0], ROOT, only=["dataset=mini-inat"]).check_data()


def test_tables_without_the_scale_are_left_out_beside_others() -> None:
    small = load_tables(["table4"])[0]
    column = small.columns[0].model_copy(update={"scales": {"mini": SMALL}})
    small = small.model_copy(update={"columns": (column,)})
    found = make_plan([small, paper_table("big", "mini-inat")], "paper", [0], ROOT)
    assert [table.name for table in found.tables] == ["big"]
    assert set(found.absent_tables) == {"table4"} and "no scale" in found.absent_tables["table4"]
    assert {key.table for key in found.cells} == {"big"}
    with pytest.raises(UserError, match=r"table4 has no scale 'paper'. It has: mini. Give --scale"):
        make_plan([small], "paper", [0], ROOT)


@pytest.mark.parametrize("task", ["tokenizer", "pretraining", "classification", "detection"])
def test_every_recipe_key_is_in_the_id_unless_it_changes_no_number(task: str) -> None:
    run = next(planned.run for planned in plan().runs if planned.run.task == task)
    for key in keys(run.recipe_values):
        values = copy.deepcopy(run.recipe_values)
        *sections, last = key.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[last] = "changed"
        same = run.model_copy(update={"recipe_values": values}).id == run.id
        assert same == (last in NO_EFFECT), key


def test_id_does_not_know_where_things_are(tmp_path) -> None:
    tables = load_tables(["table4"])
    ids = [
        [run.run.id for run in make_plan(tables, "mini", [0], root).runs]
        for root in (tmp_path, ROOT, Path("relative"))
    ]
    assert ids[0] == ids[1] == ids[2]


def test_names() -> None:
    assert [table.name for table in load_tables(["table5", "transfer", "table5"])] == [
        "table5",
        "table4",
        "table6",
        "table7",
    ]
    assert GROUPS["all"] == TABLES
    with pytest.raises(UserError, match=r"unknown table 'tabel4'. Did you mean table4.*Known: all"):
        load_tables(["tabel4"])
    with pytest.raises(UserError, match=r"unknown scale 'minni'. Did you mean mini.*paper"):
        check_scale("minni")
