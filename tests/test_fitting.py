"""Weights in an encoder of other sizes or parts: what changes is said, misfits are refused."""

import published_layouts as layouts
import pytest
import torch
import torch.nn.functional as F

from backbones import create_backbone
from backbones.checkpoints import check_fits, load_backbone, read_checkpoint, save_backbone
from backbones.load_report import LoadReport, fingerprint, record_load
from backbones.positions import resize_positions, resize_relative_table
from mae_bench.errors import UserError

IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def made(name="vit_mini_patch8", **options):
    torch.manual_seed(0)
    encoder = create_backbone(name, **options).eval()
    encoder.load_state_dict(layouts.random_like(encoder.state_dict()))
    return encoder


@pytest.fixture
def store(tmp_path):
    def write(tree):
        torch.save(tree, tmp_path / "file.pth")
        return tmp_path / "file.pth"

    return write


def test_a_file_of_another_size_is_refused_before_an_encoder_is_built(store):
    path = store({"model": made("vit_mini_patch8").state_dict()})
    large = "it has width 96 and 4 blocks, vit_large_patch16 1024 and 24"
    with pytest.raises(UserError, match=f"vit_mini_patch8.* fits none .*: {large}.* Give another"):
        check_fits(path, None, ["vit_large_patch16"])
    check_fits(path, None, ["vit_large_patch16", "vit_mini_patch8"])
    check_fits(path, None, ["timm:convnext_tiny"])


def test_another_number_of_heads_is_refused_likewise(tmp_path):
    save_backbone(made("vit_mini_patch8", num_heads=2), tmp_path / "two", {})
    with pytest.raises(UserError, match="has 2 attention heads, vit_mini_patch8 3"):
        check_fits(tmp_path / "two", None, ["vit_mini_patch8"])


def test_shared_table_becomes_a_table_for_each_block(store):
    source = made("beit_mini_patch8", relative_positions="shared")
    path = store(layouts.beit_pretrain(source.state_dict()))
    other = create_backbone("beit_mini_patch8").eval()
    report = load_backbone(other, path)
    assert report.resized == {
        f"blocks.{i}.attn.relative_position_bias_table": "copy of the shared table"
        for i in range(4)
    }
    assert torch.allclose(other(IMAGE), source(IMAGE), atol=1e-5)
    report.check(other.state_dict())


def test_windows_and_global_blocks_get_the_beit_table_at_their_sizes(store):
    source = made("beit_mini_patch8", relative_positions="shared")
    table = source.rel_pos_bias.relative_position_bias_table
    other = create_backbone(
        "beit_mini_patch8",
        relative_positions="shared",
        window_size=4,
        global_blocks=(3,),
        img_size=96,
    )
    report = load_backbone(other, store(layouts.beit_pretrain(source.state_dict())))
    without_class = table[:-3]
    for module, grid in ((other.rel_pos_bias, (12, 12)), (other.window_rel_pos_bias, (4, 4))):
        expected = resize_relative_table(without_class, (8, 8), grid)
        assert torch.equal(module.relative_position_bias_table, expected)
    assert report.resized["rel_pos_bias.relative_position_bias_table"] == "(228, 3) -> (529, 3)"
    assert report.explained["cls_token"] == "this encoder has no class token"


def test_separate_biases_join_with_zeros_for_the_keys(store):
    options = dict(relative_positions=None, positions="learned", layer_scale=None)
    source = made("beit_mini_patch8", **options)
    path = store(layouts.beit_abs(source.state_dict()))
    other = create_backbone("vit_mini_patch8").eval()
    report = load_backbone(other, path)
    bias = other.blocks[1].attn.qkv.bias.chunk(3)
    assert torch.equal(bias[0], source.blocks[1].attn.q_bias) and not bias[1].any()
    assert torch.equal(bias[2], source.blocks[1].attn.v_bias)
    assert report.resized["blocks.1.attn.qkv.bias"] == "q_bias, zeros, v_bias"
    assert torch.allclose(other(IMAGE), source(IMAGE), atol=1e-5)


def test_positions_without_a_row_for_the_class_token(store):
    source = made(layer_scale=0.1)
    other = create_backbone("vit_mini_patch8", layer_scale=1.0)
    report = load_backbone(other, store(layouts.deit3(source.state_dict())))
    assert "zeros for the class token" in report.resized["pos_embed"]
    assert not other.pos_embed[:, 0].any()
    assert torch.equal(other.pos_embed[:, 1:], source.pos_embed[:, 1:])


def test_patches_and_positions_of_another_size_are_resampled(store):
    source = made()
    other = create_backbone("vit_mini_patch8", patch_size=10, img_size=(70, 90))
    report = load_backbone(other, store(layouts.mae(source.state_dict())))
    expected = F.interpolate(source.patch_embed.proj.weight, size=(10, 10), mode="bicubic")
    assert torch.equal(other.patch_embed.proj.weight, expected)
    assert torch.equal(other.pos_embed, resize_positions(source.pos_embed, (8, 8), (7, 9)))
    assert report.resized == {
        "patch_embed.proj.weight": "(96, 3, 8, 8) -> (96, 3, 10, 10)",
        "pos_embed": "(1, 65, 96) -> (1, 64, 96)",
    }
    assert report.fingerprint == fingerprint(source.state_dict()) != report.encoder_fingerprint
    report.check(other.state_dict())


def test_decomposed_positions_are_resampled_along_their_axis(store):
    options = dict(relative_positions="decomposed", window_size=4, global_blocks=(3,))
    source = made(**options)
    other = create_backbone("vit_mini_patch8", img_size=96, **options)
    load_backbone(other, store(layouts.vitdet(source.state_dict())))
    old, new = (encoder.blocks[3].attn.rel_pos_h for encoder in (source, other))
    assert old.shape == (15, 32) and new.shape == (23, 32)
    assert torch.equal(new, F.interpolate(old.T[None], size=23, mode="linear")[0].T)
    assert torch.equal(other.blocks[0].attn.rel_pos_h, source.blocks[0].attn.rel_pos_h)


def test_grid_of_our_own_files_need_not_be_square(tmp_path):
    source = made(img_size=(32, 128))
    save_backbone(source, tmp_path / "wide.safetensors", {"backbone": "vit_mini_patch8"})
    other = create_backbone("vit_mini_patch8", img_size=(128, 32))
    report = load_backbone(other, tmp_path / "wide.safetensors")
    assert torch.equal(other.pos_embed, resize_positions(source.pos_embed, (4, 16), (16, 4)))
    assert set(report.resized) == {"pos_embed"}


@pytest.mark.parametrize(
    ("options", "new"),
    [
        (dict(relative_positions="per-block"), 4),
        (dict(relative_positions="shared", window_size=4, global_blocks=(3,)), 2),
        (dict(relative_positions="decomposed"), 8),
        (dict(layer_scale=1.0), 8),
    ],
)
def test_parts_that_start_neutral_are_new(options, new, store):
    source = made()
    other = create_backbone("vit_mini_patch8", **options).eval()
    report = load_backbone(other, store(layouts.mae(source.state_dict())))
    assert len(report.new) == new and set(report.new.values()) <= {"0", "1"}
    if "layer_scale" in options:
        assert torch.equal(other(IMAGE), source(IMAGE))


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("vit_mini_patch8", dict(layer_scale=0.1), "missing blocks.0.gamma_1.*layer_scale"),
        ("vit_mini_patch8", dict(positions=None), "unexpected pos_embed.*class_token, positions"),
        ("vit_mini_patch8", dict(num_heads=4), "it has 3 attention heads, the backbone 4"),
        ("vit_mini_patch8", dict(depth=8), "width 96 and 4 blocks, the backbone 96 and 8"),
        ("vit_mini_patch8", dict(mlp_ratio=2.0), r"fc1.weight is \(384, 96\), \(192, 96\) is"),
        ("vit_tiny_patch16", {}, "width 96 and 4 blocks, the backbone 192 and 12"),
        ("beit_mini_patch8", {}, "missing .*gamma_1.*Options .*layer_scale"),
        ("deit_mini_distilled_patch8", {}, "missing dist_token"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_loaded(backbone, options, message, store):
    path = store(layouts.mae(made().state_dict()))
    other = create_backbone(backbone, **options)
    before = fingerprint(other.state_dict())
    with pytest.raises(UserError, match=rf"\(mae, vit_mini_patch8\) does not fit .*: .*{message}"):
        load_backbone(other, path)
    assert fingerprint(other.state_dict()) == before


def test_moco_and_deit_small_differ_in_their_heads_alone(store):
    small = create_backbone("moco_small_patch16", depth=12, img_size=32)
    path = store(layouts.moco_v3(small.state_dict()))
    with pytest.raises(UserError, match="it has 12 attention heads, the backbone 6"):
        load_backbone(create_backbone("vit_small_patch16", img_size=32), path)


def test_timm_models_take_their_own_files_and_plain_vits(store):
    swin = create_backbone("timm:test_resnet").eval()
    state = {**swin.state_dict(), "fc.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)}
    other = create_backbone("timm:test_resnet")
    report = load_backbone(other, store(state))
    assert report.format == "timm" and set(report.explained) == {"fc.weight", "fc.bias"}
    assert fingerprint(other.state_dict()) == fingerprint(swin.state_dict()) == report.fingerprint
    state["extra"] = torch.ones(1)
    with pytest.raises(UserError, match="fits no known format"):
        load_backbone(other, store(state))
    plain = create_backbone("timm:vit_tiny_patch16_224", depth=4, img_size=64).eval()
    ours = made("vit_tiny_patch16", depth=4, img_size=64)
    report = load_backbone(plain, store(layouts.mae(ours.state_dict())))
    assert report.format == "mae" and not report.resized and not report.new
    assert torch.allclose(plain.forward_features(IMAGE), ours(IMAGE), atol=1e-4)


def test_what_changes_the_weights_later_is_noticed(store, tmp_path):
    encoder = create_backbone("vit_mini_patch8")
    report = load_backbone(encoder, store(layouts.mae_full(made().state_dict())))
    facts = record_load(report, encoder, tmp_path)
    assert facts["fingerprint_at_step_0"] == report.fingerprint
    assert facts["load_report"]["explained"]["decoder, not used here"] == 32
    saved = (tmp_path / "load_report.json").read_text()
    assert LoadReport.model_validate_json(report.model_dump_json()) == report
    assert '"decoder_embed.weight": "decoder, not used here"' in saved
    assert "loaded       54  keys as they are" in report.table()
    with torch.no_grad():
        encoder.blocks[2].norm1.bias[3] += 1e-6
    with pytest.raises(RuntimeError, match="something initialised or changed it"):
        record_load(report, encoder, tmp_path)


def test_create_backbone_takes_a_checkpoint_and_its_format(store):
    source = made()
    path = store(dict(source.state_dict()))
    with pytest.raises(UserError, match="several formats"):
        create_backbone("vit_mini_patch8", checkpoint=path)
    loaded = create_backbone("vit_mini_patch8", checkpoint=path, format="timm")
    assert fingerprint(loaded.state_dict()) == fingerprint(read_checkpoint(path, "dino").weights)
