"""Writing a backbone in another project's names, bit by bit.

What the other format cannot hold is refused when it is part of the encoder, and said when it is
MAE's decoder. Files carry what MAE-bench knows of them where nobody else looks, so that reading one
back needs no `--format`.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from backbones.checkpoints import Checkpoint, fingerprint, read_checkpoint, write_weights
from backbones.containers import MARK
from backbones.fitting import square
from backbones.formats import BEIT_PARTS, EVERY_PART, FORMATS, PLAIN, SAME, part_of, some
from backbones.positions import sincos_order
from backbones.published import list_published
from mae_bench.errors import UserError, unknown
from mae_bench.job import write_atomically

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
Named = dict[str, Tensor]


@dataclass(frozen=True)
class Target:
    """A format to write.

    Args:
        format: name in `backbones.formats.FORMATS`.
        parts: of the encoder, that the other project's model has as well.
        prefix: in front of every name.
        container: entry of a .pth file that the weights are under, "" for none.
        decoder: whether MAE's decoder has a place.
    """

    format: str
    parts: tuple[str, ...]
    prefix: str = ""
    container: str = ""
    decoder: bool = False

    def names(self, weights: Mapping[str, Tensor]) -> Named:
        """Weights in the other project's names.

        Raises:
            UserError: a part that it has no place for.
        """
        spelling = FORMATS[self.format].spelling
        # timm's ViT has its own names for layer scale, its BEiT has BEiT's.
        if self.format == "timm" and any(part_of(name) == "qv bias" for name in weights):
            spelling = SAME
        named = {name: spelling.theirs(name) for name in weights if part_of(name) in self.parts}
        homeless = [name for name in weights if not named.get(name)]
        if homeless:
            kinds = ", ".join(dict.fromkeys(part_of(name) for name in homeless))
            raise UserError(
                f"{self.format} has no place for {kinds} ({some(homeless)}); "
                "--format safetensors holds everything"
            )
        return {f"{self.prefix}{named[name]}": value for name, value in weights.items()}


TARGETS = {
    "timm": Target("timm", (*PLAIN, *BEIT_PARTS, "distillation")),
    "mae": Target("mae", PLAIN, container="model", decoder=True),
    # ViTDet's own model; ours inside of detectron2 has more, and reads every format by itself.
    "detectron2": Target("detectron2", (*PLAIN, "decomposed"), "backbone.net.", "model"),
    "mmseg": Target("mmseg", (*PLAIN, *BEIT_PARTS), container="state_dict"),
    "safetensors": Target("mae-bench", EVERY_PART),
}


def convert(checkpoint: Checkpoint, out: Path, target: str) -> dict[str, str]:
    """Write a checkpoint in another format; the file appears whole or not at all.

    Args:
        out: .pth for torch's format, .safetensors.
        target: name in `TARGETS`.

    Returns:
        Key of the old file -> why it is not in the new one.

    Raises:
        UserError: unknown target or suffix, or parts of the encoder that the target cannot hold.
    """
    if target not in TARGETS:
        raise unknown("format to write", target, TARGETS)
    chosen = TARGETS[target]
    _check_name(checkpoint, out, target)
    named = chosen.names(checkpoint.weights)
    left_out = dict(checkpoint.explained)
    format = chosen.format
    if chosen.decoder and checkpoint.decoder:
        format = "mae-full"
        named |= checkpoint.decoder
        left_out = {key: why for key, why in left_out.items() if not why.startswith("decoder")}
    if faults := FORMATS[format].read(named).complaint():
        raise UserError(f"{checkpoint.path} makes no {format} file: {faults}")
    header = {**_header(checkpoint), "format": format}
    if out.suffix == ".safetensors":
        _write_safetensors(named, out, header)
    else:
        write_atomically(out, _torch_file(named, chosen.container, header), durable=True)
    if fingerprint(read_checkpoint(out).weights) != fingerprint(checkpoint.weights):
        raise RuntimeError(f"{out} does not read back as {checkpoint.path}")
    return left_out


def _check_name(checkpoint: Checkpoint, out: Path, target: str) -> None:
    suffixes = (".safetensors",) if target == "safetensors" else (*TORCH_SUFFIXES, ".safetensors")
    if out.suffix not in suffixes:
        raise UserError(f"{out}: the name of a {target} file ends in {' or '.join(suffixes)}")
    if out.exists() and out.samefile(checkpoint.path):
        raise UserError(f"{out} is the file to convert; give another name for the new one")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}")
    if any(entry.file == out.name for entry in list_published()):
        raise UserError(f"{out}: this is the name of a published file; give the new one its own")


def _header(checkpoint: Checkpoint) -> dict[str, str]:
    """What the names and shapes alone do not tell."""
    header = {key: value for key, value in checkpoint.header.items() if key != "fingerprint"}
    if checkpoint.backbone:
        header["backbone"] = checkpoint.backbone
    if checkpoint.num_heads:
        header["heads"] = str(checkpoint.num_heads)
    positions = checkpoint.weights.get("pos_embed")
    if positions is not None:
        grid = checkpoint.grid or square(positions.shape[1])
        header["grid"] = "x".join(map(str, grid))
        header["positions"] = sincos_order(positions) or "learned"
    return header


def _write_safetensors(named: Named, out: Path, header: Mapping[str, str]) -> None:
    if header["format"] == "mae-bench":
        write_weights(named, out, header)
        return
    content = {name: value.contiguous() for name, value in named.items()}
    write_atomically(out, save(content, metadata=dict(header)), durable=True)


def _torch_file(named: Named, container: str, header: Mapping[str, str]) -> bytes:
    # Copies: a tensor that is part of a larger one would take all of it along.
    weights = OrderedDict((name, value.clone()) for name, value in named.items())
    tree: Any = {container: weights, MARK: dict(header)}
    if not container:
        # State dicts have this attribute anyway, for versions of modules.
        weights._metadata = {MARK: dict(header)}  # type: ignore[attr-defined]
        tree = weights
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    return buffer.getvalue()
