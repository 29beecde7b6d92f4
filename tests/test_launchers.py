"""Runs in processes of their own: order, isolation, interruption, taking over."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fake_tasks
import psutil
import pytest
from fake_tasks import AFTER, LONG, STEP_SECONDS, STEPS, fake_plan, fake_run, launch
from rich.console import Console
from rich.text import Text

from mae_bench.claims import current
from mae_bench.launchers import local
from mae_bench.overview import render_status, status
from mae_bench.progress import Board, make_board
from mae_bench.records import Outcome
from mae_bench.runner import Site, make_record, save
from mae_bench.workspace import Workspace


@pytest.fixture(autouse=True)
def fake_task():
    fake_tasks.register()
    yield
    del fake_tasks.TASKS._entries["fake"], fake_tasks.data.DATASETS["fake-data"]


def test_runs_and_does_not_repeat(tmp_path) -> None:
    first = fake_run("first")
    plan = fake_plan(first, fake_run("second", needs=(first,)))
    launch(plan, tmp_path)
    workspace = Workspace(tmp_path)
    assert set(workspace.states(plan).values()) == {"ok"}
    before = {run_id: record.provenance for run_id, record in workspace.records().items()}
    launch(plan, tmp_path)
    assert {run_id: record.provenance for run_id, record in workspace.records().items()} == before


def test_upstream_checkpoint_is_read(tmp_path) -> None:
    first = fake_run("first")
    second = fake_run("second", needs=(first,))
    launch(fake_plan(first, second), tmp_path)
    records = Workspace(tmp_path).records()
    scores = [records[run.run.id].outcome.metrics["score"].value for run in (first, second)]
    assert scores[1] == pytest.approx(scores[0] + len(b"weights"))


def test_a_failing_run_blocks_only_what_needs_it(tmp_path) -> None:
    bad = fake_run("bad", raises="no such luck")
    good = fake_run("good")
    blocked = fake_run("blocked", needs=(bad, good))
    last = fake_run("last", needs=(blocked,))
    plan = fake_plan(bad, good, blocked, last)
    board = launch(plan, tmp_path)
    states = {run.run.init: Workspace(tmp_path).states(plan)[run.run.id] for run in plan.runs}
    assert states == {
        "bad": "failed: ValueError: no such luck",
        "good": "ok",
        "blocked": "blocked",
        "last": "blocked",
    }
    assert (len(board.done), len(board.failed), len(board.waiting)) == (1, 3, 0)
    log = Workspace(tmp_path).folder(bad.run.id) / "log.txt"
    assert "Traceback" in log.read_text() and "no such luck" in log.read_text()


def test_a_failed_run_is_repeated_on_request_only(tmp_path) -> None:
    bad = fake_run("bad", raises="no such luck")
    plan, workspace = fake_plan(bad, fake_run("after", needs=(bad,))), Workspace(tmp_path)
    launch(plan, tmp_path)
    record = workspace.folder(bad.run.id) / "record.json"
    first = record.stat().st_mtime_ns
    board = launch(plan, tmp_path)
    assert record.stat().st_mtime_ns == first
    assert (len(board.failed), len(board.waiting), len(board.active)) == (2, 0, 0)
    launch(plan, tmp_path, retry_failed=True)
    assert record.stat().st_mtime_ns > first


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_takes_one_run_only(tmp_path, number) -> None:
    aborts = number == signal.SIGABRT
    dies = fake_run("dies", aborts=True) if aborts else fake_run("dies", signal=int(number))
    plan = fake_plan(dies, fake_run("lives"), fake_run("blocked", needs=(dies,)))
    launch(plan, tmp_path, workers=1)
    states = list(Workspace(tmp_path).states(plan).values())
    assert states[0].startswith("failed: ") and number.name in states[0]
    assert states[1:] == ["ok", "blocked"]
    error = Workspace(tmp_path).record(dies.run.id).error
    if aborts:
        # What it printed, and the traceback that it left in the log.
        assert "about to abort" in error and 'fake_tasks.py", line' in error


def test_the_time_of_a_run_that_was_killed_counts_once(tmp_path) -> None:
    dies, workspace = fake_run("dies", steps=200, seconds=0.02), Workspace(tmp_path)

    def kill() -> None:
        while workspace.progress(dies.run.id).get("step", 0) < 120:
            time.sleep(0.02)
        os.kill(current(workspace.folder(dies.run.id)).holder.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    launch(fake_plan(dies), tmp_path)
    killer.join()
    record = workspace.record(dies.run.id)
    assert "SIGKILL" in record.error
    assert record.provenance.phases["other"] < record.provenance.phases["train"]


def test_out_of_gpu_memory_is_tried_with_smaller_micro_batches(tmp_path) -> None:
    large = fake_run("large", solver={"batch_size": 24, "fits": 5})
    hopeless = fake_run("hopeless", solver={"batch_size": 4, "fits": 0})
    launch(fake_plan(large, hopeless), tmp_path)
    records = Workspace(tmp_path).records()
    outcome = records[large.run.id].outcome
    # 24, 12 and 6 samples at a time do not fit; 24 / 8 = 3 do.
    assert outcome.facts["accumulation"] == 8
    reasons = outcome.facts["out_of_gpu_memory"]
    assert [reason.partition(":")[0] for reason in reasons] == [
        "micro-batch of 24",
        "micro-batch of 12",
        "micro-batch of 6",
    ]
    assert reasons[0].endswith("CUDA out of memory. Tried to allocate 9.00 TiB.")
    assert records[hopeless.run.id].status == "failed"
    assert "CUDA out of memory" in records[hopeless.run.id].error
    small = fake_run("small", solver={"batch_size": 24, "fits": 24})
    launch(fake_plan(small), tmp_path)
    assert "accumulation" not in Workspace(tmp_path).record(small.run.id).outcome.facts


def test_results_do_not_depend_on_workers(tmp_path) -> None:
    plan = fake_plan(*(fake_run(f"run{index}", steps=index + 1) for index in range(3)))
    outcomes = []
    for workers in (1, 3):
        launch(plan, tmp_path / str(workers), workers)
        records = Workspace(tmp_path / str(workers)).records()
        outcomes.append({run_id: record.outcome for run_id, record in records.items()})
    assert outcomes[0] == outcomes[1]
    assert all(outcome.facts["omp_threads"] == "1" for outcome in outcomes[0].values())


SHARE = """
import sys; from pathlib import Path; import fake_tasks as f
f.launch(f.fake_plan(*(f.fake_run(f"run{i}", steps=10, seconds=0.05) for i in range(12))),
         Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_four_commands_at_once_share_the_work(tmp_path) -> None:
    runs = [fake_run(f"run{index}", steps=10, seconds=0.05) for index in range(12)]
    processes = [
        subprocess.Popen([sys.executable, "-c", SHARE, tmp_path], env=environment())
        for _ in range(4)
    ]
    assert [process.wait(240) for process in processes] == [0] * 4
    workspace = Workspace(tmp_path)
    assert set(workspace.states(fake_plan(*runs)).values()) == {"ok"}
    for run in runs:
        folder = workspace.folder(run.run.id)
        assert (folder / "steps.txt").read_text().split() == [str(step) for step in range(10)]
        assert (folder / "log.txt").read_text().count("started") == 1


def test_a_run_of_another_command_is_left_to_it(tmp_path) -> None:
    other, mine = fake_run("other"), fake_run("mine")
    workspace, site = Workspace(tmp_path), Site(tmp_path, tmp_path / "data")
    workspace.create()
    claimed, mine_is_done = threading.Event(), threading.Event()

    def another_command() -> None:
        with workspace.claim(other.run.id):
            claimed.set()
            assert mine_is_done.wait(60)
            record = make_record(other.run, site, time.time(), Outcome(metrics={}))
            save(record, workspace.folder(other.run.id))

    class Watcher(Board):
        def finished(self, run, record) -> None:
            super().finished(run, record)
            mine_is_done.set()

    thread = threading.Thread(target=another_command)
    thread.start()
    claimed.wait(60)
    plan = fake_plan(other, mine)
    board = Watcher(plan, workspace, [], 1)
    # The only worker is not kept waiting: it does its own run, which ends first.
    local(plan, site, 1, board, work=fake_tasks.execute_fake)
    thread.join()
    assert board.done == {other.run.id, mine.run.id}
    assert workspace.record(other.run.id).outcome.metrics == {}


def environment() -> dict[str, str]:
    here = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": f"{here}:{here.parent}"}


def heed_ctrl_c() -> None:
    """Undo the "ignore" that whatever a shell starts in the background inherits, CI's jobs too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start_program(work_dir: Path) -> subprocess.Popen:
    """Start the two runs of fake_tasks as a program; returns once the first has made some steps."""
    program = [sys.executable, Path(fake_tasks.__file__), work_dir]
    process = subprocess.Popen(
        program, env=environment(), start_new_session=True, preexec_fn=heed_ctrl_c
    )
    workspace = Workspace(work_dir)
    deadline = time.monotonic() + 120
    while workspace.progress(LONG.run.id).get("step", 0) < 20:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in pids):
        alive = [pid for pid in pids if psutil.pid_exists(pid)]
        assert time.monotonic() < deadline, f"still there: {alive}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    fake_tasks.register()
    work_dir = tmp_path_factory.mktemp("undisturbed")
    launch(fake_plan(LONG, AFTER), work_dir)
    return {run_id: record.outcome for run_id, record in Workspace(work_dir).records().items()}


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["launcher", "run", "ctrl-c", "ctrl-c twice", "sigterm"])
def test_killed_at_any_moment_it_continues_and_ends_the_same(tmp_path, undisturbed, victim) -> None:
    process = start_program(tmp_path)
    workspace = Workspace(tmp_path)
    family = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    if victim == "launcher":
        process.kill()
        process.wait(20)
        wait_until_gone(family)
        assert workspace.record(LONG.run.id) is None
    elif victim == "run":
        os.kill(current(workspace.folder(LONG.run.id)).holder.pid, signal.SIGKILL)
        assert process.wait(60) == 0
        assert "SIGKILL" in workspace.record(LONG.run.id).error
    else:
        number = signal.SIGTERM if victim == "sigterm" else signal.SIGINT
        os.killpg(process.pid, number)
        if victim == "ctrl-c twice":
            time.sleep(0.01)
            os.killpg(process.pid, number)
        assert process.wait(20) == 130
        wait_until_gone(family)
        assert workspace.record(LONG.run.id) is None
        log = (workspace.folder(LONG.run.id) / "log.txt").read_text()
        assert victim == "ctrl-c twice" or "stopped, to be continued" in log
    assert not workspace.is_claimed(LONG.run.id)
    launch(fake_plan(LONG, AFTER), tmp_path, retry_failed=True)
    found = {run_id: record.outcome for run_id, record in workspace.records().items()}
    assert found == undisturbed
    steps = (workspace.folder(LONG.run.id) / "steps.txt").read_text().split()
    repeated = len(steps) - STEPS
    assert repeated in {0, 1} and set(steps) == {str(step) for step in range(STEPS)}
    # The time of the interrupted attempt counts, or a resumed run would look fast.
    assert workspace.record(LONG.run.id).provenance.seconds > 0.9 * STEPS * STEP_SECONDS


@pytest.mark.parametrize("terminal", [True, False])
def test_both_views_say_what_happens(tmp_path, terminal) -> None:
    bad = fake_run("bad", raises="no such luck")
    good, blocked = fake_run("good"), fake_run("blocked", needs=(bad,))
    plan = fake_plan(bad, good, blocked)
    workspace = Workspace(tmp_path)
    workspace.create()
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with make_board(plan, workspace, [], 2, console) as board:
        local(plan, Site(tmp_path, tmp_path / "data"), 2, board, work=fake_tasks.execute_fake)
        assert "1/3 runs done, 0 going, 0 left, 2 failed or blocked" in board.summary()
    shown = console.file.getvalue()
    score = sum(random.Random(f"0 {step}").random() for step in range(3))
    for text in (
        "fake-data",
        "good [fake]",
        f"score {score:.2f}",
        "ValueError: no such luck",
        "blocked fake",
    ):
        assert text in shown
    assert ("\x1b[" in shown) == terminal


def test_live_view_shows_what_is_going_and_keeps_its_height(tmp_path) -> None:
    going, waiting = fake_run("going"), fake_run("waiting")
    plan, workspace = fake_plan(going, waiting), Workspace(tmp_path)
    workspace.create()
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    board = make_board(plan, workspace, [], 2, console)

    def lines() -> list[str]:
        with console.capture() as capture:
            console.print(board.view())
        return Text.from_ansi(capture.get()).plain.splitlines()

    before = lines()
    board.started(going.run)
    folder = workspace.folder(going.run.id)
    folder.mkdir()
    report = {"phase": "train", "step": 3, "total": 12, "loss": 0.5, "time": time.time()}
    (folder / "progress.json").write_text(json.dumps(report))
    after = lines()
    assert len(before) == len(after) == 3
    assert going.run.label in after[1]
    console.width = 64
    narrow = lines()
    assert len(narrow) == 3 and "…" in narrow[1]
    assert "train 3/12" in narrow[1] and "loss 0.500" in narrow[1] and "left" in narrow[1]
    assert "train 3/12" in after[1] and "loss 0.500" in after[1]
    assert "interrupted at train 3/12" in overview_text(plan, workspace)


def overview_text(plan, workspace: Workspace) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(render_status(status(plan, workspace)))
    return console.file.getvalue()
