"""Pyramids on top of a plain encoder."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backbones.pyramid import SimplePyramid, TapPyramid, layer_norm


def test_taps_are_resampled_one_by_one():
    maps = [torch.randn(2, 32, 6, 4) for _ in range(4)]
    pyramid = TapPyramid(32)
    levels = pyramid(maps)
    assert [tuple(x.shape) for x in levels] == [
        (2, 32, 24, 16),
        (2, 32, 12, 8),
        (2, 32, 6, 4),
        (2, 32, 3, 2),
    ]
    assert levels[2] is maps[2]
    assert torch.equal(levels[3], F.max_pool2d(maps[3], 2))
    kinds = [type(layer) for layer in pyramid.levels[0]]
    assert kinds == [nn.ConvTranspose2d, nn.GroupNorm, nn.GELU, nn.ConvTranspose2d]
    assert isinstance(TapPyramid(32, norm=nn.SyncBatchNorm).levels[0][1], nn.SyncBatchNorm)


def test_simple_pyramid_against_its_formula():
    """arXiv:2203.16527: all levels from one map, channels halved with each doubling."""
    torch.manual_seed(0)
    pyramid = SimplePyramid(16, out_channels=8)
    for parameter in pyramid.parameters():
        nn.init.normal_(parameter, std=0.5)
    last = torch.randn(2, 16, 6, 4)
    levels = pyramid(last)
    assert [tuple(x.shape) for x in levels] == [(2, 8, n, m) for n, m in SIZES]

    def norm(x, layer):
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return scaled * layer.weight[:, None, None] + layer.bias[:, None, None]

    (first, middle, _, second), *projection = pyramid.levels[0]
    assert (first.out_channels, second.out_channels) == (8, 4)
    x = F.conv_transpose2d(last, first.weight, first.bias, stride=2)
    x = F.gelu(norm(x, middle))
    x = F.conv_transpose2d(x, second.weight, second.bias, stride=2)
    for convolution, layer in zip(projection[::2], projection[1::2], strict=True):
        assert convolution.bias is None
        padding = convolution.kernel_size[0] // 2
        x = norm(F.conv2d(x, convolution.weight, padding=padding), layer)
    torch.testing.assert_close(levels[0], x, atol=1e-5, rtol=1e-5)


SIZES = [(24, 16), (12, 8), (6, 4), (3, 2)]


def test_simple_pyramid_without_a_norm_has_biases():
    pyramid = SimplePyramid(8, 4, scales=(2, 1), norm=None)
    convolutions = [m for m in pyramid.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 4 and all(c.bias is not None for c in convolutions)
    assert not any(isinstance(m, type(layer_norm(1))) for m in pyramid.modules())
    assert [x.shape[1] for x in pyramid(torch.randn(1, 8, 4, 4))] == [4, 4]


@pytest.mark.parametrize("kind", [TapPyramid, SimplePyramid])
def test_unknown_scale(kind):
    with pytest.raises(ValueError, match=r"scale 3; known: 4, 2, 1, 0.5"):
        kind(32, scales=(3,))
