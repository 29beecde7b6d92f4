"""What a checkpoint is, in plain values for a table or for JSON."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from backbones.checkpoints import DECODER, Checkpoint
from backbones.fitting import square
from backbones.formats import FORMATS, part_of
from backbones.load_report import fingerprint
from backbones.positions import sincos_order


def inspect(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the facts about a file: format, architecture, keys, decoder, hashes."""
    weights = checkpoint.weights
    reasons = [why for why in checkpoint.explained.values() if why != DECODER]
    return {
        "file": str(checkpoint.path),
        "format": checkpoint.format,
        "about": FORMATS[checkpoint.format].about,
        "published": checkpoint.published,
        "sha256": checkpoint.sha256,
        "fingerprint": fingerprint(weights),
        "backbone": checkpoint.backbone,
        "architecture": _architecture(checkpoint),
        "positions": _positions(checkpoint),
        "further_parts": sorted(
            {part_of(name) for name in weights} - {"tokens", "patches", "blocks", "norm"}
        ),
        "parameters": sum(value.numel() for value in weights.values()),
        "types": sorted({str(value.dtype).removeprefix("torch.") for value in weights.values()}),
        "decoder": _decoder(checkpoint),
        "keys": {
            "encoder": len(weights),
            "decoder": len(checkpoint.decoder),
            "not_used": dict(Counter(reasons)),
        },
        "header": dict(checkpoint.header),
    }


def keys(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Every key of the file: its shape where it has one here, and what it is."""
    used = [
        {"key": key, "is": name, "shape": list(checkpoint.weights[name].shape)}
        for name, key in checkpoint.sources.items()
    ]
    return used + [{"key": key, "is": reason} for key, reason in checkpoint.explained.items()]


def _architecture(checkpoint: Checkpoint) -> dict[str, Any]:
    width, channels, height, patch = checkpoint.weights["patch_embed.proj.weight"].shape
    positions = checkpoint.weights.get("pos_embed")
    grid = checkpoint.grid
    if grid is None and positions is not None:
        grid = square(positions.shape[1])
    return {
        "width": width,
        "depth": _depth(checkpoint.weights, "blocks"),
        "heads": checkpoint.num_heads,
        "patch_size": [height, patch],
        "channels": channels,
        "grid": list(grid) if grid else None,
    }


def _depth(names: Any, stack: str) -> int:
    return len({match[1] for name in names if (match := re.match(rf"{stack}\.(\d+)\.", name))})


def _positions(checkpoint: Checkpoint) -> str:
    table = checkpoint.weights.get("pos_embed")
    if table is None:
        return "no absolute ones"
    order = sincos_order(table)
    return f"fixed sine-cosine, order of {order}" if order else "learned"


def _decoder(checkpoint: Checkpoint) -> dict[str, int] | None:
    if not checkpoint.decoder:
        return None
    token = checkpoint.decoder.get("mask_token")
    width = 0 if token is None else token.shape[-1]
    return {"width": width, "depth": _depth(checkpoint.decoder, "decoder_blocks")}
