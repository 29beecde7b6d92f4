"""Supervised pretraining from scratch: the baseline row, in the interface of the others.

Source: arXiv:2111.06377 A.2, Table 11 (AdamW 0.9/0.95, RandAugment, smoothing, mixup, cutmix, drop
path, average of the weights). The recipe says which parts of it a scale uses.
"""

from __future__ import annotations

from mmengine.model import BaseModel
from torch import Tensor, nn

from backbones import create_backbone
from backbones.checkpoints import save_backbone
from backbones.vit import VisionTransformer
from mae_bench.job import Job
from mae_bench.records import Metric, Outcome
from tasks import distributed, engine
from tasks.data.images import labelled_sets
from tasks.data.mixing import Mixing, mixed_loss, mixing
from tasks.pretraining.checkpoints import save_torch_file


class SupervisedPretraining(BaseModel):
    """Encoder and a linear classifier on its class token.

    Args:
        smoothing: of the labels; inside the targets of `mix` where that is given.
        mix: mixup and cutmix of each training batch.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        num_classes: int,
        smoothing: float,
        mix: Mixing | None = None,
    ):
        super().__init__()
        self.encoder, self.smoothing, self.mix = encoder, smoothing, mix
        self.head = nn.Linear(encoder.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, labels: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        """Images (B, 3, H, W) and labels (B,) -> {"loss"} or, in mode "predict", {"logits"}."""
        if mode == "predict":
            return {"logits": self._logits(images)}
        return {"loss": mixed_loss(self._logits, images, labels, self.mix, self.smoothing)}

    def _logits(self, images: Tensor) -> Tensor:
        return self.head(self.encoder.forward_features(images)[:, 0]).float()


def run(job: Job) -> Outcome:
    """Train encoder and classifier; score top-1 on the validation split.

    With an average of the weights, that is what is scored and saved.
    """
    data, settings = job.recipe["data"], job.recipe["model"]
    engine.seed_all(job.run.seed, 0)
    train_set, val_set, classes = labelled_sets(job.run.dataset, job.data_root, data)
    encoder = create_backbone(
        job.run.backbone,
        img_size=data["image_size"],
        drop_path_rate=settings["drop_path_rate"],
    )
    model = SupervisedPretraining(
        encoder, len(classes), settings["label_smoothing"], mixing(settings, len(classes))
    )
    decay = settings["ema_decay"]
    average = engine.WeightAverage(model, decay) if decay else None
    trained = engine.fit(job, model, encoder, train_set, hooks=[average] if average else [])
    best = average.model if average else model
    if distributed.is_main():
        path = job.folder / "backbone.safetensors"
        save_backbone(best.encoder, path, engine.header(job))
        save_torch_file(path, job.folder / "backbone.pth")
    metrics = {"top1": Metric(value=engine.accuracy(best, val_set, job).top1, unit="%")}
    if average:
        metrics["top1_without_ema"] = Metric(
            value=engine.accuracy(model, val_set, job).top1, unit="%"
        )
    return Outcome(
        metrics=metrics,
        checkpoint="backbone.safetensors",
        images_per_second=trained.images_per_second,
        data_time_share=trained.data_time_share,
        facts=engine.pretraining_facts(job, encoder, train_set, trained),
    )
