"""Our encoders inside mmsegmentation, by name.

A plain mmseg config reaches them with `custom_imports = dict(imports=["backbones.mmseg"])`,
`backbone = dict(type="MAEBenchViT", arch="vit_base_patch16", ...)` and, for layer-wise lr decay,
`optim_wrapper = dict(constructor="MAEBenchGroups", ...)`.

Shapes: B batch, D width, h w patches per side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmseg.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import Tensor, nn

from backbones import create_backbone
from backbones.checkpoints import LoadReport, load_backbone
from backbones.groups import DEFAULT_RULE, parameter_groups, parameter_rules
from backbones.pyramid import TapPyramid
from backbones.vit import quarters
from mae_bench.errors import UserError, unknown


@MODELS.register_module()
class MAEBenchViT(BaseModule):
    """A backbone of `backbones.list_backbones()` with UperNet's pyramid on top.

    Args:
        arch: name of the encoder.
        img_size: pixels of the grid that the positions are stored for, usually the crop; None for
            the encoder's own.
        out_indices: 0-based blocks to tap, ascending; None for the last of each quarter.
        scales: resampling of each tap, out of 4, 2, 1, 0.5.
        checkpoint: file that MAE-bench wrote; every key fits or nothing is loaded.
        frozen: the encoder gets no gradient and stays in eval mode; the pyramid is trained.
        norm_cfg: norm in the x4 level; None for SyncBN, which mmengine turns into BN where training
            is not distributed.
        options: passed on to the encoder (drop_path_rate, ...).

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
        frozen: bool = False,
        norm_cfg: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        super().__init__()
        if img_size is not None:
            options["img_size"] = img_size if isinstance(img_size, int) else tuple(img_size)
        self.encoder = create_backbone(arch, **options)
        self.out_indices = _taps(out_indices, scales, self.encoder.depth)
        norm = dict(norm_cfg or {"type": "SyncBN"})
        self.pyramid = TapPyramid(
            self.encoder.embed_dim, scales, lambda dim: build_norm_layer(norm, dim)[1]
        )
        self.checkpoint = checkpoint
        self.load_report: LoadReport | None = None
        self.frozen = frozen
        self._load()
        if frozen:
            self.encoder.requires_grad_(False)
        else:
            self._exempt_unused()

    def _load(self) -> None:
        if self.checkpoint is not None:
            self.load_report = load_backbone(self.encoder, Path(self.checkpoint))

    def _exempt_unused(self) -> None:
        """Freeze what no tap goes through; distributed training wants a gradient for the rest."""
        self.encoder.norm.requires_grad_(False)
        for block in self.encoder.blocks[max(self.out_indices) + 1 :]:
            block.requires_grad_(False)

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
        """(B, 3, H, W), multiples of the patch size -> maps (B, D, scale * h, scale * w)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            taps = self.encoder.forward_maps(images, self.out_indices)
        return tuple(self.pyramid(taps))


def _taps(
    out_indices: Sequence[int] | None, scales: Sequence[float], depth: int
) -> tuple[int, ...]:
    taps = quarters(depth) if out_indices is None else tuple(out_indices)
    if list(taps) != sorted(set(taps)) or not set(taps) <= set(range(depth)):
        raise UserError(
            f"out_indices {list(taps)}: ascending block numbers from 0 to {depth - 1} are needed"
        )
    if len(taps) != len(scales):
        raise UserError(f"{len(taps)} taps {list(taps)} but {len(scales)} scales {list(scales)}")
    return taps


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
        if is_model_wrapper(model):
            model = model.module
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
