"""Classification transfer: fine-tuning of all or of the last blocks, and the linear probe.

`frozen` scores frozen features without training an encoder's head by gradient descent.

Source: arXiv:2111.06377 Sec. 4.3, A.1 and A.5; facebookresearch/mae models_vit.py,
main_finetune.py, main_linprobe.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Dataset

from backbones import create_backbone
from backbones.checkpoints import load_backbone
from backbones.load_report import fingerprint, record_load
from backbones.vit import VisionTransformer
from mae_bench.job import Job
from mae_bench.records import Metric, Outcome
from tasks import engine
from tasks.classification.checks import check_classes
from tasks.classification.model import Classifier, frozen_part
from tasks.data.images import labelled_sets
from tasks.data.mixing import mixing

__all__ = ["Classifier", "run"]


def run(job: Job) -> Outcome:
    """Fine-tune or probe; score top-1 and the mean over classes (percent) on the validation split.

    With `model.ema_decay`, the average of the weights is what is scored.

    Raises:
        UserError: labels that cannot be learnt; see `check_classes`.
        RuntimeError: what was to stay frozen did not.
    """
    data, settings, solver = (job.recipe[section] for section in ("data", "model", "solver"))
    engine.seed_all(job.run.seed, 0)
    train_set, val_set, classes = labelled_sets(job.run.dataset, job.data_root, data)
    check_classes(job.run.dataset, classes, train_set.labels, val_set.labels)
    encoder, loaded = load_encoder(job, settings["drop_path_rate"])
    model = build(encoder, len(classes), settings)
    before = fingerprint(frozen_part(encoder))
    decay = settings["ema_decay"]
    average = engine.WeightAverage(model, decay) if decay else None
    trained = engine.fit(job, model, encoder, train_set, hooks=[average] if average else [])
    after = fingerprint(frozen_part(encoder))
    if after != before:
        raise RuntimeError("the frozen part of the encoder changed while the rest was trained")
    metrics = _scores(job, average.model if average else model, val_set)
    if average:
        metrics |= _scores(job, model, val_set, "_without_ema")
    return Outcome(
        metrics=metrics,
        images_per_second=trained.images_per_second,
        data_time_share=trained.data_time_share,
        facts={
            "classes": len(classes),
            "training_images": len(train_set),
            "validation_images": len(val_set),
            "epochs": engine.duration(solver, len(train_set))[0]
            * solver["batch_size"]
            / len(train_set),
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "frozen_parameters": sum(p.numel() for p in frozen_part(encoder).values()),
            "frozen_fingerprint": {"before_training": before, "after_training": after},
            **loaded,
            **trained.facts,
        },
    )


def load_encoder(job: Job, drop_path: float = 0.0) -> tuple[VisionTransformer, dict[str, Any]]:
    """Return the run's encoder with its weights, and what its record says of them."""
    encoder = create_backbone(
        job.run.backbone, img_size=job.recipe["data"]["image_size"], drop_path_rate=drop_path
    )
    weights = job.upstream.get("backbone")
    report = load_backbone(encoder, weights, job.format_of("backbone")) if weights else None
    return encoder, record_load(report, encoder, job.folder)


def build(encoder: VisionTransformer, num_classes: int, settings: Mapping[str, Any]) -> Classifier:
    """Return the classifier that the `model` section of a recipe describes."""
    return Classifier(
        encoder,
        num_classes,
        pool=settings["pool"],
        frozen=settings["frozen"],
        trained_blocks=settings["trained_blocks"],
        smoothing=settings["label_smoothing"],
        mix=mixing(settings, num_classes),
        head_std=settings["head_std"],
    )


def _scores(job: Job, model: Classifier, val_set: Dataset, suffix: str = "") -> dict[str, Metric]:
    solver = job.recipe["solver"]
    return engine.accuracy(
        model, val_set, job, amp=solver["amp"], num_workers=solver["num_workers"]
    ).metrics(suffix)
