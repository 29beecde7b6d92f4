"""What makes a run another experiment than the one its recipe publishes: why it has no verdict."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from mae_bench.errors import UserError
from mae_bench.plan import START_INIT
from mae_bench.protocol import pick
from mae_bench.recipes import load_recipe, settings
from mae_bench.records import NO_EFFECT, Record, Run, Setting
from tasks import WITHOUT_WEIGHTS
from tasks.pretraining import INITS

MISSING = object()


def deviations(run: Run, setting: Setting, records: Mapping[str, Record]) -> Iterator[str]:
    """Yield what sets a run, or what it was made from, apart from the recipes as they are shipped.

    Args:
        setting: of the column; what it changes is part of the table.
        records: run id -> record, for the runs upstream; one that is not there is passed over.
    """
    yield from own_changes(run, setting.overrides)
    yield from upstream_changes(run, records)


def upstream_changes(run: Run, records: Mapping[str, Record]) -> Iterator[str]:
    """Yield what sets the weights that a run starts from apart."""
    for role, weights in run.upstream.items():
        if role == START_INIT:
            yield "continues an earlier pretraining"
        made = records.get(weights.run_id or "")
        if made is not None:
            init = INITS.get(made.run.init)
            yield from own_changes(made.run, init.overrides if init else {})
            yield from upstream_changes(made.run, records)


def own_changes(run: Run, setting: Mapping[str, Any]) -> Iterator[str]:
    """Yield the settings in which a run differs from its recipe with the changes of `setting`.

    A key that the run does not have is younger than its record, and off unless the task's version
    was raised.
    """
    changes = {key: pick(value, (run.init, run.backbone)) for key, value in setting.items()}
    if run.task in WITHOUT_WEIGHTS and run.init in INITS:  # takes what makes its init as settings
        changes |= INITS[run.init].overrides
    expected = _expected(run.recipe, run.backbone, run.init, json.dumps(changes, sort_keys=True))
    if expected is None:
        yield f"{run.task}: recipe {run.recipe} is not known here"
        return
    for key, ours in _flat(run.recipe_values).items():
        shipped = expected.get(key, MISSING)
        if ours != shipped and key.rpartition(".")[2] not in NO_EFFECT:
            yield f"{run.task}: {key} {_word(ours)} instead of {_word(shipped)}"


@lru_cache(maxsize=512)
def _expected(recipe: str, backbone: str, init: str, setting: str) -> dict[str, Any] | None:
    try:
        values = load_recipe(recipe, backbone=backbone, init=init, setting=json.loads(setting))
    except UserError:
        return None
    return _flat(values)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value as read from a record's JSON."""
    flat = settings(values)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in flat}


def _word(value: Any) -> str:
    return "absent" if value is MISSING else json.dumps(value, ensure_ascii=False)
