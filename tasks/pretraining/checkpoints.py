"""A whole masked autoencoder on disk: encoder, decoder and target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from backbones.checkpoints import read_tensors, write_tensors
from mae_bench.errors import UserError
from tasks.pretraining.mae import MaskedAutoencoder, build
from tasks.pretraining.tokenizer import build_tokenizer

FORMAT = "mae-bench-mae"


def save_pretrained(mae: MaskedAutoencoder, path: Path, about: Mapping[str, str]) -> None:
    """Write encoder, decoder and target as safetensors, for `visualize` and further training."""
    tokenizer = getattr(mae.target, "tokenizer", None)
    sizes = {"tokenizer": json.dumps(tokenizer.sizes)} if tokenizer else {}
    write_tensors(mae, path, {**about, **sizes, "format": FORMAT})


def load_pretrained(path: Path) -> MaskedAutoencoder:
    """Read what `save_pretrained` wrote, ready to reconstruct.

    Raises:
        UserError: no such file or another format.
    """
    header, weights = read_tensors(path)
    if header.get("format") != FORMAT:
        raise UserError(
            f"{path} has no decoder to visualise (format {header.get('format')!r}); give the "
            "mae.safetensors of a pretraining run"
        )
    recipe = json.loads(header["recipe"])
    sizes = json.loads(header["tokenizer"]) if "tokenizer" in header else None
    tokenizer = build_tokenizer(sizes) if sizes else None
    mae = build(header["backbone"], recipe["data"], recipe["model"], tokenizer)
    mae.load_state_dict(weights)
    return mae.eval()
