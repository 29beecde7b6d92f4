"""One run in its folder, and the work folder around it."""

import hashlib
import json
import os
import shutil
from types import SimpleNamespace

import fake_tasks
import pytest
from fake_tasks import fake_plan, fake_run

from mae_bench.errors import UserError
from mae_bench.job import STATE_FILE
from mae_bench.records import Record, Run
from mae_bench.runner import Site, execute
from mae_bench.workspace import Workspace, require_space


@pytest.fixture(autouse=True)
def fake_task():
    fake_tasks.register()
    yield
    del fake_tasks.TASKS._entries["fake"], fake_tasks.data.DATASETS["fake-data"]


@pytest.fixture
def site(tmp_path) -> Site:
    Workspace(tmp_path).create()
    return Site(tmp_path, tmp_path / "data", "mae-bench test")


def test_a_run_leaves_what_it_should(site) -> None:
    planned = fake_run("one")
    record = execute(planned, site)
    folder = site.workspace.folder(planned.run.id)
    assert Record.read(folder / "record.json") == record
    config = json.loads((folder / "config.json").read_text())
    assert Run.model_validate(config["run"]) == planned.run and config["id"] == planned.run.id
    assert planned.run.label in (folder / "log.txt").read_text()
    weights = (folder / "weights.bin").read_bytes()
    assert record.checkpoint_sha256 == hashlib.sha256(weights).hexdigest()
    provenance = record.provenance
    assert provenance.command == "mae-bench test"
    assert provenance.packages["torch"] and provenance.hardware["cpu"]
    assert 0 < provenance.seconds < 60 and provenance.peak_memory_mb > 10


def test_seeded_whatever_happened_before(site, tmp_path) -> None:
    first = execute(fake_run("one"), site)
    other = Site(tmp_path / "other", tmp_path / "data")
    other.workspace.create()
    assert execute(fake_run("one"), other).outcome == first.outcome


def test_the_state_goes_once_nobody_needs_it(site) -> None:
    good, bad = fake_run("good"), fake_run("bad", raises="no such luck")
    for planned in (good, bad):
        folder = site.workspace.folder(planned.run.id)
        folder.mkdir(parents=True)
        (folder / STATE_FILE).write_text("[0, 0.0]")
        record = execute(planned, site)
        assert (folder / STATE_FILE).exists() == (record.status == "failed")


def test_done_is_not_repeated(site) -> None:
    first = execute(fake_run("one"), site)
    assert execute(fake_run("one"), site) == first


def test_output_of_children_is_in_the_log_and_stdout_comes_back(site, capfd) -> None:
    bad = fake_run("bad", raises="secret word")
    execute(bad, site)
    os.write(1, b"after\n")
    captured = capfd.readouterr()
    assert captured.out == "after\n" and "secret word" not in captured.err
    assert "secret word" in (site.workspace.folder(bad.run.id) / "log.txt").read_text()


def test_a_failure_is_recorded(site) -> None:
    record = execute(fake_run("bad", raises="no such luck"), site)
    assert record.status == "failed" and record.outcome is None
    assert record.error.splitlines()[-1] == "ValueError: no such luck"
    assert "fake_tasks.py" in record.error


def test_bad_input_is_recorded_as_its_message(site, monkeypatch) -> None:
    def refuse(job):
        raise UserError("batch of 9 is larger than the set; set it to 8")

    monkeypatch.setattr(fake_tasks, "run", refuse)
    record = execute(fake_run("bad"), site)
    assert record.error == "batch of 9 is larger than the set; set it to 8"


def test_a_changed_upstream_checkpoint_is_noticed(site) -> None:
    first = fake_run("one")
    execute(first, site)
    (site.workspace.folder(first.run.id) / "weights.bin").write_bytes(b"other")
    record = execute(fake_run("two", needs=(first,)), site)
    assert record.status == "failed" and "gone or has changed" in record.error


def test_claim_is_seen_and_released(site) -> None:
    space = site.workspace
    with space.claim("abc"):
        assert space.is_claimed("abc")
        with pytest.raises(UserError, match="abc is being worked on"):
            space.forget(["abc"])
        assert space.folder("abc").exists()
    assert not space.is_claimed("abc")
    space.forget(["abc"])
    assert not space.folder("abc").exists()


def test_states(site) -> None:
    done, bad = fake_run("done"), fake_run("bad", raises="no")
    blocked, missing = fake_run("blocked", needs=(bad,)), fake_run("missing", needs=(done,))
    for planned in (done, bad):
        execute(planned, site)
    plan = fake_plan(done, bad, blocked, missing)
    assert list(site.workspace.states(plan).values()) == [
        "ok",
        "failed: ValueError: no",
        "blocked",
        "missing",
    ]


@pytest.mark.parametrize("content", ['{"schema": 0}', "{}", "[]", "nonsense", ""])
def test_another_schema_version_is_refused_and_left_alone(tmp_path, content) -> None:
    (tmp_path / "schema.json").write_text(content)
    for action in (Workspace(tmp_path).check, Workspace(tmp_path).create):
        with pytest.raises(UserError, match="has schema version"):
            action()
    assert [path.name for path in tmp_path.iterdir()] == ["schema.json"]
    assert (tmp_path / "schema.json").read_text() == content


def test_runs_of_somebody_else_are_refused(tmp_path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="schema version None"):
        Workspace(tmp_path).create()


def test_no_space_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000))
    with pytest.raises(UserError, match=r"0.01 GB of disk left, 1 GB is needed.*--out"):
        require_space(tmp_path, "--out")


def test_no_permission_is_said(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file.*--work-dir"):
        Workspace(tmp_path / "file" / "work").create()
