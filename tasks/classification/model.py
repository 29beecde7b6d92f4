"""The classifier on top of an encoder, and which part of it is trained."""

from __future__ import annotations

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from backbones.vit import LayerNorm, VisionTransformer
from mae_bench.errors import UserError, unknown
from tasks.data.mixing import Mixing, mixed_loss

# Of a block, by the names of its parameters here and in timm.
MLP_BRANCH = ("norm2", "mlp", "gamma_2", "ls2")


class Classifier(BaseModel):
    """Encoder, pooling and a linear head.

    Args:
        pool: "mean" averages the patch tokens and norms after pooling, with a fresh norm in place
            of the encoder's; "token" takes the class token after the encoder's norm.
        frozen: no gradient reaches the encoder, and a BatchNorm without affine parameters stands
            before the head (the paper's linear probe).
        trained_blocks: train only the last so many blocks, the norm behind them and the head; see
            `freeze_below`. None trains everything.
        smoothing: of the labels; inside the targets of `mix` where that is given.
        mix: mixup and cutmix of each training batch.
        head_std: of the head's truncated-normal initialisation.

    Raises:
        UserError: unknown pooling, a class token that the encoder lacks, blocks that it lacks.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        num_classes: int,
        *,
        pool: str = "mean",
        frozen: bool = False,
        trained_blocks: float | None = None,
        smoothing: float = 0.0,
        mix: Mixing | None = None,
        head_std: float = 2e-5,
    ):
        super().__init__()
        check_encoder(encoder, pool)
        self.encoder, self.pool, self.frozen = encoder, pool, frozen
        self.smoothing, self.mix = smoothing, mix
        dim = encoder.embed_dim
        if frozen:
            encoder.requires_grad_(False)
            self.norm: nn.Module = nn.BatchNorm1d(dim, affine=False, eps=1e-6)
        elif pool == "mean":
            encoder.norm = nn.Identity()
            self.norm = LayerNorm(dim)
        else:
            self.norm = nn.Identity()
        if trained_blocks is not None:
            if frozen:
                raise UserError("model.trained_blocks: with model.frozen no block is trained")
            freeze_below(encoder, trained_blocks)
        self.head = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=head_std)
        nn.init.zeros_(self.head.bias)

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> pooled (B, D), before the norm of this module."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return pooled(self.encoder, images, self.pool)

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, classes), in fp32."""
        return self.head(self.norm(self.features(images))).float()

    def forward(self, images: Tensor, labels: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        """Images and labels (B,) -> {"loss"} or, in mode "predict", {"logits": (B, classes)}."""
        if mode == "predict":
            return {"logits": self.logits(images)}
        return {"loss": mixed_loss(self.logits, images, labels, self.mix, self.smoothing)}


def check_encoder(encoder: nn.Module, pool: str) -> None:
    """Refuse an encoder without tokens, and a pooling that this one cannot have.

    Raises:
        UserError: as said.
    """
    if not hasattr(encoder, "num_prefix_tokens"):
        raise UserError("classification pools the tokens of a plain encoder; this one is a pyramid")
    if pool not in {"mean", "token"}:
        raise unknown("pooling", pool, ["mean", "token"])
    if pool == "token" and not encoder.num_prefix_tokens:
        raise UserError(
            "model.pool=token needs a class token, and this encoder has none; give mean"
        )


def pooled(encoder: VisionTransformer, images: Tensor, pool: str) -> Tensor:
    """Class token, or mean of the patch tokens: (B, 3, H, W) -> (B, D)."""
    tokens = encoder.forward_features(images)
    return tokens[:, encoder.num_prefix_tokens :].mean(dim=1) if pool == "mean" else tokens[:, 0]


def freeze_below(encoder: VisionTransformer, blocks: float) -> None:
    """Leave only the last blocks of an encoder, and its final norm, to be trained.

    The embeddings and positions are frozen with the blocks below (inferred: the paper says "freeze
    the others"); drop path stays on in all blocks. Half a block is the MLP branch of one: its norm,
    its two layers, its layer scale.

    Args:
        blocks: 0.5, or a whole number from 1 to the encoder's depth. All of them freeze only the
            embeddings; what the paper calls full fine-tuning freezes nothing.

    Raises:
        UserError: none, or a number of blocks that the encoder does not have.

    Source: arXiv:2111.06377 Sec. 4.3 and A.1, Figure 9.
    """
    if blocks != 0.5 and (blocks != int(blocks) or not 1 <= blocks <= encoder.depth):
        raise UserError(
            f"model.trained_blocks={blocks:g}: 0.5 (the MLP of the last block), a whole number "
            f"from 1 to {encoder.depth}, or none for everything; for 0 use a linear probe"
        )
    encoder.requires_grad_(False)
    encoder.norm.requires_grad_(True)
    if blocks == 0.5:
        for name, parameter in encoder.blocks[-1].named_parameters():
            parameter.requires_grad_(name.startswith(MLP_BRANCH))
    else:
        encoder.blocks[-int(blocks) :].requires_grad_(True)


def frozen_part(encoder: nn.Module) -> dict[str, Tensor]:
    """Name -> value of what is not trained, buffers included; empty when all is."""
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    return {name: v for name, v in encoder.state_dict().items() if name not in trained}
