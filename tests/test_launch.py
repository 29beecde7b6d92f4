"""The options that say where runs are executed."""

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

from mae_bench import cluster, devices
from mae_bench.cli import main
from mae_bench.errors import UserError
from mae_bench.launch import Launch, launching
from mae_bench.slurm import Resources


@pytest.fixture
def partitions(monkeypatch) -> None:
    """A cluster of three partitions; nothing else of it answers."""
    listing = "cpu|cpu*|infinite|(null)\ngpu|gpu|2-00:00:00|(null)\ngpu|gpu|2-00:00:00|gpu:a100:8\n"
    listing += "debug|debug|30:00|gpu:1(S:0)\n"
    found = cluster.read_partitions(listing)
    monkeypatch.setattr(cluster, "_ask", lambda *command: listing)
    monkeypatch.setattr(cluster, "COMMANDS", ())
    assert {name: one.has_gpus for name, one in found.items()} == {
        "cpu": False,
        "gpu": True,
        "debug": True,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("30:00", 30),
        ("0:30", 1),
        ("8:00:00", 480),
        ("1-0", 1440),
        ("2-03:30", 3090),
        ("1-00:00:01", 1441),
        ("infinite", None),
        ("UNLIMITED", None),
    ],
)
def test_times_as_slurm_writes_them(text: str, expected: int | None) -> None:
    assert cluster.minutes(text) == expected


@pytest.mark.parametrize("text", ["", "8h", "1:2:3:4", "-5"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="give minutes, HH:MM:SS or DAYS-HH:MM:SS"):
        cluster.minutes(text)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"slurm_partition": "cpu", "timeout_min": 1440, "tasks_per_node": 1}),
        ({"time": "3-0"}, {"timeout_min": 4320, "gpus_per_node": None}),
        ({"partition": "gpu"}, {"timeout_min": 1440, "gpus_per_node": 1, "tasks_per_node": 1}),
        ({"partition": "debug"}, {"timeout_min": 30}),
        (
            {"partition": "gpu", "gpus_per_run": 16, "nodes": 2},
            {"gpus_per_node": 8, "tasks_per_node": 8, "nodes": 2},
        ),
        ({"partition": "gpu", "gpus_per_run": 0}, {"gpus_per_node": None, "tasks_per_node": 1}),
        ({"processes_per_run": 4}, {"gpus_per_node": None, "tasks_per_node": 4}),
        ({"nodes": 3}, {"nodes": 3, "tasks_per_node": 1}),
        ({"constraint": "a100&ib", "account": "lab"}, {"slurm_constraint": "a100&ib"}),
    ],
)
def test_what_slurm_is_asked_for(partitions, given: dict, expected: dict[str, Any]) -> None:
    asked = Resources(**given).parameters()
    assert {name: asked[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"partition": "gpus"}, r"unknown partition 'gpus'\. Did you mean gpu"),
        ({"gpus_per_run": 2}, "partition cpu has no GPUs"),
        ({"partition": "gpu", "gpus_per_run": 3, "nodes": 2}, "3 processes per run on 2 nodes"),
        ({"partition": "debug", "time": "1:00:00"}, r"more than partition debug allows \(30 min\)"),
        (
            {"partition": "gpu", "gpus_per_run": 2, "processes_per_run": 4},
            "a process has one GPU",
        ),
    ],
)
def test_what_the_cluster_cannot_give_is_refused(partitions, given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Resources(**given).parameters()


def test_no_default_partition(monkeypatch) -> None:
    monkeypatch.setattr(cluster, "COMMANDS", ())
    monkeypatch.setattr(cluster, "_ask", lambda *command: "cpu|cpu|infinite|(null)\n")
    with pytest.raises(UserError, match=r"give --partition\. Known: cpu"):
        Resources().parameters()


def run(arguments: list[str], work_dir: Path, capsys) -> tuple[int, str]:
    code = main(["reproduce", "table4", "--work-dir", str(work_dir), *arguments])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--launcher", "slrum"], "unknown launcher 'slrum'. Did you mean slurm?"),
        (["--partition", "gpu"], "--partition goes with --launcher slurm only"),
        (["--detach"], "--detach goes with --launcher slurm only"),
        (["--launcher", "slurm", "--workers", "3"], "give --array-parallelism"),
        (["--gpus-per-run", "2", "--processes-per-run", "3"], "a process has one GPU"),
        (["--launcher", "slurm", "--sbatch", "mem="], "not of the form OPTION=VALUE or OPTION"),
    ],
)
def test_options_that_do_not_fit(tmp_path, capsys, arguments: list[str], message: str) -> None:
    code, said = run(arguments, tmp_path / "work", capsys)
    assert code == 2 and message in said and said.count("\n") == 1
    assert not (tmp_path / "work").exists()


def test_no_slurm_here(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, said = run(["--launcher", "slurm", "--force"], tmp_path / "work", capsys)
    assert code == 2 and "no SLURM here: sinfo, squeue, sbatch, srun, scancel not found" in said
    assert not (tmp_path / "work").exists()


def test_no_gpu_here(monkeypatch) -> None:
    monkeypatch.setattr(devices, "find", list)
    with pytest.raises(UserError, match="no GPU can be used on this machine"):
        Launch(gpus_per_run=2).require()
    Launch(gpus_per_run=0).require()


def test_workers_share_the_cores(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    assert Launch().width() == 8
    assert Launch(processes_per_run=3).width() == 2
    assert Launch(processes_per_run=16).width() == 1
    assert Launch(workers=5, processes_per_run=2).width() == 5


@pytest.mark.parametrize(
    ("gpus", "options", "expected"),
    [
        ([], {}, (None, 2)),
        ([devices.Device("0")], {}, (2, None)),
        ([devices.Device("0")], {"gpus_per_run": 0}, (0, 2)),
        ([], {"processes_per_run": 3}, (None, 3)),
    ],
)
def test_torchruns_processes_become_those_of_each_run(
    monkeypatch, gpus: list, options: dict[str, int], expected: tuple
) -> None:
    """Its first process goes on, the others leave."""
    seen = []
    command = launching(lambda launch: seen.append(launch))
    given = {option.name: option.default for option in fields(Launch)} | options
    monkeypatch.setattr(devices, "find", lambda: gpus)
    torchrun(monkeypatch, rank=1, world=2)
    with pytest.raises(typer.Exit) as end:
        command(**given)
    assert end.value.exit_code == 0 and not seen
    torchrun(monkeypatch, rank=0, world=2)
    command(**given)
    assert (seen[0].gpus_per_run, seen[0].processes_per_run) == expected


def test_torchrun_over_several_machines_is_refused(monkeypatch, tmp_path, capsys) -> None:
    torchrun(monkeypatch, rank=0, world=4)
    assert main(["reproduce", "table3", "--dry-run", "--work-dir", str(tmp_path)]) == 2
    assert "--launcher slurm --nodes N" in capsys.readouterr().err


def torchrun(monkeypatch, rank: int, world: int) -> None:
    """The environment of one of its processes, two of which are on this machine."""
    values = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": 2, "TORCHELASTIC_RUN_ID": "x"}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
