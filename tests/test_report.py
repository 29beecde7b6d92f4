"""The report's forms: golden text, hostile text, holes, and a way back from CSV and JSON."""

from __future__ import annotations

import html.parser
import io
import itertools
import json
import math
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import made_up
import pandas
import pytest
from made_up import provenance, record, run, world
from PIL import Image
from rich.console import Console

from mae_bench.aggregate import TableResult, aggregate
from mae_bench.errors import UserError
from mae_bench.plan import CellPlan
from mae_bench.records import Metric, Outcome, Picture, Record, Table
from mae_bench.report import FILES, FORMATS, charts, latex, markdown, terminal, write_report
from mae_bench.report.long_form import FIELDS

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = (
    "<script>alert(1)</script> & a_b $x$ {y} 50% #1 ~^\\ | *b* `c` [red](http://e.vil)\x1b[31m"
    ' --q"q"'
)
BASE = {
    "random": 10.0,
    "supervised": 20.0,
    "mae-pixel": 15.0,
    "mae-norm-pixel": 30.0,
    "mae-dvae-token": 25.0,
}
World = tuple[list[TableResult], dict[str, Record]]


def score(init: str, metric: str, seed: int) -> float:
    return BASE[init] + {"box_ap": 0, "mask_ap": 1, "miou": 3}.get(metric, 2) + seed / 10


# Columns of tables 4 to 7 times their rows, as the tables stand.
NUM_CELLS = 5 * 2 + 5 * 2 + 5 * 4 + 3 * 3


@pytest.fixture
def measured() -> World:
    """Tables 4 to 7, three seeds: one cell has lost a seed, one seed failed."""
    tables = made_up.tables()
    cells, records = world(tables, (0, 1, 2), score, imported=("moco-v3", "beit"))
    ids = {(*key[:3], key.seed): plan.run_id for key, plan in cells.items()}
    for column in (0, 1):
        del records[ids["table5", "supervised", column, 2]]
    bad = ids["table4", "random", 0, 1]
    failed = {"status": "failed", "outcome": None, "error": "loss is nan\nat step 12"}
    records[bad] = records[bad].model_copy(update=failed)
    return aggregate(tables, "mini", cells, records, {}), records


def hostile_world() -> World:
    """One table in which every string a user or a failure can set is hostile."""
    table = made_up.tables()[0]
    rows = (
        table.rows[0].model_copy(update={"init": HOSTILE, "title": HOSTILE}),
        table.rows[1].model_copy(update={"init": "=cmd()", "title": "=cmd()"}),
        table.rows[4].model_copy(update={"title": "[0pt]"}),
    )
    column = table.columns[0].model_copy(update={"title": HOSTILE, "group": HOSTILE})
    update = {"rows": rows, "columns": (column,), "title": HOSTILE, "note": HOSTILE}
    table = Table.model_validate(table.model_copy(update=update).model_dump())
    cells, records = world([table], (0, 1), lambda init, metric, seed: 5.0 + seed)
    first, *others = list(records)
    records[first] = records[first].model_copy(
        update={"status": "failed", "error": HOSTILE, "outcome": None}
    )
    records[others[0]] = record(
        run(init=HOSTILE, recipe_values={HOSTILE: HOSTILE}, dataset=HOSTILE),
        {"box_ap": Metric(value=5.0, unit=HOSTILE)},
        id=others[0],
        provenance=provenance(hardware={HOSTILE: HOSTILE}, command=HOSTILE, commit="=1+1"),
        outcome=Outcome(
            metrics={"box_ap": Metric(value=5.0, unit=HOSTILE)},
            facts={HOSTILE: [HOSTILE]},
            pictures=(Picture(path="p.png", caption=HOSTILE),),
        ),
    )
    last = list(cells)[-1]
    cells[last] = CellPlan(None, HOSTILE)
    return aggregate([table], "mini", cells, records, {}), records


def printed(results: list[TableResult], width: int) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(terminal.render(results))
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


def golden(name: str, text: str) -> None:
    """Compare with a file in tests/golden; to renew it, delete it and run the test twice."""
    path = GOLDEN / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        pytest.fail(f"{path} was not there and has been written: look at it, then run again")
    assert text == path.read_text()


def test_golden_markdown(measured: World):
    golden("report.md", markdown.render(measured[0]))


def test_golden_latex(measured: World):
    golden("report.tex", latex.render(measured[0]))


@pytest.mark.parametrize("width", [80, 120])
def test_golden_terminal(measured: World, width: int):
    text = printed(measured[0], width)
    assert max(map(len, text.splitlines())) <= width
    golden(f"report_{width}.txt", text)


def test_an_incomplete_cell_shows_its_seeds_in_every_form_and_no_mean(
    measured: World, tmp_path: Path
):
    results, records = measured
    write_report(results, records, tmp_path, work_dir=tmp_path)
    forms = {name: (tmp_path / FILES[name]).read_text() for name in ("html", "md", "tex")}
    forms["terminal"] = printed(results, 120)
    for text in forms.values():
        assert "23.0, 23.1" in text and "2/3 seeds" in text
        assert not re.search(r"23\.\d(<small>)? ?(±|\$\\pm)", text)
        assert "loss is nan at step 12" in text.replace("\n", " ")


def test_mini_is_in_every_title_and_the_paper_is_named(measured: World):
    for text in (markdown.render(measured[0]), latex.render(measured[0]), printed(measured[0], 80)):
        assert all(f"Table {number} (mini)" in text for number in (4, 5, 6, 7))
        assert "paper, ViT-B / L" in text and "50.3 / 53.3" in text
        assert "no verdict" in " ".join(text.split())


@pytest.mark.parametrize("form", ["csv", "json"])
def test_numbers_come_back_at_full_precision(measured: World, tmp_path: Path, form: str):
    results, records = measured
    (path,) = write_report(results, records, tmp_path, [form], work_dir=tmp_path)
    if form == "csv":
        kinds = {"run_id": str, "commit": str}
        frame = pandas.read_csv(path, dtype=kinds)
    else:
        frame = pandas.DataFrame(json.loads(path.read_text()))
    assert tuple(frame.columns) == FIELDS
    asked = sum(len(cell.seeds) for result in results for row in result.rows for cell in row.cells)
    assert len(frame) == asked == NUM_CELLS * 3
    good = frame[frame["state"] == "ok"]
    assert 0 < len(good) < asked
    for line in good.itertuples():
        source = records[line.run_id]
        assert line.value == source.outcome.metrics[line.metric].value
        assert (line.seed, line.init) == (source.run.seed, source.run.init)
        assert line.seconds == source.provenance.seconds
    assert frame[frame["state"] != "ok"]["value"].isna().all()


def test_pandas_reads_every_digit_of_the_csv(tmp_path: Path):
    tables, noise = made_up.tables(), random.Random(0)
    cells, records = world(tables, range(40), lambda *_: noise.uniform(0, 100))
    results = aggregate(tables, "mini", cells, records, {})
    (path,) = write_report(results, records, tmp_path, ["csv"], work_dir=tmp_path)
    frame = pandas.read_csv(path, dtype={"run_id": str})
    values = [
        line
        for result in results
        for row in result.rows
        for cell in row.cells
        for line in cell.values
    ]
    assert len(values) > 1000
    assert frame["value"].tolist() == values


def test_a_run_id_of_digits_and_an_e_stays_text(tmp_path: Path):
    table = made_up.tables()[1]
    cells, records = world([table], [0], lambda *_: 1 / 3)
    which = next(iter(records.values()))
    cells = {key: CellPlan("1234e5678901") for key in cells}
    results = aggregate([table], "mini", cells, {"1234e5678901": which}, {})
    (path,) = write_report(results, {}, tmp_path, ["csv"], work_dir=tmp_path)
    frame = pandas.read_csv(path, dtype={"run_id": str})
    assert set(frame["run_id"]) == {"1234e5678901"}
    assert set(frame["value"]) == {1 / 3}


def test_scores_that_are_not_finite_leave_valid_files(tmp_path: Path):
    table = made_up.tables()[1]
    values = {"random": math.nan, "supervised": math.inf}
    cells, records = world([table], (0, 1), lambda init, *_: values.get(init, 1.0))
    slow = {
        "outcome": next(iter(records.values())).outcome.model_copy(
            update={"images_per_second": math.inf}
        )
    }
    first = next(iter(records))
    records[first] = records[first].model_copy(update=slow)
    results = aggregate([table], "mini", cells, records, {})
    write_report(results, records, tmp_path, work_dir=tmp_path)
    lines = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert {line["state"] for line in lines} == {"ok", "not finite: nan", "not finite: inf"}
    assert "not finite" in (tmp_path / "index.html").read_text()


class Page(html.parser.HTMLParser):
    """Collects the page's tags, the addresses it could load, and its visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}:
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            assert not name.startswith("on"), name

    def handle_data(self, data: str) -> None:
        self.text += data


def full_page(world_: World, folder: Path) -> str:
    results, records = world_
    for run_id in records:
        run_folder = folder / "runs" / run_id
        run_folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(run_folder / "p.png")
        lines = [json.dumps({"step": step, "loss": 1 / (step + 1)}) for step in range(10)]
        (run_folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 10, "lo')
    write_report(results, records, folder / "report", ["html"], work_dir=folder)
    return (folder / "report" / "index.html").read_text()


def test_the_page_asks_the_network_for_nothing(measured: World, tmp_path: Path):
    text = full_page(measured, tmp_path)
    page = Page(text)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert page.addresses
    assert all(address.startswith(("#", "data:image/")) for address in page.addresses)
    assert "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text


def test_links_in_the_page_lead_somewhere(measured: World, tmp_path: Path):
    page = Page(full_page(measured, tmp_path))
    assert len(page.ids) == len(set(page.ids))
    targets = {address[1:] for address in page.addresses if address.startswith("#")}
    assert any(target.startswith("run-") for target in targets)
    assert targets <= set(page.ids)


def test_the_page_describes_every_run(measured: World, tmp_path: Path):
    text = full_page(measured, tmp_path)
    for source in measured[1].values():
        assert f'id="run-{source.id}"' in text
    assert text.count("Learning curve: loss, last value 0.1") == len(measured[1])
    assert "loss is nan" in text and "solver.base_lr" in text


def test_hostile_text_is_escaped_in_the_page(tmp_path: Path):
    text = full_page(hostile_world(), tmp_path)
    page = Page(text)
    assert "script" not in page.tags
    assert "\x1b" not in text
    assert page.text.count("<script>alert(1)</script>") > 8
    assert {a[:11] for a in page.addresses} <= {
        "data:image/",
        *(a[:11] for a in page.addresses if a[0] == "#"),
    }


def test_hostile_text_is_escaped_in_markdown():
    text = markdown.render(hostile_world()[0])
    assert "<script" not in text and "\x1b" not in text and "http://" not in text
    assert r"a\_b \$x\$" in text and r"\*b\* \`c\` \[red\](" in text and "&lt;script&gt;" in text
    pipes = {line.replace(r"\|", "").count("|") for line in text.splitlines() if line[:1] == "|"}
    assert pipes == {3}


@pytest.mark.parametrize("start", ["# x", "- x", "1. x", "+ x", "=x", "12) x"])
def test_text_starts_no_markdown_block(start: str):
    assert "\\" in markdown.escape(start)[:3]


def test_hostile_text_is_escaped_in_latex():
    text = latex.render(hostile_world()[0])
    title = (
        r"\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{} \& a\_b \$x\$ "
        r"\{y\} 50\% \#1 \textasciitilde{}\textasciicircum{}\textbackslash{} \textbar{} *b* "
    )
    assert title in text
    assert "-{}-q''q''" in text
    assert text.isascii()
    assert "\\\\\n[" not in text and "{}[0pt]" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex and booktabs")
def test_the_latex_compiles(measured: World, tmp_path: Path):
    (tmp_path / "tables.tex").write_text(latex.render([*measured[0], *hostile_world()[0]]))
    (tmp_path / "paper.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{tables}\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_hostile_text_is_escaped_in_the_terminal():
    text = printed(hostile_world()[0], 200)
    assert "\x1b" not in text
    assert "[red]" in text and "<script>" in text


def test_no_csv_cell_is_a_formula(tmp_path: Path):
    results, records = hostile_world()
    write_report(results, records, tmp_path, ["csv"], work_dir=tmp_path)
    frame = pandas.read_csv(tmp_path / "results.csv", dtype=str, keep_default_na=False)
    assert set(frame["row"]) == {HOSTILE, "'=cmd()", "[0pt]"}
    assert "'=1+1" in set(frame["commit"])
    assert not frame.map(lambda cell: cell.startswith(("=", "+", "-", "@"))).any(axis=None)


def test_a_picture_outside_the_run_folder_stays_out(tmp_path: Path):
    which = record(run("segmentation"))
    pictures = tuple(
        Picture(path=path, caption=path) for path in ("../secret.png", "notes.txt", "none.png")
    )
    which = which.model_copy(update={"outcome": Outcome(metrics={}, pictures=pictures)})
    folder = tmp_path / "runs" / which.id
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "runs" / "secret.png")
    (folder / "notes.txt").write_text("text")
    write_report([], {which.id: which}, tmp_path / "out", ["html"], work_dir=tmp_path)
    assert "data:image" not in (tmp_path / "out" / "index.html").read_text()


def test_large_pictures_are_shrunk(tmp_path: Path):
    which = record(run("segmentation"))
    outcome = Outcome(metrics={}, pictures=(Picture(path="big.png", caption="big"),))
    which = which.model_copy(update={"outcome": outcome})
    folder = tmp_path / "runs" / which.id
    folder.mkdir(parents=True)
    Image.effect_noise((1600, 900), 80).save(folder / "big.png")
    write_report([], {which.id: which}, tmp_path / "out", ["html"], work_dir=tmp_path)
    text = (tmp_path / "out" / "index.html").read_text()
    assert "data:image/jpeg" in text
    assert len(text) < (folder / "big.png").stat().st_size


def test_an_empty_report_is_a_whole_report(tmp_path: Path):
    written = write_report([], {}, tmp_path / "new" / "report", work_dir=tmp_path)
    assert [path.name for path in written] == list(FILES.values())
    assert pandas.read_csv(tmp_path / "new" / "report" / "results.csv").empty
    assert json.loads((tmp_path / "new" / "report" / "results.json").read_text()) == []


def test_writing_twice_gives_the_same_files(measured: World, tmp_path: Path):
    for name in ("a", "b"):
        write_report(*measured, tmp_path / name, work_dir=tmp_path)
    for form in FORMATS:
        first, second = (tmp_path / name / FILES[form] for name in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()


def test_bad_format_and_bad_folder_are_said_in_one_line(measured: World, tmp_path: Path):
    with pytest.raises(UserError, match=r"unknown report format 'pdf'.*csv, html, json, md, tex"):
        write_report(*measured, tmp_path, ["pdf"], work_dir=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the report to .*--out"):
        write_report(*measured, tmp_path / "file", work_dir=tmp_path)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 61.9), (-3, 7), (0.31, 0.3101), (5, 5), (0, 0), (1e-9, 3e-9)]
)
def test_ticks_cover_the_range_evenly(low: float, high: float):
    found = charts.ticks(low, high)
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
    curve = charts.curve(points)
    assert curve is not None
    assert curve.name == "loss" and curve.last == "2"
    assert curve.path.count("L") == 2
    assert curve == charts.curve([points[2], points[1], points[4]])
    assert charts.curve(points[:1]) is None
    assert charts.curve([]) is None


def test_bars_show_only_what_is_measured(measured: World):
    panels = {panel.title: panel for panel in charts.panels(measured[0])}
    assert list(panels)[:3] == ["mini COCO, AP box", "mini COCO, AP mask", "mini ADE20K, mIoU"]
    assert len(panels) == 9
    bars = {bar.init: bar for bar in panels["mini COCO, AP box"].bars}
    assert set(bars) == set(BASE)
    assert bars["random"].length is None and len(bars["random"].dots) == 2
    lengths = [bars[init].length / (BASE[init] + 0.1) for init in BASE if init != "random"]
    assert lengths == pytest.approx([lengths[0]] * 4, rel=1e-3)


def test_importing_the_report_loads_nothing_heavy():
    code = (
        "import sys; import mae_bench.report.html, mae_bench.report.terminal, "
        "mae_bench.report.latex, mae_bench.report.markdown, mae_bench.report.long_form; "
        "print([m for m in ('torch', 'matplotlib', 'pandas', 'scipy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
