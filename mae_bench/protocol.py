"""Protocol cards: what the paper, the official code and we do, side by side, differences marked.

A recipe file says in the literal `protocol` what the other two do, and which of its own keys is the
counterpart, so that our side is read from what was run and never typed:

    protocol = {
        "paper": "arXiv:2111.11429 Sec. 2.3, 4.2",  # where it is written
        "code": None,  # repository and file of the official code; None: never published
        "lr_trials": {"paper": "3x3 grid of lr and weight decay per init", "ours": 1},
        "settings": {
            "learning rate": {"key": "solver.lr", "paper": {"random": 1.6e-4, "*": 8e-5}},
            "epochs": {"key": "solver.epochs", "paper": 100, "code": 100},
            "augmentation": {
                "ours": "large-scale jitter 0.7-1.4",  # words, where no single key says it
                "paper": "large-scale jitter 0.1-2.0",
            },
        },
    }

Left out (or None) means: not stated. A value that depends on init or backbone is a mapping from a
glob over either to the value; the first that matches counts, and may be such a mapping again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pydantic import Field, ValidationError, model_validator

from mae_bench.errors import UserError
from mae_bench.recipes import protocol_of
from mae_bench.records import Strict

NOT_STATED = "not stated"
NO_CODE = "never published"


class Item(Strict):
    """One line of a protocol; exactly one of `key` and `ours`."""

    key: str | None = None
    ours: Any = None
    paper: Any = None
    code: Any = None

    @model_validator(mode="after")
    def _one_side(self) -> Item:
        if (self.key is None) == (self.ours is None):
            raise ValueError("give either `key` or `ours`")
        return self


class Trials(Strict):
    """How many learning rates were tried for an init, and what the paper tried."""

    ours: int | dict[str, int] = 1
    paper: Any = None
    code: Any = None


class Protocol(Strict):
    """The literal `protocol` of a recipe file."""

    paper: str | None = None
    code: str | None = None
    lr_trials: Trials = Trials()
    settings: dict[str, Item] = Field(default={})


@dataclass(frozen=True)
class Line:
    """A setting as each side has it, in words.

    Attributes:
        not_paper, not_code: whether ours differs from it; None where it is silent.
    """

    name: str
    paper: str
    code: str
    ours: str
    not_paper: bool | None
    not_code: bool | None

    @property
    def differs(self) -> bool | None:
        """From the paper, or from the code where the paper is silent; None if both are."""
        return self.not_code if self.not_paper is None else self.not_paper


@dataclass(frozen=True)
class Card:
    """The protocol behind a cell.

    Attributes:
        paper, code: where the other two sides are written.
        budget: how long and on how many images at once, e.g. "100 epochs, batches of 64".
        lr_trials: learning rates tried for this init, in this project.
    """

    recipe: str
    paper: str
    code: str
    lines: tuple[Line, ...]
    budget: str
    lr_trials: int

    @property
    def differences(self) -> tuple[Line, ...]:
        """What is done otherwise than published."""
        return tuple(line for line in self.lines if line.differs)


def read(recipe: str) -> Protocol:
    """Return the protocol of a recipe file; an empty one where it has none.

    Raises:
        UserError: unknown recipe, or a literal of another form.
    """
    try:
        return Protocol.model_validate(protocol_of(recipe) or {})
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise UserError(
            f"`protocol` of recipe {recipe}, at {place or 'top'}: {problem['msg']}; "
            "mae_bench/protocol.py shows its form"
        ) from None


def card(recipe: str, values: Mapping[str, Any], backbone: str, init: str) -> Card:
    """Return the card of a run.

    Args:
        values: the resolved recipe, as it was (or would be) run.

    Raises:
        UserError: see `read`.
    """
    protocol = read(recipe)
    names = (init, backbone)
    trials = pick(protocol.lr_trials.ours, names) or 1
    sides = (pick(protocol.lr_trials.paper, names), pick(protocol.lr_trials.code, names))
    return Card(
        recipe=recipe,
        paper=protocol.paper or NOT_STATED,
        code=protocol.code or NO_CODE,
        lines=(
            *(_line(name, item, values, names) for name, item in protocol.settings.items()),
            _compare("learning rates tried", trials, *sides),
        ),
        budget=budget(values),
        lr_trials=trials,
    )


def budget(values: Mapping[str, Any]) -> str:
    """How long a recipe trains: "100 epochs, batches of 64"; "" where it does not say."""
    solver = values.get("solver", {})
    lengths = [(solver.get(unit), unit) for unit in ("iterations", "epochs")]
    parts = [f"{length:g} {unit}" for length, unit in lengths if isinstance(length, int | float)]
    batch = solver.get("batch_size")
    return ", ".join([*parts[:1], *([f"batches of {batch}"] if batch else [])])


def _line(name: str, item: Item, values: Mapping[str, Any], names: tuple[str, ...]) -> Line:
    ours = item.ours if item.key is None else _lookup(values, item.key)
    return _compare(name, pick(ours, names), pick(item.paper, names), pick(item.code, names))


def _compare(name: str, ours: Any, paper: Any, code: Any) -> Line:
    not_paper, not_code = (
        None if side is None else not _same(ours, side) for side in (paper, code)
    )
    words = (_words(paper, NOT_STATED), _words(code, NOT_STATED), _words(ours))
    return Line(name, *words, not_paper, not_code)


def _lookup(values: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; in words where a record is older than the key."""
    found: Any = values
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return "not recorded"
        found = found[part]
    return found


def pick(value: Any, names: tuple[str, ...]) -> Any:
    """What a value that depends on init or backbone is for these."""
    if not isinstance(value, Mapping):
        return value
    fits = (found for glob, found in value.items() if any(fnmatchcase(n, glob) for n in names))
    return pick(next(fits, None), names)


def _same(ours: Any, stated: Any) -> bool:
    if isinstance(ours, list | tuple) and isinstance(stated, list | tuple):
        return len(ours) == len(stated) and all(map(_same, ours, stated))
    if isinstance(ours, int | float) and isinstance(stated, int | float):
        return math.isclose(ours, stated, rel_tol=1e-9)
    return _words(ours).casefold() == _words(stated).casefold()


def _words(value: Any, nothing: str = "none") -> str:
    if value is None:
        return nothing
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
