"""Mask sampling: exact counts, and each pattern against its definition."""

import pytest
import torch

from mae_bench.errors import UserError
from tasks.pretraining.masking import SAMPLERS, block_masking, grid_masking, num_visible

GRID = (14, 14)


def masks(name, ratio, batch=6, grid=GRID, seed=0):
    """(B, h, w) bool, True where removed."""
    length = grid[0] * grid[1]
    noise = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed))
    visible, masked = SAMPLERS[name](noise, ratio, grid)
    both = torch.cat([visible, masked], 1)
    assert torch.equal(both.sort(1).values, torch.arange(length).expand(batch, -1))
    return torch.zeros(batch, length, dtype=torch.bool).scatter(1, masked, True).view(-1, *grid)


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("name", ["random", "block"])
@pytest.mark.parametrize("grid", [(14, 14), (6, 6), (4, 9)])
def test_every_sample_has_the_exact_count(name, ratio, grid):
    length = grid[0] * grid[1]
    expected = length - int(length * (1 - ratio))
    assert masks(name, ratio, grid=grid).flatten(1).sum(1).tolist() == [expected] * 6


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_noise_decides_everything(name):
    once = masks(name, 0.75)
    torch.manual_seed(123)
    assert torch.equal(masks(name, 0.75), once)
    if name != "grid":
        assert not torch.equal(masks(name, 0.75, seed=1), once)
        assert not torch.equal(once[0], once[1])


def test_grid_keeps_the_upper_left_of_every_two_by_two():
    kept = ~masks("grid", 0.75)[0]
    assert kept.sum() == 49
    assert all(kept[row, column] for row in range(0, 14, 2) for column in range(0, 14, 2))


@pytest.mark.parametrize(("ratio", "grid"), [(0.5, (14, 14)), (0.75, (7, 14)), (0.75, (14, 7))])
def test_grid_refuses_what_it_cannot_do(ratio, grid):
    with pytest.raises(UserError, match=r"needs mask ratio 0\.75 and an even grid"):
        grid_masking(torch.rand(1, grid[0] * grid[1]), ratio, grid)


def same_neighbours(mask):
    """Share of pairs of neighbours that are alike."""
    pairs = [mask[:, 1:] == mask[:, :-1], mask[..., 1:] == mask[..., :-1]]
    return float(torch.cat([pair.flatten().float() for pair in pairs]).mean())


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_blocks_are_blocks(ratio):
    assert same_neighbours(masks("block", ratio, 32)) > 0.8
    assert same_neighbours(masks("random", ratio, 32)) < 0.65


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75])
def test_completion_adds_at_the_border_of_the_blocks(ratio):
    """Every masked patch touches another masked one: none is added alone in the open."""
    for mask in masks("block", ratio, 32):
        padded = torch.nn.functional.pad(mask[None, None].float(), (1, 1, 1, 1))
        cross = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])[None, None]
        neighbours = torch.nn.functional.conv2d(padded, cross)[0, 0]
        assert (neighbours[mask] > 0).all()


def test_first_block_follows_beits_rule():
    """While blocks are added, sides are at most 1 : 0.3 and areas at least 16 of 196."""
    noise = torch.rand(200, 196, generator=torch.Generator().manual_seed(2))
    _, masked = block_masking(noise, 0.1, GRID)  # 20 patches: one block and a few patches
    widths = []
    for row in masked:
        mask = torch.zeros(196, dtype=torch.bool).index_fill(0, row, True).view(GRID)
        rows, columns = mask.any(1).sum().item(), mask.any(0).sum().item()
        assert rows * columns >= 16
        widths.append((rows, columns))
    assert len(set(widths)) > 5


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.999, -0.5, float("nan"), float("inf")])
def test_ratio_without_visible_or_masked_patches(ratio):
    with pytest.raises(UserError, match=r"mask ratio .* keeps .* of 64 patches"):
        num_visible(64, ratio)
