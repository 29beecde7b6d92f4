"""Parameter groups against the published multipliers."""

import csv

import pytest
import torch
from torch import nn

from backbones import create_backbone
from backbones.groups import parameter_groups, parameter_rules, write_rules


class Wrapped(nn.Module):
    """An encoder under a name that no prefix rule would know, and a head."""

    def __init__(self, encoder):
        super().__init__()
        self.anything = nn.ModuleDict({"goes": encoder})
        self.head = nn.Linear(encoder.embed_dim, 3)


@pytest.mark.parametrize(
    ("name", "decay"), [("vit_base_patch16", 0.65), ("vit_large_patch16", 0.75)]
)
def test_golden_multipliers(name, decay):
    """r^(d + 1 - k): embeddings k = 0, block i k = i + 1, everything else 1."""
    with torch.device("meta"):
        encoder = create_backbone(name)
        model = Wrapped(encoder)
    depth = encoder.depth
    rules = {r.name: r for r in parameter_rules(model, encoder, 0.05, decay)}
    prefix = "anything.goes."
    golden = {
        "patch_embed.proj.weight": (decay ** (depth + 1), 0.05),
        "patch_embed.proj.bias": (decay ** (depth + 1), 0.0),
        "cls_token": (decay ** (depth + 1), 0.0),
        "pos_embed": (decay ** (depth + 1), 0.0),
        "blocks.0.attn.qkv.weight": (decay**depth, 0.05),
        f"blocks.{depth - 1}.mlp.fc2.weight": (decay, 0.05),
        f"blocks.{depth - 1}.norm1.weight": (decay, 0.0),
        "norm.weight": (1.0, 0.0),
    }
    for parameter, (scale, weight_decay) in golden.items():
        rule = rules[prefix + parameter]
        assert rule.lr_scale == pytest.approx(scale, rel=1e-12)
        assert rule.weight_decay == weight_decay
    assert rules["head.weight"].lr_scale == 1.0 and rules["head.weight"].weight_decay == 0.05
    assert rules["head.bias"].weight_decay == 0.0
    assert len(rules) == sum(1 for _ in model.parameters())


def test_groups_hold_every_trainable_parameter_once(tmp_path):
    encoder = create_backbone("vit_mini_patch8")
    model = Wrapped(encoder)
    encoder.pos_embed.requires_grad_(False)
    rules = parameter_rules(model, encoder, 0.05, 0.5)
    groups = parameter_groups(model, rules, lr=2.0)
    got = [id(p) for group in groups for p in group["params"]]
    assert len(got) == len(set(got))
    assert set(got) == {id(p) for p in model.parameters() if p.requires_grad}
    assert all(group["lr"] == 2.0 * group["lr_scale"] for group in groups)
    write_rules(rules, tmp_path / "parameters.csv")
    rows = list(csv.DictReader((tmp_path / "parameters.csv").open()))
    assert {row["name"]: float(row["lr_scale"]) for row in rows} == {
        rule.name: rule.lr_scale for rule in rules
    }


def test_pretraining_decays_the_class_token():
    """The published list of exceptions is empty there, and the token is 3-D."""
    encoder = create_backbone("vit_mini_patch8")
    rules = {r.name: r for r in parameter_rules(encoder, encoder, 0.05, no_decay=frozenset())}
    assert rules["cls_token"].weight_decay == 0.05
    assert rules["norm.weight"].weight_decay == 0.0
