"""One run over several processes of this machine."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import fake_ranks
import fake_tasks
import psutil
import pytest
from fake_tasks import fake_plan, fake_run

from mae_bench import ranks
from mae_bench.launchers import local
from mae_bench.plan import PlannedRun
from mae_bench.processes import Processes
from mae_bench.progress import Board
from mae_bench.runner import Site
from mae_bench.workspace import Workspace


@pytest.fixture(autouse=True)
def fake_task():
    fake_ranks.register()
    yield
    del fake_tasks.TASKS._entries["fake"], fake_tasks.data.DATASETS["fake-data"]


def launch(planned: PlannedRun, work_dir: Path, number: int) -> Workspace:
    """Execute a run as the local launcher does, over this many processes."""
    plan, workspace = fake_plan(planned), Workspace(work_dir)
    workspace.create()
    work = Processes(number, fake_ranks.execute_shared)
    local(plan, Site(work_dir, work_dir / "data"), 1, Board(plan, workspace, [], 1), work=work)
    return workspace


def test_several_processes_do_one_run(tmp_path, monkeypatch) -> None:
    # What the shell of an interactive cluster job leaves behind must not matter.
    monkeypatch.setenv("WORLD_SIZE", "7")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv(ranks.AGENT_STORE, "True")
    planned, found = fake_run("shared"), []
    for number in (1, 2):
        workspace = launch(planned, tmp_path / str(number), number)
        record = workspace.record(planned.run.id)
        assert record.status == "ok" and record.provenance.world_size == number
        assert record.outcome.facts["world_size"] == number
        found.append(record.outcome.metrics["score"].value)
    assert found[1] == pytest.approx(found[0], rel=1e-12)
    folder = workspace.folder(planned.run.id)
    assert planned.run.label in (folder / "log.txt").read_text()
    assert (folder / "log.rank1.txt").is_file()


@pytest.mark.parametrize("rank", [0, 1])
def test_the_rank_that_failed_first_is_blamed(tmp_path, rank) -> None:
    planned = fake_run("bad", raising_rank=rank)
    record = launch(planned, tmp_path, 2).record(planned.run.id)
    assert record.status == "failed" and f"rank {rank} of 2" in record.error
    assert f"ValueError: rank {rank} cannot go on" in record.error


@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_rank_takes_the_others_along(tmp_path, rank) -> None:
    planned = fake_run("dies", dying_rank=rank)
    record = launch(planned, tmp_path, 2).record(planned.run.id)
    assert record.status == "failed" and f"rank {rank} of 2 was killed with SIGKILL" in record.error


def test_ranks_die_with_the_process_that_started_them(tmp_path) -> None:
    planned = fake_run("long", steps=1000, seconds=0.02)
    workspace = Workspace(tmp_path)
    workspace.create()
    work = Processes(2, fake_ranks.execute_shared)
    context = multiprocessing.get_context("fork")
    agent = context.Process(target=work, args=(planned, Site(tmp_path, tmp_path / "data")))
    agent.start()
    deadline = time.monotonic() + 60
    while workspace.progress(planned.run.id).get("step", 0) < 3:
        assert agent.is_alive() and time.monotonic() < deadline
        time.sleep(0.05)
    members = psutil.Process(agent.pid).children()
    assert len(members) == 2
    os.kill(agent.pid, signal.SIGKILL)
    agent.join()
    assert psutil.wait_procs(members, timeout=10)[1] == []
    assert workspace.record(planned.run.id) is None


def test_files_of_an_earlier_start_say_nothing(tmp_path, monkeypatch) -> None:
    variables = dict(zip(ranks.VARIABLES, ("0", "2", "0", "2", "", ""), strict=True))
    for name in (*ranks.VARIABLES, ranks.ATTEMPT):
        monkeypatch.setenv(name, "")
    ranks.become(variables, "first")
    ranks.summon(tmp_path)
    assert ranks.blame(tmp_path, "disk full") == "rank 0 of 2: disk full"
    ranks.become({**variables, "RANK": "1"}, "first")
    ranks.await_summons(tmp_path, lambda: False)
    assert ranks.blame(tmp_path, "connection lost") == "rank 0 of 2: disk full"
    ranks.become({**variables, "RANK": "1"}, "second")
    looks = []
    ranks.await_summons(tmp_path, lambda: len(looks) > 1 or looks.append(1))
    assert len(looks) == 2
    assert ranks.blame(tmp_path, "connection lost") == "rank 1 of 2: connection lost"
