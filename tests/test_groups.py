"""Parameter groups against the published multipliers, whatever surrounds the encoder."""

import csv
from pathlib import Path

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from backbones import create_backbone
from backbones.groups import (
    DECAY_RULES,
    parameter_groups,
    parameter_rules,
    unwrapped,
    write_rules,
)
from mae_bench.errors import UserError

GOLDEN = Path(__file__).parent / "golden"
DENSE = dict(depth=8, window_size=2, relative_positions="shared", layer_scale=0.1)


class Wrapped(nn.Module):
    """An encoder under a name that no prefix rule would know, a neck with a norm, and a head."""

    def __init__(self, encoder):
        super().__init__()
        self.anything = nn.ModuleDict({"goes": encoder})
        self.neck = nn.GroupNorm(1, 4)
        self.head = nn.Linear(8, 3)


def by_name(model, encoder, *arguments, **options):
    return {r.name: r for r in parameter_rules(model, encoder, *arguments, **options)}


@pytest.mark.parametrize(
    ("name", "decay"), [("vit_base_patch16", 0.65), ("vit_large_patch16", 0.75)]
)
def test_golden_table(name, decay):
    """Every parameter of ViT-B and ViT-L against a stored table.

    The tables were made with timm's own grouping of timm's own ViTs; only the final norm is by
    MAE's rule (timm counts it with the last block).
    """
    with torch.device("meta"):
        encoder = create_backbone(name)
        model = Wrapped(encoder)
    rules = by_name(model, encoder, 0.05, decay)
    lines = (GOLDEN / f"parameters_{name}.txt").read_text().splitlines()
    assert len(rules) == len(lines) + 4
    for line in lines:
        own_name, layer, scale, weight_decay = line.split()
        rule = rules[f"anything.goes.{own_name}"]
        assert rule.layer == int(layer), line
        assert rule.lr_scale == pytest.approx(float(scale), rel=1e-9), line
        assert rule.weight_decay == float(weight_decay), line
    outside = {name: (r.layer, r.lr_scale, r.weight_decay) for name, r in rules.items()}
    last = encoder.depth + 1
    assert outside["head.weight"] == (last, 1.0, 0.05)
    assert outside["head.bias"] == outside["neck.weight"] == (last, 1.0, 0.0)


# What each recipe decays, of: a matrix, a bias, a norm's weight, layer scale, the positions, the
# class token, a relative table; outside of the encoder a norm's weight and a bias.
KINDS = (
    "anything.goes.blocks.0.mlp.fc1.weight",
    "anything.goes.blocks.0.mlp.fc1.bias",
    "anything.goes.blocks.0.norm1.weight",
    "anything.goes.blocks.0.gamma_1",
    "anything.goes.pos_embed",
    "anything.goes.cls_token",
    "anything.goes.blocks.0.attn.relative_position_bias_table",
    "neck.weight",
    "head.bias",
)
DECAYED = {
    "mae-pretrain": "1000111 00",
    "mae-finetune": "1000001 00",
    "detectron2": "1101010 01",
    "vitdet": "1101011 01",
    "upernet": "1000000 00",
    "beit-seg": "1000111 00",
}


@pytest.mark.parametrize("rule", DECAY_RULES)
def test_what_each_recipe_decays(rule):
    encoder = create_backbone("vit_mini_patch8", relative_positions="per-block", layer_scale=0.1)
    rules = by_name(Wrapped(encoder), encoder, 0.05, 0.5, rule)
    expected = [digit == "1" for digit in DECAYED[rule].replace(" ", "")]
    assert [rules[name].weight_decay == 0.05 for name in KINDS] == expected
    assert {rules[name].weight_decay for name in KINDS} == {0.0, 0.05}


def test_shared_tables_are_exempt_where_the_recipe_says_so():
    encoder = create_backbone("vit_mini_patch8", **DENSE)
    tables = ("rel_pos_bias", "window_rel_pos_bias")
    for rule, decay in (("detectron2", 0.0), ("beit-seg", 0.05)):
        rules = by_name(encoder, encoder, 0.05, 0.5, rule)
        for table in tables:
            assert rules[f"{table}.relative_position_bias_table"].weight_decay == decay


def test_decomposed_tables_follow_vitdet():
    encoder = create_backbone("vit_mini_patch8", relative_positions="decomposed")
    name = "blocks.3.attn.rel_pos_h"
    assert by_name(encoder, encoder, 0.1, 0.7, "vitdet")[name].weight_decay == 0.1
    assert by_name(encoder, encoder, 0.1, 0.7, "detectron2")[name].weight_decay == 0.0
    assert by_name(encoder, encoder, 0.1, 0.7, "vitdet")[name].lr_scale == pytest.approx(0.7)


@pytest.mark.parametrize("layer_decay", [0.5, 1.0])
def test_groups_hold_every_trainable_parameter_once(layer_decay, tmp_path):
    encoder = create_backbone("vit_mini_patch8", **DENSE)
    model = Wrapped(encoder)
    encoder.pos_embed.requires_grad_(False)
    rules = parameter_rules(model, encoder, 0.05, layer_decay)
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


@pytest.fixture
def one_process(tmp_path):
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_wrappers_change_nothing(one_process):
    """DDP and torch.compile put prefixes before every name; rules and groups stay the same."""
    encoder = create_backbone("vit_mini_patch8")
    model = Wrapped(encoder)
    plain = parameter_rules(model, encoder, 0.05, 0.5)
    wrapped = torch.compile(nn.parallel.DistributedDataParallel(model))
    assert all(name.startswith("_orig_mod.module.") for name, _ in wrapped.named_parameters())
    assert unwrapped(wrapped) is model
    assert parameter_rules(wrapped, encoder, 0.05, 0.5) == plain
    groups = [parameter_groups(m, plain, 1.0) for m in (model, wrapped)]
    for ours, theirs in zip(*groups, strict=True):
        assert list(map(id, ours["params"])) == list(map(id, theirs["params"]))


TIMM = ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto", "resnet18")


@pytest.mark.parametrize("name", TIMM)
def test_timm_models_as_timm_groups_them(name):
    """Multipliers of timm's own layer-wise decay, for any architecture."""
    encoder = create_backbone(f"timm:{name}")
    rules = by_name(encoder, encoder, 0.05, 0.5)
    reference = param_groups_layer_decay(encoder.model, 0.05, layer_decay=0.5)
    scales = {id(p): g["lr_scale"] for g in reference for p in g["params"]}
    named = dict(encoder.named_parameters())
    assert rules.keys() == {n for n, p in named.items() if p.requires_grad}
    for rule_name, rule in rules.items():
        # timm counts from the last layer inside, we from what is around the model.
        ratio = rule.lr_scale / scales[id(named[rule_name])]
        assert ratio == pytest.approx(0.5), rule_name


def test_unknown_rules_and_foreign_encoders_are_refused():
    encoder = create_backbone("vit_mini_patch8")
    with pytest.raises(UserError, match=r"unknown decay rule 'vit-det'.*Did you mean vitdet"):
        parameter_rules(encoder, encoder, 0.05, decay_rule="vit-det")
    other = create_backbone("vit_mini_patch8")
    with pytest.raises(UserError, match="VisionTransformer is not part of this Wrapped"):
        parameter_rules(Wrapped(other), encoder, 0.05)
