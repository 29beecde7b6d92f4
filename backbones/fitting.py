"""Putting a file's weights into an encoder that is not just like the one they come from.

Everything that changes on the way is said: resampled tables, split biases, copies, tokens that the
encoder has no place for, and parts that only the encoder has and that start neutral. What then
still differs is an error, never a skipped key.

Shapes: D width, p patch size, L patches, P tokens before them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.formats import PARTS, part_of, some
from backbones.positions import (
    CLASS_ROWS,
    Grid,
    num_offsets,
    resize_positions,
    resize_relative_table,
)
from mae_bench.errors import UserError

TABLE = "relative_position_bias_table"
SHARED = f"rel_pos_bias.{TABLE}"
WINDOW = f"window_rel_pos_bias.{TABLE}"
# Parts that only an encoder may have -> their value where they change nothing.
NEUTRAL = {
    "relative tables": 0.0,
    "window tables": 0.0,
    "decomposed": 0.0,
    "layer scale": 1.0,
}
# How to make an encoder that has, or lacks, what the file has or lacks.
OPTIONS = {
    "distillation": "distilled",
    "qv bias": "qkv_bias",
    "layer scale": "layer_scale",
    "relative tables": "relative_positions",
    "window tables": "relative_positions",
    "decomposed": "relative_positions",
    "tokens": "class_token, positions",
}


@dataclass
class Fitted:
    """Weights with the encoder's names and shapes, and what became of them.

    Attributes:
        weights: for `load_state_dict`.
        resized: name -> how the value was made out of the file's.
        explained: our name of what the file has and the encoder has no place for -> why.
        new: what only the encoder has -> the neutral value it keeps.
    """

    weights: dict[str, Tensor]
    resized: dict[str, str] = field(default_factory=dict)
    explained: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)


def fit(weights: Mapping[str, Tensor], model: nn.Module, grid: Grid | None = None) -> Fitted:
    """Fit weights (our names) to an encoder.

    Args:
        grid: (h, w) of the file's positions; None for a square one.

    Raises:
        UserError: what is left over, missing, or of another shape.
    """
    expected = model.state_dict()
    fitted = Fitted(dict(weights))
    check_sizes(fitted.weights, (_width(expected), _depth(expected)))
    _leave_class_token(fitted, expected)
    _fit_biases(fitted, expected)
    _fit_patches(fitted, expected)
    _fit_positions(fitted, expected, grid, getattr(model, "grid", None))
    _fit_tables(fitted, expected, grid, model)
    _start_neutral(fitted, expected)
    _check_names(fitted.weights, expected)
    _check_shapes(fitted.weights, expected)
    return fitted


def check_sizes(weights: Mapping[str, Tensor], own: tuple[int, int]) -> None:
    """Say another width or depth as such, not as the first of many shapes that differ.

    Args:
        own: width and depth of the encoder; 0 where they are not known.

    Raises:
        UserError: the weights (our names) are of another size.
    """
    found = _width(weights), _depth(weights)
    if all(found) and all(own) and found != own:
        raise UserError(
            f"it has width {found[0]} and {found[1]} blocks, the backbone {own[0]} and {own[1]}"
        )


def _width(weights: Mapping[str, Tensor]) -> int:
    name = "patch_embed.proj.weight"
    return len(weights[name]) if name in weights else 0


def _depth(weights: Mapping[str, Tensor]) -> int:
    numbers = (re.match(r"blocks\.(\d+)\.", name) for name in weights)
    return 1 + max((int(match.group(1)) for match in numbers if match), default=-1)


def _leave_class_token(fitted: Fitted, expected: Mapping[str, Tensor]) -> None:
    """Its position stays: encoders without the token keep the row, unused."""
    if "cls_token" in fitted.weights and "cls_token" not in expected:
        del fitted.weights["cls_token"]
        fitted.explained["cls_token"] = "this encoder has no class token"


def _fit_biases(fitted: Fitted, expected: Mapping[str, Tensor]) -> None:
    """BEiT's separate biases of queries and values, and the joint one with zeros for the keys."""
    weights = fitted.weights
    for name in [name for name in weights if name.endswith("attn.q_bias")]:
        stem = name.removesuffix("q_bias")
        joint, value = f"{stem}qkv.bias", f"{stem}v_bias"
        if name not in expected and joint in expected and value in weights:
            q, v = weights.pop(name), weights.pop(value)
            weights[joint] = torch.cat([q, torch.zeros_like(q), v])
            fitted.resized[joint] = "q_bias, zeros, v_bias"
    for name in [name for name in weights if name.endswith("attn.qkv.bias")]:
        stem = name.removesuffix("qkv.bias")
        q, k, v = weights[name].chunk(3)
        if name not in expected and f"{stem}q_bias" in expected and not k.any():
            del weights[name]
            weights |= {f"{stem}q_bias": q, f"{stem}v_bias": v}
            fitted.resized |= dict.fromkeys((f"{stem}q_bias", f"{stem}v_bias"), "part of qkv.bias")


def _fit_patches(fitted: Fitted, expected: Mapping[str, Tensor]) -> None:
    """Resample the patch projection bicubically to another patch size.

    Source: detectron2 projects/ViTDet (its ViT-H of patch 14 is used with patch 16 in this way).
    """
    name = "patch_embed.proj.weight"
    if name not in fitted.weights or name not in expected:
        return
    old, new = fitted.weights[name], expected[name]
    if old.ndim == new.ndim == 4 and old.shape[2:] != new.shape[2:]:
        size = tuple(new.shape[2:])
        value = F.interpolate(old.float(), size=size, mode="bicubic", align_corners=False)
        _resized(fitted, name, value.to(old.dtype))


def _fit_positions(
    fitted: Fitted, expected: Mapping[str, Tensor], grid: Grid | None, new_grid: Grid | None
) -> None:
    name = "pos_embed"
    if name not in fitted.weights or name not in expected:
        return
    old, new = fitted.weights[name], expected[name]
    if old.ndim != 3 or new.ndim != 3:
        return
    grid = grid or square(old.shape[1])
    new_grid = new_grid or square(new.shape[1])
    num_prefix, new_prefix = old.shape[1] - math.prod(grid), new.shape[1] - math.prod(new_grid)
    if num_prefix == 0 and new_prefix == 1:
        # DeiT III adds no position to its class token.
        value = torch.cat([torch.zeros_like(old[:, :1]), old], dim=1)
        _resized(fitted, name, resize_positions(value, grid, new_grid), "zeros for the class token")
    elif num_prefix == 1 and new_prefix == 0 and "cls_token" not in expected:
        _resized(fitted, name, resize_positions(old[:, 1:], grid, new_grid, 0), "no class token")
    elif num_prefix == new_prefix and grid != new_grid:
        _resized(fitted, name, resize_positions(old, grid, new_grid, num_prefix))


def square(length: int) -> Grid:
    """Side of the largest square grid in so many positions; the rest belongs to tokens."""
    side = math.isqrt(length)
    return side, side


def _fit_tables(
    fitted: Fitted, expected: Mapping[str, Tensor], grid: Grid | None, model: nn.Module
) -> None:
    """Relative positions: copy a shared table to where the encoder has its own; resample."""
    weights = fitted.weights
    shared = weights.get(SHARED)
    own = [name for name in expected if name.startswith("blocks.") and name.endswith(TABLE)]
    if shared is not None:
        if SHARED not in expected and own:
            del weights[SHARED]
            weights |= dict.fromkeys(own, shared)
            fitted.resized |= dict.fromkeys(own, "copy of the shared table")
        if WINDOW in expected and WINDOW not in weights:
            weights[WINDOW] = shared
            fitted.resized[WINDOW] = "copy of the shared table"
    for name in weights.keys() & expected.keys():
        old, new = weights[name], expected[name]
        if old.shape == new.shape:
            continue
        if name.endswith(TABLE):
            value = _resample_table(old, grid, _extent(model, name), len(new))
            if value is not None:
                _resized(fitted, name, value)
        elif re.fullmatch(PARTS["decomposed"], name) and old.shape[1:] == new.shape[1:]:
            value = F.interpolate(old.float().T[None], size=len(new), mode="linear")[0].T
            _resized(fitted, name, value.to(old.dtype).contiguous())


def _extent(model: nn.Module, name: str) -> Grid | None:
    return getattr(model.get_submodule(name.rpartition(".")[0]), "extent", None)


def _resample_table(table: Tensor, old: Grid | None, new: Grid | None, rows: int) -> Tensor | None:
    """Return the table for another grid, with or without the class token's rows."""
    class_rows = CLASS_ROWS if math.isqrt(len(table)) ** 2 != len(table) else 0
    if old is None or num_offsets(old) + class_rows != len(table):
        side = (math.isqrt(len(table) - class_rows) + 1) // 2
        old = (side, side)
    if new is None:
        side = (math.isqrt(rows) + 1) // 2
        new = (side, side)
    if num_offsets(old) + class_rows != len(table) or rows - num_offsets(new) > class_rows:
        return None
    value = resize_relative_table(table, old, new)
    return value[:rows] if class_rows else value


def _resized(fitted: Fitted, name: str, value: Tensor, how: str = "") -> None:
    old = tuple(fitted.weights[name].shape)
    note = "; ".join(filter(None, (fitted.resized.get(name), how)))
    fitted.weights[name] = value
    fitted.resized[name] = f"{old} -> {tuple(value.shape)}" + (f" ({note})" if note else "")


def _start_neutral(fitted: Fitted, expected: Mapping[str, Tensor]) -> None:
    """What only the encoder has stays as it is, if it is a whole part that changes nothing so."""
    present = {part_of(name) for name in fitted.weights}
    for name in expected.keys() - fitted.weights.keys():
        part = part_of(name)
        neutral = NEUTRAL.get(part)
        if name == "pos_embed":
            neutral, part = 0.0, name  # by itself: most files have a class token
        elif part == "norm":
            # Files of classifiers have a norm after pooling instead; detectors have none.
            neutral = float(name.endswith("weight"))
        if neutral is None or part in present or not (expected[name] == neutral).all():
            continue
        fitted.weights[name] = expected[name]
        fitted.new[name] = f"{neutral:g}"


def _check_names(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    missing = sorted(expected.keys() - weights.keys())
    unexpected = sorted(weights.keys() - expected.keys())
    if not missing and not unexpected:
        return
    parts = dict.fromkeys(part_of(name) for name in [*missing, *unexpected])
    options = dict.fromkeys(OPTIONS[part] for part in parts if part in OPTIONS)
    hint = f". Options of the backbone that decide this: {', '.join(options)}" if options else ""
    raise UserError(
        f"missing {some(missing) or 'nothing'}, unexpected {some(unexpected) or 'nothing'}{hint}"
    )


def _check_shapes(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            raise UserError(
                f"{name} is {tuple(value.shape)}, {tuple(expected[name].shape)} is needed"
            )
