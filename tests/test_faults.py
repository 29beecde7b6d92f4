"""Faults on purpose: killed at any moment, a full disk, damaged files. Nothing is lost."""

import errno
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import fake_tasks
import pytest
import torch
from fake_tasks import fake_plan, fake_run, launch
from kills import kill_tree

from mae_bench import cli, launchers
from mae_bench.errors import NoSpace, naming_full_disk
from mae_bench.job import PREVIOUS_STATE_FILE, STATE_FILE, write_atomically
from mae_bench.request import Request
from mae_bench.runner import Site, execute
from mae_bench.workspace import Workspace
from tasks.engine.state import load_state, save_state

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def fake_task():
    fake_tasks.register()
    yield
    del fake_tasks.TASKS._entries["fake"], fake_tasks.data.DATASETS["fake-data"]


def environment() -> dict[str, str]:
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    return {**os.environ, **threads, "PYTHONPATH": f"{HERE}:{HERE.parent}"}


# --- killed ---------------------------------------------------------------------------------------


def reproduce_killed(work_dir: Path, kills: int, seed: int, seconds: float) -> float:
    """See `kills.py`; returns how long the attempt took that was left alone."""
    arguments = map(str, (HERE / "kills.py", work_dir, kills, seed, seconds))
    done = subprocess.run(
        [sys.executable, *arguments], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    code, took = done.stdout.split()[-2:]
    assert code == "0", (work_dir / "output.txt").read_text()
    return float(took)


def outcomes(work_dir: Path) -> dict[str, str]:
    """Run id -> all that the run measured but for its speed, and the hash of its weights."""
    found = {}
    for run_id, record in Workspace(work_dir / "work").records().items():
        timed = {"images_per_second", "data_time_share"}
        outcome = record.outcome.model_dump(mode="json", exclude=timed)
        for name in (*timed, "peak_memory_mb", "hint"):
            outcome["facts"].pop(name, None)
        text = json.dumps([outcome, record.checkpoint_sha256], sort_keys=True)
        found[run_id] = text.replace(str(work_dir), "")
    return found


@pytest.mark.slow
@pytest.mark.detectron2
@pytest.mark.mmseg
@pytest.mark.timeout(1800)
def test_reproduce_killed_at_20_random_moments_ends_with_the_same_tables(tmp_path) -> None:
    """A task of each kind, two at a time, through the real engines."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    seconds = reproduce_killed(undisturbed, kills=0, seed=0, seconds=0)
    reproduce_killed(killed, kills=20, seed=21, seconds=seconds / 10)
    assert len(outcomes(killed)) == 7
    assert outcomes(killed) == outcomes(undisturbed)
    for table in ("tables.md", "tables.tex"):
        assert (killed / "report" / table).read_bytes() == (
            undisturbed / "report" / table
        ).read_bytes()


def fake_reproduce(work_dir: Path, plan) -> int:
    """Launch in a process of its own, forked to start at once; returns its id."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    launchers._fork_server = lambda tasks: multiprocessing.get_context("fork")
    try:
        launch(plan, work_dir)
    finally:
        os._exit(0)


def test_fake_runs_killed_at_25_random_moments(tmp_path) -> None:
    first, other = fake_run("first", steps=25, seconds=0.02), fake_run("other", steps=30)
    second = fake_run("second", needs=(first,), steps=20, seconds=0.02)
    last = fake_run("last", needs=(second, other), steps=15, seconds=0.02)
    plan, killed = fake_plan(first, other, second, last), tmp_path / "killed"
    moments = random.Random(40)
    for _ in range(25):
        child = fake_reproduce(killed, plan)
        time.sleep(moments.uniform(0.0, 0.2))
        kill_tree(child)
    records = []
    for work in (killed, tmp_path / "calm"):
        os.waitpid(fake_reproduce(work, plan), 0)
        records.append(Workspace(work).records())
    assert records[0].keys() == {planned.run.id for planned in plan.runs}
    for run_id, record in records[0].items():
        assert record.outcome == records[1][run_id].outcome
        folder = killed / "runs" / run_id
        left = {path.name for path in folder.iterdir()}
        assert not {name for name in left if name.endswith(".tmp")} and "state.pth" not in left


# --- no space left --------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, "old", durable=True)

    def full(_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new", durable=True)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_space_is_one_clear_error_wherever_it_comes_from(number) -> None:
    def fail() -> None:
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            raise RuntimeError("the writer failed") from error

    with (
        pytest.raises(NoSpace, match=r"no space left on the disk of here.*continues"),
        naming_full_disk("here"),
    ):
        fail()
    with pytest.raises(OSError), naming_full_disk("here"):
        raise OSError(errno.EIO, "broken")


def test_a_full_disk_stops_the_command_and_fails_no_run(tmp_path) -> None:
    planned = fake_run("fills", steps=6, full_at=3)
    plan, workspace = fake_plan(planned, fake_run("after", needs=(planned,))), Workspace(tmp_path)
    with pytest.raises(NoSpace, match=f"no space left for run {planned.run.id}.*continues"):
        launch(plan, tmp_path)
    assert workspace.record(planned.run.id) is None
    assert not workspace.is_claimed(planned.run.id)
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "room").touch()
    launch(plan, tmp_path)
    assert set(workspace.states(plan).values()) == {"ok"}
    steps = (workspace.folder(planned.run.id) / "steps.txt").read_text().split()
    assert steps == [str(step) for step in range(6)]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a small disk here (needs root)")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_disk_that_is_really_full(small_disk, monkeypatch) -> None:
    monkeypatch.setattr("mae_bench.workspace.MIN_FREE_BYTES", 0)
    planned = fake_run("first", steps=40, seconds=0.01)
    site = Site(small_disk, small_disk / "data")
    site.workspace.create()
    (small_disk / "ballast").write_bytes(b"0" * 4096 * 20)
    fill = small_disk / "fill"
    with suppress(OSError), fill.open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 4096)
    with pytest.raises(NoSpace):
        execute(planned, site)
    assert site.workspace.record(planned.run.id) is None
    assert not site.workspace.is_claimed(planned.run.id)
    fill.unlink()
    assert execute(planned, site).status == "ok"


def test_a_report_on_a_full_disk_is_one_line(tmp_path, small_disk, capsys) -> None:
    (small_disk / "fill").write_bytes(b"0" * 4096 * 74)
    work = tmp_path / "work"
    Workspace(work).create()
    Request(tables=("table4",), scale="mini", seeds=(0,), data_root=work / "data").save(
        Workspace(work)
    )
    code = cli.main(["report", "--work-dir", str(work), "--out", str(small_disk)])
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and "No space left" in error
    assert [path.name for path in small_disk.iterdir()] == ["fill"]


# --- damaged, and not ours ------------------------------------------------------------------------


def states(folder: Path, count: int) -> None:
    """Save this many states; the weight is the number of the step."""
    for step in range(1, count + 1):
        model = torch.nn.Linear(64, 64)
        torch.nn.init.constant_(model.weight, step)
        save_state(folder, model, torch.optim.SGD(model.parameters(), lr=1.0), step)


def load(folder: Path) -> tuple[int, float]:
    model = torch.nn.Linear(64, 64)
    torch.nn.init.zeros_(model.weight)
    step = load_state(folder, model, torch.optim.SGD(model.parameters(), lr=1.0))
    return step, model.weight[0, 0].item()


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "flipped":
        # In the middle of the weights: the file can be read, and is wrong.
        content[content.index(bytes(torch.tensor(2.0).numpy().tobytes()) * 9) + 16] ^= 1
    path.write_bytes(b"" if how == "emptied" else content)


@pytest.mark.parametrize("how", ["truncated", "flipped", "emptied"])
def test_a_damaged_state_is_noticed_and_the_one_before_used(tmp_path, how) -> None:
    states(tmp_path, 2)
    assert load(tmp_path) == (2, 2.0)
    damage(tmp_path / STATE_FILE, how)
    assert load(tmp_path) == (1, 1.0)
    damage(tmp_path / PREVIOUS_STATE_FILE, "truncated")
    assert load(tmp_path) == (0, 0.0)


def test_killed_between_the_two_renames(tmp_path) -> None:
    states(tmp_path, 2)
    (tmp_path / STATE_FILE).rename(tmp_path / f"{STATE_FILE}.new")
    assert load(tmp_path) == (1, 1.0)


@pytest.fixture
def nobody():
    """Lose root's rights for a while; yields a folder that all may enter and root alone writes."""
    if os.getuid() != 0:
        pytest.skip("needs root to become somebody else")
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)
        os.seteuid(0)


@pytest.mark.parametrize("command", ["reproduce", "status"])
def test_a_work_folder_of_somebody_else(nobody, capsys, command) -> None:
    work = nobody / "work"
    Workspace(work).create()
    tables = ["table4", "--out", str(nobody / "report")] if command == "reproduce" else []
    # Once as root, to import what is out of reach afterwards.
    cli.main(["reproduce", "table4", "--dry-run", "--work-dir", str(work)])
    capsys.readouterr()
    os.seteuid(65534)
    code = cli.main([command, *tables, "--work-dir", str(work)])
    os.seteuid(0)
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and "work" in error, error
    assert sorted(path.name for path in work.iterdir()) == ["runs", "schema.json"]


def test_a_read_only_work_folder_shows_what_it_has(small_disk, capsys) -> None:
    workspace = Workspace(small_disk)
    Request(tables=("table4",), scale="mini", seeds=(0,), data_root=small_disk).save(workspace)
    workspace.check()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert cli.main(["status", "--work-dir", str(small_disk)]) == 0
    capsys.readouterr()
    assert cli.main(["reproduce", "table4", "--work-dir", str(small_disk)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Read-only file system" in error and "--work-dir" in error
