"""What the page shows of each run, as data: the page's script builds the view when it is opened.

Rendered as HTML, two hundred runs weigh more than the tables and pictures together, and ten
thousand could not be opened at all. As JSON, compressed, they are a few bytes a run.
"""

from __future__ import annotations

import base64
import csv
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from mae_bench.protocol import budget
from mae_bench.recipes import settings
from mae_bench.records import Record
from mae_bench.report import curves, wording

# Reading the learning curves of more runs would take longer than anything else.
MOST_CURVES = 1000
LONGEST_FACTS = 6000
# How JSON writes control characters, but for the end of a line and the tab.
CONTROL = re.compile(r"\\[bfru]")
_as_text = json.JSONEncoder(ensure_ascii=False).encode
_as_data = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def pack(views: Iterable[Mapping[str, Any]]) -> str:
    """Return the views as deflated JSON in base64, for `DecompressionStream` in the browser.

    What a page must not show, control characters and NaN, is replaced.
    """
    text = f"[{','.join(map(_packed, views))}]"
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return base64.b64encode(packer.compress(text.encode()) + packer.flush()).decode()


def unpack(text: str) -> list[dict[str, Any]]:
    """The inverse of `pack`, for whoever reads a page with a program."""
    found: list[dict[str, Any]] = json.loads(
        zlib.decompress(base64.b64decode(text), -zlib.MAX_WBITS)
    )
    return found


def views(
    records: Iterable[Record], folder: Path, pictures: Mapping[str, list[str]]
) -> Iterator[dict[str, Any]]:
    """Yield one view per run, of plain values.

    Args:
        folder: holds a folder per run id.
        pictures: run id -> keys of its pictures in the page.
    """
    for index, record in enumerate(records):
        own = folder / record.id if index < MOST_CURVES else None
        view = {**_what(record), **_outcome(record), **_made(record), **_files(record, own)}
        yield {**view, "pictures": pictures.get(record.id, [])}


def _what(record: Record) -> dict[str, Any]:
    run = record.run
    return {
        "id": record.id,
        "task": run.task,
        "dataset": run.dataset,
        "backbone": run.backbone,
        "init": run.init,
        "recipe": run.recipe,
        "seed": run.seed,
        "status": record.status,
        "error": record.error or "",
        "budget": budget(run.recipe_values),
        "settings": _settings(_as_text(run.recipe_values)),
        "from": [
            [role, weights.run_id or "", weights.checkpoint or "", weights.sha256 or ""]
            for role, weights in run.upstream.items()
        ],
    }


def _outcome(record: Record) -> dict[str, Any]:
    outcome = record.outcome
    if outcome is None:
        return {"metrics": [], "facts": ""}
    facts = json.dumps(outcome.facts, indent=1, ensure_ascii=False, default=str)
    if len(facts) > LONGEST_FACTS:
        facts = f"{facts[:LONGEST_FACTS]}\n... the rest is in record.json"
    return {
        "metrics": [
            [name, metric.value, metric.unit, metric.higher_is_better]
            for name, metric in outcome.metrics.items()
        ],
        "facts": facts if outcome.facts else "",
    }


def _made(record: Record) -> dict[str, Any]:
    """Cost and provenance as label and text."""
    made, outcome = record.provenance, record.outcome
    speed = outcome.images_per_second if outcome else None
    waiting = outcome.data_time_share if outcome else None
    cost = {
        "wall time": f"{duration(made.seconds)} ({made.seconds:.1f} s)",
        **{f"of it {name}": duration(seconds) for name, seconds in made.phases.items()},
        "images/s in training": None if speed is None else f"{speed:.1f}",
        "waiting for data": None if waiting is None else f"{waiting:.0%} of the training time",
        "peak memory": f"{made.peak_memory_mb:.0f} MB",
        "peak GPU memory": made.peak_gpu_memory_mb and f"{made.peak_gpu_memory_mb:.0f} MB",
        "energy": made.energy_joules and f"{made.energy_joules / 3.6e6:.3f} kWh",
        "processes": str(made.world_size),
    }
    changed = " (with uncommitted changes)" if made.dirty else ""
    origin = {
        "started": made.started,
        "commit": f"{made.commit or 'unknown'}{changed}",
        "data": f"{record.run.dataset} ({record.run.data_fingerprint})",
        "recipe SHA-256": made.recipe_sha256,
        "checkpoint SHA-256": record.checkpoint_sha256,
        "not deterministic": "; ".join(made.not_deterministic),
        **made.hardware,
        **made.packages,
        "command": made.command,
    }
    return {
        "seconds": duration(made.seconds),
        "cost": [[name, text] for name, text in cost.items() if text],
        "origin": [[name, text] for name, text in origin.items() if text],
    }


def _files(record: Record, folder: Path | None) -> dict[str, Any]:
    """What lies in the run's folder: curves, load report, parameter groups."""
    if folder is None:
        return {"curves": [], "load": [], "groups": []}
    points = curves.metrics_lines(folder / "metrics.jsonl")
    found = [curves.curve(points), curves.validation_curve(record)]
    return {
        "curves": [asdict(one) for one in found if one],
        "load": list(_load_report(folder / "load_report.json")),
        "groups": _groups(folder / "parameters.csv"),
    }


@lru_cache(maxsize=1024)
def _settings(values: str) -> list[tuple[str, str]]:
    """Every setting of a recipe in JSON, which all seeds have in common, as `--set` takes it."""
    return [(key, _as_text(value)) for key, value in settings(json.loads(values))]


def _load_report(path: Path) -> Iterator[tuple[str, str]]:
    """Section and what is in it: numbers of keys, and their names where there are few."""
    try:
        report = json.loads(_text(path) or "{}")
    except ValueError:
        report = {}
    for name, value in flat_sections(report):
        if isinstance(value, list | dict):
            pairs = value.items() if isinstance(value, dict) else ()
            names = ", ".join([f"{key}: {one}" for key, one in pairs] or map(str, value))
            yield name, f"{len(value)} keys" + (f": {names}" if 0 < len(names) <= 400 else "")
        else:
            yield name, str(value)


def flat_sections(report: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A report's sections; one that holds sections itself is opened."""
    for name, value in report.items() if isinstance(report, dict) else ():
        if isinstance(value, dict) and any(isinstance(one, list | dict) for one in value.values()):
            yield from flat_sections(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _groups(path: Path) -> list[list[str]]:
    """Layer, lr scale, weight decay and number of tensors of each parameter group."""
    rows = csv.DictReader(_text(path).splitlines())
    fields = ("layer", "lr_scale", "weight_decay")
    counts = Counter(tuple(row.get(name) or "" for name in fields) for row in rows)
    return [[*group, str(number)] for group, number in counts.items()]


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def duration(seconds: float) -> str:
    """ "41 s", "3 min 20 s", "2 h 5 min"; "unknown" for what is no time."""
    if not math.isfinite(seconds):
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _packed(view: Mapping[str, Any]) -> str:
    """A view as JSON; few have anything to clean, and what to look for shows in the whole text."""
    try:
        text = _as_data(view)
    except ValueError:  # NaN or infinite
        text = ""
    clean = text.isprintable() and not CONTROL.search(text)
    return text if text and clean else _as_data(_clean(view))


def _clean(value: Any) -> Any:
    """Plain JSON: no control characters, no NaN."""
    if type(value) is str:
        return value if value.isprintable() else wording.printable(value)
    if type(value) is float:
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {wording.printable(str(key)): _clean(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(one) for one in value]
    return value
