"""Tables -> the graph of runs they need: pretraining first, each run once. Imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from backbones.formats import FORMATS
from backbones.signatures import kind_of
from mae_bench.errors import UserError, unknown
from mae_bench.hashing import known_sha256
from mae_bench.protocol import pick
from mae_bench.recipes import CONFIGS, load_recipe, recipe_keys
from mae_bench.records import Row, Run, Scale, Setting, Table, Upstream
from mae_bench.selection import Cell, CellKey, at_scale, cells_of, lacks, note_changes, select
from mae_bench.sharing import first_alike
from tasks import TASK_VERSIONS, TASKS, WITHOUT_WEIGHTS, data
from tasks.data.extent import Extent, extent
from tasks.pretraining import INITS, PRETRAINING_DATASET, TOKENIZER, Init

TABLES = tuple(
    sorted(path.stem.replace("_", "-") for path in (CONFIGS / "tables").glob("[a-z]*.py"))
)
# Files that are no init of a transfer and get no row: the tokenizer, and what MAE continues from.
TOKENIZER_INIT, START_INIT = "tokenizer", "start"
GROUPS = {
    "transfer": ("table4", "table5", "table6", "table7"),
    "table1": tuple(name for name in TABLES if name.startswith("table1") and name[-1].isalpha()),
    "all": TABLES,
}


class CellPlan(NamedTuple):
    """The run that fills a cell, or the reason why this scale cannot have it."""

    run_id: str | None
    reason: str | None = None


@dataclass(frozen=True)
class PlannedRun:
    """A run and the ids of the runs that must have finished before it."""

    run: Run
    dependencies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        tables: with the rows of `--init` added.
        runs: every run needed, dependencies before what needs them.
        cells: what each run is for; runs that only prepare others have none.
        asked: ids of the runs that were asked for by themselves.
        absent_tables: table -> why it is left out.
        absent_data: dataset -> what is wrong with it; the ids of its runs are not final yet, and
            nothing can be trained before it is there.
        extent: dataset -> how much there is to train on; None where it cannot be read.
    """

    scale: Scale
    runs: tuple[PlannedRun, ...]
    tables: tuple[Table, ...] = ()
    cells: Mapping[CellKey, CellPlan] = field(default_factory=dict)
    asked: tuple[str, ...] = ()
    absent_tables: Mapping[str, str] = field(default_factory=dict)
    absent_data: Mapping[str, str] = field(default_factory=dict)
    extent: Callable[[str], Extent | None] = field(default=lambda dataset: None, compare=False)

    def check_data(self) -> None:
        """Refuse to go on without the data.

        Raises:
            UserError: with what each dataset lacks.
        """
        if self.absent_data:
            raise UserError("; ".join(self.absent_data.values()))


def load_tables(names: Iterable[str]) -> list[Table]:
    """Return the tables of these names (of tables or groups of tables), each once.

    Raises:
        UserError: unknown name.
    """
    wanted: dict[str, None] = {}
    for name in names:
        if name not in TABLES and name not in GROUPS:
            raise unknown("table", name, {*TABLES, *GROUPS})
        wanted.update(dict.fromkeys(GROUPS.get(name, (name,))))
    modules = (f"configs.tables.{name.replace('-', '_')}" for name in wanted)
    return [importlib.import_module(module).TABLE for module in modules]


def check_scale(name: str) -> Scale:
    """Return the scale of this name.

    Raises:
        UserError: unknown name.
    """
    if name not in get_args(Scale):
        raise unknown("scale", name, get_args(Scale))
    return cast(Scale, name)


def make_plan(
    tables: Sequence[Table],
    scale: Scale,
    seeds: Sequence[int],
    data_root: Path,
    only: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    smoke: bool = False,
    inits: Mapping[str, Path] | None = None,
    formats: Mapping[str, str] | None = None,
) -> Plan:
    """Return the graph of runs behind these tables.

    Args:
        only: filters, see `selection.select`. What an asked-for run needs upstream stays in.
        overrides: recipe key -> value, for every recipe that has the key; "TASK:key" for one task.
        inits: init -> checkpoint file, instead of a pretraining; a name that no table has is a
            new row in each.

    Raises:
        UserError: all tables lack the scale, nothing passes `only`, an override fits no recipe.
    """
    planner = Planner(scale, data_root, overrides or {}, smoke, inits or {}, formats)
    absent = {table.name: reason for table in tables if (reason := lacks(table, scale))}
    if len(absent) == len(tables):
        raise UserError("; ".join(absent.values()))
    there = [at_scale(table, scale) for table in tables if table.name not in absent]
    tables = _add_rows(there, planner.inits)
    asked = select([cell for table in tables for cell in cells_of(table, scale, seeds)], only)
    cells = {cell.key: planner.cell(cell) for cell in asked}
    noted = tuple(note_changes(table, overrides or {}, smoke) for table in tables)
    return planner.plan(tables=noted, cells=cells, absent_tables=absent)


def plan_transfer(planner: Planner, task: str, setting: Setting, init: str, seed: int) -> Plan:
    """Return the plan of one transfer run and what it needs.

    Raises:
        UserError: the init cannot be had at this scale.
    """
    reason = planner.missing(init)
    if reason:
        raise UserError(f"init {init!r}: {reason}")
    run_id = planner.transfer(task, setting, init, setting.backbones[0], seed)
    return planner.plan(asked=(run_id,))


def plan_pretraining(
    planner: Planner, init: str, backbone: str, seed: int, dataset: str | None = None
) -> Plan:
    """Return the plan of one pretraining and what it needs.

    Args:
        init: one of `INITS`, or "tokenizer" for a tokenizer alone.
        dataset: what to pretrain on; None for the scale's own.

    Raises:
        UserError: the init is not made by a pretraining of this scale.
    """
    if dataset is not None:
        planner.pretraining_dataset = dataset
    if init == TOKENIZER_INIT:
        made = planner.tokenizer(backbone, seed)
    elif reason := planner.missing(init):
        raise UserError(f"init {init!r}: {reason}")
    else:
        made = planner.weights(init, backbone, seed).get("backbone", Upstream())
    if made.run_id is None:
        raise UserError(f"init {init!r} is not trained; `transfer` uses it as it is")
    run_id = made.run_id
    return planner.plan(asked=(run_id,))


def _add_rows(tables: Sequence[Table], inits: Iterable[str]) -> list[Table]:
    known = {TOKENIZER_INIT, START_INIT} | {row.init for table in tables for row in table.rows}
    new = tuple(Row(init=name, title=name) for name in inits if name not in known)
    return [table.model_copy(update={"rows": table.rows + new}) for table in tables]


class Planner:
    """Collects runs, each once, with what they need.

    Args:
        inits: init -> checkpoint file.
        formats: init -> format of that file (`backbones.formats`), where it is not to be detected.

    Raises:
        UserError: a checkpoint file that is not there.
    """

    def __init__(
        self,
        scale: Scale,
        data_root: Path,
        overrides: Mapping[str, Any],
        smoke: bool,
        inits: Mapping[str, Path],
        formats: Mapping[str, str] | None = None,
    ):
        self.scale = scale
        self.pretraining_dataset = PRETRAINING_DATASET[scale]
        self.runs: dict[str, PlannedRun] = {}
        self.inits = {
            name: _read_checkpoint(name, path, (formats or {}).get(name))
            for name, path in inits.items()
        }
        self._data_root = data_root
        self._smoke = smoke
        self._overrides = dict(overrides)
        self._unused = dict(overrides)
        self._known_keys: set[str] = set()
        self._fingerprints: dict[str, str] = {}
        self._absent_data: dict[str, str] = {}
        for key in overrides:
            task, colon, _ = key.rpartition(":")
            if colon and task not in TASKS:
                raise unknown("task in --set", task, TASKS)

    def plan(self, **parts: Any) -> Plan:
        """Return the plan of what was collected; `parts` are further fields of `Plan`.

        Raises:
            UserError: an override fits no recipe.
        """
        self._check_overrides()
        runs, absent = tuple(self.runs.values()), dict(self._absent_data)
        known = lru_cache(partial(extent, data_root=self._data_root))
        return Plan(self.scale, runs, absent_data=absent, extent=known, **parts)

    def cell(self, cell: Cell) -> CellPlan:
        """Plan what fills a cell."""
        reason = self.missing(cell.key.init)
        if reason:
            return CellPlan(None, reason)
        key = cell.key
        task = cell.column.task
        return CellPlan(self.transfer(task, cell.setting, key.init, key.backbone, key.seed))

    def missing(self, name: str) -> str | None:
        """Return why this scale cannot have an init, None if it can.

        Raises:
            UserError: unknown init.
        """
        if name in self.inits:
            return None
        if name not in INITS:
            raise unknown("init", name, {*INITS, *self.inits})
        init = INITS[name]
        if init.imported:
            return f"only imported: give --init {name}=FILE"
        if init.task and self.scale not in init.recipe:
            return f"no {self.scale} recipe to pretrain it: give --init {name}=FILE"
        return None

    def transfer(self, task: str, setting: Setting, init: str, backbone: str, seed: int) -> str:
        """Add one transfer run and what it needs; returns its id."""
        weightless = task in WITHOUT_WEIGHTS
        if not weightless:
            init = first_alike(init, self.scale, backbone, self.inits, self._overrides)
        return self._add(
            task=task,
            dataset=setting.dataset,
            backbone=backbone,
            init=init,
            recipe=setting.recipe,
            upstream={} if weightless else self.weights(init, backbone, seed),
            seed=seed,
            fixed=INITS[init].overrides if weightless else None,
            setting=setting.overrides,
        )

    def weights(self, init: str, backbone: str, seed: int) -> dict[str, Upstream]:
        """Return where a transfer run's backbone comes from, adding its pretraining."""
        if init in self.inits:
            return {"backbone": self.inits[init]}
        made = INITS[init]
        if made.task is None:
            return {}
        upstream = {}
        if made.needs_tokenizer:
            upstream["tokenizer"] = self.tokenizer(backbone, seed)
        if made.task == "pretraining" and START_INIT in self.inits:
            upstream["start"] = self.inits[START_INIT]
        return {"backbone": Upstream(run_id=self._pretrain(init, made, backbone, seed, upstream))}

    def tokenizer(self, backbone: str, seed: int) -> Upstream:
        """Return where the tokenizer comes from, adding its training."""
        if TOKENIZER_INIT in self.inits:
            return self.inits[TOKENIZER_INIT]
        return Upstream(run_id=self._pretrain(TOKENIZER_INIT, TOKENIZER, backbone, seed, {}))

    def _pretrain(
        self, name: str, init: Init, backbone: str, seed: int, upstream: dict[str, Upstream]
    ) -> str:
        assert init.task is not None
        return self._add(
            task=init.task,
            dataset=self.pretraining_dataset,
            backbone=backbone,
            init=name,
            recipe=init.recipe[self.scale],
            upstream=upstream,
            seed=seed,
            fixed=init.overrides,
        )

    def _add(
        self,
        *,
        task: str,
        dataset: str,
        backbone: str,
        init: str,
        recipe: str,
        upstream: dict[str, Upstream],
        seed: int,
        fixed: Mapping[str, Any] | None = None,
        setting: Mapping[str, Any] | None = None,
    ) -> str:
        run = Run(
            task=task,
            task_version=TASK_VERSIONS[task],
            dataset=dataset,
            data_fingerprint=self._fingerprint(dataset),
            backbone=backbone,
            init=init,
            recipe=recipe,
            recipe_values=self._resolve(task, recipe, fixed or {}, setting or {}, backbone, init),
            upstream=upstream,
            seed=seed,
        )
        needs = tuple(weights.run_id for weights in upstream.values() if weights.run_id)
        run_id = run.id
        self.runs.setdefault(run_id, PlannedRun(run, needs))
        return run_id

    def _fingerprint(self, dataset: str) -> str:
        if dataset not in self._fingerprints:
            try:
                self._fingerprints[dataset] = data.fingerprint(dataset, self._data_root)
            except UserError as error:
                self._absent_data[dataset] = str(error)
                self._fingerprints[dataset] = "absent"
        return self._fingerprints[dataset]

    def _resolve(
        self,
        task: str,
        recipe: str,
        fixed: Mapping[str, Any],
        setting: Mapping[str, Any],
        backbone: str,
        init: str,
    ) -> dict[str, Any]:
        """Resolve a recipe: column, smoke, the user's overrides, then what makes the init."""
        setting = {key: pick(value, (init, backbone)) for key, value in setting.items()}
        has = recipe_keys(recipe)
        self._known_keys |= has
        chosen = {}
        for given, value in self._overrides.items():
            only_task, _, key = given.rpartition(":")
            if only_task not in {"", task} or key not in has:
                continue
            if key in fixed:
                raise UserError(f"{given} is set by the init itself; ask for another init instead")
            if key in setting:
                raise UserError(f"{given} is what columns of the table differ in; leave it out")
            chosen[key] = value
            self._unused.pop(given, None)
        return load_recipe(recipe, {**chosen, **fixed}, self._smoke, backbone, init, setting)

    def _check_overrides(self) -> None:
        """Refuse overrides that fit none of the recipes seen, with the nearest keys."""
        for given in self._unused:
            task, _, key = given.rpartition(":")
            tasks = {run.run.task for run in self.runs.values()}
            if task and task not in tasks:
                raise UserError(
                    f"--set {given}: none of the runs asked for is of task {task}. "
                    f"They are of: {', '.join(sorted(tasks)) or '(none)'}"
                )
            raise unknown("override key", key, self._known_keys)


def _read_checkpoint(name: str, path: Path, format: str | None) -> Upstream:
    if name == "random":
        raise UserError("--init random=FILE: random weights come from no file; use another name")
    if not path.exists():
        raise UserError(f"--init {name}={path}: there is no such file")
    try:
        kind_of(path)
    except (UserError, OSError) as error:
        raise UserError(f"--init {name}={path}: {error}") from None
    if format is not None and format not in FORMATS:
        raise unknown("checkpoint format", format, FORMATS)
    return Upstream(checkpoint=str(path.absolute()), sha256=known_sha256(path), format=format)
