"""Our encoders inside mmseg: same features, same weights, same parameter groups."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
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
def test_same_features_as_the_encoder_alone(taps):
    scales = [1] * len(taps or quarters(4))
    wrapped = MODELS.build({**MINI, "out_indices": taps, "scales": scales}).eval()
    images = torch.rand(2, 3, 48, 88)
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


def test_init_weights_cannot_undo_the_checkpoint(checkpoint):
    hostile = dict(type="Constant", val=0.5, bias=0.5, layer=["Linear", "LayerNorm", "Conv2d"])
    stored = read_checkpoint(checkpoint).header["fingerprint"]
    for file, survives in ((str(checkpoint), True), (None, False)):
        model = MODELS.build({**segmentor(checkpoint=file), "init_cfg": hostile})
        before = fingerprint(model.backbone.encoder.state_dict())
        model.init_weights()
        after = fingerprint(model.backbone.encoder.state_dict())
        assert (after == before) == survives
        assert (after == stored) == survives


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


class Wrapped(nn.Module):
    """What a distributed model looks like to an optimizer constructor."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_mmengine_builds_our_parameter_groups():
    model = MODELS.build(segmentor())
    wrapper = build_optim_wrapper(
        model,
        dict(
            type="OptimWrapper",
            constructor="MAEBenchGroups",
            paramwise_cfg=dict(layer_decay=0.5),
            optimizer=dict(type="AdamW", lr=0.1, weight_decay=0.05),
        ),
    )
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
