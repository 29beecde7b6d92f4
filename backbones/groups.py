"""Parameter groups: name -> (lr scale, weight decay, layer), for any model around any encoder.

Source: facebookresearch/mae util/lr_decay.py; what each recipe exempts from weight decay is said at
`DECAY_RULES`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mae_bench.errors import UserError, unknown
from mae_bench.job import write_atomically

TOKENS = frozenset({"cls_token", "dist_token", "reg_token", "mask_token"})
POSITIONS = frozenset({"pos_embed", "absolute_pos_embed"})
RELATIVE_TABLES = frozenset({"relative_position_bias_table", "rel_pos_h", "rel_pos_w"})
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class DecayRule:
    """What a recipe exempts from weight decay.

    Args:
        names: of the encoder's own parameters, the last part of the dotted name.
        one_dimensional: all tensors of at most one dimension: norms, biases, layer scale.
        norms: parameters of norm layers only; other biases are then decayed.
        source: whose recipe it is.
    """

    names: frozenset[str]
    one_dimensional: bool
    norms: bool
    source: str


DECAY_RULES = {
    # Its list of exceptions is empty, and the tokens are 3-D.
    "mae-pretrain": DecayRule(frozenset(), True, True, "facebookresearch/mae main_pretrain.py"),
    "mae-finetune": DecayRule(
        POSITIONS | TOKENS, True, True, "facebookresearch/mae main_finetune.py"
    ),
    # Li et al.: detectron2's default for norms, and two overrides by name.
    "detectron2": DecayRule(
        POSITIONS | RELATIVE_TABLES, False, True, "hustvl/MIMDet configs/benchmarking"
    ),
    "vitdet": DecayRule(POSITIONS, False, True, "detectron2 projects/ViTDet"),
    # Ours: what "beit-seg" means to exempt, and tables that start at zero.
    "upernet": DecayRule(
        POSITIONS | TOKENS | RELATIVE_TABLES, True, True, "this project, for UperNet"
    ),
    # Its list names tokens and positions, but never meets the prefix that they have in a segmentor.
    "beit-seg": DecayRule(
        frozenset(), True, True, "microsoft/unilm beit/semantic_segmentation/mmcv_custom"
    ),
}
DEFAULT_RULE = "mae-finetune"


class Encoder(Protocol):
    """What a module must say about itself, besides its parameters.

    `num_layers` is the largest layer id inside; `layer_id` gives that of one of its parameters, or
    `num_layers` + 1 for those that are trained like a head.
    """

    num_layers: int

    def layer_id(self, name: str) -> int: ...


@dataclass(frozen=True)
class ParameterRule:
    """How one parameter is trained."""

    name: str
    layer: int
    lr_scale: float
    weight_decay: float


def parameter_rules(
    model: nn.Module,
    encoder: Encoder | None,
    weight_decay: float,
    layer_decay: float = 1.0,
    decay_rule: str = DEFAULT_RULE,
) -> list[ParameterRule]:
    """Decide lr scale and weight decay of every trainable parameter of `model`.

    The encoder's parameters are known by identity, not by a name prefix, so it does not matter
    where the encoder sits, nor what wraps the model. lr scale is layer_decay^(last - layer), where
    last = num_layers + 1 is the layer of everything outside of the encoder.

    Args:
        model: names are given without the prefixes of DDP and torch.compile.
        encoder: any of `backbones.create_backbone`; None for a model without one, whose layers are
            then all layer 0.
        layer_decay: 1 for none.
        decay_rule: one of `DECAY_RULES`.

    Raises:
        UserError: unknown rule, or an encoder that is not part of the model.
    """
    if decay_rule not in DECAY_RULES:
        raise unknown("decay rule", decay_rule, DECAY_RULES)
    rule, norms = DECAY_RULES[decay_rule], _norm_parameters(model)
    inside = {id(p): name for name, p in encoder.named_parameters()} if encoder else {}
    last = encoder.num_layers + 1 if encoder else 0
    parameters = trained(model)
    if inside and not inside.keys() & {id(p) for p in unwrapped(model).parameters()}:
        raise UserError(
            f"the {type(encoder).__name__} is not part of this {type(unwrapped(model)).__name__}, "
            "so nothing says which parameters are its; give the model's own encoder"
        )
    rules = []
    for name, parameter in parameters.items():
        own_name = inside.get(id(parameter))
        layer = last if own_name is None else encoder.layer_id(own_name)
        exempt = (
            (rule.one_dimensional and parameter.dim() <= 1)
            or (rule.norms and id(parameter) in norms)
            or (own_name is not None and own_name.rpartition(".")[2] in rule.names)
        )
        decay = 0.0 if exempt else weight_decay
        rules.append(ParameterRule(name, layer, layer_decay ** (last - layer), decay))
    return rules


def _norm_parameters(model: nn.Module) -> set[int]:
    """Identities of the parameters of norm layers, other libraries' own ones too."""
    return {
        id(parameter)
        for module in model.modules()
        if isinstance(module, _NORMS) or type(module).__name__.endswith(("Norm", "Norm2d"))
        for parameter in module.parameters(recurse=False)
    }


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of DDP and torch.compile."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by their names in the unwrapped model."""
    parameters = unwrapped(model).named_parameters()
    return {name: parameter for name, parameter in parameters if parameter.requires_grad}


def parameter_groups(
    model: nn.Module, rules: Iterable[ParameterRule], lr: float
) -> list[dict[str, Any]]:
    """Turn rules into optimizer groups: one per (lr scale, weight decay), with `lr_scale` kept."""
    parameters = trained(model)
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
