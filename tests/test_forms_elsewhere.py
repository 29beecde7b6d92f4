"""Forms for other people's programs: metafile.yml, model-index, figures, records; also hostile."""

from __future__ import annotations

import io
import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import worlds
import yaml
from huggingface_hub import ModelCard
from made_up import tables, world
from PIL import Image
from test_report import golden
from worlds import HOSTILE, World

from mae_bench.aggregate import TableResult, aggregate
from mae_bench.records import Record, Row
from mae_bench.report import drawn, exported, model_cards, write_report


def loud() -> World:
    """Hostile names, and every score is there."""
    table = tables()[0]
    rows = tuple(Row(init=init, title=init) for init in (HOSTILE, "=cmd()", "mae-norm-pixel"))
    column = table.columns[0].model_copy(update={"title": HOSTILE, "group": HOSTILE})
    table = table.model_copy(update={"rows": rows, "columns": (column,), "title": HOSTILE})
    cells, records = world([table], (0, 1), lambda init, metric, seed: len(init) + seed)
    return aggregate([table], "mini", cells, records, {}), records


WORLDS = {"measured": worlds.measured, "hostile": loud}


def means(results: list[TableResult]) -> set[float]:
    """The means of all complete cells, as cards print them."""
    return {
        round(cell.mean, 4)
        for result in results
        for row in result.rows
        for cell in row.cells
        if cell.mean is not None
    }


def test_golden_metafile():
    golden("metafile.yml", model_cards.metafile(*worlds.measured()))


def test_golden_model_index():
    golden("model-index.md", model_cards.model_index(*worlds.measured()))


@pytest.mark.parametrize("name", WORLDS)
def test_metafile_is_openmmlabs(name: str):
    results, records = WORLDS[name]()
    content = yaml.safe_load(model_cards.metafile(results, records))
    models = content["Models"]
    assert {collection["Name"] for collection in content["Collections"]} == {"MAE-bench"}
    assert len({model["Name"] for model in models}) == len(models) > 0
    values = set()
    for model in models:
        assert {"Name", "In Collection", "Config", "Metadata", "Results"} <= set(model)
        assert model["In Collection"] == "MAE-bench"
        for result in model["Results"]:
            assert set(result) == {"Task", "Dataset", "Metrics"}
            values |= set(result["Metrics"].values())
    assert values == means(results)
    if name == "measured":
        assert all((Path(__file__).parents[1] / model["Config"]).is_file() for model in models)
        tasks = {result["Task"] for model in models for result in model["Results"]}
        assert {"Object Detection", "Instance Segmentation", "Semantic Segmentation"} < tasks


@pytest.mark.parametrize("name", WORLDS)
def test_model_index_is_a_card_of_the_hub(name: str):
    results, records = WORLDS[name]()
    text = model_cards.model_index(results, records)
    index = yaml.safe_load(text.strip().strip("-"))["model-index"]
    values = {
        metric["value"] for model in index for one in model["results"] for metric in one["metrics"]
    }
    assert values == means(results)
    for model in index:  # the hub's own reader takes one model at a time
        front = yaml.safe_dump({"model-index": [model]})
        card = ModelCard(f"---\n{front}---\n# Model\n", ignore_metadata_errors=False)
        assert card.data.model_name == model["name"]
        assert {one.metric_value for one in card.data.eval_results} <= means(results)


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
@pytest.mark.parametrize("name", WORLDS)
def test_figures_are_whole_and_the_same_each_time(name: str, form: str):
    results, records = WORLDS[name]()
    files = drawn.render(results[:1], records, form)
    assert files and files == drawn.render(results[:1], records, form)
    for file, content in files.items():
        assert file.isascii() and "/" not in file and file.endswith(f".{form}")
        if form == "png":
            assert Image.open(io.BytesIO(content)).convert("RGB").getextrema()[0][0] < 100
        elif form == "svg":
            text = "".join(ElementTree.fromstring(content).itertext())
            assert ("alert(1)" in text) == (name == "hostile")
            assert b"<script" not in content
        else:
            assert content.startswith(b"%PDF") and content.rstrip().endswith(b"%%EOF")


def test_a_table_with_an_axis_is_drawn_as_curves():
    table = tables()[2]
    rows = tuple(
        Row(init="mae-pixel" if x > 1 else "random", title=f"{x} %", x=x) for x in (10, 50)
    )
    table = table.model_copy(update={"rows": rows[:1], "x_title": "$x_1$ (%)"})
    cells, records = world([table], (0, 1), lambda init, metric, seed: 5.0 + seed)
    files = drawn.render(aggregate([table], "mini", cells, records, {}), records, "svg")
    assert list(files) == ["table6-mini.svg"]
    text = "".join(ElementTree.fromstring(files["table6-mini.svg"]).itertext())
    assert "$x_1$ (%)" in text and "Table 6 (mini)" in text


def test_what_is_not_finite_or_missing_is_left_out():
    table = tables()[1]
    values = {"random": math.nan, "supervised": math.inf}
    cells, records = world([table], (0, 1), lambda init, *_: values.get(init, 1.0))
    results = aggregate([table], "mini", cells, records, {})
    for text in (
        model_cards.metafile(results, records),
        model_cards.model_index(results, records),
    ):
        assert "nan" not in text and "inf" not in text and "random" not in text
        assert "mae-norm-pixel" in text
    assert drawn.render(results, records, "png")


def test_nothing_measured_leaves_valid_files(tmp_path: Path):
    table = tables()[1]
    cells, _ = world([table], (0,), lambda *_: 1.0)
    results = aggregate([table], "mini", cells, {}, {})
    forms = ("metafile", "model-index", "records", "png")
    assert write_report(results, {}, tmp_path, forms, work_dir=tmp_path)
    assert yaml.safe_load((tmp_path / "metafile.yml").read_text())["Models"] == []
    assert (tmp_path / "records" / "SHA256SUMS").read_text() == ""
    assert not list((tmp_path / "figures").iterdir())


def test_exported_records_come_back_and_are_listed(tmp_path: Path):
    results, records = worlds.measured()
    write_report(results, records, tmp_path, ["records"], work_dir=tmp_path)
    folder = tmp_path / "records"
    back = {path.stem: Record.read(path) for path in folder.glob("*.json")}
    assert back == records
    sums = (folder / exported.SUMS).read_text().splitlines()
    assert len(sums) == len(records)
    assert json.loads(exported.render(records)[f"{next(iter(records))}.json"])


def test_hostile_names_stay_text_in_yaml():
    results, records = loud()
    shown = " ".join(HOSTILE.replace("\x1b", "\ufffd").split())
    metafile = yaml.safe_load(model_cards.metafile(results, records))
    inits = {model["Metadata"]["Initialization"] for model in metafile["Models"]}
    assert inits == {shown, "=cmd()", "mae-norm-pixel"}
