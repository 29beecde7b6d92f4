"""Our encoders inside mmsegmentation, by name.

A plain mmseg config reaches them with `custom_imports = dict(imports=["backbones.mmseg"])`,
`backbone = dict(type="MAEBenchViT", arch="vit_base_patch16", ...)` and, for layer-wise lr decay,
`optim_wrapper = dict(constructor="MAEBenchGroups", ...)`.

Shapes: B batch, D width, h w patches per side.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import build_norm_layer
from mmengine.logging import print_log
from mmengine.model import BaseModule, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmseg.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import Tensor, nn

from backbones import create_backbone
from backbones.checkpoints import LoadReport, load_backbone
from backbones.groups import DEFAULT_RULE, parameter_groups, parameter_rules, unwrapped
from backbones.pyramid import TapPyramid, checked_taps
from backbones.vit import quarters
from mae_bench.errors import unknown


@MODELS.register_module()
class MAEBenchViT(BaseModule):
    """Any encoder of `backbones.create_backbone`, with UperNet's pyramid on top of a plain one.

    Args:
        arch: name of the encoder, `timm:NAME` included. A hierarchical one brings its own pyramid,
            and has neither taps nor scales.
        img_size: pixels of the grid that positions are stored for, usually the crop; None for the
            encoder's own.
        out_indices: 0-based blocks to tap, ascending; None for the last of each quarter.
        scales: resampling of each tap, out of 4, 2, 1, 0.5.
        checkpoint: whose every key fits or is explained; see `backbones.checkpoints`.
        format: of the checkpoint; detected when not given.
        frozen: the encoder gets no gradient and stays in eval mode; the pyramid is trained.
        norm_cfg: norm in the x4 level; None for SyncBN, which mmengine turns into BN where training
            is not distributed.
        options: passed on to the encoder (drop_path_rate, relative_positions, layer_scale, ...).

    Attributes:
        out_channels, strides: of every map.
        load_report: what became of the checkpoint's keys; None for random weights.

    Raises:
        UserError: unknown name, impossible taps, or a checkpoint that does not fit.

    Source: microsoft/unilm beit/semantic_segmentation (arXiv:2111.06377 A.4 uses its code).
    """

    def __init__(
        self,
        arch: str,
        img_size: int | tuple[int, int] | None = None,
        out_indices: Sequence[int] | None = None,
        scales: Sequence[float] = (4, 2, 1, 0.5),
        checkpoint: str | None = None,
        format: str | None = None,
        frozen: bool = False,
        norm_cfg: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        super().__init__()
        if img_size is not None:
            options["img_size"] = img_size if isinstance(img_size, int) else tuple(img_size)
        self.encoder = create_backbone(arch, **options)
        self.pyramid: TapPyramid | None = None
        if hasattr(self.encoder, "forward_pyramid"):
            self.out_channels, self.strides = self.encoder.out_channels, self.encoder.strides
        else:
            self._add_pyramid(out_indices, scales, dict(norm_cfg or {"type": "SyncBN"}))
        self.checkpoint, self.format = checkpoint, format
        self.load_report: LoadReport | None = None
        self.frozen = frozen
        self._load()
        self.register_load_state_dict_pre_hook(_keep_encoder)
        if frozen:
            self.encoder.requires_grad_(False)
        else:
            # Distributed training wants a gradient for all that is left.
            self.encoder.freeze_unused(*([self.out_indices] if self.pyramid else []))

    def _add_pyramid(
        self, out_indices: Sequence[int] | None, scales: Sequence[float], norm: dict[str, Any]
    ) -> None:
        encoder, width = self.encoder, self.encoder.embed_dim
        taps = quarters(encoder.depth) if out_indices is None else out_indices
        self.out_indices = checked_taps(taps, len(scales), encoder.depth)
        self.pyramid = TapPyramid(width, scales, lambda dim: build_norm_layer(norm, dim)[1])
        self.out_channels = (width,) * len(scales)
        self.strides = tuple(encoder.patch_size / scale for scale in scales)

    def _load(self) -> None:
        if self.checkpoint is not None:
            self.load_report = load_backbone(self.encoder, self.checkpoint, self.format)

    def init_weights(self) -> None:
        """Undo what an enclosing model's `init_cfg` did to the checkpoint's weights."""
        if not self.is_init:
            self._load()
            self.is_init = True

    def train(self, mode: bool = True) -> MAEBenchViT:
        """As usual, except that a frozen encoder stays in eval mode (no drop path)."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W), padded to whole patches -> maps (B, C, H / stride, W / stride)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            if self.pyramid is None:
                return tuple(self.encoder.forward_pyramid(images))
            taps = self.encoder.forward_maps(images, self.out_indices)
        return tuple(self.pyramid(taps))


def _keep_encoder(
    backbone: MAEBenchViT, state: dict[str, Any], prefix: str, *arguments: Any
) -> None:
    """Let no `init_cfg` of an enclosing model replace the checkpoint's weights by a file's.

    mmengine applies `Pretrained` after `init_weights` of all the parts. While it initialises, and
    only then, every module has this attribute; resuming and testing load as ever.
    """
    if backbone.checkpoint is None or not hasattr(backbone, "_params_init_info"):
        return
    encoder = {f"{prefix}encoder.{k}": v for k, v in backbone.encoder.state_dict().items()}
    if encoder.keys() & state.keys():
        print_log(
            f"init_cfg has other weights for the encoder; those of {backbone.checkpoint} are kept",
            "current",
            logging.WARNING,
        )
        state.update(encoder)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MAEBenchGroups:
    """Builds mmengine's optimizer wrapper with the groups of `backbones.groups`.

    mmseg's own layer-decay constructor knows backbones by class name and its exemptions by bare
    parameter names; ours goes by identity.

    Args:
        optim_wrapper_cfg: with `optimizer` (lr, weight_decay, ...).
        paramwise_cfg: `layer_decay`, 1 for none; `decay_rule`, one of
            `backbones.groups.DECAY_RULES`.
    """

    def __init__(
        self,
        optim_wrapper_cfg: Mapping[str, Any],
        paramwise_cfg: Mapping[str, Any] | None = None,
    ):
        self.wrapper = dict(optim_wrapper_cfg)
        self.optimizer = dict(self.wrapper.pop("optimizer"))
        settings = dict(paramwise_cfg or {})
        self.layer_decay = float(settings.pop("layer_decay", 1.0))
        self.decay_rule = settings.pop("decay_rule", DEFAULT_RULE)
        if settings:
            raise unknown("key of paramwise_cfg", min(settings), ["layer_decay", "decay_rule"])

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Return the wrapper for a segmentor whose `backbone` is a `MAEBenchViT`."""
        model = unwrapped(model.module if is_model_wrapper(model) else model)
        rules = parameter_rules(
            model,
            model.backbone.encoder,
            self.optimizer["weight_decay"],
            self.layer_decay,
            self.decay_rule,
        )
        groups = parameter_groups(model, rules, self.optimizer["lr"])
        optimizer = OPTIMIZERS.build({**self.optimizer, "params": groups})
        wrapper = {"type": "OptimWrapper", **self.wrapper}
        return OPTIM_WRAPPERS.build(wrapper, default_args=dict(optimizer=optimizer))
