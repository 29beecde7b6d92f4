"""The report's forms: golden text, hostile text, holes, and a way back from CSV and JSON."""

from __future__ import annotations

import io
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
import worlds
from made_up import world
from rich.console import Console
from worlds import HOSTILE, World

from mae_bench.aggregate import TableResult, aggregate
from mae_bench.errors import UserError
from mae_bench.plan import CellPlan
from mae_bench.report import (
    DEFAULT_FORMATS,
    FILES,
    latex,
    long_form,
    markdown,
    terminal,
    wording,
    write_report,
)
from mae_bench.report.long_form import FIELDS

GOLDEN = Path(__file__).parent / "golden"
# Columns of tables 4 to 7 times their rows, as the tables stand.
NUM_CELLS = 5 * 2 + 5 * 2 + 5 * 4 + 3 * 3


@pytest.fixture
def measured() -> World:
    return worlds.measured()


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


def test_hostile_text_is_escaped_in_markdown():
    text = markdown.render(worlds.hostile()[0])
    assert "<script" not in text and "\x1b" not in text and "http://" not in text
    assert r"a\_b \$x\$" in text and r"\*b\* \`c\` \[red\](" in text and "&lt;script&gt;" in text
    pipes = {line.replace(r"\|", "").count("|") for line in text.splitlines() if line[:1] == "|"}
    assert pipes == {3}


@pytest.mark.parametrize("start", ["# x", "- x", "1. x", "+ x", "=x", "12) x"])
def test_text_starts_no_markdown_block(start: str):
    assert "\\" in markdown.escape(start)[:3]


def test_hostile_text_is_escaped_in_latex():
    text = latex.render(worlds.hostile()[0])
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
    (tmp_path / "tables.tex").write_text(latex.render([*measured[0], *worlds.hostile()[0]]))
    (tmp_path / "paper.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{tables}\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_hostile_text_is_escaped_in_the_terminal():
    text = printed(worlds.hostile()[0], 200)
    assert "\x1b" not in text
    assert "[red]" in text and "<script>" in text


def test_no_csv_cell_is_a_formula(tmp_path: Path):
    results, records = worlds.hostile()
    write_report(results, records, tmp_path, ["csv"], work_dir=tmp_path)
    frame = pandas.read_csv(tmp_path / "results.csv", dtype=str, keep_default_na=False)
    assert set(frame["row"]) == {wording.printable(HOSTILE), "'=cmd()", "[0pt]"}
    assert "'=1+1" in set(frame["commit"])
    assert not frame.map(lambda cell: cell.startswith(("=", "+", "-", "@"))).any(axis=None)


@pytest.mark.parametrize("text", ["=1", "-1+2", "@SUM(1)", "\t=1", "\n=1", " =1", "\uff1d1"])
def test_a_csv_cell_that_might_run_gets_an_apostrophe(text: str):
    assert long_form.harmless(text) == f"'{text}"


def test_a_csv_cell_keeps_numbers_and_words():
    plain = [-1.5, None, True, "a=b", "1-2"]
    assert [long_form.harmless(one) for one in plain] == plain
    assert long_form.harmless("a\0\u202eb") == "a\ufffd\ufffdb"


def test_very_long_names_are_cut_in_the_middle():
    assert wording.name("a" * 100) == "a" * 100
    cut = wording.name("a" * 500 + "\n" + "b" * 500)
    assert len(cut) == 100 and set(cut) == {"a", "…", "b"}


def test_latex_keeps_letters_with_accents():
    assert latex.escape("naïve—Écrin β") == "naïve---Écrin ?"


def test_writing_twice_gives_the_same_files(measured: World, tmp_path: Path):
    for name in ("a", "b"):
        write_report(*measured, tmp_path / name, work_dir=tmp_path)
    for form in DEFAULT_FORMATS:
        first, second = (tmp_path / name / FILES[form] for name in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()


def test_an_empty_report_is_a_whole_report(tmp_path: Path):
    written = write_report([], {}, tmp_path / "new" / "report", work_dir=tmp_path)
    assert [path.name for path in written] == [FILES[form] for form in DEFAULT_FORMATS]
    assert pandas.read_csv(tmp_path / "new" / "report" / "results.csv").empty
    assert json.loads((tmp_path / "new" / "report" / "results.json").read_text()) == []


def test_bad_format_and_bad_folder_are_said_in_one_line(measured: World, tmp_path: Path):
    with pytest.raises(UserError, match=r"unknown report format 'docx'.*csv, html, json, md"):
        write_report(*measured, tmp_path, ["docx"], work_dir=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the report to .*--out"):
        write_report(*measured, tmp_path / "file", work_dir=tmp_path)


def test_importing_the_report_loads_nothing_heavy():
    code = (
        "import sys; import mae_bench.report.html, mae_bench.report.terminal, "
        "mae_bench.report.latex, mae_bench.report.markdown, mae_bench.report.long_form; "
        "print([m for m in ('torch', 'matplotlib', 'pandas', 'scipy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
