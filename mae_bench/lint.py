"""Whether a folder of records can be published: every file is whole, is what its name says, and
tells where its numbers come from; and nothing is gone.

`SHA256SUMS`, written beside exported records, says which files there were, and what was in them. In
a git repository the records of an earlier commit count, too.
"""

from __future__ import annotations

import hashlib
import math
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mae_bench.collection import record_files, same, scores_of
from mae_bench.errors import UserError
from mae_bench.records import Record, content_hash
from mae_bench.report.exported import SUMS


@dataclass(frozen=True)
class Fault:
    """Something that has to be put right before the folder is published; a note need not."""

    path: str
    rule: str
    what: str

    @property
    def is_note(self) -> bool:
        return self.rule == "note"

    def __str__(self) -> str:
        return f"{self.path}: {self.rule}: {self.what}"


def check(folder: Path, since: str | None = None) -> tuple[int, list[Fault]]:
    """Check a folder of records.

    Args:
        folder: with `<id>.json` files, or a folder `records` of them.
        since: a git revision; its records must still be there, with the same numbers.

    Returns:
        the number of records, and what is wrong.

    Raises:
        UserError: no folder, no records in it, or git does not know the revision.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give one with records")
    folder = folder / "records" if (folder / "records").is_dir() else folder
    paths = record_files(folder)
    if not paths and not (folder / SUMS).is_file():
        raise UserError(
            f"{folder} holds no records; `mae-bench report --format records` writes <id>.json files"
        )
    records: dict[str, Record] = {}
    faults: list[Fault] = []
    for path in paths:
        try:
            records[path.name] = Record.read(path)
        except UserError as error:
            faults.append(Fault(path.name, "schema", str(error)))
    for name, record in records.items():
        faults += [Fault(name, rule, what) for rule, what in _of_record(name, record, records)]
    faults += [*_against_sums(folder), *_against_history(folder, since, records)]
    return len(paths), faults


def _of_record(
    name: str, record: Record, records: Mapping[str, Record]
) -> Iterator[tuple[str, str]]:
    for rule, findings in RULES.items():
        for what in findings(record):
            yield rule, what
    if name != f"{record.id}.json":
        yield "name", f"holds the record of run {record.id}, so it must be called {record.id}.json"
    for role, weights in record.run.upstream.items():
        if weights.run_id is not None and f"{weights.run_id}.json" not in records:
            yield "removed", f"the record of its {role}, {weights.run_id}.json, is not there"


def _identity(record: Record) -> Iterator[str]:
    if record.run.id != record.id:
        yield f"the id of what it says was run is {record.run.id}, not {record.id}: it was edited"
    if content_hash(record.run.recipe_values) != record.provenance.recipe_sha256:
        yield "provenance.recipe_sha256 is not of run.recipe_values: the settings were edited"


def _outcome(record: Record) -> Iterator[str]:
    if record.status == "failed":
        if not record.error:
            yield "failed, without an error"
        return
    if record.outcome is None or not record.outcome.metrics:
        yield "status ok, without a metric"
        return
    for name, metric in record.outcome.metrics.items():
        if not math.isfinite(metric.value):
            yield f"{name} is {metric.value}"
    if record.outcome.checkpoint and not record.checkpoint_sha256:
        yield "left a checkpoint, and has no checkpoint_sha256"


def _provenance(record: Record) -> Iterator[str]:
    made = record.provenance
    if not made.commit:
        yield "no commit: the package was neither a checkout nor installed from one"
    for name in ("packages", "hardware", "command"):
        if not getattr(made, name):
            yield f"no {name}"
    if not (math.isfinite(made.seconds) and made.seconds >= 0):
        yield f"seconds is {made.seconds}"
    try:
        aware = datetime.fromisoformat(made.started).tzinfo is not None
    except ValueError:
        aware = False
    if not aware:
        yield f"started is {made.started!r}, no time in UTC"
    missing = sorted(set(record.run.upstream) - set(made.weights_sha256))
    if record.status == "ok" and missing:
        yield f"no weights_sha256 of what it started from: {', '.join(missing)}"


def _notes(record: Record) -> Iterator[str]:
    if record.provenance.dirty:
        yield f"made by sources that were changed since commit {record.provenance.commit}"


RULES: dict[str, Callable[[Record], Iterator[str]]] = {
    "identity": _identity,
    "outcome": _outcome,
    "provenance": _provenance,
    "note": _notes,
}


def _against_sums(folder: Path) -> Iterator[Fault]:
    path = folder / SUMS
    if not path.is_file():
        yield Fault(SUMS, "removed", "is not there: nobody can tell whether records are missing")
        return
    listed: dict[str, str] = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        digest, gap, name = line.partition("  ")
        if not gap or len(digest) != hashlib.sha256().digest_size * 2:
            yield Fault(SUMS, "schema", f"line {number} is not '<sha256>  <file>'")
        else:
            listed[name] = digest
    there = {one.name: one for one in record_files(folder)}
    for name in sorted(set(listed) - set(there)):
        yield Fault(name, "removed", f"{SUMS} lists it, and it is not there")
    for name, one in there.items():
        if name not in listed:
            yield Fault(name, "content", f"{SUMS} does not list it")
        elif hashlib.sha256(one.read_bytes()).hexdigest() != listed[name]:
            yield Fault(name, "content", f"is not the file that {SUMS} lists: it was edited")


def _against_history(
    folder: Path, since: str | None, records: Mapping[str, Record]
) -> Iterator[Fault]:
    if since is None:
        return
    for name in _git(folder, "ls-tree", "--name-only", f"{since}:./").decode().splitlines():
        if not name.endswith(".json") or name == "results.json":
            continue
        if name not in records:
            yield Fault(name, "removed", f"was there in {since}")
            continue
        try:
            old = Record.parse(_git(folder, "show", f"{since}:./{name}"), f"{since}:{name}")
        except UserError:
            continue  # it was no record then
        before = {score.metric: score.value for score in scores_of(old)}
        now = {score.metric: score.value for score in scores_of(records[name])}
        for metric, value in before.items():
            if metric not in now or not same(now[metric], value):
                found = now.get(metric, "nothing")
                yield Fault(name, "removed", f"{metric} was {value!r} in {since}, is {found!r}")


def _git(folder: Path, *arguments: str) -> bytes:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"").decode(errors="replace").strip().splitlines()
        reason = said[-1] if said else str(error)
        raise UserError(
            f"git does not tell what {folder} held ({reason}); give --since a revision of the "
            "repository that the folder is in, and fetch it first"
        ) from None
