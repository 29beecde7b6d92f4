"""Plain vision transformer with dense outputs: the encoder of ViT, MAE, MoCo v3, DeiT and BEiT.

Shapes: B batch, C channels, H W pixels, p patch size, h = H/p, w = W/p, L = h*w patches,
N = P + L tokens with P class (and distillation) tokens in front, D width.

Source: arXiv:2010.11929; sizes and initialisation as in facebookresearch/mae models_vit.py and
models_mae.py (pre-norm, qkv bias, LayerNorm eps 1e-6, sine-cosine positions). Parameter names are
timm's; layer scale and relative positions have the names of BEiT and of detectron2's ViTDet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbones.attention import Attention
from backbones.cpu_training import LeanLayerNorm, LeanMlp
from backbones.patches import PatchEmbed, pad_to_patches, patchify, take, unpatchify  # noqa: F401
from backbones.positions import (
    CLASS_ROWS,
    Grid,
    num_offsets,
    relative_bias,
    resize_positions,
    sincos_positions,
)
from mae_bench.errors import UserError, unknown

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class Block(nn.Module):
    """Pre-norm transformer block.

    Args:
        layer_scale: start of a trainable factor per channel on both branches; None for no factor.
        attention: further options of `Attention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        **attention: Any,
    ):
        super().__init__()
        self.norm1 = LeanLayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, **attention)
        self.norm2 = LeanLayerNorm(dim, eps=1e-6)
        self.mlp = LeanMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.gamma_1 = self.gamma_2 = None
        if layer_scale is not None:
            self.gamma_1 = nn.Parameter(torch.full((dim,), float(layer_scale)))
            self.gamma_2 = nn.Parameter(torch.full((dim,), float(layer_scale)))

    def forward(
        self,
        x: Tensor,
        grid: Grid | None = None,
        bias: Tensor | None = None,
        last: int | None = None,
    ) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, last, D); arguments as in `Attention`."""
        attended = self.attn(self.norm1(x), grid, bias, last)
        x = x if last is None else x[:, -last:]
        x = x + self.drop_path(_scaled(attended, self.gamma_1))
        return x + self.drop_path(_scaled(self.mlp(self.norm2(x)), self.gamma_2))


def _scaled(x: Tensor, gamma: Tensor | None) -> Tensor:
    return x if gamma is None else x * gamma


class RelativePositionBias(nn.Module):
    """A bias table that several blocks share (its name in BEiT's pretrained files)."""

    def __init__(self, extent: Grid, num_heads: int, class_token: bool):
        super().__init__()
        self.extent = extent
        rows = num_offsets(extent) + CLASS_ROWS * class_token
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, num_heads))

    def forward(self, grid: Grid) -> Tensor:
        """Bias on a grid of any size, (heads, N, N)."""
        return relative_bias(self.relative_position_bias_table, self.extent, grid)


class VisionTransformer(nn.Module):
    """Encoder: patches -> tokens, pooled or dense features.

    The options beyond the sizes are those of dense transfer; left out, this is MAE's encoder.

    Args:
        img_size: (height, width) in pixels, or one number, of the grid that `pos_embed` holds;
            inputs of any other size have it resampled on the fly.
        drop_path_rate: of the last block, growing linearly from 0 at the first.
        positions: absolute ones: "sincos" (MAE), "sincos-moco" (MoCo v3: halves exchanged),
            "learned" (DeiT, BEiT's variant), "zeros" (learned from nothing on: for files without
            any), or None. `pos_embed` always has the class token's row.
        distilled: DeiT's second token, `dist_token`, with a row of its own in `pos_embed`.
        class_token: False leaves the token (not its position) out; None does so where attention is
            in windows or relative positions are decomposed, which have no place for it.
        window_size: side in patches of non-overlapping attention windows: 14 (the pretraining
            grid), 16 (re-implementations), 0 for global attention in every block.
        global_blocks: 0-based blocks that attend globally all the same; None for the last of each
            quarter.
        window_pad: pad the grid to whole windows inside of attention, padded keys unmasked as in
            ViTDet; False refuses grids that do not divide.
        relative_positions: "shared": one table for all windowed blocks and one for all global ones
            (arXiv:2111.11429; BEiT in pretraining); "per-block": a table each (BEiT fine-tuned,
            UperNet); "decomposed": ViTDet's, by row and by column; or None. All start at zero.
            Tables have three more rows where there is a class token.
        relative_img_size: as `img_size`, of the grid that relative positions of global blocks are
            stored for; None for `img_size`.
        layer_scale: start of a trainable factor per channel on each branch; None for none.
        qkv_bias: True, False, or "qv" (BEiT: none for keys, the others as `q_bias`, `v_bias`).
        initialisation: "mae" (Xavier) or "beit" (normal of 0.02, output projections smaller with
            depth; also detection's random init in arXiv:2111.11429).
        activation_checkpointing: in training, recompute each block in the backward pass.

    Attributes:
        embed_dim, patch_size, depth, grid: as built.
        num_layers: largest layer id of a block; `num_layers` + 1 is the rest.
        num_prefix_tokens: P, tokens in front of the patches.

    Raises:
        UserError: sizes that do not divide, or options that exclude each other.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        patch_size: int = 16,
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        positions: str | None = "sincos",
        distilled: bool = False,
        class_token: bool | None = None,
        window_size: int = 0,
        global_blocks: Sequence[int] | None = None,
        window_pad: bool = True,
        relative_positions: str | None = None,
        relative_img_size: int | Sequence[int] | None = None,
        layer_scale: float | None = None,
        qkv_bias: bool | str = True,
        initialisation: str = "mae",
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        _check("positions", positions, ("sincos", "sincos-moco", "learned", "zeros", None))
        _check(
            "relative_positions", relative_positions, ("shared", "per-block", "decomposed", None)
        )
        _check("qkv_bias", qkv_bias, (True, False, "qv"))
        _check("initialisation", initialisation, ("mae", "beit"))
        if embed_dim % num_heads:
            raise UserError(f"embed_dim {embed_dim} is no multiple of num_heads {num_heads}")
        self.embed_dim, self.depth, self.patch_size = embed_dim, depth, patch_size
        self.num_layers = depth
        self.grid = _grid(img_size, patch_size)
        self.window_size, self.window_pad = window_size, window_pad
        self.activation_checkpointing = activation_checkpointing
        self.relative_positions = relative_positions
        class_token = _class_token(class_token, distilled, window_size, relative_positions)
        self.num_prefix_tokens = class_token + distilled
        windowed = _windowed(depth, window_size, global_blocks)

        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if distilled else None
        self.pos_embed = self._positions(positions)
        wide = _grid(relative_img_size or img_size, patch_size)
        extents = {False: wide, True: (window_size, window_size)}
        if relative_positions == "shared":
            self.rel_pos_bias = RelativePositionBias(wide, num_heads, class_token)
            if any(windowed):
                self.window_rel_pos_bias = RelativePositionBias(extents[True], num_heads, False)
        own = {"per-block": "table", "decomposed": "decomposed"}.get(str(relative_positions))
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                drop_path_rate * i / max(1, depth - 1),
                layer_scale,
                qkv_bias=qkv_bias,
                window_size=window_size if windowed[i] else 0,
                relative=own,
                extent=extents[windowed[i]],
                class_token=class_token,
            )
            for i in range(depth)
        )
        self.norm = LayerNorm(embed_dim)
        initialise(self) if initialisation == "mae" else initialise_beit(self)
        self._initialise_tokens(positions)

    def _positions(self, kind: str | None) -> nn.Parameter | None:
        if kind is None:
            return None
        table = sincos_positions(self.embed_dim, self.grid, rows_first=kind == "sincos-moco")
        if self.dist_token is not None:
            table = torch.cat([table[:, :1], table], dim=1)
        return nn.Parameter(torch.zeros_like(table) if kind == "zeros" else table)

    def _initialise_tokens(self, positions: str | None) -> None:
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=0.02)
        if self.dist_token is not None:
            nn.init.normal_(self.dist_token, std=0.02)
        if positions == "learned":
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def grid_of(self, images: Tensor) -> Grid:
        """(h, w) of a batch of images (B, C, H, W)."""
        return images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Patches with their positions, class token first.

        Args:
            images: (B, C, H, W), H and W multiples of the patch size.
            keep: (B, K) indices of the patches to embed; the others are never touched.

        Returns:
            (B, P + K, D), K = L when `keep` is None.
        """
        patches = patchify(images, self.patch_size)
        tokens = [token for token in (self.cls_token, self.dist_token) if token is not None]
        if self.pos_embed is None:
            x = self.patch_embed(patches if keep is None else take(patches, keep))
        else:
            rows = 1 if self.dist_token is None else 2
            positions = resize_positions(self.pos_embed, self.grid, self.grid_of(images), rows)
            tokens = [token + positions[:, i : i + 1] for i, token in enumerate(tokens)]
            positions = positions[:, rows:]
            if keep is not None:
                patches = take(patches, keep)
                positions = take(positions.expand(len(images), -1, -1), keep)
            x = self.patch_embed(patches) + positions
        return torch.cat([*(token.expand(len(images), -1, -1) for token in tokens), x], dim=1)

    def forward_features(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, P + K, D) after the final norm; see `embed`.

        Raises:
            UserError: `keep` with windows or relative positions, which need the whole grid.
        """
        if keep is not None and (self.relative_positions or self.window_size):
            raise UserError(
                "an encoder with windows or relative positions needs every patch; leave these "
                "options out where patches are masked"
            )
        for x in self._run(self.embed(images, keep), self.grid_of(images), self.depth):
            last = x  # the others go as soon as they can
        return self.norm(last)

    def forward_maps(self, images: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """Feature maps after the blocks in `taps` (0-based), each (B, D, h, w), without a norm.

        Images of any size are padded below and right to whole patches.

        Raises:
            UserError: a grid that is no multiple of the windows, without `window_pad`.
        """
        images = pad_to_patches(images, self.patch_size)
        grid, maps = self.grid_of(images), []
        for index, x in enumerate(self._run(self.embed(images), grid, max(taps) + 1)):
            if index in taps:
                patches = x[:, self.num_prefix_tokens :]
                maps.append(patches.transpose(1, 2).unflatten(2, grid))
        return maps

    def _run(self, x: Tensor, grid: Grid, num_blocks: int) -> Iterator[Tensor]:
        """Tokens after each of the first blocks; a shared bias is built once."""
        size = self.window_size
        if size and not self.window_pad and (grid[0] % size or grid[1] % size):
            raise UserError(
                f"grid of {grid[0]}x{grid[1]} patches is no multiple of the {size}x{size} "
                f"attention windows; pad the image to multiples of {size * self.patch_size} px or "
                "set window_pad"
            )
        biases: dict[bool, Tensor] = {}
        if self.relative_positions == "shared":
            biases[False] = self.rel_pos_bias(grid)
            if hasattr(self, "window_rel_pos_bias"):
                biases[True] = self.window_rel_pos_bias((size, size))
        recompute = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        for block in self.blocks[:num_blocks]:
            inputs = (x, grid, biases.get(block.attn.window_size > 0))
            x = checkpoint(block, *inputs, use_reentrant=False) if recompute else block(*inputs)
            yield x

    def forward(self, images: Tensor) -> Tensor:
        """Same as `forward_features`."""
        return self.forward_features(images)

    def freeze_unused(self, taps: Sequence[int]) -> None:
        """Freeze what no map goes through: distributed training wants all other gradients."""
        self.norm.requires_grad_(False)
        self.blocks[max(taps) + 1 :].requires_grad_(False)

    def layer_id(self, name: str) -> int:
        """Depth of one of this module's parameters for layer-wise lr decay.

        0 for the embeddings, i + 1 for block i (0-based), depth + 1 for the final norm and for
        tables that blocks share (as in microsoft/unilm beit/optim_factory.py).
        """
        if name.startswith(("patch_embed.", "cls_token", "dist_token", "pos_embed")):
            return 0
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return self.num_layers + 1


def _check(option: str, given: object, allowed: Sequence[object]) -> None:
    if given not in allowed:
        raise unknown(option, str(given), map(str, allowed))


def _grid(img_size: int | Sequence[int], patch_size: int) -> Grid:
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if height % patch_size or width % patch_size:
        raise UserError(f"img_size {height}x{width} is no multiple of patch size {patch_size}")
    return height // patch_size, width // patch_size


def _class_token(
    given: bool | None, distilled: bool, window_size: int, relative: str | None
) -> bool:
    placeless = bool(window_size) or relative == "decomposed"
    if placeless and (given or distilled):
        raise UserError(
            "attention windows and decomposed relative positions have no place for a class or "
            "distillation token; set class_token=False or leave them out"
        )
    if distilled and (relative or given is False):
        raise UserError("a distillation token needs the class token, and no relative positions")
    return not placeless if given is None else given


def _windowed(depth: int, window_size: int, global_blocks: Sequence[int] | None) -> list[bool]:
    """Which blocks attend in windows."""
    if window_size < 0:
        raise UserError(f"window_size {window_size}: a number of patches, or 0 for no windows")
    blocks = tuple(quarters(depth) if global_blocks is None else global_blocks)
    if global_blocks is not None and not set(blocks) <= set(range(depth)):
        raise UserError(f"global_blocks {list(blocks)}: block numbers from 0 to {depth - 1}")
    return [window_size > 0 and i not in blocks for i in range(depth)]


def quarters(depth: int) -> tuple[int, int, int, int]:
    """0-based index of the last block of each quarter, where dense tasks tap the encoder.

    Source: arXiv:2111.11429 Sec. 2.1 (blocks 2, 5, 8, 11 of ViT-B).
    """
    first, second, third, last = (round(depth * k / 4) - 1 for k in (1, 2, 3, 4))
    return first, second, third, last


def initialise(module: nn.Module) -> None:
    """Xavier-uniform linear layers (patch projection included, as a matrix), zero biases.

    The patch projection's bias keeps PyTorch's default. Source: facebookresearch/mae models_mae.py.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, PatchEmbed):
            nn.init.xavier_uniform_(child.proj.weight.flatten(1))


def initialise_beit(model: VisionTransformer) -> None:
    """Normal weights of 0.02 (cut at 2), zero biases, output projections over sqrt(2 * block).

    Source: microsoft/unilm beit/modeling_pretrain.py.
    """
    for child in model.modules():
        if isinstance(child, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(child.weight, std=0.02)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
    with torch.no_grad():
        for number, block in enumerate(model.blocks, start=1):
            block.attn.proj.weight /= math.sqrt(2 * number)
            block.mlp.fc2.weight /= math.sqrt(2 * number)
