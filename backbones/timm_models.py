"""Any model of timm as a backbone: plain ones give maps of one stride, hierarchical ones a pyramid.

Shapes: B batch, C channels, H W pixels, N tokens, D width, h w cells of a feature map.

Source: timm's `forward_intermediates` (features), `group_matcher` (layers for lr decay).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import timm
import torch
from timm.models import group_parameters
from timm.optim import auto_group_layers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from backbones.architectures import Description
from mae_bench.errors import UserError

# What the models that are tied to one image size call the switch that unties them.
ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}
COARSEST_FIRST_STRIDE = 4


class TimmBackbone(nn.Module):
    """What plain and hierarchical models have in common. Parameter names are timm's own.

    Attributes:
        name: timm's name of it.
        out_channels, strides: of every feature map, finest first.
        num_layers: largest layer id inside; `num_layers` + 1 is everything around the model.
    """

    def __init__(self, name: str, model: nn.Module):
        super().__init__()
        # One set of parameters, buffers and submodules under timm's names, seen through two
        # modules: a submodule called `model` would prefix every key of a checkpoint.
        self._parameters, self._buffers = model._parameters, model._buffers
        self._modules = model._modules
        self.__dict__.update(model=model)
        self.name = name
        fixed = model.default_cfg.get("fixed_input_size")
        self._fixed_size = model.default_cfg["input_size"][-1] if fixed else None
        self.out_channels, self.strides, self._indices = _levels(model)
        for module in model.modules():
            if hasattr(module, "dynamic_img_pad"):
                # Any size, as of our own encoders; not every model hands this option on.
                module.dynamic_img_pad = True

    def train(self, mode: bool = True) -> TimmBackbone:
        """As usual, the model itself included."""
        self.model.training = mode
        return super().train(mode)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> timm's final features: (B, N, D), or (B, D, h, w) of most convnets."""
        return self.model.forward_features(images)

    def forward(self, images: Tensor) -> Tensor:
        """Same as `forward_features`."""
        return self.forward_features(images)

    def _maps(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Maps at these places of timm's `feature_info`.

        Raises:
            UserError: an image size that the model cannot work at, or maps that are not at the
                strides which timm names: boxes and masks would be cut out beside their places.
        """
        try:
            maps = self.model.forward_intermediates(
                images, indices=list(indices), stop_early=True, intermediates_only=True
            )
        except (AssertionError, IndexError, RuntimeError) as error:
            height, width = images.shape[-2:]
            whole = max(self.strides)
            odd = height % whole or width % whole
            if isinstance(error, torch.OutOfMemoryError) or not (self._fixed_size or odd):
                raise
            wanted = (
                f"what it was made for ({self._fixed_size} px unless img_size says otherwise)"
                if self._fixed_size
                else f"sides that are multiples of {whole} px"
            )
            raise UserError(
                f"timm:{self.name} does not work on images of {height}x{width} px ({error}); give "
                f"it {wanted}"
            ) from error
        levels = _info(self.model)
        for index, found in zip(indices, maps, strict=True):
            self._check_stride(images.shape[-2:], found.shape[-2:], levels[index]["reduction"])
        return maps

    def _check_stride(self, size: Sequence[int], cells: Sequence[int], stride: int) -> None:
        # Sides are rounded up or down, as the model does.
        if any(abs(n - length / stride) >= 1 for n, length in zip(cells, size, strict=True)):
            raise UserError(
                f"timm:{self.name} names stride {stride} for a map that is {cells[0]}x{cells[1]} "
                f"on images of {size[0]}x{size[1]} px; it cannot serve detection or segmentation. "
                "Take another model"
            )

    @cached_property
    def _layers(self) -> dict[str, int]:
        if hasattr(self.model, "group_matcher"):
            return group_parameters(self.model, self.model.group_matcher(), reverse=True)
        return auto_group_layers(self.model)

    @property
    def num_layers(self) -> int:
        return max(self._layers.values())

    def layer_id(self, name: str) -> int:
        """Depth of one of the parameters for layer-wise lr decay, as timm groups them.

        0 for the stem; a final norm counts to the last block (MAE's own code counts it outside).
        """
        return self._layers[name]

    def freeze_unused(self, taps: Sequence[int] | None = None) -> None:
        """Freeze what no feature map goes through: distributed training wants all other gradients.

        Args:
            taps: feature maps that are used (0-based); None for those of the pyramid.
        """
        pruned = _build(self.name, "meta")
        indices = list(self._indices if taps is None else taps)
        pruned.prune_intermediate_layers(indices, prune_norm=True)
        used = dict(pruned.named_parameters())
        for name, parameter in self.named_parameters():
            if name not in used:
                parameter.requires_grad_(False)


class TimmPlain(TimmBackbone):
    """Model whose feature maps all have one stride and width: ViT, DeiT, BEiT, EVA, ...

    Attributes:
        embed_dim, patch_size, depth: as of our own encoders.
        num_prefix_tokens: class, distillation and register tokens in front of the patches.
    """

    def __init__(self, name: str, model: nn.Module):
        super().__init__(name, model)
        self.embed_dim, self.patch_size = self.out_channels[0], self.strides[0]
        self.depth = len(model.feature_info)
        self.num_prefix_tokens = getattr(model, "num_prefix_tokens", 0)

    def forward_maps(self, images: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """Feature maps after the blocks in `taps` (0-based), each (B, D, h, w), without a norm.

        Images of any size are padded below and right to whole patches, where timm's model can.
        """
        return self._maps(images, taps)


class TimmPyramid(TimmBackbone):
    """Hierarchical model: Swin, ConvNeXt, ResNet, ...; one map per stride from 4 on."""

    def forward_pyramid(self, images: Tensor, strides: Sequence[int] | None = None) -> list[Tensor]:
        """Images -> maps (B, channels, H/stride, W/stride), rounded as the model does.

        Args:
            strides: only these levels, finest first; None for all.
        """
        return self._maps(images, self._at(strides))

    def freeze_unused(self, strides: Sequence[int] | None = None) -> None:
        """As for plain models, by the strides of the levels that are used."""
        super().freeze_unused(self._at(strides))

    def _at(self, strides: Sequence[int] | None) -> list[int]:
        return [self._indices[self.strides.index(s)] for s in strides or self.strides]


def create_timm_backbone(name: str, **options: Any) -> TimmPlain | TimmPyramid:
    """Build a model of timm with random weights, for images of any size where it can be.

    Args:
        name: timm's, with or without the tag of its weights (which are not fetched).
        options: passed on to timm (img_size, drop_path_rate, ...).

    Raises:
        UserError: a name that timm does not know, options that the model does not take, or a
            model without feature maps.
    """
    model = _build(name, None, **options)
    if not hasattr(model, "feature_info") or not hasattr(model, "forward_intermediates"):
        raise UserError(f"timm:{name} gives no feature maps, so it cannot be a backbone here")
    plain = len({(level["num_chs"], level["reduction"]) for level in _info(model)}) == 1
    return (TimmPlain if plain else TimmPyramid)(name, model)


def describe_timm(name: str, img_size: int = 224) -> Description:
    """Facts about a model of timm, counted on the meta device.

    GFLOPs are multiply-adds of convolutions, matrix products and attention; at the model's own
    image size where it cannot work at `img_size`.
    """
    model = _build(name, "meta")
    if "img_size" in _arguments(model):
        model = _build(name, "meta", img_size=img_size)
    elif model.default_cfg.get("fixed_input_size"):
        img_size = model.default_cfg["input_size"][-1]
    channels, strides, _ = _levels(model)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.empty(1, 3, img_size, img_size, device="meta"))
    return Description(
        name=f"timm:{name}",
        source="timm",
        parameters=sum(p.numel() for p in model.parameters()),
        gflops=counter.get_total_flops() / 2e9,
        img_size=img_size,
        channels=channels,
        strides=strides,
    )


def _build(name: str, device: str | None, **options: Any) -> nn.Module:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(f'timm:{other}' for other in near)}?" if near else ""
        raise UserError(
            f"unknown timm model {name!r}.{hint} timm.list_models() lists what timm "
            f"{timm.__version__} has"
        )
    with torch.device("meta"):
        arguments = _arguments(timm.create_model(name, pretrained=False))
    untied = {key: value for key, value in ANY_SIZE.items() if key in arguments}
    options = {**untied, **options}
    try:
        with torch.device(device or torch.get_default_device()):
            return timm.create_model(name, pretrained=False, num_classes=0, **options)
    except TypeError as error:
        raise UserError(f"timm:{name} does not take the options {options}: {error}") from None


def _arguments(model: nn.Module) -> set[str]:
    """Names of the constructor's arguments, those that it hands up to its base class included."""
    names: set[str] = set()
    for kind in type(model).__mro__:
        parameters = inspect.signature(kind.__init__).parameters
        names |= parameters.keys()
        if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            break
    return names


def _info(model: nn.Module) -> list[dict[str, Any]]:
    info = model.feature_info
    return info.get_dicts() if hasattr(info, "get_dicts") else info


def _levels(model: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Channels, strides and indices of the maps that dense tasks use: the last of each stride."""
    levels = {level["reduction"]: (i, level["num_chs"]) for i, level in enumerate(_info(model))}
    strides = tuple(stride for stride in levels if stride >= COARSEST_FIRST_STRIDE)
    indices, channels = zip(*(levels[stride] for stride in strides), strict=True)
    return channels, strides, indices
