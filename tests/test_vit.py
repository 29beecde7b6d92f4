"""The encoder against timm, naive formulas and its own contracts."""

import math

import pytest
import timm
import torch

from backbones import create_backbone, list_backbones
from backbones.vit import (
    Block,
    patchify,
    quarters,
    resize_positions,
    sincos_positions,
    take,
    unpatchify,
)
from mae_bench.errors import UserError

# Sizes of arXiv:2010.11929 and 2111.06377 (recipes' architecture table), without a head.
PARAMETERS = {"vit_base_patch16": 85_798_656, "vit_tiny_patch16": 5_524_416}


@pytest.fixture
def mini():
    torch.manual_seed(0)
    return create_backbone("vit_mini_patch8").eval()


@pytest.mark.parametrize("name", list_backbones())
def test_every_backbone_builds_with_the_stated_width(name):
    with torch.device("meta"):
        model = create_backbone(name, img_size=224 if "huge" in name else 64)
    tokens = model.num_prefix_tokens + model.grid[0] * model.grid[1]
    assert model.pos_embed is None or model.pos_embed.shape == (1, tokens, model.embed_dim)
    assert len(model.blocks) == model.depth


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts(name, count):
    with torch.device("meta"):
        model = create_backbone(name)
    assert sum(p.numel() for p in model.parameters()) == count


def test_same_features_as_timm():
    """Weights load under timm's names and give timm's features."""
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="").eval()
    ours = create_backbone("vit_tiny_patch16").eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.forward_features(images), theirs.forward_features(images), atol=1e-5, rtol=1e-5
        )


def test_patchify_order_is_row_column_channel():
    images = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).view(2, 3, 4, 6)
    patches = patchify(images, 2)
    for row in range(2):
        for column in range(3):
            expected = torch.stack([
                images[1, channel, 2 * row + i, 2 * column + j]
                for i in range(2)
                for j in range(2)
                for channel in range(3)
            ])
            assert torch.equal(patches[1, row * 3 + column], expected)
    assert torch.equal(unpatchify(patches, 2, (2, 3)), images)


def test_patchify_refuses_a_size_that_does_not_divide():
    with pytest.raises(UserError, match=r"30x64 px is no multiple of the patch size 8"):
        patchify(torch.zeros(1, 3, 30, 64), 8)


def test_sincos_positions_against_the_formula():
    """Column index in the first half, row index in the second; class row zero."""
    dim, grid = 8, (2, 3)
    table = sincos_positions(dim, grid)[0]
    assert torch.equal(table[0], torch.zeros(dim))
    for row in range(2):
        for column in range(3):
            expected = []
            for index in (column, row):
                angles = [index / 10000 ** (k / (dim // 4)) for k in range(dim // 4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            got = table[1 + row * 3 + column]
            torch.testing.assert_close(got, torch.tensor(expected), atol=1e-6, rtol=0)


def test_resized_positions_keep_the_class_row_and_the_axes():
    """A pattern that varies along columns only must stay so on a grid of another shape."""
    table = torch.zeros(1, 1 + 4 * 6, 2)
    table[0, 0] = 7.0
    table[0, 1:, 0] = torch.arange(6.0).repeat(4)
    table[0, 1:, 1] = torch.arange(4.0).repeat_interleave(6)
    resized = resize_positions(table, (4, 6), (8, 3))
    assert torch.equal(resized[0, 0], table[0, 0])
    columns, rows = resized[0, 1:].view(8, 3, 2).unbind(-1)
    assert columns.std(dim=0).max() < 1e-5 and columns[0].std() > 1
    assert rows.std(dim=1).max() < 1e-5 and rows[:, 0].std() > 1
    assert resize_positions(table, (4, 6), (4, 6)) is table


def test_embedding_only_visible_patches_equals_embedding_all_and_picking(mini):
    images = torch.randn(3, 3, 64, 64)
    keep = torch.stack([torch.randperm(64)[:16] for _ in range(3)])
    everything = mini.embed(images)
    expected = torch.cat([everything[:, :1], take(everything[:, 1:], keep)], dim=1)
    torch.testing.assert_close(mini.embed(images, keep), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (40, 104)])
def test_maps_of_any_size(mini, size):
    images = torch.randn(2, 3, *size)
    maps = mini.forward_maps(images, (1, 3))
    assert [m.shape for m in maps] == [(2, 96, size[0] // 8, size[1] // 8)] * 2
    last = mini.norm(maps[-1].flatten(2).transpose(1, 2))
    torch.testing.assert_close(last, mini.forward_features(images)[:, 1:], atol=1e-6, rtol=1e-5)


def test_every_parameter_gets_a_gradient_and_no_nan():
    model = create_backbone("vit_mini_patch8", drop_path_rate=0.1)
    model.forward_features(torch.randn(4, 3, 64, 64)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_quarters_of_the_paper():
    assert quarters(12) == (2, 5, 8, 11)
    assert quarters(24) == (5, 11, 17, 23)
    assert quarters(4) == (0, 1, 2, 3)


def test_unknown_name_is_one_clear_error():
    with pytest.raises(UserError, match=r"unknown backbone 'vit_bse_patch16'. Did you mean vit_b"):
        create_backbone("vit_bse_patch16")


def test_a_block_of_which_only_the_last_tokens_are_wanted():
    torch.manual_seed(0)
    block, x = Block(32, 4, layer_scale=0.5), torch.randn(2, 9, 32)
    for last in (1, 4, 9):
        torch.testing.assert_close(block(x, last=last), block(x)[:, -last:], atol=1e-6, rtol=1e-5)
