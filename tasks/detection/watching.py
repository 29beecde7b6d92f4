"""Scores while a detector is trained, by the fast evaluator where it is installed.

Nothing of it can change the training: scoring draws no number that a step would use, and the model
goes on as it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

# Before detectron2: it restores names that detectron2 reads.
import backbones.detectron2  # isort: skip  # noqa: F401
from detectron2.config import instantiate
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm

from backbones.groups import unwrapped
from mae_bench.job import Job, Stopped
from tasks import distributed
from tasks.detection.scores import (
    Progress,
    Results,
    check_seen_once,
    coco_scores,
    has_fast_evaluator,
    image_ids,
    metrics_of,
)

WATCHED = ("box_ap", "mask_ap")


class InMemory(DatasetEvaluator):
    """Scores what all processes found, and writes nothing.

    Args:
        truth: content of an instance file; see `coco_scores`.
        ids: of the images that count.
    """

    def __init__(self, truth: Mapping[str, Any], ids: Sequence[int], fast: bool):
        self.truth, self.ids, self.fast = truth, ids, fast
        self.category_ids = sorted(category["id"] for category in truth["categories"])
        self.reset()

    def reset(self) -> None:
        self.found: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for item, output in zip(inputs, outputs, strict=True):
            self.found += instances_to_coco_json(output["instances"].to("cpu"), item["image_id"])

    def evaluate(self) -> Results:
        # Masks of a whole split: to the main process only, and not through a GPU.
        parts = comm.gather(self.found, dst=0)
        if not distributed.is_main():
            return {}
        found = [
            {**one, "category_id": self.category_ids[one["category_id"]]}
            for part in parts
            for one in part
        ]
        return coco_scores(self.truth, found, self.ids, self.fast)


class Validation(HookBase):
    """Scores the validation images every so many steps; a point of the learning curve each.

    The end is left out: it is scored for the record.

    Args:
        every: steps, `test.validate_every` of the recipe.
    """

    def __init__(self, job: Job, cfg: DictConfig, every: int):
        self.job, self.cfg, self.every = job, cfg, every

    def after_step(self) -> None:
        step = self.trainer.iter + 1
        if step % self.every or step == self.trainer.max_iter:
            return
        try:
            results = self._score()
        except Stopped:
            return  # the next step saves its state and stops
        if distributed.is_main():
            metrics = metrics_of(results)
            self.job.log_metrics(step, **{name: metrics[name].value for name in WATCHED})

    def _score(self) -> Results:
        loader = instantiate(self.cfg.dataloader.test)
        ids = image_ids(loader)
        truth = instantiate(self.cfg.dataloader.evaluator)._coco_api.dataset
        # A process that stopped alone would leave the others waiting.
        phase = "validate" if distributed.world_size() == 1 else None
        seen = Progress(self.job, phase, len(loader))
        # faster-coco-eval wants whole numbers of 64 bits for ids; others are rare.
        numbers = [*ids, *(category["id"] for category in truth["categories"])]
        fits = all(isinstance(number, int) and abs(number) < 2**63 for number in numbers)
        fast = has_fast_evaluator() and fits
        evaluators = [InMemory(truth, ids, fast), seen]
        results = inference_on_dataset(unwrapped(self.trainer.model), loader, evaluators)
        check_seen_once(seen.ids, ids)
        return results


def curves(folder: Path, last_step: int, results: Results) -> dict[str, Any]:
    """What was scored while training, and at its end, for the record: step -> score.

    Args:
        folder: of the job; its learning curve has the points, those before an interruption too.
        results: at `last_step`.

    Returns:
        validation_box_ap, validation_mask_ap, and the evaluator; nothing if the end is all.
    """
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    points = [point for point in map(json.loads, lines) if WATCHED[0] in point]
    if not points:
        return {}
    end = metrics_of(results)
    found = {
        f"validation_{name}": {str(point["step"]): point[name] for point in points}
        | {str(last_step): end[name].value}
        for name in WATCHED
    }
    fast = f"faster-coco-eval {version('faster-coco-eval')}" if has_fast_evaluator() else None
    return {**found, "validated_with": fast or f"pycocotools {version('pycocotools')}"}
