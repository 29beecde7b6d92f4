"""Supervised pretraining from scratch: the baseline row, in the interface of the others.

Source: arXiv:2111.06377 A.2, Table 11 (AdamW 0.9/0.95, smoothing, drop path). The recipe says
which parts of it a scale uses.
"""

from __future__ import annotations

import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from backbones import create_backbone
from backbones.checkpoints import save_backbone
from backbones.vit import VisionTransformer
from mae_bench.job import Job
from mae_bench.records import Metric, Outcome
from tasks import engine
from tasks.data.images import labelled_sets


class SupervisedPretraining(BaseModel):
    """Encoder and a linear classifier on its class token."""

    def __init__(self, encoder: VisionTransformer, num_classes: int, smoothing: float):
        super().__init__()
        self.encoder, self.smoothing = encoder, smoothing
        self.head = nn.Linear(encoder.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, labels: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        """Images (B, 3, H, W) and labels (B,) -> {"loss"} or, in mode "predict", {"logits"}."""
        logits = self.head(self.encoder.forward_features(images)[:, 0])
        if mode == "predict":
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)}


def run(job: Job) -> Outcome:
    """Train encoder and classifier; score top-1 on the validation split."""
    data, settings = job.recipe["data"], job.recipe["model"]
    engine.seed_all(job.run.seed, 0)
    train_set, val_set, classes = labelled_sets(job.run.dataset, job.data_root, data)
    encoder = create_backbone(
        job.run.backbone,
        img_size=data["image_size"],
        drop_path_rate=settings["drop_path_rate"],
    )
    model = SupervisedPretraining(encoder, len(classes), settings["label_smoothing"])
    trained = engine.fit(job, model, encoder, train_set)
    save_backbone(encoder, job.folder / "backbone.safetensors", engine.header(job))
    top1 = engine.top1(model, val_set, job)
    return Outcome(
        metrics={"top1": Metric(value=top1, unit="%")},
        checkpoint="backbone.safetensors",
        images_per_second=trained.images_per_second,
        facts=engine.pretraining_facts(job, encoder, train_set, trained),
    )
