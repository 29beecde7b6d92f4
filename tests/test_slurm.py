"""Runs on a real SLURM: two nodes on this machine, started and stopped here."""

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_ranks
import fake_tasks
import pytest
import slurm_cluster
from fake_tasks import fake_plan, fake_run

from mae_bench import cluster, overview
from mae_bench.cluster import job_of, queue_name
from mae_bench.errors import UserError
from mae_bench.plan import Plan, PlannedRun
from mae_bench.progress import Board
from mae_bench.runner import Site
from mae_bench.slurm import Resources
from mae_bench.slurm_watch import launch
from mae_bench.worker import Execute
from mae_bench.workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
ENOUGH = 120.0


@pytest.fixture(autouse=True)
def fake_task() -> Iterator[None]:
    fake_tasks.register()
    yield
    del fake_tasks.TASKS._entries["fake"], fake_tasks.data.DATASETS["fake-data"]


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    here = Path(__file__).parent
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{here}:{here.parent}"
    try:
        with slurm_cluster.slurm():
            yield
        # Where sbatch is not told better, it leaves the output of a job here.
        assert not list(Path.cwd().glob("slurm-*.out"))
    except slurm_cluster.NoSlurm as reason:
        pytest.skip(f"no real SLURM to test against: {reason}")
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def submit(
    plan: Plan,
    work_dir: Path,
    work: Execute = fake_ranks.execute_alone,
    board: Board | None = None,
    detach: bool = False,
    **resources: object,
) -> tuple[Board, list[str]]:
    """Launch what is not done; returns the board that watched, and what was said."""
    workspace = Workspace(work_dir)
    workspace.create()
    done = [run_id for run_id, state in workspace.states(plan).items() if state == "ok"]
    board = board or Board(plan, workspace, done, 4)
    said = launch(
        plan,
        Site(work_dir, work_dir / "data"),
        Resources(**resources),
        board,
        done,
        detach=detach,
        work=work,
        seconds_between_looks=0.5,
        seconds_of_lag=1.0,
    )
    return board, said


@pytest.fixture(scope="module")
def overdue(slurm, tmp_path_factory) -> tuple[Path, PlannedRun, PlannedRun]:
    """Two runs of which the first takes longer than its job may; they go on behind the tests."""
    fake_tasks.register()
    work_dir = tmp_path_factory.mktemp("overdue")
    slow = fake_run("slow", steps=300, seconds=0.1)
    after = fake_run("after", needs=(slow,))
    # SLURM looks at its clock twice a minute, so it gives notice at its first look.
    submit(fake_plan(slow, after), work_dir, detach=True, time="1", grace_seconds=50)
    return work_dir, slow, after


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ENOUGH
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def states(plan: Plan, work_dir: Path) -> dict[str, str]:
    found = Workspace(work_dir).states(plan)
    return {planned.run.init: found[planned.run.id] for planned in plan.runs}


def outcomes(work_dir: Path) -> dict[str, object]:
    return {run_id: record.outcome for run_id, record in Workspace(work_dir).records().items()}


def test_a_graph_ends_as_on_one_machine(overdue, tmp_path) -> None:
    base, bad = fake_run("base"), fake_run("bad", raises="no such luck")
    left, right = fake_run("left", needs=(base,)), fake_run("right", steps=5, needs=(base,))
    dies, lost = fake_run("dies", signal=9), fake_run("lost", needs=(base, bad))
    plan = fake_plan(base, bad, dies, left, right, lost)
    board, said = submit(plan, tmp_path / "slurm")
    assert said == []
    found = states(plan, tmp_path / "slurm")
    assert "ended as FAILED and left no record" in found.pop("dies")
    assert found == {
        "base": "ok",
        "bad": "failed: ValueError: no such luck",
        "left": "ok",
        "right": "ok",
        "lost": "blocked",
    }
    assert (len(board.done), len(board.failed), len(board.waiting)) == (3, 3, 0)
    fake_tasks.launch(plan, tmp_path / "local")
    good = [planned.run.id for planned in (base, left, right)]
    there, here = outcomes(tmp_path / "slurm"), outcomes(tmp_path / "local")
    assert [there[run_id] for run_id in good] == [here[run_id] for run_id in good]
    # Runs that need the same are one array, and its output is found from the run's folder.
    workspace = Workspace(tmp_path / "slurm")
    jobs = [job_of(workspace.folder(planned.run.id)).split("_") for planned in (left, right)]
    assert jobs[0][0] == jobs[1][0] and {job[1] for job in jobs} == {"0", "1"}
    output = workspace.folder(bad.run.id) / f"slurm-{job_of(workspace.folder(bad.run.id))}.log"
    assert "no such luck" in output.read_text()
    # What failed is not tried again unasked.
    board, _ = submit(plan, tmp_path / "slurm")
    assert (len(board.done), len(board.failed), len(board.waiting)) == (3, 3, 0)


def test_several_nodes_do_one_run(overdue, tmp_path) -> None:
    shared, bad = fake_run("shared", steps=4), fake_run("bad", raising_rank=1)
    plan = fake_plan(shared, bad)
    submit(plan, tmp_path, fake_ranks.execute_shared, nodes=2)
    workspace = Workspace(tmp_path)
    record = workspace.record(shared.run.id)
    assert record.status == "ok" and record.provenance.world_size == 2
    assert len(set(record.outcome.facts["nodes"])) == 2
    draws = [random.Random(f"0 {step} {part}").random() for step in range(4) for part in range(4)]
    assert record.outcome.metrics["score"].value == pytest.approx(sum(draws), rel=1e-12)
    assert "rank 1 of 2" in workspace.record(bad.run.id).error
    assert "ValueError: rank 1 cannot go on" in workspace.record(bad.run.id).error


class Leaver(Board):
    """Presses Ctrl-C as soon as there is anything to see."""

    def tick(self) -> None:
        raise KeyboardInterrupt


def test_leaving_coming_back_and_scancel(overdue, tmp_path) -> None:
    long = fake_run("long", steps=60, seconds=0.1)
    after = fake_run("after", needs=(long,))
    plan, workspace = fake_plan(long, after), Workspace(tmp_path)
    with pytest.raises(KeyboardInterrupt, match="2 runs go on in SLURM as mae-bench-"):
        submit(plan, tmp_path, board=Leaver(plan, workspace, [], 4))
    jobs = [job_of(workspace.folder(planned.run.id)) for planned in (long, after)]
    wait_for(lambda: workspace.progress(long.run.id).get("step", 0) > 5)
    # The same command finds the jobs again and submits nothing.
    _, said = submit(plan, tmp_path, detach=True)
    assert "2 runs go on" in said[0]
    assert [job_of(workspace.folder(planned.run.id)) for planned in (long, after)] == jobs
    queue = cluster.jobs(queue_name(tmp_path))
    assert {state.word for state in queue.values()} == {"RUNNING", "PENDING"}
    notes = {run.init: run.note for run in overview.status(plan, workspace).runs}
    assert notes["after"] == f"SLURM job {jobs[1]}: pending (Dependency)"
    subprocess.run(["scancel", jobs[0]], check=True)
    board, said = submit(plan, tmp_path)
    assert said == [f"{long.run.label}: job {jobs[0]} CANCELLED; the same command continues it"]
    assert states(plan, tmp_path) == {"long": "missing", "after": "missing"}
    assert (len(board.interrupted), len(board.active), len(board.waiting)) == (1, 0, 0)
    submit(fake_plan(long), tmp_path)
    assert states(plan, tmp_path) == {"long": "ok", "after": "missing"}
    steps = (workspace.folder(long.run.id) / "steps.txt").read_text().split()
    assert steps == [str(step) for step in range(60)]
    draws = [random.Random(f"0 {step}").random() for step in range(60)]
    score = workspace.record(long.run.id).outcome.metrics["score"].value
    assert score == pytest.approx(sum(draws), rel=1e-12)


def test_a_preempted_run_is_requeued_and_continues(slurm, tmp_path) -> None:
    slow = fake_run("slow", steps=40, seconds=0.1)
    after = fake_run("after", needs=(slow,))
    plan, workspace = fake_plan(slow, after), Workspace(tmp_path)
    submit(plan, tmp_path, detach=True)
    wait_for(lambda: workspace.progress(slow.run.id).get("step", 0) > 5)
    urgent = ["sbatch", "--partition=urgent", "--exclusive", "--nodes=2", "--wrap=sleep 1"]
    subprocess.run([*urgent, f"--output={tmp_path}/urgent.log"], check=True)
    submit(plan, tmp_path)
    assert states(plan, tmp_path) == {"slow": "ok", "after": "ok"}
    log = (workspace.folder(slow.run.id) / "log.txt").read_text()
    assert log.count("started") == 2 and "stopped, to be continued" in log
    steps = (workspace.folder(slow.run.id) / "steps.txt").read_text().split()
    assert steps == [str(step) for step in range(40)]


def test_what_slurm_refuses(slurm, tmp_path) -> None:
    plan = fake_plan(fake_run("one"))
    with pytest.raises(UserError, match=r"unknown partition 'man'\. Did you mean main\?"):
        submit(plan, tmp_path, partition="man")
    with pytest.raises(UserError, match=r"--time 20 .* more than partition brief allows \(10 min"):
        submit(plan, tmp_path, partition="brief", time="20")
    with pytest.raises(UserError, match="partition main has no GPUs"):
        submit(plan, tmp_path, gpus_per_run=1)
    with pytest.raises(UserError, match=r"SLURM refuses the jobs: .*Invalid feature"):
        submit(plan, tmp_path, constraint="nowhere")
    with pytest.raises(UserError, match=r"would never start these jobs.*PartitionConfig"):
        submit(plan, tmp_path, nodes=9)
    wait_for(lambda: all(state.is_over for state in cluster.jobs(queue_name(tmp_path)).values()))
    assert states(plan, tmp_path) == {"one": "missing"}


def test_a_run_longer_than_its_time_is_requeued_and_continues(overdue) -> None:
    work_dir, slow, after = overdue
    submit(fake_plan(slow, after), work_dir, time="1", grace_seconds=50)
    assert states(fake_plan(slow, after), work_dir) == {"slow": "ok", "after": "ok"}
    folder = Workspace(work_dir).folder(slow.run.id)
    log = (folder / "log.txt").read_text()
    assert log.count("started") >= 2 and "stopped, to be continued" in log
    steps = (folder / "steps.txt").read_text().split()
    assert steps == [str(step) for step in range(300)]
    # Its time in both jobs counts.
    assert Workspace(work_dir).record(slow.run.id).provenance.seconds > 30
