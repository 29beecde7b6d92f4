"""Ten thousand records in all forms, and two hundred runs with pictures: within seconds."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import made_up
import pytest
import worlds
from made_up import record, world
from PIL import Image

from mae_bench.aggregate import aggregate
from mae_bench.records import Outcome, Picture, Record, Row
from mae_bench.report import write_report

SECONDS_OF_10_000, SECONDS_OF_200, BYTES = 10.0, 3.0, 1 << 30


def large_world(inits: int, seeds: int) -> tuple[list, dict[str, Record]]:
    """The transfer tables with that many methods; returns results and records."""
    rows = tuple(Row(init=f"method-{index}", title=f"method {index}") for index in range(inits))
    tables = [table.model_copy(update={"rows": rows}) for table in made_up.tables()]
    cells, records = world(
        tables, range(seeds), lambda init, metric, seed: hash((init, metric)) % 50 + seed / 10
    )
    started = time.process_time()
    results = aggregate(tables, "mini", cells, records, {})
    print(json.dumps({"records": len(records), "aggregate": time.process_time() - started}))
    return results, records


def measure(folder: Path) -> None:
    """Write all forms of ten thousand records; prints processor seconds and peak memory."""
    results, records = large_world(inits=480, seeds=3)
    started = time.process_time()
    write_report(results, records, folder, work_dir=folder)
    seconds = time.process_time() - started
    print(json.dumps({"write": seconds, "bytes": peak_bytes()}))


def peak_bytes() -> int:
    """Of this program; `getrusage` would count the process that started it as well."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.slow
def test_ten_thousand_records_take_less_than_10_s_and_1_gb(tmp_path: Path):
    """In a process of its own, whose memory is that of the report alone."""
    code = "import sys, test_report_speed; test_report_speed.measure(sys.argv[1])"
    code = code.replace("sys.argv[1]", "__import__('pathlib').Path(sys.argv[1])")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["records"] >= 10_000
    assert first["aggregate"] + second["write"] < SECONDS_OF_10_000
    assert second["bytes"] < BYTES


@pytest.mark.slow
def test_two_hundred_runs_with_pictures_take_less_than_3_s_the_second_time(tmp_path: Path):
    tables = made_up.tables()
    cells, records = world(tables, range(8), worlds.score, imported=("moco-v3", "beit"))
    assert len(records) >= 200
    for index, (run_id, found) in enumerate(records.items()):
        own = tmp_path / "runs" / run_id
        own.mkdir(parents=True)
        if found.run.seed == 0:  # the others' are not shown
            Image.effect_noise((500 + index, 300), 60).save(own / "p.png")
        lines = [json.dumps({"step": step, "loss": 1 / (step + 1)}) for step in range(500)]
        (own / "metrics.jsonl").write_text("\n".join(lines))
        outcome = found.outcome.model_dump() | {"pictures": (Picture(path="p.png", caption="p"),)}
        records[run_id] = record(found.run, outcome=Outcome.model_validate(outcome))
    results = aggregate(tables, "mini", cells, records, {})
    seconds = []
    for _ in range(2):
        started = time.process_time()
        write_report(results, records, tmp_path / "report", work_dir=tmp_path)
        seconds.append(time.process_time() - started)
    assert seconds[1] < SECONDS_OF_200, seconds
