"""Recipes: read without running them, overridden only where a key exists and the type fits.

A recipe file (`configs/<task>/<name>.py`) opens with literals: `recipe`, sections of plain values;
`variants`, if there are any, the overrides for some backbones or inits; `smoke`, the overrides
that make it two iterations long; and `protocol`, what the paper and the official code do in the
same place (`mae_bench.protocol`). One that differs in some keys from another says
`base = "<task>/<name>"` instead of `recipe`, and the differences as `variants` ({} is the condition
of all runs). What follows in the file makes it a native config of its engine and is not needed
here, so that planning imports no torch.
"""

from __future__ import annotations

import ast
import copy
import json
import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import configs
from mae_bench.errors import UserError, unknown

CONFIGS = Path(configs.__path__[0])
Values = dict[str, Any]
# Values on the command line that are no Python literals.
WORDS: Values = {
    "true": True,
    "false": False,
    "none": None,
    "null": None,
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
}
# A length is given in one of two units; the later one counts.
OTHER_UNIT = {"iterations": "epochs", "warmup_iterations": "warmup_epochs"}
OTHER_UNIT |= {epochs: iterations for iterations, epochs in OTHER_UNIT.items()}
# The least that means anything, where a training would find out late or never: without a single
# iteration it would score what it was given.
LOWEST = {
    "data.image_size": 1,
    "data.crop_size": 1,
    "data.val_images": 1,
    "data.num_workers": 0,
    "data.max_broken": 0,
    "solver.iterations": 1,
    "solver.epochs": 0,
    "solver.warmup_epochs": 0,
    "solver.batch_size": 1,
    "solver.accumulation": 1,
    "solver.prefetch": 1,
    "solver.save_every": 1,
    "solver.warmup_iterations": 0,
    "solver.num_workers": 0,
    "solver.base_lr": 0,
    "solver.lr": 0,
    "solver.min_lr": 0,
    "solver.weight_decay": 0,
    "solver.layer_decay": 0,
    "test.max_images": 1,
    "test.validate_every": 1,
    "test.windows": 1,
}


def list_recipes() -> list[str]:
    """Names of all recipes: paths below configs/, without .py."""
    return sorted(
        path.relative_to(CONFIGS).with_suffix("").as_posix()
        for path in CONFIGS.glob("*/*.py")
        if path.parent.name != "tables" and path.name != "__init__.py"
    )


@cache
def _literals(name: str) -> dict[str, Any]:
    path = CONFIGS / f"{name}.py"
    if not path.is_file():
        raise unknown("recipe", name, list_recipes())
    tree = ast.parse(path.read_text(), filename=str(path))
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            target = node.targets[0].id
            if target in {"base", "recipe", "variants", "smoke", "protocol"}:
                found[target] = ast.literal_eval(node.value)
    if "base" in found:
        found = _derived(_literals(found["base"]), found)
    if "recipe" not in found:
        raise UserError(f"{path} has no literal `recipe = {{...}}`; see configs/ for examples")
    return found


def _derived(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The literals of a recipe that states its differences from another one."""
    protocol, changes = base.get("protocol") or {}, own.get("protocol", {})
    if changes is not None:
        settings = {**protocol.get("settings", {}), **changes.get("settings", {})}
        protocol = {**protocol, **changes, "settings": settings}
    return {
        "recipe": base["recipe"],
        "variants": [*base.get("variants", []), *own.get("variants", [])],
        "smoke": {**base.get("smoke", {}), **own.get("smoke", {})},
        "protocol": None if changes is None else protocol,
    }


def load_recipe(
    name: str,
    overrides: Mapping[str, Any] | None = None,
    smoke: bool = False,
    backbone: str = "",
    init: str = "",
    setting: Mapping[str, Any] | None = None,
) -> Values:
    """Return the resolved recipe.

    A recipe's `variants` is a list of ({"backbone": GLOB, "init": GLOB}, {key: value}) pairs;
    those that match are applied in order, before `smoke` and the overrides.

    Args:
        name: path below configs/, without .py, e.g. "detection/mini".
        overrides: dotted key -> value, e.g. {"solver.iterations": 20}. The key must exist and the
            value must be of the type that stands there (an int may replace a float). A length in
            iterations takes the place of one in epochs, and the reverse.
        smoke: apply the recipe's own `smoke` overrides first.
        backbone, init: of the run, for the variants.
        setting: what a table's column changes (`records.Setting.overrides`), before `smoke`.

    Raises:
        UserError: unknown recipe or key (with the nearest names), a value of another type, or a
            number that cannot be.
    """
    found = _literals(name)
    values: Values = copy.deepcopy(found["recipe"])
    variants = [
        variant
        for conditions, variant in found.get("variants", [])
        if _holds(conditions, {"backbone": backbone, "init": init})
    ]
    given = dict(overrides or {})
    _check_lengths(values, given, name)
    changes: Values = {}
    for layer in (*variants, setting or {}, found.get("smoke", {}) if smoke else {}, given):
        for key, value in layer.items():
            changes.pop(key, None)  # the order is that of the last word on each
            changes[key] = value
    for key, value in changes.items():
        set_key(values, key, value, name)
    return values


def _check_lengths(values: Values, overrides: Mapping[str, Any], name: str) -> None:
    """Refuse one length in both units; where only one would count, the other is a mistake."""
    for unit, other in OTHER_UNIT.items():
        both = {key: overrides.get(f"solver.{key}") for key in (unit, other)}
        if None not in both.values() and "warmup_epochs" in values.get("solver", {}):
            said = " and ".join(f"solver.{key}={value}" for key, value in both.items())
            raise UserError(
                f"overrides {said} of recipe {name} are two lengths of one thing; give one of them"
            )


def protocol_of(name: str) -> Values | None:
    """Return the literal `protocol` of a recipe file, None where it has none."""
    return copy.deepcopy(_literals(name).get("protocol"))


def _holds(conditions: Mapping[str, str], facts: Mapping[str, str]) -> bool:
    return all(fnmatchcase(facts[name], pattern) for name, pattern in conditions.items())


@cache
def recipe_keys(name: str) -> frozenset[str]:
    """Return every dotted key of the recipe of this name."""
    return frozenset(keys(_literals(name)["recipe"]))


def settings(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key of a recipe and its value."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def keys(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield every dotted key of a recipe."""
    return (key for key, _ in settings(values))


def set_key(values: Values, key: str, value: Any, name: str) -> None:
    """Set one dotted key in place; see `load_recipe`."""
    *sections, last = key.split(".")
    place: Any = values
    for section in sections:
        place = place.get(section) if isinstance(place, dict) else None
    if not isinstance(place, dict) or last not in place or isinstance(place[last], dict):
        raise unknown(f"override key for recipe {name}", key, keys(values))
    old = place[last]
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    fits = old is None or value is None or type(old) is type(value)
    if not fits:
        raise UserError(
            f"override {key}={value!r} of recipe {name} is {_kind(value)}; "
            f"{_kind(old)} is needed, as in {key}={json.dumps(old)}"
        )
    either_unit = last in OTHER_UNIT and "warmup_epochs" in place
    if value is not None or not either_unit:
        _check_number(key, value, name)
    place[last] = value
    if value is not None and either_unit:
        place[OTHER_UNIT[last]] = None


def _check_number(key: str, value: Any, name: str) -> None:
    lowest = LOWEST.get(key)
    # None stands for "all" in the limits of evaluation, and for nothing sensible in a solver.
    good = value is not None or lowest is None or not key.startswith("solver.")
    if isinstance(value, bool | str):
        good = lowest is None
    elif isinstance(value, int | float):
        good = math.isfinite(value) and (lowest is None or value >= lowest)
    if not good:
        bound = "" if lowest is None else f" of at least {lowest}"
        raise UserError(f"override {key}={value} of recipe {name}: a number{bound} is needed")


def _kind(value: Any) -> str:
    return f"of type {type(value).__name__}"


def parse_override(text: str) -> tuple[str, Any]:
    """Split KEY=VALUE as given on the command line; VALUE is a Python literal or else a string.

    Raises:
        UserError: no "=" in it.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"override {text!r} is not of the form KEY=VALUE, e.g. solver.base_lr=1e-3")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, WORDS.get(value.lower(), value)
