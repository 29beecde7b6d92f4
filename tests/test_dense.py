"""Dense use of the encoder against naive loops, published formulas and timm's own modules."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import RectBivariateSpline
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from torch import nn

from backbones import attention, create_backbone, describe, list_backbones, vit
from backbones.attention import Attention, decomposed_attention, from_windows, to_windows
from backbones.positions import (
    num_offsets,
    relative_bias,
    resize_relative_table,
    sincos_positions,
)
from mae_bench.errors import UserError

close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)


def randomise(model: nn.Module) -> nn.Module:
    """Every parameter away from its start, so that nothing is zero or one by luck."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def naive_attention(module: Attention, x, grid, bias=None, mask_padding=False):
    """Attention window by window and head by head, zeros padded before the projection."""
    s, d = module.window_size, x.shape[2] // module.num_heads
    h, w = grid
    padded = F.pad(x.unflatten(1, grid), (0, 0, 0, -w % s, 0, -h % s))
    inside = F.pad(torch.ones(h, w), (0, -w % s, 0, -h % s)).bool()
    out = torch.zeros_like(padded)
    qkv_bias = module.qkv.bias
    if qkv_bias is None:
        qkv_bias = torch.cat([module.q_bias, torch.zeros(x.shape[2]), module.v_bias])
    for image in range(len(x)):
        for top in range(0, padded.shape[1], s):
            for left in range(0, padded.shape[2], s):
                rows, columns = slice(top, top + s), slice(left, left + s)
                window = padded[image, rows, columns].reshape(s * s, -1)
                q, k, v = (window @ module.qkv.weight.T + qkv_bias).chunk(3, dim=1)
                heads = []
                for i in range(module.num_heads):
                    part = slice(i * d, (i + 1) * d)
                    logits = q[:, part] @ k[:, part].T / d**0.5
                    if bias is not None:
                        logits = logits + bias[i]
                    if mask_padding:
                        logits[:, ~inside[rows, columns].flatten()] = -torch.inf
                    heads.append(logits.softmax(1) @ v[:, part])
                out[image, rows, columns] = torch.cat(heads, 1).view(s, s, -1)
    return module.proj(out[:, :h, :w].flatten(1, 2))


@pytest.mark.parametrize("qkv_bias", [True, "qv"])
@pytest.mark.parametrize("grid", [(6, 9), (5, 7), (2, 4)])
def test_windows_against_a_naive_loop(grid, qkv_bias):
    module = randomise(Attention(12, 2, qkv_bias=qkv_bias, window_size=3))
    x, bias = torch.randn(2, grid[0] * grid[1], 12), torch.randn(2, 9, 9)
    close(module(x, grid), naive_attention(module, x, grid))
    close(module(x, grid, bias), naive_attention(module, x, grid, bias))


def test_padded_keys_take_part_as_in_vitdet():
    module = randomise(Attention(12, 2, window_size=3))
    x = torch.randn(1, 35, 12)
    masked = naive_attention(module, x, (5, 7), mask_padding=True)
    assert (module(x, (5, 7)) - masked).abs().max() > 1e-3


def test_windows_and_back():
    x = torch.randn(2, 5, 7, 4)
    windows = to_windows(x, 3)
    assert windows.shape == (2 * 2 * 3, 9, 4)
    assert torch.equal(windows[4].view(3, 3, 4)[:2], x[0, 3:5, 3:6])
    assert torch.equal(from_windows(windows, 3, (5, 7)), x)


def naive_bias(table, grid):
    """One entry after the other, class token first where the table has its rows."""
    h, w = grid
    places = [divmod(i, w) for i in range(h * w)]
    if len(table) > num_offsets(grid):
        places = [None, *places]
    bias = torch.empty(table.shape[1], len(places), len(places))
    for i, query in enumerate(places):
        for j, key in enumerate(places):
            if query is None or key is None:
                row = -1 if query == key else -3 if query is None else -2
            else:
                row = (query[0] - key[0] + h - 1) * (2 * w - 1) + query[1] - key[1] + w - 1
            bias[:, i, j] = table[row]
    return bias


@pytest.mark.parametrize("class_rows", [0, 3])
@pytest.mark.parametrize("grid", [(2, 3), (4, 4), (1, 5)])
def test_relative_bias_against_a_naive_gather(grid, class_rows):
    table = torch.randn(num_offsets(grid) + class_rows, 2, requires_grad=True)
    bias, expected = relative_bias(table, grid, grid), naive_bias(table, grid)
    assert torch.equal(bias, expected)
    weight = torch.randn_like(bias)
    (gradient,) = torch.autograd.grad((bias * weight).sum(), table)
    close(gradient, torch.autograd.grad((expected * weight).sum(), table)[0])


def naive_decomposed(q, k, v, rows, columns):
    h, w, d = len(rows), len(columns), q.shape[-1]
    logits = q @ k.transpose(-1, -2) / d**0.5
    for i in range(h * w):
        for j in range(h * w):
            offset = rows[i // w, j // w] + columns[i % w, j % w]
            logits[..., i, j] += (q[..., i, :] * offset).sum(-1)
    return logits.softmax(-1) @ v


def test_decomposed_positions_against_a_naive_loop():
    """Both ways of computing it: with gradients and without."""
    q, k, v = torch.randn(3, 2, 3, 12, 5)
    rows, columns = torch.randn(3, 3, 5), torch.randn(4, 4, 5)
    expected = naive_decomposed(q, k, v, rows, columns)
    with torch.no_grad():
        close(decomposed_attention(q, k, v, rows, columns), expected)
    q = q.clone().requires_grad_()
    found = decomposed_attention(q, k, v, rows, columns)
    close(found, expected)
    expected = naive_decomposed(q, k, v, rows, columns)
    gradients = (torch.autograd.grad(x.square().sum(), q)[0] for x in (found, expected))
    close(*gradients, atol=1e-4)


def published_spline(table, old, new):
    """BEiT's recipe for a square grid, with scipy's surface fit that it was written for."""
    source, target = 2 * old - 1, 2 * new - 1
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        total = sum(ratio**i for i in range(source // 2))
        low, high = (low, ratio) if total > target // 2 else (ratio, high)
    distances = [sum(ratio**i for i in range(n)) for n in range(1, source // 2 + 1)]
    knots = [-x for x in reversed(distances)] + [0, *distances]
    wanted = np.clip(np.arange(-(target // 2), target // 2 + 1), knots[0], knots[-1])
    heads = [
        RectBivariateSpline(knots, knots, z.numpy().reshape(source, source))(wanted, wanted)
        for z in table.double().unbind(1)
    ]
    return torch.from_numpy(np.stack(heads, -1)).reshape(-1, table.shape[1]).float()


@pytest.mark.parametrize(("old", "new"), [(14, 32), (7, 9), (8, 5)])
def test_relative_tables_are_resized_as_published(old, new):
    table = torch.randn(num_offsets((old, old)) + 3, 2)
    resized = resize_relative_table(table, (old, old), (new, new))
    assert torch.equal(resized[-3:], table[-3:])
    close(resized[:-3], published_spline(table[:-3], old, new))
    assert resize_relative_table(table, (old, old), (old, old)) is table


def test_relative_tables_keep_their_axes():
    """Offsets along rows only, resized to a grid of another shape, still vary along rows only."""
    table = torch.arange(7.0).repeat_interleave(9)[:, None]  # offsets of a 4 x 5 grid
    resized = resize_relative_table(table, (4, 5), (6, 3)).view(11, 5)
    assert resized.std(dim=1).max() < 1e-5 and resized[:, 0].diff().min() > 0
    assert resized[5].eq(3).all()  # no offset, which stays in the middle


def test_moco_positions_are_the_transposed_ones():
    mae, moco = (sincos_positions(16, (5, 5), rows_first=flag)[0, 1:] for flag in (False, True))
    assert torch.equal(mae.view(5, 5, 16).transpose(0, 1), moco.view(5, 5, 16))
    assert not torch.equal(mae, moco)
    assert torch.equal(create_backbone("moco_mini_patch8").pos_embed[0, 1:], moco_of(8, 96))


def moco_of(side, dim):
    """The formula of its repository, on a square grid."""
    rows, columns = np.divmod(np.arange(side * side), side)
    omega = 10000.0 ** -(np.arange(dim // 4) / (dim // 4))
    parts = [f(np.outer(index, omega)) for index in (rows, columns) for f in (np.sin, np.cos)]
    return torch.from_numpy(np.concatenate(parts, 1)).float()


SIZES = dict(embed_dim=24, depth=3, num_heads=2, patch_size=8)


@pytest.mark.parametrize("tables", ["per-block", "shared"])
@pytest.mark.parametrize("img_size", [(32, 32), (24, 40)])
def test_same_features_as_timms_beit(tables, img_size):
    theirs = Beit(
        **SIZES,
        img_size=img_size,
        num_classes=0,
        init_values=0.1,
        use_abs_pos_emb=False,
        use_rel_pos_bias=tables == "per-block",
        use_shared_rel_pos_bias=tables == "shared",
        use_fc_norm=False,
    )
    ours = create_backbone(
        "beit_mini_patch8", **SIZES, img_size=img_size, relative_positions=tables
    )
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, *img_size)
    close(ours.eval().forward_features(images), theirs.forward_features(images))
    found = ours.forward_maps(images, (0, 2))
    expected = theirs.forward_intermediates(images, indices=[0, 2], intermediates_only=True)
    for a, b in zip(found, expected, strict=True):
        close(a, b)


def test_same_features_as_timms_distilled_deit():
    theirs = VisionTransformerDistilled(
        **SIZES, img_size=32, num_classes=0, norm_layer=partial(nn.LayerNorm, eps=1e-6)
    )
    ours = create_backbone("deit_mini_distilled_patch8", **SIZES, img_size=32)
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 32, 32)
    close(ours.eval().forward_features(images), theirs.forward_features(images))
    assert ours.forward_maps(images, (1,))[0].shape == (2, 24, 4, 4)


OPTIONS = [
    dict(window_size=3),
    dict(window_size=3, global_blocks=[3], relative_positions="shared"),
    dict(window_size=3, relative_positions="per-block", layer_scale=0.1),
    dict(window_size=3, relative_positions="decomposed", relative_img_size=96),
    dict(relative_positions="per-block"),
    dict(relative_positions="shared", class_token=False),
    dict(qkv_bias="qv", positions="learned", initialisation="beit", drop_path_rate=0.2),
    dict(positions=None, distilled=True, qkv_bias=False),
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_every_option_at_any_size(options, size):
    """Maps of the right shape; every used parameter gets a gradient; recomputing changes none."""
    torch.manual_seed(0)
    model = create_backbone("vit_mini_patch8", **{"global_blocks": [1, 3], **options})
    model.freeze_unused((1, 3))
    images = torch.randn(2, 3, *size)
    gradients = []
    for recompute in (False, True):
        model.activation_checkpointing = recompute
        model.zero_grad()
        torch.manual_seed(5)  # of the drop paths
        maps = model.forward_maps(images, (1, 3))
        assert [m.shape for m in maps] == [(2, 96, size[0] // 8, size[1] // 8)] * 2
        sum(m.square().mean() for m in maps).backward()
        used = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        assert all(g is not None and g.isfinite().all() for g in used.values()), used.keys()
        gradients.append({name: g.clone() for name, g in used.items()})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize("size", [(41, 67), (5, 100)])
def test_images_are_padded_to_whole_patches(size):
    """Below and right, with zeros; windows and relative positions follow the padded grid."""
    options = dict(window_size=3, relative_positions="shared", global_blocks=[3])
    model = create_backbone("vit_mini_patch8", **options).eval()
    nn.init.normal_(model.rel_pos_bias.relative_position_bias_table)
    height, width = (-(-side // 8) * 8 for side in size)
    padded = torch.zeros(1, 3, height, width)
    padded[:, :, : size[0], : size[1]] = torch.randn(1, 3, *size)
    images = padded[:, :, : size[0], : size[1]]
    with torch.no_grad():
        (ours,), (expected,) = (model.forward_maps(x, (3,)) for x in (images, padded))
    assert torch.equal(ours, expected) and ours.shape[2:] == (height // 8, width // 8)


def test_checkpointing_runs_each_block_twice_and_only_in_training():
    model = create_backbone("vit_mini_patch8", activation_checkpointing=True)
    calls = []
    model.blocks[2].norm1.register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    assert len(calls) == 2
    model.eval()(torch.randn(1, 3, 64, 64)).sum().backward()
    assert len(calls) == 3


def test_shared_biases_are_built_once_and_attention_is_fused(monkeypatch):
    built, fused = [], []
    monkeypatch.setattr(vit, "relative_bias", lambda *a: built.append(a[2]) or relative_bias(*a))
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(
        attention.F,
        "scaled_dot_product_attention",
        lambda *a, **k: fused.append(None if a[3] is None else a[3].shape[-1]) or kernel(*a, **k),
    )
    options = dict(window_size=3, global_blocks=[1, 3], relative_positions="shared")
    model = create_backbone("vit_mini_patch8", **options)
    assert model.rel_pos_bias.relative_position_bias_table.shape == (15 * 15, 3)
    assert model.window_rel_pos_bias.relative_position_bias_table.shape == (5 * 5, 3)
    model.forward_maps(torch.randn(1, 3, 64, 64), (3,))
    assert built == [(8, 8), (3, 3)]
    assert fused == [9, 64, 9, 64]


@pytest.mark.parametrize("kind", ["shared", "per-block", "decomposed"])
def test_zero_relative_positions_change_nothing_and_others_do(kind):
    """They start at zero, as published; moved away from it, they matter."""
    torch.manual_seed(0)
    plain = create_backbone("vit_mini_patch8", class_token=False).eval()
    model = create_backbone("vit_mini_patch8", relative_positions=kind, class_token=False).eval()
    missing = model.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing and all("rel" in name for name in missing)
    images = torch.randn(1, 3, 64, 48)
    before = plain.forward_features(images)
    close(model.forward_features(images), before)
    for name in missing:
        nn.init.normal_(model.get_parameter(name), std=1.0)
    assert (model.forward_features(images) - before).abs().max() > 1e-3


def test_relative_positions_under_autocast():
    model = create_backbone("vit_mini_patch8", relative_positions="per-block").eval()
    images = torch.randn(1, 3, 72, 64)
    with torch.no_grad():
        expected = model.forward_features(images)
        with torch.autocast("cpu", torch.bfloat16):
            found = model.forward_features(images)
    close(found.float(), expected, atol=0.1, rtol=0.1)


def test_windows_leave_the_class_token_out_and_global_attention_keeps_it():
    windowed = create_backbone("vit_mini_patch8", window_size=4)
    assert windowed.cls_token is None and windowed.num_prefix_tokens == 0
    assert windowed.pos_embed.shape[1] == 65  # as ViTDet stores it
    assert windowed.forward_features(torch.randn(1, 3, 64, 64)).shape == (1, 64, 96)
    kept = create_backbone("vit_mini_patch8", relative_positions="per-block").eval()
    images = torch.randn(1, 3, 64, 64)
    before = kept.forward_maps(images, (3,))[0]
    nn.init.normal_(kept.cls_token, std=5)
    assert (kept.forward_maps(images, (3,))[0] - before).abs().max() > 1e-3


def test_layer_scale_starts_where_it_is_told():
    model = create_backbone("vit_mini_patch8", layer_scale=1e-5)
    assert model.blocks[1].gamma_2.eq(1e-5).all()
    nn.init.zeros_(model.blocks[0].gamma_1)
    nn.init.zeros_(model.blocks[0].gamma_2)
    images = torch.randn(1, 3, 64, 64)
    tokens = model.embed(images)[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
    assert torch.equal(model.forward_maps(images, (0,))[0], tokens)


def test_beit_initialisation_shrinks_with_depth():
    torch.manual_seed(0)
    model = create_backbone("beit_mini_patch8", embed_dim=192)
    stds = [block.mlp.fc2.weight.std().item() for block in model.blocks]
    expected = [0.02 * 0.88 / (2 * n) ** 0.5 for n in (1, 2, 3, 4)]  # 0.88: cut at two units
    assert stds == pytest.approx(expected, rel=0.15)


def test_layer_ids_of_what_dense_use_adds():
    options = dict(window_size=3, relative_positions="shared", layer_scale=1.0)
    model = create_backbone("vit_mini_patch8", **options)
    ids = {name: model.layer_id(name) for name, _ in model.named_parameters()}
    assert ids["rel_pos_bias.relative_position_bias_table"] == 5
    assert ids["blocks.2.gamma_1"] == 3 and ids["pos_embed"] == 0 and ids["norm.weight"] == 5
    distilled = create_backbone("deit_mini_distilled_patch8")
    assert distilled.layer_id("dist_token") == 0


# Architecture table of the recipes: parameters without a head, GFLOPs at 224 px.
PUBLISHED = {
    "vit_base_patch16": (85.80, 17.58),
    "vit_large_patch16": (303.30, 61.60),
    "vit_huge_patch14": (630.76, 167.40),
}


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_published_sizes(name, published):
    facts = describe(name)
    assert (round(facts.parameters / 1e6, 2), round(facts.gflops, 2)) == published


@pytest.mark.parametrize("name", list_backbones())
def test_described_sizes_are_those_of_the_module(name):
    from torch.utils.flop_counter import FlopCounterMode

    facts = describe(name)
    counter = FlopCounterMode(display=False)
    with torch.device("meta"):
        model = create_backbone(name)
        assert facts.parameters == sum(p.numel() for p in model.parameters())
        model = create_backbone(name, img_size=224)
    with counter, torch.no_grad():
        tokens = model.forward_features(torch.empty(1, 3, 224, 224, device="meta"))
    norms = 5 * (2 * model.depth + 1) * tokens.numel()
    assert facts.gflops == pytest.approx(counter.get_total_flops() / 2e9 + norms / 1e9, rel=1e-9)
    assert facts.channels == (model.embed_dim,) and facts.strides == (model.patch_size,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(window_size=3, class_token=True), "no place for a class or distillation token"),
        (dict(relative_positions="decomposed", distilled=True), "no place for a class or"),
        (dict(distilled=True, class_token=False), "a distillation token needs the class token"),
        (dict(relative_positions="per_block"), "unknown relative_positions 'per_block'. Did you"),
        (dict(positions="sincos_moco"), "unknown positions 'sincos_moco'. Did you mean sincos-m"),
        (dict(window_size=3, global_blocks=[4]), r"global_blocks \[4\]: block numbers from 0 to 3"),
        (dict(window_size=-1), "window_size -1: a number of patches, or 0"),
        (dict(embed_dim=100), "embed_dim 100 is no multiple of num_heads 3"),
        (dict(img_size=(64, 60)), "img_size 64x60 is no multiple of patch size 8"),
        (dict(qkv_bias="kv"), "unknown qkv_bias 'kv'"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(UserError, match=message):
        create_backbone("vit_mini_patch8", **options)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_encoders_of_fewer_blocks_than_quarters(depth):
    for window_size in (0, 3):
        model = create_backbone("vit_mini_patch8", depth=depth, window_size=window_size)
        assert model.blocks[-1].attn.window_size == 0
        assert len(model.forward_maps(torch.randn(1, 3, 40, 32), range(depth))) == depth


def test_impossible_inputs():
    model = create_backbone("vit_mini_patch8", window_size=4, window_pad=False)
    model.forward_maps(torch.randn(1, 3, 64, 32), (3,))
    with pytest.raises(UserError, match=r"grid of 8x5 patches is no multiple of the 4x4 .* 32 px"):
        model.forward_maps(torch.randn(1, 3, 64, 40), (3,))
    with pytest.raises(UserError, match="needs every patch"):
        model.forward_features(torch.randn(1, 3, 64, 64), torch.zeros(1, 4, dtype=torch.long))


def test_a_tables_gradients_are_those_of_the_formula():
    """Attention weights are computed again in the backward pass."""
    torch.manual_seed(0)
    attention = Attention(8, 2, relative="table", extent=(3, 4), class_token=True)
    nn.init.normal_(attention.relative_position_bias_table)
    x = torch.randn(2, 13, 8)
    q, k, v = attention.qkv(x).view(2, 13, 3, 2, 4).permute(2, 0, 3, 1, 4)
    bias = relative_bias(attention.relative_position_bias_table, (3, 4), (3, 4))
    weights = (q @ k.transpose(-2, -1) / 2 + bias).softmax(-1)
    plain = attention.proj((weights @ v).transpose(1, 2).reshape(2, 13, 8))
    parameters = list(attention.parameters())
    found = torch.autograd.grad(attention(x, (3, 4)).square().sum(), parameters)
    expected = torch.autograd.grad(plain.square().sum(), parameters)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
