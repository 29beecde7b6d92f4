"""Parameter groups: name -> (lr scale, weight decay, layer), for any model around an encoder.

Source: facebookresearch/mae util/lr_decay.py; recipes for detection and segmentation as in
arXiv:2111.11429 and microsoft/unilm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from backbones.vit import VisionTransformer


@dataclass(frozen=True)
class ParameterRule:
    """How one parameter is trained."""

    name: str
    layer: int
    lr_scale: float
    weight_decay: float


def parameter_rules(
    model: nn.Module, encoder: VisionTransformer, weight_decay: float, layer_decay: float = 1.0
) -> list[ParameterRule]:
    """Decide lr scale and weight decay of every trainable parameter of `model`.

    The encoder's parameters are known by identity, not by a name prefix, so it does not matter
    where the encoder sits. lr scale is layer_decay^(depth + 1 - layer), 1 for everything outside
    of the encoder. No decay for tensors of one dimension (norms, biases), class token, positions.

    Args:
        layer_decay: 1 for none.
    """
    inside = {id(parameter): name for name, parameter in encoder.named_parameters()}
    rules = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own_name = inside.get(id(parameter))
        last = encoder.depth + 1
        layer = last if own_name is None else encoder.layer_id(own_name)
        exempt = parameter.dim() <= 1 or own_name in {"pos_embed", "cls_token"}
        decay = 0.0 if exempt else weight_decay
        rules.append(ParameterRule(name, layer, layer_decay ** (last - layer), decay))
    return rules


def parameter_groups(
    model: nn.Module, rules: Iterable[ParameterRule], lr: float
) -> list[dict[str, Any]]:
    """Turn rules into optimizer groups: one per (lr scale, weight decay), with `lr_scale` kept."""
    parameters = dict(model.named_parameters())
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for rule in rules:
        group = groups.setdefault(
            (rule.lr_scale, rule.weight_decay),
            {
                "params": [],
                "lr": lr * rule.lr_scale,
                "lr_scale": rule.lr_scale,
                "weight_decay": rule.weight_decay,
            },
        )
        group["params"].append(parameters[rule.name])
    return list(groups.values())
