"""The command line as a user meets it: bad input is one line, good input ends in tables."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from backbones import create_backbone
from mae_bench.cli import main
from mae_bench.cost import Estimates
from mae_bench.doctor import Component, Finding, _try_imports, render
from mae_bench.progress import seconds_text

TRANSFER = ["transfer", "--task", "detection", "--dataset", "mini-coco"]
BAD_INPUT = {
    "table": (["reproduce", "tabel4"], "unknown table 'tabel4'. Did you mean table4", "transfer"),
    "init in --only": (
        ["reproduce", "table4", "--only", "init=mae-norm-pixl"],
        "unknown init in --only 'mae-norm-pixl'. Did you mean mae-norm-pixel",
        "supervised",
    ),
    "init": (
        [*TRANSFER, "--init", "mae-norm-pixl"],
        "unknown init 'mae-norm-pixl'. Did you mean mae-norm-pixel",
        "supervised",
    ),
    "imported init": ([*TRANSFER, "--init", "beit"], "init 'beit': only imported", "beit=FILE"),
    "init file": (["reproduce", "table4", "--init", "my=none.pth"], "no such file", "my=none.pth"),
    "no text": (
        ["reproduce", "table4", "--init", "my=\udcff.pth"],
        "'my=\\udcff.pth'",
        "not UTF-8",
    ),
    "init form": (["reproduce", "table4", "--init", "my"], "not of the form", "NAME:FORMAT=FILE"),
    "backbone": (
        [*TRANSFER, "--init", "random", "--backbone", "vit_mini_patch9"],
        "unknown backbone 'vit_mini_patch9'. Did you mean vit_mini_patch8",
        "vit_large_patch16",
    ),
    "pretraining backbone": (
        ["pretrain", "--backbone", "vit_bse_patch16"],
        "unknown backbone 'vit_bse_patch16'. Did you mean vit_base_patch16",
        "vit_mini_patch8",
    ),
    "scale": (["reproduce", "table4", "--scale", "minni"], "unknown scale 'minni'", "paper"),
    "override key": (
        ["reproduce", "table4", "--set", "solver.iteration=2"],
        "unknown override key 'solver.iteration'. Did you mean solver.iterations",
        "solver.batch_size",
    ),
    "override key of a task": (
        ["reproduce", "table4", "--set", "detection:solver.iteration=2"],
        "unknown override key 'solver.iteration'. Did you mean solver.iterations",
        "solver.batch_size",
    ),
    "override type": (
        ["reproduce", "table4", "--set", "solver.iterations=(1,2)"],
        "of type tuple",
        "of type int is needed",
    ),
    "override form": (["reproduce", "table4", "--set", "x"], "not of the form", "KEY=VALUE"),
    "target": (
        ["pretrain", "--target", "pixl"],
        "unknown target 'pixl'. Did you mean pixel",
        "norm",
    ),
    "target and init": (
        ["pretrain", "--target", "pixel", "--init", "supervised"],
        "either --target or --init",
        "not both",
    ),
    "nothing to pretrain": (
        ["pretrain", "--init", "random"],
        "init 'random' is not trained",
        "transfer",
    ),
    "tokenizer of no use": (
        ["pretrain", "--init", "supervised", "--tokenizer", "t.pth"],
        "supervised needs no tokenizer",
        "--target dvae-token",
    ),
    "task": (
        ["transfer", "--task", "detction", "--dataset", "mini-coco", "--init", "random"],
        "unknown task 'detction'. Did you mean detection",
        "segmentation",
    ),
    "dataset of another task": (
        ["transfer", "--task", "detection", "--dataset", "mini-ade20k", "--init", "random"],
        "dataset 'mini-ade20k' is not one for detection; these are: coco",
        "mini-coco",
    ),
    "dataset": (
        ["transfer", "--task", "detection", "--dataset", "mini-cocoa", "--init", "random"],
        "unknown dataset 'mini-cocoa'. Did you mean mini-coco",
        "mini-inat",
    ),
    "recipe": (
        [*TRANSFER, "--init", "random", "--recipe", "detection/mimi"],
        "unknown recipe for detection 'detection/mimi'. Did you mean detection/mini",
        "detection/mini",
    ),
    "no weights": (TRANSFER, "give either --init NAME or --checkpoint FILE", "not both"),
    "seeds": (["reproduce", "table4", "--seeds", "0,x"], "seeds '0,x'", "--seeds 0,1,2"),
    "large seed": (
        ["reproduce", "table4", "--seeds", "0,4294967296"],
        "seed 4294967296 is too",
        "4",
    ),
    "iterations": (
        ["reproduce", "table4", "--set", "solver.iterations=0"],
        "override solver.iterations=0",
        "at least 1",
    ),
    "launcher": (
        ["reproduce", "table4", "--launcher", "lokal"],
        "unknown launcher 'lokal'",
        "local",
    ),
    "option": (["reproduce", "table4", "--sede", "1"], "--sede", "--sede"),
    "command": (["reprodce"], "reprodce", "reprodce"),
    "format": (["report", "--format", "html,pfd"], "nothing was asked for yet", "reproduce"),
    "status of nothing": (["status"], "nothing was asked for yet", "reproduce"),
    "data": (
        ["data", "prepare", "minni"],
        "unknown dataset 'minni'. Did you mean mini",
        "mini-coco",
    ),
    "image": (
        ["visualize", "no.png", "--checkpoint", "no.pth", "--out", "o.png"],
        "no.pth",
        "no such",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_code_2(case, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, start, also = BAD_INPUT[case]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert start in captured.err and also in captured.err
    assert list(tmp_path.iterdir()) == [], "bad input must leave nothing behind"


@pytest.mark.parametrize("arguments", [[], ["data"], ["backbones"]])
def test_a_command_that_is_not_whole_gets_its_help(arguments, capsys) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == "" and lines[0].startswith("Usage: mae-bench")
    assert any(line.startswith("Commands:") for line in lines)


def refused(arguments: list[str], capsys) -> str:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("force", [[], ["--force"], ["--dry-run"]])
def test_work_folder_of_another_schema_is_left_alone(tmp_path, capsys, force) -> None:
    (tmp_path / "schema.json").write_text('{"schema": 999}')
    (tmp_path / "runs").mkdir()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    command = ["reproduce", "table4", "--work-dir", str(tmp_path), *force]
    assert "schema version 999" in refused(command, capsys)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == kept


@pytest.fixture
def no_training(monkeypatch):
    """Fail the test if training starts."""

    def start(*_, **__):
        pytest.fail("training started")

    monkeypatch.setattr("mae_bench.launchers.local", start)


@pytest.mark.parametrize("option", ["--work-dir", "--data-root", "--out"])
def test_no_permission_is_said_before_training(tmp_path, capsys, no_training, option) -> None:
    (tmp_path / "file").write_text("")
    where = {"--work-dir": "work", "--data-root": "data", "--out": "report"}
    where[option] = "file/below"
    arguments = [part for key, name in where.items() for part in (key, str(tmp_path / name))]
    line = refused(["reproduce", "table4", *arguments], capsys)
    assert "cannot write" in line and option in line


def test_no_space_is_said_before_training(tmp_path, capsys, no_training, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000))
    line = refused(["reproduce", "table4", "--work-dir", str(tmp_path / "work")], capsys)
    assert "0.01 GB of disk left" in line


def test_a_folder_of_somebody_else_is_one_line(tmp_path, capsys, monkeypatch) -> None:
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self.root))

    monkeypatch.setattr("mae_bench.workspace.Workspace.check", refuse)
    line = refused(["status", "--work-dir", str(tmp_path / "theirs")], capsys)
    assert "no permission for" in line and "theirs" in line


def test_dry_run_prints_the_graph_and_leaves_nothing(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "table4", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "detection mini-coco mae-norm-pixel" in out and "to do" in out
    assert "table4 beit: only imported: give --init beit=FILE" in out
    assert list(tmp_path.iterdir()) == []


def test_runs_of_a_plan_are_told_apart_by_as_little_as_it_takes(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = ["--scale", "paper", "--only", "init=supervised", "--dry-run", "--format", "json"]
    assert main(["reproduce", "table5-lr", *plan]) == 0
    labels = [run["label"] for run in json.loads(capsys.readouterr().out)["runs"]]
    assert len(set(labels)) == len(labels)
    pretraining = [label for label in labels if label.startswith("supervised")]
    assert {label.rpartition(", ")[2] for label in pretraining} == {
        "backbone=vit_base_patch16",
        "backbone=vit_large_patch16",
    }
    transfer = next(label for label in labels if label.startswith("segmentation"))
    assert transfer.partition(", ")[2].startswith("backbone=vit_base_patch16, solver.lr=")


def test_weights_of_another_size_are_refused_before_anything_starts(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"fc.weight": torch.zeros(2, 2)}}, "mine.pth")
    given = ["reproduce", "table4", "--only", "init=mine", "--init"]
    line = refused([*given, "mine=mine.pth"], capsys)
    assert "mine.pth" in line and "no known format" in line
    torch.save({"model": create_backbone("vit_mini_patch8", depth=2).state_dict()}, "mine.pth")
    line = refused([*given, "mine=mine.pth"], capsys)
    assert "width 96 and 2 blocks, vit_mini_patch8 96 and 4" in line
    assert [path.name for path in tmp_path.iterdir()] == ["mine.pth"]


def test_cells_a_scale_cannot_have_do_not_count(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "table4", "--only", "init=beit"]) == 0
    assert main(["status"]) == 0


def test_cells_that_are_missing_count(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mae_bench.launchers.local", lambda *_, **__: None)
    assert main(["reproduce", "table4", "--only", "init=random"]) == 1


@pytest.mark.parametrize("said", ["", "2 runs go on in SLURM"])
def test_ctrl_c_is_130_and_says_how_to_go_on(tmp_path, monkeypatch, capsys, said) -> None:
    def interrupt(*_, **__):
        raise KeyboardInterrupt(said)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mae_bench.launchers.local", interrupt)
    assert main(["reproduce", "table4", "--only", "init=random"]) == 130
    expected = said or "stopped; the same command continues"
    assert capsys.readouterr().err.splitlines()[-1] == expected


@pytest.mark.parametrize("names", [["backbones", "list"], ["data", "list"]])
def test_lists(names, capsys) -> None:
    assert main(names) == 0
    assert any("mini" in line for line in capsys.readouterr().out.split())


def test_doctor_survives_what_it_finds() -> None:
    answers = _try_imports([
        Component("good", (), "note = 'fine'"),
        Component("absent", (), "import there_is_no_such_module"),
        Component("deadly", (), "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
        Component("after", (), "import json"),
    ])
    assert answers["good"] == (None, "fine") and answers["after"] == (None, "")
    assert answers["absent"][0] == "ModuleNotFoundError: No module named 'there_is_no_such_module'"
    assert "ended the process with code -11" in answers["deadly"][0]


def test_doctor_prints_the_fix_of_what_is_broken_only(capsys) -> None:
    from rich import print as show

    good = Finding("good", "1", "", True, fix="leave it")
    show(render([good, Finding("bad", "1", ">2", False, "oh", "mend it")]))
    out = capsys.readouterr().out
    assert "fix bad: mend it" in out and "leave it" not in out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_seconds_text(seconds, text) -> None:
    assert seconds_text(seconds) == text


def test_time_left_from_progress_when_nothing_was_measured() -> None:
    from fake_tasks import fake_run

    run = fake_run("x").run
    assert Estimates().left(run, 10.0, {}) is None
    assert Estimates().left(run, 10.0, {"step": 20, "total": 100}) == pytest.approx(40.0)


def mae_bench(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mae_bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.slow
@pytest.mark.detectron2
@pytest.mark.mmseg
@pytest.mark.timeout(900)
def test_smoke_killed_continued_and_repeated(tmp_path) -> None:
    """Two iterations of everything through the real engines, with a kill -9 on the way."""
    options = ["--smoke", "--work-dir", tmp_path / "work", "--out", tmp_path / "report"]
    command = [sys.executable, "-m", "mae_bench", "reproduce", "transfer", *map(str, options)]
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log)
        while not list((tmp_path / "work").glob("runs/*/record.json")):
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            time.sleep(0.2)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    done = {path: path.read_bytes() for path in (tmp_path / "work").glob("runs/*/record.json")}

    second = mae_bench("reproduce", "transfer", *options)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "Table 4" in second.stdout and "Table 7" in second.stdout
    assert all(path.read_bytes() == content for path, content in done.items())
    suffixes = {path.suffix for path in (tmp_path / "report").iterdir()}
    assert suffixes >= {".html", ".md", ".tex", ".csv", ".json"}

    before = time.monotonic()
    third = mae_bench("reproduce", "transfer", *options)
    seconds = time.monotonic() - before
    assert third.returncode == 0
    assert third.stdout == second.stdout[second.stdout.index("Table 4") :], "something was repeated"
    assert seconds < 10

    status = mae_bench("status", "--work-dir", tmp_path / "work")
    assert status.returncode == 0 and "to do" in status.stdout.splitlines()[1]
    assert "failed" not in status.stdout.partition("table7")[2]


@pytest.fixture(autouse=True)
def here(monkeypatch) -> None:
    """Let `python -m mae_bench` be found from any folder."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
