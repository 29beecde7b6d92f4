"""Parameter groups: name -> (lr scale, weight decay, layer), for any model around an encoder.

Source: facebookresearch/mae util/lr_decay.py; recipes for detection and segmentation as in
arXiv:2111.11429 and microsoft/unilm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from backbones.vit import VisionTransformer
from mae_bench.job import write_atomically

# Encoder parameters of more than one dimension that fine-tuning does not decay.
NO_DECAY = frozenset({"pos_embed", "cls_token"})


@dataclass(frozen=True)
class ParameterRule:
    """How one parameter is trained."""

    name: str
    layer: int
    lr_scale: float
    weight_decay: float


def parameter_rules(
    model: nn.Module,
    encoder: VisionTransformer | None,
    weight_decay: float,
    layer_decay: float = 1.0,
    no_decay: frozenset[str] = NO_DECAY,
) -> list[ParameterRule]:
    """Decide lr scale and weight decay of every trainable parameter of `model`.

    The encoder's parameters are known by identity, not by a name prefix, so it does not matter
    where the encoder sits. lr scale is layer_decay^(depth + 1 - layer), 1 for everything outside
    of the encoder. No decay for tensors of one dimension (norms, biases) and for `no_decay`.

    Args:
        encoder: None for a model without one; every layer is then layer 0.
        layer_decay: 1 for none.
        no_decay: names of encoder parameters of more than one dimension that are not decayed.
    """
    inside = {id(p): name for name, p in encoder.named_parameters()} if encoder else {}
    last = encoder.depth + 1 if encoder else 0
    rules = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own_name = inside.get(id(parameter))
        layer = encoder.layer_id(own_name) if encoder and own_name else last
        exempt = parameter.dim() <= 1 or own_name in no_decay
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


def write_rules(rules: Iterable[ParameterRule], path: Path) -> None:
    """Write the rules as a CSV table, for the run's folder."""
    lines = ["name,layer,lr_scale,weight_decay"]
    lines += [f"{r.name},{r.layer},{r.lr_scale!r},{r.weight_decay!r}" for r in rules]
    write_atomically(path, "\n".join(lines) + "\n")
