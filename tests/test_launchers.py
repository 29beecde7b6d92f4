"""Runs in processes of their own: order, isolation, interruption, taking over."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_tasks
import psutil
import pytest
from fake_tasks import AFTER, LONG, fake_plan, fake_run, launch
from rich.console import Console
from rich.text import Text

from mae_bench.errors import UserError
from mae_bench.launchers import Schedule, check_launcher, local
from mae_bench.overview import status
from mae_bench.plan import PlannedRun
from mae_bench.progress import make_board
from mae_bench.runner import Site
from mae_bench.workspace import Workspace


@pytest.fixture(autouse=True)
def fake_task():
    fake_tasks.register()
    yield
    del fake_tasks.TASKS._entries["fake"], fake_tasks.data.DATASETS["fake-data"]


def chain(name: str, length: int) -> list[PlannedRun]:
    runs: list[PlannedRun] = []
    for index in range(length):
        runs.append(fake_run(f"{name}{index}", needs=tuple(runs[-1:])))
    return runs


def pop_all(schedule: Schedule) -> list[str]:
    found = []
    while planned := schedule.pop():
        found.append(planned.run.init)
    return found


def test_longest_way_first() -> None:
    runs = [*chain("short", 1), *chain("long", 3), *chain("middle", 2)]
    assert pop_all(Schedule(runs, [], {})) == ["long0", "middle0", "short0"]


def test_measured_seconds_decide() -> None:
    runs = [*chain("a", 3), *chain("b", 1)]
    assert pop_all(Schedule(runs, [], {runs[-1].run.id: 10.0})) == ["b0", "a0"]


def test_nothing_starts_before_what_it_needs() -> None:
    runs = chain("a", 3)
    schedule = Schedule(runs, [], {})
    for planned in runs:
        assert schedule.pop() == planned
        assert schedule.pop() is None
        schedule.succeed(planned.run.id)


def test_two_needs_must_both_be_met() -> None:
    first, second = fake_run("first"), fake_run("second")
    both = fake_run("both", needs=(first, second))
    schedule = Schedule([first, second, both], [], {})
    pop_all(schedule)
    schedule.succeed(first.run.id)
    assert schedule.pop() is None
    schedule.succeed(second.run.id)
    assert schedule.pop() == both


def test_what_is_done_is_neither_run_nor_waited_for() -> None:
    first, second = chain("a", 2)
    assert pop_all(Schedule([first, second], [first.run.id], {})) == ["a1"]


def test_failure_takes_all_that_follows_once_and_for_good() -> None:
    first, second = fake_run("first"), fake_run("second")
    both = fake_run("both", needs=(first, second))
    last = fake_run("last", needs=(both,))
    schedule = Schedule([first, second, both, last], [], {})
    pop_all(schedule)
    assert [run.init for run in schedule.fail(first.run.id)] == ["both", "last"]
    assert schedule.fail(second.run.id) == []
    schedule.succeed(second.run.id)
    assert schedule.pop() is None


def test_unknown_launcher() -> None:
    with pytest.raises(UserError, match=r"unknown launcher 'lokal'. Did you mean local"):
        check_launcher("lokal")


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


def test_a_failed_run_is_tried_again(tmp_path) -> None:
    bad = fake_run("bad", raises="no such luck")
    workspace = Workspace(tmp_path)
    launch(fake_plan(bad), tmp_path)
    record = workspace.folder(bad.run.id) / "record.json"
    first = record.stat().st_mtime_ns
    launch(fake_plan(bad), tmp_path)
    assert record.stat().st_mtime_ns > first


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_crash_takes_one_run_only(tmp_path, number) -> None:
    dies = fake_run("dies", signal=int(number))
    plan = fake_plan(dies, fake_run("lives"), fake_run("blocked", needs=(dies,)))
    launch(plan, tmp_path, workers=1)
    states = list(Workspace(tmp_path).states(plan).values())
    assert states[0].startswith("failed: ") and number.name in states[0]
    assert states[1:] == ["ok", "blocked"]


def test_results_do_not_depend_on_workers(tmp_path) -> None:
    plan = fake_plan(*(fake_run(f"run{index}", steps=index + 1) for index in range(3)))
    outcomes = []
    for workers in (1, 3):
        launch(plan, tmp_path / str(workers), workers)
        records = Workspace(tmp_path / str(workers)).records()
        outcomes.append({run_id: record.outcome for run_id, record in records.items()})
    assert outcomes[0] == outcomes[1]
    assert all(outcome.facts["omp_threads"] == "1" for outcome in outcomes[0].values())


@pytest.mark.slow
def test_two_launches_at_once_share_the_work(tmp_path) -> None:
    run = fake_run("slow", steps=40, seconds=0.05)
    script = (
        "import sys; from pathlib import Path; import fake_tasks as f\n"
        "f.launch(f.fake_plan(f.fake_run('slow', steps=40, seconds=0.05)), Path(sys.argv[1]))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, tmp_path], env=environment())]
    processes.append(subprocess.Popen([sys.executable, "-c", script, tmp_path], env=environment()))
    assert [process.wait(120) for process in processes] == [0, 0]
    assert Workspace(tmp_path).states(fake_plan(run)) == {run.run.id: "ok"}
    steps = (Workspace(tmp_path).folder(run.run.id) / "steps.txt").read_text().split()
    assert steps == [str(step) for step in range(40)]


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
@pytest.mark.parametrize("victim", ["launcher", "run", "ctrl-c"])
def test_killed_at_any_moment_it_continues_and_ends_the_same(tmp_path, undisturbed, victim) -> None:
    process = start_program(tmp_path)
    workspace = Workspace(tmp_path)
    family = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    if victim == "launcher":
        process.kill()
        process.wait(20)
        wait_until_gone(family)
        assert workspace.record(LONG.run.id) is None
    elif victim == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(20) == 130
        wait_until_gone(family)
        assert workspace.record(LONG.run.id) is None
    else:
        claim = (workspace.folder(LONG.run.id) / ".claim").read_text()
        os.kill(json.loads(claim)["pid"], signal.SIGKILL)
        assert process.wait(60) == 0
        assert "SIGKILL" in workspace.record(LONG.run.id).error
    assert not workspace.is_claimed(LONG.run.id)
    launch(fake_plan(LONG, AFTER), tmp_path)
    found = {run_id: record.outcome for run_id, record in workspace.records().items()}
    assert found == undisturbed
    steps = (workspace.folder(LONG.run.id) / "steps.txt").read_text().split()
    repeated = len(steps) - 400
    assert repeated in {0, 1} and set(steps) == {str(step) for step in range(400)}
    # The time of the interrupted attempt counts, or a resumed run would look fast.
    assert workspace.record(LONG.run.id).provenance.seconds > 400 * 0.02


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
    console.print(status(plan, workspace))
    return console.file.getvalue()
