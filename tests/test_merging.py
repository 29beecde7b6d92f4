"""Results of several places: merged, compared, checked; every fault planted is found by name."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import shelf

from mae_bench.cli import main
from mae_bench.records import Run
from mae_bench.report.exported import sums as sums_of


def lines(folder: Path) -> list[dict[str, object]]:
    return json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)


def scored(folder: Path) -> dict[tuple[object, ...], object]:
    """What a report's cells say: value by place, for those that have one."""
    keys = ("table", "init", "group", "column", "seed")
    return {
        tuple(line[key] for key in keys): line["value"]
        for line in lines(folder)
        if line["state"] == "ok"
    }


def export(work: Path, form: str = "records,json") -> Path:
    assert main(["report", "--work-dir", str(work), "--out", str(work), "--format", form]) == 0
    return work


@pytest.fixture
def labs(tmp_path: Path) -> tuple[Path, Path]:
    """Two work folders of one table, with a seed each."""
    shelf.fill(tmp_path / "a", seeds=(0,))
    shelf.fill(tmp_path / "b", seeds=(1,))
    return tmp_path / "a", tmp_path / "b"


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """One work folder with both seeds: what a merge must give."""
    shelf.fill(tmp_path / "both", seeds=(0, 1))
    return export(tmp_path / "both")


def merge(*places: Path, out: Path, options: tuple[str, ...] = ()) -> int:
    arguments = ["report", *map(str, places), "--out", str(out), "--format", "json,records"]
    return main([*arguments, *options])


@pytest.mark.parametrize("form", ["work folders", "records", "results.json", "mixed"])
def test_a_merge_is_what_one_place_would_have_said(labs, both, tmp_path, form: str):
    a, b = labs
    kinds: dict[str, Callable[[Path], Path]] = {
        "work folders": lambda lab: lab,
        "records": lambda lab: shutil.copytree(export(lab) / "records", tmp_path / f"r{lab.name}"),
        "results.json": lambda lab: export(lab) / "results.json",
    }
    places = [a, kinds["results.json"](b)] if form == "mixed" else [kinds[form](a), kinds[form](b)]
    assert merge(*places, out=tmp_path / "out") == 0
    wanted = scored(both)
    found = {key: value for key, value in scored(tmp_path / "out").items() if key[0] == "table5"}
    assert found == wanted and len(wanted) > 5


def test_data_in_another_place_and_upstream_ids_do_not_matter(labs, tmp_path):
    """Records of unknown data roots find their cells; only the table asked for is shown."""
    assert merge(*labs, out=tmp_path / "out") == 0
    assert {key[0] for key in scored(tmp_path / "out")} == {"table5"}


def test_a_conflict_is_listed_has_no_number_and_an_exit_code(labs, tmp_path, capsys):
    a, b = labs
    records = shelf.fill(tmp_path / "c", seeds=(0,))
    wrong = next(one for one in records.values() if one.run.task == "segmentation")
    metric = wrong.outcome.metrics["miou"].model_copy(update={"value": 77.125})
    metrics = {**wrong.outcome.metrics, "miou": metric}
    changed = wrong.outcome.model_copy(update={"metrics": metrics})
    shelf.put(tmp_path / "c", wrong.model_copy(update={"outcome": changed}))
    assert merge(a, b, tmp_path / "c", out=tmp_path / "out") == 1
    printed = capsys.readouterr().out
    assert f"conflict: {wrong.id}" in printed and f"77.125 in {tmp_path / 'c'}" in printed
    of_run = [line for line in lines(tmp_path / "out") if line["run_id"] == wrong.id]
    states = {line["metric"]: str(line["state"]) for line in of_run}
    assert states["miou"].startswith("conflict:") and all(line["mean"] is None for line in of_run)
    assert not (tmp_path / "out" / "records" / f"{wrong.id}.json").exists()


def test_a_failed_run_gives_way_to_a_good_one(labs, tmp_path):
    a, _ = labs
    records = shelf.fill(tmp_path / "c", seeds=(0,))
    one = next(one for one in records.values() if one.run.task == "segmentation")
    failed = one.model_copy(update={"status": "failed", "outcome": None, "error": "it broke"})
    shelf.put(tmp_path / "c", failed)
    for places in ((a, tmp_path / "c"), (tmp_path / "c", a)):
        assert merge(*places, out=tmp_path / "out") == 0
        assert all(line["state"] != "failed: it broke" for line in lines(tmp_path / "out"))


def test_places_with_other_settings_share_no_table(labs, tmp_path, capsys):
    shelf.fill(tmp_path / "smoke", seeds=(2,), smoke=True)
    assert merge(labs[0], tmp_path / "smoke", out=tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "the recipes as shipped" in error and "--smoke" in error and "--by" in error
    assert not (tmp_path / "out").exists()
    by = ("--by", "init,dataset,protocol")
    assert merge(labs[0], tmp_path / "smoke", out=tmp_path / "out", options=by) == 0


def test_runs_on_other_data_of_the_same_name_are_left_out(labs, tmp_path, capsys):
    a, b = labs
    strange = shelf.fill(tmp_path / "c", seeds=(0,))
    run = next(one.run for one in strange.values() if one.run.task == "segmentation")
    other = run.model_copy(update={"data_fingerprint": "otherdata", "seed": 9})
    shelf.put(tmp_path / "c", shelf.record_of(other))
    assert merge(a, b, tmp_path / "c", out=tmp_path / "out") == 0
    assert f"left out, other data: {other.label}" in capsys.readouterr().out
    assert all(line["run_id"] != other.id for line in lines(tmp_path / "out"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such folder or file"),
        ("[{}]", "entry 1 is no line"),
        ("[1", "is not JSON"),
        ('{"schema_version": 99}', "has schema version 99, this mae-bench reads"),
        ('{"schema_version": 2}', "is not a valid record"),
        ("{", "is not JSON"),
    ],
)
def test_what_is_no_place_is_one_clear_error(tmp_path, capsys, content: str | None, message: str):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    assert merge(path, out=tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_a_clear_error(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for options in (["report"], ["report", "--check"]):
        assert main([*options, str(tmp_path / "empty")]) == 2
        assert "holds no records" in capsys.readouterr().err


def test_one_thing_at_a_time(tmp_path, capsys):
    assert main(["report", "a", "--check", "b"]) == 2
    assert main(["report", "--since", "HEAD"]) == 2
    assert "--since is for --check" in capsys.readouterr().err


# ----------------------------------------------------------------------------------- compare


def compare(old: Path, new: Path, capsys) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["report", "--compare", str(old), str(new)])
    return code, capsys.readouterr().out


def test_compare_lists_what_changed(labs, tmp_path, capsys):
    a, b = labs

    def better(run: Run, metric: str) -> float:
        improved = metric == "miou" and run.init == "random"
        return shelf.usual_score(run, metric) + 1.5 * improved

    shelf.fill(tmp_path / "new", seeds=(0,), score=better)
    assert compare(a, a, capsys)[0] == 0
    code, printed = compare(a, tmp_path / "new", capsys)
    changed = [line for line in printed.splitlines() if line.startswith("changed:")]
    assert code == 1 and len(changed) == 2  # trained and frozen
    assert all("(+1.5 %), same run" in line and " random " in line for line in changed)
    code, printed = compare(a, b, capsys)
    assert code == 1 and "0 changed" in printed and "gone: " in printed and "new: " in printed


def test_compare_follows_a_run_whose_settings_changed(tmp_path, capsys):
    which = next(iter(shelf.fill(tmp_path / "a", seeds=(0,)).values())).run
    other = which.model_copy(update={"task_version": which.task_version + 1})
    for name, run in (("old", which), ("new", other)):
        (tmp_path / name).mkdir()
        record = shelf.record_of(run, lambda run, metric: float(run.task_version))
        (tmp_path / name / f"{run.id}.json").write_text(record.model_dump_json())
    _, printed = compare(tmp_path / "old", tmp_path / "new", capsys)
    assert f"1 -> 2 (+1 %), {which.id} -> {other.id}" in printed


# ------------------------------------------------------------------------------------- check


@pytest.fixture
def published(labs, tmp_path) -> Path:
    shutil.copytree(export(labs[0]) / "records", tmp_path / "published")
    return tmp_path / "published"


def check(folder: Path, capsys, *options: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["report", "--check", str(folder), *options])
    return code, capsys.readouterr().out


def first(folder: Path) -> Path:
    """A record of a transfer, which has something upstream."""
    for path in sorted(folder.glob("*.json")):
        if json.loads(path.read_text())["run"]["upstream"]:
            return path
    raise AssertionError(folder)


def edit(path: Path, *keys: str, value: object) -> None:
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))


def test_what_report_writes_can_be_published(published, capsys):
    code, printed = check(published, capsys)
    assert code == 0 and "no faults" in printed
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=published, capture_output=True)
    assert done.returncode == 0


FAULTS = {
    "score": (("outcome", "metrics", "miou", "value"), 99.0, "content"),
    "not finite": (("outcome", "metrics", "miou", "value"), "NaN", "outcome"),
    "seed": (("run", "seed"), 7, "identity"),
    "settings": (("provenance", "recipe_sha256"), "0" * 64, "identity"),
    "commit": (("provenance", "commit"), None, "provenance"),
    "packages": (("provenance", "packages"), {}, "provenance"),
    "started": (("provenance", "started"), "yesterday", "provenance"),
    "weights": (("provenance", "weights_sha256"), {}, "provenance"),
    "newer": (("schema_version",), 99, "schema"),
    "unknown field": (("surprise",), 1, "schema"),
    "failed without a reason": (("status",), "failed", "outcome"),
    "checkpoint": (("outcome", "checkpoint"), "backbone.safetensors", "outcome"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(published, capsys, name: str):
    keys, value, rule = FAULTS[name]
    path = first(published)
    edit(path, *keys, value=value)
    code, printed = check(published, capsys)
    assert code == 1
    assert any(line.startswith(f"{path.name}: {rule}: ") for line in printed.splitlines()), printed


def test_what_is_gone_renamed_or_not_listed_is_found(published, capsys):
    path = first(published)
    other = json.loads(path.read_text())["run"]["upstream"]["backbone"]["run_id"]
    (published / f"{other}.json").unlink()
    printed = check(published, capsys)[1]
    assert f"{other}.json: removed: SHA256SUMS lists it" in printed
    assert f"{path.name}: removed: the record of its backbone" in printed
    path.rename(published / "renamed.json")
    printed = check(published, capsys)[1]
    assert "renamed.json: name:" in printed and "renamed.json: content: SHA256SUMS does" in printed
    (published / "SHA256SUMS").unlink()
    assert "SHA256SUMS: removed: is not there" in check(published, capsys)[1]


def test_sources_that_were_changed_are_a_note(published, capsys):
    path = first(published)
    edit(path, "provenance", "dirty", value=True)
    (published / "SHA256SUMS").write_text("")
    assert f"{path.name}: note: made by sources that were changed" in check(published, capsys)[1]


def test_git_knows_what_was_there(published, capsys):
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=published, check=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "results")
    assert check(published, capsys, "--since", "HEAD")[0] == 0
    path = first(published)
    edit(path, "outcome", "metrics", "miou", "value", value=99.0)
    sums = published / "SHA256SUMS"
    sums.write_text(sums_of({one.name: one.read_bytes() for one in published.glob("*.json")}))
    assert check(published, capsys)[0] == 0  # the sums were forged, too
    code, printed = check(published, capsys, "--since", "HEAD")
    assert code == 1 and f"{path.name}: removed: miou was" in printed and "is 99.0" in printed
    path.unlink()
    sums.write_text(sums_of({one.name: one.read_bytes() for one in published.glob("*.json")}))
    assert (
        f"{path.name}: removed: was there in HEAD" in check(published, capsys, "--since", "HEAD")[1]
    )
    assert main(["report", "--check", str(published), "--since", "nowhere"]) == 2
    assert "git does not tell" in capsys.readouterr().err
