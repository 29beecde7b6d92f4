"""Our encoders inside mmseg: same features, same weights, same parameter groups."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from mmseg.registry import MODELS
from torch import nn

import backbones.mmseg  # noqa: F401 (registers)
from backbones import create_backbone, list_backbones
from backbones.checkpoints import fingerprint, read_checkpoint, save_backbone
from backbones.groups import parameter_rules
from backbones.vit import quarters
from mae_bench.errors import UserError

pytestmark = pytest.mark.mmseg
MINI = dict(type="MAEBenchViT", arch="vit_mini_patch8")
SMALL = [name for name in list_backbones() if not any(s in name for s in ("base", "large", "huge"))]


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope("mmseg"):
        torch.manual_seed(0)
        yield


@pytest.fixture
def checkpoint(tmp_path):
    encoder = create_backbone("vit_mini_patch8")
    for parameter in encoder.parameters():
        nn.init.normal_(parameter)
    save_backbone(encoder, tmp_path / "encoder.safetensors", {"backbone": "vit_mini_patch8"})
    return tmp_path / "encoder.safetensors"


def segmentor(**backbone):
    return ConfigDict(
        type="EncoderDecoder",
        backbone={**MINI, **backbone},
        decode_head=dict(
            type="FCNHead", in_channels=96, channels=8, num_convs=1, num_classes=3, in_index=2
        ),
        train_cfg=dict(),
        test_cfg=dict(mode="whole"),
    )


@pytest.mark.parametrize("taps", [None, (0, 1, 3)])
@pytest.mark.parametrize("size", [(48, 88), (37, 83)])
def test_same_features_as_the_encoder_alone(taps, size):
    scales = [1] * len(taps or quarters(4))
    wrapped = MODELS.build({**MINI, "out_indices": taps, "scales": scales}).eval()
    images = torch.rand(2, 3, *size)
    alone = create_backbone("vit_mini_patch8").eval()
    alone.load_state_dict(wrapped.encoder.state_dict())
    for ours, theirs in zip(
        wrapped(images), alone.forward_maps(images, taps or quarters(4)), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", SMALL)
def test_every_backbone_by_name(name):
    model = MODELS.build(dict(type="MAEBenchViT", arch=name))
    patch, width = model.encoder.patch_size, model.encoder.embed_dim
    maps = model(torch.rand(2, 3, 4 * patch, 6 * patch))
    assert [tuple(m.shape) for m in maps] == [
        (2, width, int(4 * scale), int(6 * scale)) for scale in (4, 2, 1, 0.5)
    ]
    sum(m.square().sum() for m in maps).backward()
    for parameter_name, parameter in model.named_parameters():
        has_gradient = parameter.grad is not None and parameter.grad.abs().sum() > 0
        assert has_gradient == parameter.requires_grad, parameter_name


@pytest.fixture
def other_segmentor(tmp_path):
    """A file with other weights for every part of `segmentor()`."""
    model = MODELS.build(segmentor())
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.25)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "other.pth")
    return str(tmp_path / "other.pth")


HOSTILE = {
    "Constant": dict(val=0.5, bias=0.5, layer=["Linear", "LayerNorm", "Conv2d"]),
    "TruncNormal": dict(std=0.02, layer=["Linear", "Conv2d"]),
    "Pretrained": dict(checkpoint="FILE"),
}


@pytest.mark.parametrize("where", ["model", "backbone"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_init_weights_cannot_undo_the_checkpoint(kind, where, checkpoint, other_segmentor):
    """Neither an initialiser of the whole model nor another file; both work without one."""
    hostile = dict(type=kind, **HOSTILE[kind])
    if kind == "Pretrained":
        hostile["checkpoint"] = other_segmentor
        if where == "backbone":
            hostile["prefix"] = "backbone."
    stored = fingerprint(read_checkpoint(checkpoint).weights)
    for file, survives in ((str(checkpoint), True), (None, False)):
        config = segmentor(checkpoint=file)
        model = MODELS.build({**config, "init_cfg": hostile} if where == "model" else config)
        if where == "backbone":
            model.backbone.init_cfg = hostile
        before = fingerprint(model.backbone.encoder.state_dict())
        model.init_weights()
        after = fingerprint(model.backbone.encoder.state_dict())
        if survives or where == "model":
            assert (after == before) == (after == stored) == survives
        if kind == "Pretrained" and where == "model":
            assert torch.all(model.decode_head.conv_seg.weight == 0.25)


def test_a_file_for_the_whole_model_loads_once_it_is_initialised(checkpoint, other_segmentor):
    """What resuming and testing do is not hindered by the checkpoint of the backbone."""
    model = MODELS.build(segmentor(checkpoint=str(checkpoint)))
    model.init_weights()
    load_checkpoint(model, other_segmentor, strict=True)
    assert all(torch.all(parameter == 0.25) for parameter in model.parameters())


def test_positions_are_resized_to_the_crop_and_reported(checkpoint):
    assert MODELS.build({**MINI, "checkpoint": str(checkpoint)}).load_report.resized == {}
    model = MODELS.build({**MINI, "checkpoint": str(checkpoint), "img_size": (32, 96)})
    assert model.encoder.grid == (4, 12)
    assert model.load_report.resized == {"pos_embed": "(1, 65, 96) -> (1, 49, 96)"}


def test_frozen_encoder_neither_learns_nor_drops_paths():
    model = MODELS.build({**MINI, "frozen": True, "drop_path_rate": 0.9}).train()
    first, second = model(torch.ones(4, 3, 64, 64)), model(torch.ones(4, 3, 64, 64))
    assert torch.equal(first[2], second[2])
    sum(m.sum() for m in first).backward()
    assert all(p.grad is None and not p.requires_grad for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.pyramid.parameters())
    unfrozen = MODELS.build({**MINI, "drop_path_rate": 0.9}).train()
    images = torch.ones(4, 3, 64, 64)
    assert not torch.equal(unfrozen(images)[2], unfrozen(images)[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(arch="vit_mini_patch9"), "Did you mean vit_mini_patch8"),
        (dict(out_indices=(0, 1, 2, 4)), r"block numbers from 0 to 3"),
        (dict(out_indices=(3, 1, 2, 0)), r"ascending"),
        (dict(out_indices=(1, 3)), r"2 taps \[1, 3\] but 4 scales"),
        (dict(arch="vit_tiny_patch16", checkpoint="FILE"), "does not fit this backbone"),
        (dict(checkpoint="nowhere.safetensors"), "no checkpoint at nowhere.safetensors"),
    ],
)
def test_bad_options(options, message, checkpoint):
    if options.get("checkpoint") == "FILE":
        options = {**options, "checkpoint": str(checkpoint)}
    with pytest.raises(UserError, match=message):
        MODELS.build({**MINI, **options})


@pytest.mark.parametrize("arch", ["timm:resnet18", "timm:convnext_atto", "timm:swin_s3_tiny_224"])
def test_hierarchical_encoders_bring_their_own_pyramid(arch):
    model = MODELS.build(dict(type="MAEBenchViT", arch=arch)).eval()
    maps = model(torch.rand(1, 3, 96, 160))
    assert [tuple(m.shape) for m in maps] == [
        (1, channels, 96 // stride, 160 // stride)
        for channels, stride in zip(model.out_channels, model.strides, strict=True)
    ]
    assert model.strides == (4, 8, 16, 32)


def test_plain_encoders_of_timm_have_the_same_pyramid():
    config = dict(type="MAEBenchViT", arch="timm:vit_tiny_patch16_224", drop_path_rate=0.1)
    model = MODELS.build(config).eval()
    maps = model(torch.rand(1, 3, 96, 160))
    assert [tuple(m.shape[-2:]) for m in maps] == [(24, 40), (12, 20), (6, 10), (3, 5)]
    assert model.out_channels == (192,) * 4 and model.strides == (4, 8, 16, 32)


def test_upernet_of_beit_and_mae_can_be_said():
    """Relative tables per block at the crop's size, layer scale, class token until the taps."""
    options = dict(relative_positions="per-block", layer_scale=1.0, img_size=128)
    model = MODELS.build({**MINI, **options})
    table = model.encoder.blocks[0].attn.relative_position_bias_table
    assert table.shape == (31 * 31 + 3, 3) and not table.any()
    assert model.encoder.cls_token is not None
    assert [m.shape[-1] for m in model(torch.rand(2, 3, 128, 128))] == [64, 32, 16, 8]
    norms = [m for m in model.pyramid.modules() if "Norm" in type(m).__name__]
    assert norms and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)


def build_wrapper(model, **paramwise):
    return build_optim_wrapper(
        model,
        dict(
            type="OptimWrapper",
            constructor="MAEBenchGroups",
            paramwise_cfg=paramwise,
            optimizer=dict(type="AdamW", lr=0.1, weight_decay=0.05),
        ),
    )


def test_the_groups_of_mmsegs_own_constructor():
    """Rule "beit-seg" against mmseg's layer-wise decay, which knows its own MAE by name."""
    sizes = dict(embed_dims=96, num_layers=4, num_heads=3, patch_size=8, img_size=(64, 64))
    model = MODELS.build(segmentor())
    theirs = MODELS.build({**segmentor(), "backbone": dict(type="MAE", **sizes)})
    options = dict(decay_rate=0.5, decay_type="layer_wise", num_layers=4)
    optimizer = build_optim_wrapper(
        theirs,
        dict(
            type="OptimWrapper",
            constructor="LearningRateDecayOptimizerConstructor",
            paramwise_cfg=options,
            optimizer=dict(type="AdamW", lr=0.1, weight_decay=0.05),
        ),
    ).optimizer
    settings = {
        id(p): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    expected = {name: settings[id(p)] for name, p in theirs.named_parameters()}
    rules = {
        r.name: r for r in parameter_rules(model, model.backbone.encoder, 0.05, 0.5, "beit-seg")
    }
    pairs = {
        "backbone.encoder.cls_token": "backbone.cls_token",
        "backbone.encoder.pos_embed": "backbone.pos_embed",
        "backbone.encoder.patch_embed.proj.weight": "backbone.patch_embed.projection.weight",
        "backbone.encoder.patch_embed.proj.bias": "backbone.patch_embed.projection.bias",
        "backbone.encoder.blocks.0.norm1.weight": "backbone.layers.0.ln1.weight",
        "backbone.encoder.blocks.0.attn.qkv.weight": "backbone.layers.0.attn.qkv.weight",
        "backbone.encoder.blocks.3.mlp.fc1.bias": "backbone.layers.3.ffn.layers.0.0.bias",
        "backbone.encoder.blocks.3.mlp.fc2.weight": "backbone.layers.3.ffn.layers.1.weight",
        "decode_head.conv_seg.weight": "decode_head.conv_seg.weight",
        "decode_head.conv_seg.bias": "decode_head.conv_seg.bias",
    }
    for ours, other in pairs.items():
        scale, decay = rules[ours].lr_scale, rules[ours].weight_decay
        assert (pytest.approx(0.1 * scale), decay) == expected[other], ours


def test_groups_take_a_rule_and_no_unknown_keys():
    model = MODELS.build(segmentor())
    groups = build_wrapper(model, layer_decay=0.5, decay_rule="beit-seg").optimizer.param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    assert id(model.backbone.encoder.pos_embed) in decayed
    with pytest.raises(UserError, match=r"unknown key of paramwise_cfg 'layer_decay_rate'"):
        build_wrapper(model, layer_decay_rate=0.5)


def test_mmengine_builds_our_parameter_groups():
    model = MODELS.build(segmentor())
    wrapper = build_wrapper(model, layer_decay=0.5)
    built = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in wrapper.optimizer.param_groups
        for parameter in group["params"]
    }
    rules = parameter_rules(model, model.backbone.encoder, 0.05, 0.5)
    parameters = dict(model.named_parameters())
    assert len(built) == len(rules)
    for rule in rules:
        expected = (pytest.approx(0.1 * rule.lr_scale), rule.weight_decay)
        assert built[id(parameters[rule.name])] == expected, rule.name
    encoder = "backbone.encoder."
    by_name = {name: built[id(p)] for name, p in parameters.items() if id(p) in built}
    assert by_name[encoder + "pos_embed"] == (pytest.approx(0.1 * 0.5**5), 0.0)
    assert by_name[encoder + "blocks.3.mlp.fc1.weight"] == (pytest.approx(0.05), 0.05)
    assert by_name["backbone.pyramid.levels.1.weight"] == (0.1, 0.05)
    assert by_name["decode_head.conv_seg.bias"] == (0.1, 0.0)
