"""Ablations at a default setting: the same pretraining under several names is run once."""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cache

from mae_bench.recipes import load_recipe
from mae_bench.records import Scale
from tasks.pretraining import INITS


def first_alike(
    name: str, scale: Scale, backbone: str, files: Collection[str], overrides: Collection[str]
) -> str:
    """Return the first init that is trained as this ablation is, perhaps itself.

    Args:
        name: of an init; only ablations (`<init>/<what is changed>`) share.
        files: inits that are read from files; they are not trained.
        overrides: recipe keys that the user sets. An ablation of one of them stays what it is, and
            will be refused.
    """
    own = INITS[name].overrides if name in INITS else {}
    keys = {key.rpartition(":")[2] for key in overrides}
    if "/" not in name or name in files or keys & set(own):
        return name
    return _alike(scale, backbone, frozenset(files) & set(INITS)).get(name, name)


@cache
def _alike(scale: Scale, backbone: str, files: frozenset[str]) -> dict[str, str]:
    """Every init that is trained -> the first one with the same task and resolved recipe."""
    first: dict[str, str] = {}
    found = {}
    for name, init in INITS.items():
        if init.task and scale in init.recipe and name not in files:
            values = load_recipe(init.recipe[scale], init.overrides, backbone=backbone, init=name)
            found[name] = first.setdefault(json.dumps([init.task, values]), name)
    return found
