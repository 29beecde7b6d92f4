"""Semantic segmentation: mmseg's UperNet on ADE20K-format data, trained by `tasks.engine`.

The parts are built from the mmseg config that a recipe stands for (`tasks.upernet`), so that
mmseg's own tools, given that config, train the same thing.

Shapes: H W px of an image, K classes.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.config import ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

import backbones.mmseg  # noqa: F401 (registers MAEBenchViT)
from backbones.checkpoints import fingerprint
from backbones.groups import parameter_groups, parameter_rules
from mae_bench.errors import UserError
from mae_bench.job import Job, write_atomically
from mae_bench.records import Metric, Outcome, Picture
from tasks import engine
from tasks.upernet import IGNORED, mmseg_config

# mmseg announces on stdout which optional packages it went without.
with contextlib.redirect_stdout(io.StringIO()):
    from mmseg.datasets import BaseSegDataset
    from mmseg.evaluation import IoUMetric
    from mmseg.models import EncoderDecoder
    from mmseg.registry import DATASETS, METRICS, MODELS, TRANSFORMS

# mmseg's default, and the one in the published recipes.
warnings.filterwarnings("ignore", message="Default ``avg_non_ignore`` is False")

NUM_PICTURES = 4


@TRANSFORMS.register_module()
class CachedLoading:
    """Loading transforms whose result is kept in memory, by image.

    Args:
        transforms: mmseg transforms without anything random.
    """

    def __init__(self, transforms: Sequence[dict[str, Any]]):
        self.load = Compose(transforms)
        self._loaded: dict[str, dict[str, Any]] = {}

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return the loaded sample, the caller's to change."""
        path = results["img_path"]
        if path not in self._loaded:
            self._loaded[path] = self.load(results)
        return copy.deepcopy(self._loaded[path])


@TRANSFORMS.register_module()
class CheckLabels:
    """Refuses a map with values that are no class, before the loss meets them.

    Args:
        num_classes: K; after the zero-label shift 0 to K - 1 and 255 (ignored) are allowed.
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Check `gt_seg_map` (H, W) against the image and the class list."""
        labels, path = results["gt_seg_map"], results["seg_map_path"]
        if labels.shape != results["img"].shape[:2]:
            raise UserError(
                f"{path} is {labels.shape}, its image {results['img'].shape[:2]}; a map of one "
                "channel and of the image's size is needed"
            )
        wrong = np.unique(labels[(labels >= self.num_classes) & (labels != IGNORED)])
        if wrong.size:
            raise UserError(
                f"{path} holds the values {(wrong + 1).tolist()}; 0 (unlabelled) to "
                f"{self.num_classes} are allowed by its class list"
            )
        return results


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
    with _building():
        model = build_segmentor(config["model"], job.run.seed)
        training = DATASETS.build(config["train_dataloader"]["dataset"])
        validation = DATASETS.build(config["val_dataloader"]["dataset"])
        metric = METRICS.build(config["val_evaluator"])
    facts = _facts(model, training, validation)
    trained = _train(job, model, training)
    save_segmentor(model, validation, job.folder / "segmentor.pth")
    scores, examples = evaluate(job, model, validation, metric)
    draw(examples, validation.metainfo, job.folder / "segmentation.png")
    return Outcome(
        metrics=scores.metrics(),
        checkpoint="segmentor.pth",
        pictures=(Picture(path="segmentation.png", caption="Image, truth, prediction, errors"),),
        images_per_second=trained.images_per_second,
        facts={
            **facts,
            "data_time_share": trained.data_time_share,
            "iou_per_class": dict(zip(validation.metainfo["classes"], scores.iou, strict=True)),
        },
    )


def _train(job: Job, model: EncoderDecoder, dataset: BaseSegDataset) -> engine.Trained:
    solver = job.recipe["solver"]
    if solver["batch_size"] < 2:
        raise UserError(
            f"solver.batch_size is {solver['batch_size']}; at least 2 are needed, because "
            "BatchNorm behind UperNet's 1x1 pooling sees one value an image"
        )
    rules = parameter_rules(
        model, model.backbone.encoder, solver["weight_decay"], solver["layer_decay"]
    )
    engine.write_rules(rules, job.folder / "parameters.csv")
    return engine.train(
        job,
        model,
        dataset,
        parameter_groups(model, rules, solver["lr"]),
        iterations=solver["iterations"],
        batch_size=solver["batch_size"],
        schedule=partial(
            engine.polynomial_lr,
            total=solver["iterations"],
            warmup=solver["warmup_iterations"],
            peak=solver["lr"],
        ),
        optimizer=partial(torch.optim.AdamW, betas=tuple(solver["betas"])),
        amp=solver["amp"],
        num_workers=solver["num_workers"],
        save_every=solver["save_every"],
    )


@contextlib.contextmanager
def _building() -> Iterator[None]:
    """Let mmseg's registry find its own parts, without the story of every parameter in the log."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with DefaultScope.overwrite_default_scope("mmseg"):
            yield
    finally:
        logger.setLevel(level)


def build_segmentor(config: Mapping[str, Any], seed: int) -> EncoderDecoder:
    """Build and initialise; nothing of it depends on what ran before in this process."""
    engine.seed_all(seed, 0)
    model = MODELS.build(ConfigDict(copy.deepcopy(config)))
    model.init_weights()
    # The Runner would call it again and log all parameters once more.
    model.init_weights = lambda: None
    return model


def _facts(
    model: EncoderDecoder, training: BaseSegDataset, validation: BaseSegDataset
) -> dict[str, object]:
    report = model.backbone.load_report
    step_0 = fingerprint(model.backbone.encoder.state_dict())
    assert report is None or report.resized or report.fingerprint == step_0, "weights were changed"
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameter_groups": "parameters.csv",
        "load_report": None if report is None else report.model_dump(mode="json"),
        "encoder_fingerprint_at_step_0": step_0,
        "train_images": len(training),
        "val_images": len(validation),
    }


def save_segmentor(model: EncoderDecoder, dataset: BaseSegDataset, path: Path) -> None:
    """Write a checkpoint as mmseg's tools read it."""
    names = {key: dataset.metainfo[key] for key in ("classes", "palette")}
    weights = {key: value.cpu() for key, value in model.state_dict().items()}
    buffer = io.BytesIO()
    torch.save({"state_dict": weights, "meta": {"dataset_meta": names}}, buffer)
    write_atomically(path, buffer.getvalue(), durable=True)


@dataclass(frozen=True)
class Scores:
    """Percent over the whole set; NaN marks a class that neither truth nor prediction has.

    Such a class does not count in the means, as in mmseg's own metric.
    """

    aacc: float
    iou: list[float]
    acc: list[float]

    def metrics(self) -> dict[str, Metric]:
        """The run's metrics."""
        return {
            "miou": Metric(value=float(np.nanmean(self.iou)), unit="mIoU"),
            "macc": Metric(value=float(np.nanmean(self.acc)), unit="%"),
            "aacc": Metric(value=self.aacc, unit="%"),
        }


@dataclass(frozen=True)
class Example:
    """One validation image for the picture: RGB (H, W, 3), truth and prediction (H, W)."""

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


@torch.no_grad()
def evaluate(
    job: Job, model: EncoderDecoder, dataset: BaseSegDataset, metric: IoUMetric
) -> tuple[Scores, list[Example]]:
    """Score every image of the dataset once, at its original resolution.

    Areas are summed in float64: mmseg sums float32 and rounds to two decimals, which a set of
    ADE20K's size no longer bears.

    Returns:
        the scores, and the same few images of every run for the picture.
    """
    model.eval()
    metric.dataset_meta = dataset.metainfo
    shown = set(np.linspace(0, len(dataset) - 1, NUM_PICTURES).round().astype(int).tolist())
    examples = []
    for index in range(len(dataset)):
        sample = model.val_step(pseudo_collate([dataset[index]]))[0].to_dict()
        metric.process({}, [sample])
        if index in shown:
            truth, prediction = (
                sample[key]["data"][0].cpu().numpy() for key in ("gt_sem_seg", "pred_sem_seg")
            )
            examples.append(Example(mmcv.imread(sample["img_path"])[..., ::-1], truth, prediction))
        job.report("evaluate", index + 1, len(dataset))
    return score(metric), examples


def score(metric: IoUMetric) -> Scores:
    """Turn the areas that mmseg's metric has collected into percent."""
    areas = [sum(area.double() for area in column) for column in zip(*metric.results, strict=True)]
    ratios = metric.total_area_to_metrics(*areas, metric.metrics)
    iou, acc = (list(map(float, ratios[key] * 100)) for key in ("IoU", "Acc"))
    return Scores(aacc=float(ratios["aAcc"]) * 100, iou=iou, acc=acc)


def draw(examples: Sequence[Example], metainfo: Mapping[str, Any], path: Path) -> None:
    """Image, truth, prediction and errors side by side, one row an image, with a legend."""
    palette = np.full((256, 3), 255, dtype=np.uint8)
    palette[: len(metainfo["palette"])] = metainfo["palette"]
    height = 2.1 * len(examples) + 0.8
    figure = Figure(figsize=(8.4, height))
    axes = figure.subplots(len(examples), 4, squeeze=False)
    for axis, title in zip(axes[0], ("image", "truth", "prediction", "errors"), strict=True):
        axis.set_title(title, fontsize=10)
    for row, example in zip(axes, examples, strict=True):
        errors, share = _errors(example)
        maps = (example.image, palette[example.truth], palette[example.prediction], errors)
        for axis, picture in zip(row, maps, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
        place = dict(transform=row[3].transAxes, ha="right", va="bottom", fontsize=7)
        row[3].text(0.98, 0.02, f"{share:.1%} wrong", **place)
    _legend(figure, metainfo["classes"], palette)
    figure.savefig(path, dpi=150)


def _errors(example: Example) -> tuple[np.ndarray, float]:
    """Wrong pixels red on a pale image, unlabelled ones white; and the share of wrong ones."""
    known = example.truth != IGNORED
    wrong = known & (example.truth != example.prediction)
    pale = (example.image.mean(-1, keepdims=True) * 0.4 + 140).repeat(3, -1).astype(np.uint8)
    pale[wrong], pale[~known] = (214, 39, 40), (255, 255, 255)
    return pale, wrong.sum() / max(known.sum(), 1)


def _legend(figure: Figure, classes: Sequence[str], palette: np.ndarray) -> None:
    names = [*enumerate(classes), (IGNORED, "unlabelled")]
    patches = [Patch(fc=palette[label] / 255, ec="0.6", label=name) for label, name in names]
    figure.legend(handles=patches, loc="lower center", ncols=7, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.6 / figure.get_figheight(), 1, 1), pad=0.4)
