"""Semantic segmentation: mmseg's UperNet on ADE20K-format data, trained by `tasks.engine`.

`run` trains and scores a recipe; `mmseg_config` is the same recipe as an ordinary mmseg config, and
what `run` builds its parts from; `config_of` takes it by its name.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from functools import partial

from backbones.load_report import record_load
from mae_bench.job import Job
from mae_bench.records import Outcome, Picture
from tasks import distributed

# mmseg announces which optional packages it goes without; UperNet needs none of them.
with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mmseg.datasets import BaseSegDataset
    from mmseg.models import EncoderDecoder
    from mmseg.registry import DATASETS, MODELS

import backbones.mmseg  # noqa: F401 (registers MAEBenchViT)
import tasks.segmentation.heads  # noqa: F401 (registers LeanUPerHead, LeanFCNHead)
import tasks.segmentation.inference  # noqa: F401 (registers Segmentor, MultiScaleFlip)
from tasks.segmentation.checks import check_maps, norm_images
from tasks.segmentation.config import config_of, mmseg_config, several_views
from tasks.segmentation.picture import draw
from tasks.segmentation.scores import evaluate
from tasks.segmentation.training import build_segmentor, building, save_segmentor, train
from tasks.segmentation.watching import Watch

__all__ = ["config_of", "mmseg_config", "run"]

# mmseg's default, and the one in the published recipes.
warnings.filterwarnings("ignore", message="Default ``avg_non_ignore`` is False")


def run(job: Job) -> Outcome:
    """Train UperNet on the job's dataset and score every validation image once.

    Returns:
        miou, macc, aacc in percent; the segmentor, loadable by mmseg; a picture.

    Raises:
        UserError: batch too small or too large, maps that do not fit, weights that do not fit.
    """
    config = mmseg_config(
        job.recipe,
        dataset=job.run.dataset,
        data_root=job.data_root,
        backbone=job.run.backbone,
        checkpoint=str(job.upstream["backbone"]) if "backbone" in job.upstream else None,
    )
    config["model"]["backbone"]["format"] = job.format_of("backbone")
    if several_views(job.recipe):
        config["val_dataloader"]["dataset"]["pipeline"] = config["tta_pipeline"]
    with building():
        model = build_segmentor(config["model"], job.run.seed)
        training = DATASETS.build(config["train_dataloader"]["dataset"])
        validation = DATASETS.build(config["val_dataloader"]["dataset"])
        tested = MODELS.build({**config["tta_model"], "module": model})
    check_maps(job, training, validation)
    facts = {"norm_images": norm_images(job), **_facts(job, model, training, validation)}
    score = partial(
        evaluate,
        tested if several_views(job.recipe) else model,
        validation,
        num_workers=job.recipe["solver"]["num_workers"],
    )
    watch = Watch(job, model, score, len(training))
    trained = train(job, model, training, watch.hooks)
    scores, examples = score(report=partial(job.report, "evaluate"))
    if distributed.is_main():
        save_segmentor(model, validation, job.folder / "segmentor.pth")
        draw(examples, validation.metainfo, job.folder / "segmentation.png")
    return Outcome(
        metrics=scores.metrics(),
        checkpoint="segmentor.pth",
        pictures=(Picture(path="segmentation.png", caption="Image, truth, prediction, errors"),),
        images_per_second=trained.images_per_second,
        data_time_share=trained.data_time_share,
        facts={
            **facts,
            **trained.facts,
            **watch.facts(scores.miou),
            "iou_per_class": dict(zip(validation.metainfo["classes"], scores.iou, strict=True)),
        },
    )


def _facts(
    job: Job, model: EncoderDecoder, training: BaseSegDataset, validation: BaseSegDataset
) -> dict[str, object]:
    if not distributed.is_main():
        return {}
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameter_groups": "parameters.csv",
        **record_load(model.backbone.load_report, model.backbone.encoder, job.folder),
        "train_images": len(training),
        "val_images": len(validation),
    }
