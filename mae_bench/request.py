"""What was asked for: kept in the work folder, so that `status` and `report` know it too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mae_bench.errors import UserError
from mae_bench.job import write_atomically
from mae_bench.plan import Plan, Planner, load_tables, make_plan, plan_pretraining, plan_transfer
from mae_bench.records import Scale, Setting, Strict
from mae_bench.workspace import Workspace

FILE = "request.json"
MAX_SEED = 2**32 - 1  # NumPy's


class Single(Strict):
    """One run instead of tables: a pretraining if `setting` is None, else a transfer.

    `dataset` is what is pretrained on; None for the scale's own.
    """

    init: str
    backbone: str
    dataset: str | None = None
    task: str | None = None
    setting: Setting | None = None


class Request(Strict):
    """The arguments of `reproduce`, `pretrain` or `transfer`; see `plan.make_plan`."""

    tables: tuple[str, ...] = ()
    single: Single | None = None
    scale: Scale
    seeds: tuple[int, ...]
    data_root: Path
    only: tuple[str, ...] = ()
    overrides: dict[str, object] = {}
    smoke: bool = False
    inits: dict[str, Path] = {}
    formats: dict[str, str] = {}

    def plan(self) -> Plan:
        """Return the graph of runs behind it.

        Raises:
            UserError: see `plan.make_plan`.
        """
        if self.single is None:
            return make_plan(
                load_tables(self.tables),
                self.scale,
                self.seeds,
                self.data_root,
                self.only,
                self.overrides,
                self.smoke,
                self.inits,
                self.formats,
            )
        one, seed = self.single, self.seeds[0]
        planner = Planner(
            self.scale, self.data_root, self.overrides, self.smoke, self.inits, self.formats
        )
        if one.task is None or one.setting is None:
            return plan_pretraining(planner, one.init, one.backbone, seed, one.dataset)
        return plan_transfer(planner, one.task, one.setting, one.init, seed)

    def save(self, workspace: Workspace) -> None:
        """Leave it in the work folder.

        Raises:
            UserError: no permission, or no space.
        """
        try:
            write_atomically(workspace.root / FILE, self.model_dump_json(indent=1))
        except OSError as error:
            raise UserError(
                f"cannot write to work folder {workspace.root}: {error.strerror}. "
                "Give a writable one with --work-dir"
            ) from None

    @classmethod
    def read(cls, workspace: Workspace) -> Request:
        """Return what was asked for last in this work folder.

        Raises:
            UserError: nothing was, or the folder is of another schema version.
        """
        workspace.check()
        path = workspace.root / FILE
        if not path.is_file():
            raise UserError(
                f"nothing was asked for yet in work folder {workspace.root}; "
                "run `mae-bench reproduce transfer` first, or give another --work-dir"
            )
        try:
            return cls.model_validate_json(path.read_text())
        except ValueError:
            raise UserError(
                f"{path} cannot be read; run the `mae-bench reproduce` that wrote it again"
            ) from None


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds as given on the command line: "0,1,2".

    Raises:
        UserError: something else, or a seed that is too large.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"seeds {text!r}: non-negative integers are needed, as in --seeds 0,1,2")
    seeds = tuple(dict.fromkeys(int(part) for part in parts))
    if max(seeds) > MAX_SEED:
        raise UserError(f"seed {max(seeds)} is too large; {MAX_SEED} is the largest")
    return seeds


def parse_inits(given: Sequence[str]) -> dict[str, Any]:
    """Return `inits` and `formats` of a request from NAME=FILE and NAME:FORMAT=FILE.

    Raises:
        UserError: one of another form.
    """
    inits, formats = {}, {}
    for text in given:
        target, equals, path = text.partition("=")
        name, colon, format = target.partition(":")
        if not (name and equals and path) or (colon and not format):
            raise UserError(f"--init {text!r} is not of the form NAME=FILE or NAME:FORMAT=FILE")
        inits[name] = Path(path)
        if format:
            formats[name] = format
    return {"inits": inits, "formats": formats}
