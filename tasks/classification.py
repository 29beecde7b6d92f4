"""Classification transfer: end-to-end fine-tuning, and the linear probe on frozen features.

Source: arXiv:2111.06377 A.1 and A.5; facebookresearch/mae models_vit.py, main_finetune.py,
main_linprobe.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from backbones import create_backbone
from backbones.checkpoints import fingerprint, load_backbone
from backbones.load_report import record_load
from backbones.vit import LayerNorm, VisionTransformer
from mae_bench.errors import unknown
from mae_bench.job import Job
from mae_bench.records import Metric, Outcome
from tasks import engine
from tasks.data.images import labelled_sets


class Classifier(BaseModel):
    """Encoder, pooling and a linear head.

    Args:
        pool: "mean" averages the patch tokens and norms after pooling, with a fresh norm in place
            of the encoder's; "token" takes the class token after the encoder's norm.
        frozen: no gradient reaches the encoder, and a BatchNorm without affine parameters stands
            before the head (the paper's linear probe).
        head_std: of the head's truncated-normal initialisation.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        num_classes: int,
        *,
        pool: str = "mean",
        frozen: bool = False,
        smoothing: float = 0.0,
        head_std: float = 2e-5,
    ):
        super().__init__()
        if pool not in {"mean", "token"}:
            raise unknown("pooling", pool, ["mean", "token"])
        self.encoder, self.pool, self.frozen, self.smoothing = encoder, pool, frozen, smoothing
        dim = encoder.embed_dim
        if frozen:
            encoder.requires_grad_(False)
            self.norm: nn.Module = nn.BatchNorm1d(dim, affine=False, eps=1e-6)
        elif pool == "mean":
            encoder.norm = nn.Identity()
            self.norm = LayerNorm(dim)
        else:
            self.norm = nn.Identity()
        self.head = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=head_std)
        nn.init.zeros_(self.head.bias)

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> pooled (B, D), before the norm of this module."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens = self.encoder.forward_features(images)
        return tokens[:, 1:].mean(dim=1) if self.pool == "mean" else tokens[:, 0]

    def forward(self, images: Tensor, labels: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        """Images and labels (B,) -> {"loss"} or, in mode "predict", {"logits": (B, classes)}."""
        logits = self.head(self.norm(self.features(images))).float()
        if mode == "predict":
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels, label_smoothing=self.smoothing)}


def run(job: Job) -> Outcome:
    """Fine-tune or probe; score top-1 (percent) on the validation split."""
    data, settings = job.recipe["data"], job.recipe["model"]
    engine.seed_all(job.run.seed, 0)
    train_set, val_set, classes = labelled_sets(job.run.dataset, job.data_root, data)
    encoder = create_backbone(
        job.run.backbone, img_size=data["image_size"], drop_path_rate=settings["drop_path_rate"]
    )
    weights = job.upstream.get("backbone")
    report = load_backbone(encoder, weights, job.format_of("backbone")) if weights else None
    facts = {
        "classes": len(classes),
        "training_images": len(train_set),
        **record_load(report, encoder, job.folder),
    }
    model = Classifier(
        encoder,
        len(classes),
        pool=settings["pool"],
        frozen=settings["frozen"],
        smoothing=settings["label_smoothing"],
        head_std=settings["head_std"],
    )
    trained = engine.fit(job, model, encoder, train_set)
    if settings["frozen"] and fingerprint(encoder.state_dict()) != facts["fingerprint_at_step_0"]:
        raise RuntimeError("the frozen encoder changed while its probe was trained")
    return Outcome(
        metrics={"top1": Metric(value=engine.top1(model, val_set, job), unit="%")},
        images_per_second=trained.images_per_second,
        facts={
            **facts,
            "validation_images": len(val_set),
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "data_time_share": trained.data_time_share,
        },
    )
