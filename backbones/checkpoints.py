"""Backbone weights on disk: our own format, loaded whole or refused.

The format is safetensors with a header that names the architecture. The class, position and patch
parameters have timm's names. Nothing in it can run code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from backbones.vit import VisionTransformer, resize_positions
from mae_bench.errors import UserError
from mae_bench.job import write_atomically

FORMAT = "mae-bench"


class LoadReport(BaseModel):
    """What became of every key of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    loaded: tuple[str, ...]
    resized: dict[str, str]
    fingerprint: str


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Hash over names, types, shapes and values, in any order of the keys."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return (header, tensors) of any safetensors file; nothing in it can run code.

    Raises:
        UserError: no such file, or not safetensors.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error})") from None


def write_tensors(model: nn.Module, path: Path, header: Mapping[str, str]) -> None:
    """Write a module's tensors and their fingerprint; the file appears whole or not at all."""
    weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    header = {**header, "fingerprint": fingerprint(weights)}
    write_atomically(path, _in_order(save(weights, metadata=header)), durable=True)


def _in_order(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file, so that equal weights make equal files.

    The library writes them in the order of a hash table, another one in each process.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:start])
    entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
    text = json.dumps(entries, separators=(",", ":")).encode()
    # The format pads with spaces to whole 8 bytes; offsets count from the end of the header.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[start:]


def save_backbone(model: VisionTransformer, path: Path, about: Mapping[str, str]) -> None:
    """Write the encoder's weights.

    Args:
        about: strings for the header: backbone name, init, recipe, provenance.
    """
    write_tensors(model, path, {**about, "format": FORMAT, "grid": "x".join(map(str, model.grid))})


def read_backbone(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return (header, weights) of a file that `save_backbone` wrote.

    Raises:
        UserError: see `read_tensors`; or another format, or damaged values.
    """
    header, weights = read_tensors(path)
    if header.get("format") != FORMAT:
        raise UserError(
            f"{path} is safetensors, but not a backbone written by MAE-bench "
            f"(format {header.get('format')!r} in its header, {FORMAT!r} is needed)"
        )
    if fingerprint(weights) != header["fingerprint"]:
        raise UserError(f"{path} is damaged: its values do not match the fingerprint in its header")
    return header, weights


def load_backbone(model: VisionTransformer, path: Path) -> LoadReport:
    """Load a checkpoint into an encoder; every key fits, is resized, or nothing is loaded.

    Raises:
        UserError: see `read_backbone`; or keys or shapes that differ.
    """
    header, weights = read_backbone(path)
    expected = model.state_dict()
    missing, unexpected = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    if missing or unexpected:
        raise UserError(
            f"{path} ({header.get('backbone', 'unnamed')}) does not fit this backbone: "
            f"missing {sorted(missing)[:5]}, unexpected {sorted(unexpected)[:5]}"
        )
    loaded_fingerprint, resized = header["fingerprint"], {}
    grid: tuple[int, int] = tuple(map(int, header["grid"].split("x")))  # type: ignore[assignment]
    if grid != model.grid:
        old = weights["pos_embed"]
        weights["pos_embed"] = resize_positions(old, grid, model.grid)
        resized["pos_embed"] = f"{tuple(old.shape)} -> {tuple(weights['pos_embed'].shape)}"
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            raise UserError(
                f"{path} ({header.get('backbone', 'unnamed')}) does not fit this backbone: {name} "
                f"is {tuple(value.shape)}, {tuple(expected[name].shape)} is needed"
            )
    model.load_state_dict(weights)
    loaded = tuple(sorted(weights.keys() - resized.keys()))
    return LoadReport(
        file=str(path), loaded=loaded, resized=resized, fingerprint=loaded_fingerprint
    )
