"""Conversion changes no bit, and says what a format cannot hold."""

import published_layouts as layouts
import pytest
import torch

from backbones import create_backbone
from backbones.checkpoints import read_checkpoint, save_backbone
from backbones.convert import TARGETS, convert
from backbones.load_report import fingerprint
from mae_bench.errors import UserError

SUFFIX = {name: ".safetensors" if name == "safetensors" else ".pth" for name in TARGETS}


def saved(tmp_path, layout, backbone="vit_mini_patch8", **options):
    torch.manual_seed(0)
    state = layouts.random_like(create_backbone(backbone, **options).state_dict())
    torch.save(getattr(layouts, layout)(state), tmp_path / "source.pth")
    return read_checkpoint(tmp_path / "source.pth")


@pytest.mark.parametrize("first", TARGETS)
@pytest.mark.parametrize("second", TARGETS)
def test_round_trips_are_lossless_between_all_pairs(first, second, tmp_path):
    source = saved(tmp_path, "mae")
    there, back = tmp_path / f"there{SUFFIX[first]}", tmp_path / f"back{SUFFIX[second]}"
    assert convert(source, there, first) == {}
    middle = read_checkpoint(there)
    assert middle.format == TARGETS[first].format and middle.backbone == "vit_mini_patch8"
    convert(middle, back, second)
    final = read_checkpoint(back)
    assert fingerprint(final.weights) == fingerprint(source.weights)
    again = tmp_path / "again.safetensors"
    convert(final, again, "safetensors")
    convert(source, tmp_path / "direct.safetensors", "safetensors")
    assert again.read_bytes() == (tmp_path / "direct.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("layout", "backbone", "options", "targets"),
    [
        ("beit_finetuned", "beit_mini_patch8", {}, {"timm", "mmseg", "safetensors"}),
        ("timm_layer_scale", "vit_mini_patch8", dict(layer_scale=0.1), {"timm", "mmseg"}),
        ("deit_distilled", "deit_mini_distilled_patch8", {}, {"timm", "safetensors"}),
        (
            "vitdet",
            "vit_mini_patch8",
            dict(relative_positions="decomposed", window_size=4),
            {"detectron2", "safetensors"},
        ),
        ("moco_v3", "moco_mini_patch8", {}, {*TARGETS}),
    ],
)
def test_every_part_is_kept_or_refused(layout, backbone, options, targets, tmp_path):
    source = saved(tmp_path, layout, backbone, **options)
    for target in TARGETS:
        out = tmp_path / f"out-{target}{SUFFIX[target]}"
        if target in targets or (layout == "timm_layer_scale" and target == "safetensors"):
            convert(source, out, target)
            assert fingerprint(read_checkpoint(out).weights) == fingerprint(source.weights)
        else:
            with pytest.raises(UserError, match=f"{target} has no place for"):
                convert(source, out, target)
            assert not out.exists()


def test_decoder_stays_in_maes_layout_and_is_said_to_be_left_out_of_others(tmp_path):
    source = saved(tmp_path, "mae_full")
    left = convert(source, tmp_path / "full.pth", "mae")
    assert set(left) == {"optimizer", "epoch", "args"}
    kept = read_checkpoint(tmp_path / "full.pth")
    assert kept.format == "mae-full"
    assert fingerprint(kept.decoder) == fingerprint(source.decoder)
    left = convert(source, tmp_path / "out.pth", "timm")
    assert sum(why == "decoder, not used here" for why in left.values()) == 32


def test_names_are_the_other_projects(tmp_path):
    source = saved(tmp_path, "mae")
    starts = {
        "timm": lambda tree: tree["blocks.0.attn.qkv.weight"],
        "mae": lambda tree: tree["model"]["blocks.0.attn.qkv.weight"],
        "detectron2": lambda tree: tree["model"]["backbone.net.blocks.0.attn.qkv.weight"],
        "mmseg": lambda tree: tree["state_dict"]["layers.0.attn.qkv.weight"],
    }
    for target, find in starts.items():
        convert(source, tmp_path / "out.pth", target)
        tree = torch.load(tmp_path / "out.pth", weights_only=True)
        assert torch.equal(find(tree), source.weights["blocks.0.attn.qkv.weight"])


def test_grid_and_heads_survive_where_the_names_have_no_place_for_them(tmp_path):
    encoder = create_backbone("vit_mini_patch8", img_size=(32, 128), num_heads=2)
    save_backbone(encoder, tmp_path / "wide.safetensors", {"backbone": "vit_mini_patch8"})
    source = read_checkpoint(tmp_path / "wide.safetensors")
    for target in ("timm", "mae", "detectron2", "mmseg"):
        convert(source, tmp_path / "out.pth", target)
        read = read_checkpoint(tmp_path / "out.pth")
        assert (read.grid, read.num_heads) == ((4, 16), 2)


@pytest.mark.parametrize(
    ("out", "target", "message"),
    [
        ("out.pth", "caffe", "unknown format to write 'caffe'"),
        ("out.pth", "safetensors", "ends in .safetensors"),
        ("out.txt", "timm", r"ends in .pth or .pt or .bin or .safetensors"),
        ("source.pth", "timm", "is the file to convert"),
        ("none/out.pth", "timm", "there is no folder"),
        ("mae_pretrain_vit_base.pth", "timm", "name of a published file"),
    ],
)
def test_bad_requests_write_nothing(out, target, message, tmp_path):
    source = saved(tmp_path, "mae")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        convert(source, tmp_path / out, target)
    assert sorted(tmp_path.iterdir()) == before
