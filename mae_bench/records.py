"""Runs, records, references and tables: what is asked for, what came out, what the paper says.

Frozen pydantic models that refuse unknown fields; readable without torch. Tables are derived from
records, never typed.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mae_bench.errors import UserError

SCHEMA_VERSION = 2
Scale = Literal["mini", "paper"]
Scalar = bool | int | float | str | None


class Strict(BaseModel):
    """Base of all records: immutable, no unknown fields, NaN and infinity kept readable."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


def content_hash(content: object) -> str:
    """Return the SHA-256 of plain values: equal values have equal hashes, whatever their order."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Upstream(Strict):
    """Weights that a run starts from: another run, or a checkpoint file (by content)."""

    run_id: str | None = None
    checkpoint: str | None = Field(default=None, description="path as given; not part of the id")
    sha256: str | None = Field(default=None, description="of the checkpoint file")
    format: str | None = Field(default=None, description="of the file, where the user gave it")


# Recipe keys that change how fast a run goes, how often it saves or scores itself on the way, and
# what it is compared with, and no number: the order of samples and all that is random are functions
# of seed and position.
NO_EFFECT = frozenset({"num_workers", "prefetch", "save_every", "validate_every", "reference"})


class Run(Strict):
    """One training and its score: everything that can change its number, and nothing else.

    `recipe_values` is the resolved recipe (overrides applied), so two spellings of the same
    settings are the same run. `init` says where the weights come from in a transfer run, and what
    is being made in a pretraining run.
    """

    task: str
    task_version: int
    dataset: str
    data_fingerprint: str
    backbone: str
    init: str
    recipe: str = Field(description="path below configs/, without .py; a label, not in the id")
    recipe_values: dict[str, object]
    upstream: dict[str, Upstream] = Field(default_factory=dict, description="role -> weights")
    seed: int

    @property
    def id(self) -> str:
        """First 12 hex digits of a SHA-256 over the content, without labels, paths, `NO_EFFECT`."""
        content = self.model_dump(mode="json", exclude={"recipe"})
        content["recipe_values"] = _effective(content["recipe_values"])
        for weights in content["upstream"].values():
            weights.pop("checkpoint")
            if weights["format"] is None:  # detected from the content
                weights.pop("format")
        return content_hash(content)[:12]

    @property
    def label(self) -> str:
        """A short human name: task, dataset, init, recipe's last part, seed."""
        what = self.recipe.rpartition("/")[2]
        return f"{self.task} {self.dataset} {self.init} [{what}] seed {self.seed}"


def _effective(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _effective(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in NO_EFFECT
    }


class Metric(Strict):
    """One score at full precision. `unit` is "%", "AP", "mIoU", "s", ..."""

    value: float
    unit: str
    higher_is_better: bool = True


class Picture(Strict):
    """A figure that a run left behind; `path` is relative to the run's folder."""

    path: str
    caption: str


class Outcome(Strict):
    """What a task hands back: its scores and its artefacts (paths relative to the run folder)."""

    metrics: dict[str, Metric]
    checkpoint: str | None = None
    pictures: tuple[Picture, ...] = ()
    images_per_second: float | None = Field(default=None, description="in training")
    data_time_share: float | None = Field(
        default=None, description="of the training time, waiting for data; 0 to 1"
    )
    facts: dict[str, object] = Field(
        default_factory=dict, description="load report, parameter groups' file, counts, budget"
    )


class Provenance(Strict):
    """Where a number was made, and what it took; see docs/records.md."""

    started: str = Field(description="UTC, ISO 8601; of the last attempt")
    seconds: float = Field(description="interrupted attempts included")
    phases: dict[str, float] = Field(
        default_factory=dict, description="phase -> seconds; together `seconds`"
    )
    peak_memory_mb: float = Field(description="resident, of the run's process")
    peak_gpu_memory_mb: float | None = Field(default=None, description="allocated by torch")
    energy_joules: float | None = Field(
        default=None, description="of the GPU meanwhile; None if it does not tell"
    )
    commit: str | None = Field(description="of this package's checkout")
    dirty: bool | None = Field(description="whether its sources were changed since")
    packages: dict[str, str]
    hardware: dict[str, str]
    world_size: int = 1
    command: str = ""
    recipe_sha256: str = Field(description="of the resolved recipe")
    weights_sha256: dict[str, str] = Field(
        default_factory=dict, description="role -> file that the run started from"
    )
    not_deterministic: tuple[str, ...] = Field(
        default=(), description="what may differ when the run is repeated on this machine"
    )


class Record(Strict):
    """The JSON that a finished run leaves in `record.json`."""

    schema_version: int = Field(default=SCHEMA_VERSION, strict=True)
    id: str
    run: Run
    status: Literal["ok", "failed"]
    error: str | None = None
    outcome: Outcome | None = None
    checkpoint_sha256: str | None = None
    provenance: Provenance

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read and check a record, also one that an older mae-bench wrote.

        Raises:
            UserError: not JSON, a newer schema version, or fields that do not fit.
        """
        return cls.parse(path.read_bytes(), path)

    @classmethod
    def parse(cls, data: bytes, path: Path | str) -> Record:
        """Read and check what a record's file holds; `path` is for messages. See `read`."""
        try:
            record = cls.model_validate_json(data)
        except ValidationError:
            return cls._read_older(path, data)
        said = "schema_version" in record.model_fields_set
        present = said and record.schema_version == SCHEMA_VERSION
        return record if present else cls._read_older(path, data)

    @classmethod
    def _read_older(cls, path: Path | str, data: bytes) -> Record:
        """Bring a record of an older schema version up to date, or say what is wrong with it."""
        try:
            raw = json.loads(data)
            version = raw.get("schema_version")
        except (ValueError, AttributeError) as error:
            raise UserError(
                f"{path} is not a readable record ({error}). Delete the run's folder to repeat it."
            ) from None
        if not is_readable(version):
            raise UserError(
                f"{path} has schema version {version!r}, this mae-bench reads {READABLE}. "
                "Use another --work-dir, or the mae-bench that wrote it."
            )
        try:
            return cls.model_validate(migrate(raw))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            lines = str(error).splitlines()
            reason = " ".join(lines[1:3]) or repr(error)
            raise UserError(
                f"{path} is not a valid record: {reason}. Delete the run's folder to repeat it."
            ) from None


def read_records(paths: Iterable[Path]) -> dict[Path, Record]:
    """Read many records; see `Record.read`.

    Python's garbage collector would look through all that was read so far again and again, in
    vain since records hold no cycles: it takes three quarters of the time for 10,000 records.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return {path: Record.read(path) for path in paths}
    finally:
        if collecting:
            gc.enable()


def _to_2(raw: dict[str, Any]) -> None:
    """Version 2 knows what the run was made from and where the time went."""
    run, made = raw["run"], raw["provenance"]
    made["recipe_sha256"] = content_hash(run["recipe_values"])
    files = {role: weights["sha256"] for role, weights in run["upstream"].items()}
    made["weights_sha256"] = {role: digest for role, digest in files.items() if digest}
    made["phases"] = {"other": made["seconds"]}


# Version -> what makes a record of the version before it into one of it, in place.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], None]] = {2: _to_2}
READABLE = f"{min(MIGRATIONS) - 1} to {SCHEMA_VERSION}"


def is_readable(version: object) -> bool:
    """Whether records of this schema version can be read."""
    return type(version) is int and min(MIGRATIONS) - 1 <= version <= SCHEMA_VERSION


def migrate(raw: dict[str, Any]) -> dict[str, Any]:
    """Bring the JSON of a record to the present schema version, in place."""
    for version in range(raw["schema_version"] + 1, SCHEMA_VERSION + 1):
        MIGRATIONS[version](raw)
        raw["schema_version"] = version
    return raw


class Reference(Strict):
    """One published number (a line of `configs/tables/paper_results.json`)."""

    source: str
    table: str
    method: str
    backbone: str
    task: str
    dataset: str
    metric: str
    value: float | None
    unit: str
    note: str = ""
    confidence: str = ""
    evidence: str | None = None
    ablation: dict[str, Scalar] | None = None
    default: bool | None = None
    ema: bool | None = None
    rerun_of: str | None = Field(default=None, description="table whose number this is a re-run of")


class Setting(Strict):
    """How a column is measured at one scale."""

    dataset: str
    backbones: tuple[str, ...]
    recipe: str = Field(description="path below configs/, without .py")
    overrides: dict[str, Any] = Field(
        default={},
        description="recipe key -> value, where columns differ in a setting only; or -> {glob over "
        "init or backbone: value}, where the first that matches counts",
    )


class Published(Strict):
    """Which published numbers stand beside a column: every field given must match a Reference."""

    table: str
    task: str | None = None
    dataset: str
    metric: str


class Row(Strict):
    """One line of a table: an init, under the paper's name for it."""

    init: str
    title: str
    ablation: dict[str, Scalar] | None = Field(
        default=None, description="what a Reference's must be, where the paper varies more"
    )
    x: float | None = Field(default=None, description="place on the axis of a table with `x_title`")


class Column(Strict):
    """One number per row: a task's metric on a dataset under a recipe.

    Columns with the same settings share their runs (box and mask AP come from one training).
    """

    title: str
    group: str = Field(description="heading over neighbouring columns, e.g. the dataset")
    task: str
    metric: str
    scales: dict[Scale, Setting]
    published: Published | None = None
    ablation: dict[str, Scalar] | None = Field(
        default=None, description="as in Row, where the paper varies the setting of a column"
    )
    x: float | None = Field(default=None, description="as in Row, where columns are the points")


class Table(Strict):
    """A named grid of runs with the paper's value for each cell. One file in configs/tables/.

    One that is a figure in the paper has an `x_title`, and an `x` for every row (or every column):
    reports draw it as curves, too.
    """

    name: str
    title: str
    source: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    note: str = ""
    x_title: str | None = None
