"""What is in a run's id and what is not; strictness and migration of records."""

import gc
import json
import math

import pytest

from mae_bench.errors import UserError
from mae_bench.records import (
    MIGRATIONS,
    NO_EFFECT,
    SCHEMA_VERSION,
    Metric,
    Outcome,
    Provenance,
    Record,
    Run,
    Upstream,
    content_hash,
    read_records,
)

RUN = Run(
    task="detection",
    task_version=1,
    dataset="mini-coco",
    data_fingerprint="abc",
    backbone="vit_mini_patch8",
    init="mae-pixel",
    recipe="detection/mini",
    recipe_values={"solver": {"iterations": 3, "base_lr": 0.1}},
    upstream={"backbone": Upstream(run_id="123", checkpoint="/a", sha256="f0")},
    seed=0,
)
CHANGES = {
    "task": "segmentation",
    "task_version": 2,
    "dataset": "coco",
    "data_fingerprint": "abd",
    "backbone": "vit_base_patch16",
    "init": "random",
    "recipe_values": {"solver": {"iterations": 3, "base_lr": 0.2}},
    "upstream": {},
    "seed": 1,
}


def changed(**fields: object) -> Run:
    return Run.model_validate({**RUN.model_dump(), **fields})


def test_every_field_of_a_run_is_spoken_for() -> None:
    assert set(CHANGES) | {"recipe"} == set(Run.model_fields)


@pytest.mark.parametrize("field", CHANGES)
def test_id_covers(field: str) -> None:
    assert changed(**{field: CHANGES[field]}).id != RUN.id


@pytest.mark.parametrize("upstream", [{"run_id": "124"}, {"sha256": "f1"}])
def test_id_covers_upstream(upstream: dict[str, str]) -> None:
    weights = RUN.upstream["backbone"].model_copy(update=upstream)
    assert changed(upstream={"backbone": weights.model_dump()}).id != RUN.id
    assert changed(upstream={"tokenizer": RUN.upstream["backbone"].model_dump()}).id != RUN.id


def test_id_leaves_out_labels_and_paths() -> None:
    moved = RUN.upstream["backbone"].model_copy(update={"checkpoint": "/b"})
    assert changed(upstream={"backbone": moved.model_dump()}).id == RUN.id
    assert changed(recipe="detection/renamed").id == RUN.id


@pytest.mark.parametrize("key", sorted(NO_EFFECT))
def test_id_leaves_out_what_changes_no_number(key: str) -> None:
    solver = {"iterations": 3, "base_lr": 0.1}
    for value in (0, 4):
        assert changed(recipe_values={"solver": {**solver, key: value}}).id == RUN.id
    assert changed(recipe_values={"solver": {**solver, f"{key}_x": 0}}).id != RUN.id


def test_id_ignores_the_order_of_keys_and_survives_json() -> None:
    assert changed(recipe_values={"solver": {"base_lr": 0.1, "iterations": 3}}).id == RUN.id
    assert Run.model_validate_json(RUN.model_dump_json()).id == RUN.id
    assert len(RUN.id) == 12 and int(RUN.id, 16) >= 0


def make_record(**fields: object) -> Record:
    provenance = Provenance(
        started="2020-01-01T00:00:00+00:00",
        seconds=1.5,
        peak_memory_mb=math.nan,
        commit=None,
        dirty=None,
        packages={},
        hardware={},
        recipe_sha256="00",
    )
    outcome = Outcome(metrics={"box_ap": Metric(value=1 / 3, unit="AP")})
    parts = {"id": RUN.id, "run": RUN, "status": "ok", "outcome": outcome}
    return Record.model_validate({**parts, "provenance": provenance, **fields})


def test_record_round_trip_is_exact(tmp_path) -> None:
    path = tmp_path / "record.json"
    path.write_text(make_record().model_dump_json())
    found = Record.read(path)
    assert found.outcome is not None
    assert found.outcome.metrics["box_ap"].value == 1 / 3
    assert math.isnan(found.provenance.peak_memory_mb)
    assert found.run == RUN


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda raw: raw.update(schema_version=0), "schema version 0"),
        (lambda raw: raw.update(schema_version=99, new=1), "schema version 99, .* reads 1 to"),
        (lambda raw: raw.update(schema_version="2"), "schema version '2'"),
        (lambda raw: raw.update(schema_version=True), "schema version True"),
        (lambda raw: raw.pop("schema_version"), "schema version None"),
        (lambda raw: raw.update(extra=1), "not a valid record"),
        (lambda raw: raw.pop("provenance"), "not a valid record"),
        (lambda raw: raw["run"].update(seed="x"), "not a valid record"),
    ],
)
def test_record_that_does_not_fit_is_refused(tmp_path, spoil, message) -> None:
    raw = json.loads(make_record().model_dump_json())
    spoil(raw)
    path = tmp_path / "record.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=message):
        Record.read(path)


def test_torn_record_is_refused(tmp_path) -> None:
    path = tmp_path / "record.json"
    path.write_text(make_record().model_dump_json()[:-40])
    with pytest.raises(UserError, match="not a readable record"):
        Record.read(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\x00", b"null", b'"x"'])
def test_what_is_no_record_is_refused_and_left(tmp_path, content) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"not a readable record.*Delete the run's folder"):
        Record.read(path)
    assert path.read_bytes() == content


VERSION_1 = """{"schema_version": 1, "id": "ID", "status": "ok", "error": null,
 "run": {"task": "detection", "task_version": 1, "dataset": "mini-coco", "data_fingerprint": "abc",
  "backbone": "vit_mini_patch8", "init": "mine", "recipe": "detection/mini",
  "recipe_values": {"solver": {"iterations": 3, "base_lr": 0.1}},
  "upstream": {"backbone": {"run_id": null, "checkpoint": "/a", "sha256": "f0"},
               "tokenizer": {"run_id": "123", "checkpoint": null, "sha256": null}}, "seed": 0},
 "outcome": {"metrics": {"box_ap": {"value": 20.125, "unit": "AP", "higher_is_better": true}},
  "checkpoint": null, "pictures": [], "images_per_second": 24.5, "facts": {}},
 "checkpoint_sha256": null,
 "provenance": {"started": "2025-01-31T12:00:00+00:00", "seconds": 61.25, "peak_memory_mb": "NaN",
  "commit": "0123", "dirty": false, "packages": {}, "hardware": {}, "world_size": 1,
  "command": "mae-bench reproduce table4"}}"""


def test_a_record_of_version_1_is_migrated(tmp_path) -> None:
    path = tmp_path / "record.json"
    path.write_text(VERSION_1)
    found = Record.read(path)
    made = found.provenance
    assert found.schema_version == SCHEMA_VERSION
    assert found.outcome is not None and found.outcome.metrics["box_ap"].value == 20.125
    assert made.phases == {"other": made.seconds} and made.energy_joules is None
    assert made.recipe_sha256 == content_hash(found.run.recipe_values)
    assert made.weights_sha256 == {"backbone": "f0"}
    assert path.read_text() == VERSION_1
    path.write_text(found.model_dump_json())
    again = Record.read(path)
    assert math.isnan(again.provenance.peak_memory_mb)
    assert again.model_dump_json() == found.model_dump_json()


def test_a_spoilt_record_of_version_1_is_refused(tmp_path) -> None:
    path = tmp_path / "record.json"
    for spoil in ("run", "provenance", "outcome"):
        raw = json.loads(VERSION_1)
        raw[spoil] = []
        path.write_text(json.dumps(raw))
        with pytest.raises(UserError, match="not a valid record"):
            Record.read(path)


def test_every_version_has_its_migration() -> None:
    assert list(MIGRATIONS) == list(range(min(MIGRATIONS), SCHEMA_VERSION + 1))


def test_many_records_are_read_and_the_collector_comes_back(tmp_path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(make_record().model_dump_json())
    bad.write_text("")
    assert read_records([good])[good].run == RUN
    with pytest.raises(UserError, match=r"bad\.json"):
        read_records([good, bad])
    assert gc.isenabled()
