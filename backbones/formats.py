"""How checkpoint files of known origin name an encoder's weights, and which origin a file has.

A `Format` says what every key of its files means: one of our names, a part of MAE's decoder, or
something that is left out for a stated reason. A key that it does not know makes the file another
one's, so nothing is ever skipped in silence. Definitions are in `backbones.layouts`; naming them
here imports no torch.

Our names are timm's for the plain ViT, and BEiT's and detectron2's for what they add.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mae_bench.errors import UserError
from mae_bench.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from backbones.containers import State

# A new format is a `Format` in backbones/layouts.py and one line here.
FORMATS = Registry(
    "checkpoint format",
    {
        "mae": "backbones.layouts:MAE",
        "mae-full": "backbones.layouts:MAE_FULL",
        "mae-finetuned": "backbones.layouts:MAE_FINETUNED",
        "timm": "backbones.layouts:TIMM",
        "deit": "backbones.layouts:DEIT",
        "beit": "backbones.layouts:BEIT",
        "moco-v3": "backbones.layouts:MOCO_V3",
        "moco-v3-linear": "backbones.layouts:MOCO_V3_LINEAR",
        "dino": "backbones.layouts:DINO",
        "mmpretrain": "backbones.layouts:MMPRETRAIN",
        "mmseg": "backbones.layouts:MMSEG",
        "detectron2": "backbones.layouts:DETECTRON2",
        "mae-bench": "backbones.layouts:MAE_BENCH",
    },
)

_WB = r"(?:weight|bias)"
# What an encoder of ours can be made of: part -> pattern of its names.
PARTS = {
    "tokens": r"cls_token|pos_embed",
    "distillation": r"dist_token",
    "patches": rf"patch_embed\.proj\.{_WB}",
    "blocks": rf"blocks\.\d+\.(?:norm[12]|attn\.(?:qkv|proj)|mlp\.fc[12])\.{_WB}",
    "qv bias": r"blocks\.\d+\.attn\.[qv]_bias",
    "layer scale": r"blocks\.\d+\.gamma_[12]",
    "relative tables": r"(?:blocks\.\d+\.attn|rel_pos_bias)\.relative_position_bias_table",
    "window tables": r"window_rel_pos_bias\.relative_position_bias_table",
    "decomposed": r"blocks\.\d+\.attn\.rel_pos_[hw]",
    "norm": rf"norm\.{_WB}",
}
PLAIN = ("tokens", "patches", "blocks", "norm")
BEIT_PARTS = ("qv bias", "layer scale", "relative tables")
EVERY_PART = tuple(PARTS)


def part_of(name: str) -> str:
    """The part that one of our names belongs to, "" for none."""
    return next((part for part, pattern in PARTS.items() if re.fullmatch(pattern, name)), "")


@dataclass(frozen=True)
class Spelling:
    """Pairs (ours, theirs) of beginnings of names, `#` for the number of a block; first fit wins.

    Args:
        aliases: further pairs for reading, before the others.
    """

    pairs: tuple[tuple[str, str], ...]
    aliases: tuple[tuple[str, str], ...] = ()

    def ours(self, theirs: str) -> str | None:
        """Our name for one of theirs, None if there is none."""
        return _respell(theirs, [(b, a) for a, b in self.aliases + self.pairs])

    def theirs(self, ours: str) -> str | None:
        """Their name for one of ours, None if there is none."""
        return _respell(ours, self.pairs)


def _respell(name: str, pairs: Sequence[tuple[str, str]]) -> str | None:
    for old, new in pairs:
        start = re.escape(old).replace(r"\#", r"(\d+)")
        if match := re.match(rf"{start}(?=\.|$)", name):
            number = match.group(1) if match.groups() else ""
            return new.replace("#", number) + name[match.end() :]
    return None


# As they are: our own names, and timm's.
SAME = Spelling(
    tuple(
        (stem, stem)
        for stem in (
            *("blocks.#", "cls_token", "dist_token", "pos_embed", "patch_embed", "norm"),
            *("rel_pos_bias", "window_rel_pos_bias"),
        )
    )
)


@dataclass(frozen=True)
class Format:
    """What the files of one origin look like.

    Args:
        about: one line for people.
        source: where the layout is from.
        parts: of `PARTS`, which it can hold.
        containers: top-level entries that the weights are stored under; "" for none. Only for
            detection: a format that is asked for by name is read from any of them.
        spelling: of names after the prefix.
        prefixes: regular expressions of what stands before encoder names, the longest first.
        inside: what stands before the names of an encoder of ours, inside of another's model.
        decoder: spelling of MAE's decoder, where the files have one.
        left_out: pattern of a key -> why it is no weight of the encoder.
        needs: pattern -> what it stands for; each must match one of the keys.
        check: says what is wrong with values (encoder's and decoder's) whose names are right, "".
    """

    about: str
    source: str
    parts: tuple[str, ...] = PLAIN
    containers: tuple[str, ...] = ("model",)
    spelling: Spelling = SAME
    prefixes: tuple[str, ...] = ("",)
    inside: str | None = None
    decoder: Spelling | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[Mapping[str, Tensor]], str] = lambda weights: ""

    def read(self, state: Mapping[str, Tensor]) -> Reading:
        """Say what each key means."""
        reading = Reading()
        for key in state:
            self._place(key, reading)
        keys = [*state]
        for pattern, meaning in self.needs.items():
            if not any(re.fullmatch(pattern, key) for key in keys):
                reading.absent.append(meaning)
        for name in ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"):
            if name not in reading.names.values():
                reading.absent.append(name)
        return reading

    def _place(self, key: str, reading: Reading) -> None:
        for pattern, reason in self.left_out.items():
            if re.fullmatch(pattern, key):
                reading.left_out[key] = reason
                return
        name = self._ours(key)
        if name and part_of(name) in self.parts and name not in reading.names.values():
            reading.names[key] = name
        elif self.decoder and (name := self.decoder.ours(key)):
            reading.decoder[key] = name
        else:
            reading.unknown.append(key)

    def _ours(self, key: str) -> str | None:
        if self.inside and (match := re.match(self.inside, key)):
            return SAME.ours(key[match.end() :])
        found = (
            self.spelling.ours(key[match.end() :])
            for prefix in self.prefixes
            if (match := re.match(prefix, key))
        )
        return next(filter(None, found), None)


@dataclass
class Reading:
    """What a format makes of a file's keys.

    Attributes:
        names, decoder: key -> our name, MAE's name.
        left_out: key -> why it is no weight of the encoder.
        unknown: keys that files of the format do not have.
        absent: what they all have and this one lacks.
    """

    names: dict[str, str] = field(default_factory=dict)
    decoder: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """How far the file is from the format."""
        return len(self.unknown) + len(self.absent)

    def complaint(self) -> str:
        """What does not fit, in words."""
        parts = []
        if self.unknown:
            parts.append(f"it does not know {some(self.unknown)}")
        if self.absent:
            parts.append(f"it needs {some(self.absent)}")
        return " and ".join(parts)


def some(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def recognise(state: State, where: str, given: str | None = None) -> tuple[str, Reading]:
    """Return the format of a file and what it makes of the keys.

    Args:
        given: name of the format, where the user knows it.

    Raises:
        UserError: unknown name, no format fits, several do, or the given one does not.
    """
    if given is not None:
        reading = FORMATS[given].read(state.tensors)
        if reading.faults:
            others = [name for name, _ in _fitting(state)]
            hint = f" It fits: {', '.join(others)}." if others else ""
            raise UserError(f"{where} is no {given} file: {reading.complaint()}.{hint}")
        return given, reading
    fitting = _fitting(state)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = [name for name, _ in fitting]
        raise UserError(
            f"{where}: its keys fit several formats: {', '.join(names)}. Say which with "
            f"--format, e.g. --format {names[0]} (for runs: --checkpoint-format {names[0]} or "
            f"--init NAME:{names[0]}=FILE; in Python format={names[0]!r})"
        )
    readings = {name: FORMATS[name].read(state.tensors) for name in FORMATS}
    near = min(readings, key=lambda name: readings[name].faults)
    complaint = readings[near].complaint()
    if not complaint:
        stored = " or ".join(repr(c) if c else "the top level" for c in FORMATS[near].containers)
        complaint = f"its weights are under {stored}"
        near = f"{near} (give --format {near} if it is one)"
    raise UserError(f"{where} fits no known format; nearest is {near}: {complaint}")


def _fitting(state: State) -> list[tuple[str, Reading]]:
    readings = (
        (name, FORMATS[name].read(state.tensors))
        for name in FORMATS
        if state.container in FORMATS[name].containers
    )
    return [(name, reading) for name, reading in readings if not reading.faults]
