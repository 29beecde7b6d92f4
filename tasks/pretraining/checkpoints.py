"""A whole masked autoencoder on disk: encoder, decoder and target; ours, or in MAE's own layout."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from backbones import create_backbone
from backbones.checkpoints import Checkpoint, read_checkpoint, read_tensors, write_tensors
from backbones.convert import convert
from mae_bench.errors import UserError
from tasks.pretraining import TARGETS
from tasks.pretraining.decoder import Decoder
from tasks.pretraining.mae import MaskedAutoencoder, build
from tasks.pretraining.tokenizer import build_tokenizer

FORMAT = "mae-bench-mae"
# Beginnings of names in MAE's own files -> in `Decoder`.
DECODER_NAMES = {
    "decoder_embed": "embed",
    "decoder_pos_embed": "pos_embed",
    "decoder_blocks": "blocks",
    "decoder_norm": "norm",
    "decoder_pred": "head",
    "mask_token": "mask_token",
}


def save_pretrained(mae: MaskedAutoencoder, path: Path, about: Mapping[str, str]) -> None:
    """Write encoder, decoder and target as safetensors, for `visualize` and further training."""
    tokenizer = getattr(mae.target, "tokenizer", None)
    sizes = {"tokenizer": json.dumps(tokenizer.sizes)} if tokenizer else {}
    write_tensors(mae, path, {**about, **sizes, "format": FORMAT})


def save_torch_file(backbone: Path, out: Path, decoder: Decoder | None = None) -> None:
    """Write a file in MAE's own layout from what `save_backbone` wrote.

    MAE's code and whatever knows its files read it; `torch.load` does with `weights_only`. For an
    encoder that the layout has no place for (BEiT's, distilled ones) there is none.

    Args:
        out: .pth file.
        decoder: makes it a file of encoder and decoder.
    """
    weights = _theirs(decoder.state_dict()) if decoder else {}
    try:
        convert(replace(read_checkpoint(backbone), decoder=weights), out, "mae")
    except UserError as error:
        print(f"no {out.name}: {error}")


def load_pretrained(path: Path, target: str | None = None) -> MaskedAutoencoder:
    """Read a masked autoencoder, ready to reconstruct.

    Args:
        path: what `save_pretrained` wrote, or a file with encoder and decoder in MAE's own layout.
        target: what a file in MAE's layout was trained to predict ("pixel" or "norm-pixel"), which
            it does not say itself. By default as published: normalised pixels in the files
            `mae_pretrain_*_full`, else pixels.

    Raises:
        UserError: no such file, damage, no decoder in it, or a target that does not fit.
    """
    header, weights = read_tensors(path) if path.suffix == ".safetensors" else ({}, {})
    if header.get("format") != FORMAT:
        if header.get("format", "").startswith("mae-bench"):
            raise _without_decoder(path)
        return _from_mae(read_checkpoint(path), target)
    recipe = json.loads(header["recipe"])
    trained_with = recipe["model"]["target"]
    _check_target(path, trained_with, target)
    sizes = json.loads(header["tokenizer"]) if "tokenizer" in header else None
    tokenizer = build_tokenizer(sizes) if sizes else None
    mae = build(header["backbone"], recipe["data"], recipe["model"], tokenizer)
    mae.load_state_dict(weights)
    return mae.eval()


def start_from(mae: MaskedAutoencoder, path: Path, target: str) -> None:
    """Give a model that is to be trained the weights of an earlier one, decoder and target too.

    Args:
        target: what the model is to predict; a file that says what it predicts must agree.

    Raises:
        UserError: see `load_pretrained`; or another architecture or target.
    """
    earlier = load_pretrained(path, target).state_dict()
    own = {name: tuple(value.shape) for name, value in mae.state_dict().items()}
    differing = [
        name
        for name in sorted(own.keys() | earlier.keys())
        if name not in earlier or own.get(name) != tuple(earlier[name].shape)
    ]
    if differing:
        raise UserError(
            f"{path} cannot be continued by this recipe: {', '.join(differing[:4])} differ; give "
            "the backbone, image size, target and decoder that it was trained with"
        )
    mae.load_state_dict(earlier)


def _check_target(path: Path, trained_with: str, asked: str | None) -> None:
    if asked not in {None, trained_with}:
        raise UserError(
            f"{path} was trained to predict {trained_with}, not {asked}; give target {trained_with}"
        )


def _without_decoder(path: Path) -> UserError:
    return UserError(
        f"{path} has no decoder to visualise; give the mae.safetensors of a pretraining run, or "
        "one of MAE's own files with encoder and decoder (mae_visualize_*, mae_pretrain_*_full)"
    )


def _from_mae(file: Checkpoint, target: str | None) -> MaskedAutoencoder:
    """Build encoder and decoder in the sizes that the weights have."""
    if "decoder_pred.weight" not in file.decoder:
        raise _without_decoder(file.path)
    if file.backbone is None:
        raise UserError(
            f"{file.path} holds an encoder of none of the known sizes; see `mae-bench backbones "
            "list`"
        )
    # Ours say in a corner of the file how they were trained.
    told = json.loads(file.header.get("recipe", "{}")).get("model", {})
    if "target" in told:
        _check_target(file.path, told["target"], target)
        target = told["target"]
    chosen = target or ("norm-pixel" if file.path.stem.endswith("_full") else "pixel")
    if chosen not in {"pixel", "norm-pixel"}:
        raise UserError(f"target {chosen!r}: a file in MAE's layout predicts pixel or norm-pixel")
    patch_size = file.weights["patch_embed.proj.weight"].shape[-1]
    module = TARGETS[chosen](patch_size)
    if target is None:
        guess = f"the file does not say what it predicts: taken as {chosen}"
        module.note = "; ".join(part for part in (guess, module.note) if part)
    positions = file.weights["pos_embed"]
    encoder = create_backbone(
        file.backbone, img_size=math.isqrt(positions.shape[1] - 1) * patch_size
    )
    mae = MaskedAutoencoder(
        encoder,
        module,
        decoder_width=file.decoder["decoder_embed.weight"].shape[0],
        decoder_depth=len({name.split(".")[1] for name in file.decoder if "_blocks." in name}),
        decoder_heads=told.get("decoder_heads"),
    )
    try:
        encoder.load_state_dict(dict(file.weights))
        mae.decoder.load_state_dict(_ours(file.decoder))
    except RuntimeError as error:
        reason = " ".join(str(error).split()[:60])
        raise UserError(f"{file.path}: its parts do not fit each other ({reason})") from None
    return mae.eval()


def _theirs(decoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of `Decoder`'s weights -> MAE's."""
    names = {ours: theirs for theirs, ours in DECODER_NAMES.items()}
    renamed = {}
    for name, value in decoder.items():
        first, dot, rest = name.partition(".")
        renamed[names[first] + dot + rest] = value
    return renamed


def _ours(decoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MAE's names of the decoder's weights -> those of `Decoder`."""
    renamed = {}
    for name, value in decoder.items():
        first, dot, rest = name.partition(".")
        renamed[DECODER_NAMES[first] + dot + rest] = value
    return renamed
