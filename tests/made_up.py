"""Made-up runs and records for tests of tables and reports; nothing here was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mae_bench.plan import CellKey, CellPlan
from mae_bench.records import (
    Column,
    Metric,
    Outcome,
    Provenance,
    Published,
    Record,
    Row,
    Run,
    Setting,
    Table,
)

Score = Callable[[str, str, int], float]


def run(task: str = "detection", init: str = "random", seed: int = 0, **fields: Any) -> Run:
    defaults = {
        "task_version": 1,
        "dataset": "mini-coco",
        "data_fingerprint": "0123456789ab",
        "backbone": "vit_mini_patch8",
        "recipe": "detection/mini",
        "recipe_values": {"solver": {"base_lr": 1e-3, "iterations": 300}},
    }
    return Run(task=task, init=init, seed=seed, **{**defaults, **fields})


def provenance(**fields: Any) -> Provenance:
    defaults = {
        "started": "2025-01-31T12:00:00+00:00",
        "seconds": 61.25,
        "peak_memory_mb": 1024.5,
        "commit": "0123456789abcdef",
        "dirty": False,
        "packages": {"torch": "2.14.0"},
        "hardware": {"cpu": "two cores"},
        "recipe_sha256": "00ff" * 16,
    }
    return Provenance(**{**defaults, **fields})


def record(which: Run, scores: Mapping[str, float | Metric] | None = None, **fields: Any) -> Record:
    """A good record of these scores (in "%" unless a Metric is given)."""
    metrics = {
        name: score if isinstance(score, Metric) else Metric(value=score, unit="%")
        for name, score in (scores or {}).items()
    }
    defaults = {
        "id": which.id,
        "run": which,
        "status": "ok",
        "outcome": Outcome(metrics=metrics, images_per_second=24.5),
        "provenance": provenance(),
    }
    return Record(**{**defaults, **fields})


def world(
    tables: Iterable[Table], seeds: Sequence[int], score: Score, imported: Iterable[str] = ()
) -> tuple[dict[CellKey, CellPlan], dict[str, Record]]:
    """Cells of these tables at mini scale, each filled by a good record.

    Args:
        score: (init, metric, seed) -> value.
        imported: inits that the scale cannot have.
    """
    cells: dict[CellKey, CellPlan] = {}
    scores: dict[str, tuple[Run, dict[str, float | Metric]]] = {}
    for table in tables:
        for index, column in enumerate(table.columns):
            setting = column.scales["mini"]
            for row in table.rows:
                for seed in seeds:
                    key = CellKey(table.name, row.init, index, setting.backbones[0], seed)
                    if row.init in imported:
                        cells[key] = CellPlan(None, f"only imported: give --init {row.init}=FILE")
                        continue
                    which = run(
                        column.task, row.init, seed, dataset=setting.dataset, recipe=setting.recipe
                    )
                    which = which.model_copy(
                        update={"recipe_values": {"name": setting.recipe, **which.recipe_values}}
                    )
                    cells[key] = CellPlan(which.id)
                    metric = Metric(value=score(row.init, column.metric, seed), unit="%")
                    scores.setdefault(which.id, (which, {}))[1][column.metric] = metric
    return cells, {run_id: record(which, found) for run_id, (which, found) in scores.items()}


ROWS = {
    "random": "random init",
    "supervised": "supervised",
    "moco-v3": "MoCo v3",
    "beit": "BEiT",
    "mae-pixel": "MAE, pixels",
    "mae-norm-pixel": "MAE",
    "mae-dvae-token": "MAE, dVAE tokens",
}
FINETUNE, PROBE = "classification/mini_finetune", "classification/mini_linear_probe"


def tables() -> list[Table]:
    """Tables 4 to 7 at mini scale, as they stood once: the shipped ones may grow."""
    dense = ("random", "supervised", "moco-v3", "beit", "mae-norm-pixel")
    box, mask, miou, top1 = (
        ("detection", "coco-2017-val", "AP-box"),
        ("instance-segmentation", "coco-2017-val", "AP-mask"),
        ("semantic-segmentation", "ade20k-val", "mIoU"),
        ("finetune", "imagenet-1k", "top1"),
    )
    detection = ("detection", "mini-coco", "detection/mini")
    segmentation = ("segmentation", "mini-ade20k", "segmentation/mini")
    frozen = ("segmentation", "mini-ade20k", "segmentation/mini_frozen")
    fourth = [
        _column("COCO", "AP box", "box_ap", detection, "Table 4 COCO", box),
        _column("COCO", "AP mask", "mask_ap", detection, "Table 4 COCO", mask),
    ]
    fifth = [
        _column("ADE20K", "mIoU", "miou", segmentation, "Table 5 ADE20K", miou),
        _column("ADE20K", "mIoU, frozen", "miou", frozen),
    ]
    sixth = []
    for group, dataset, published in (
        ("iNat 2018", "mini-inat", "inat-2018"),
        ("Places365", "mini-places", "places-365"),
    ):
        paper = ("finetune", published, "top1")
        sixth += [
            _column(
                group,
                "fine-tuned",
                "top1",
                ("classification", dataset, FINETUNE),
                "Table 6 iNat and Places",
                paper,
            ),
            _column(group, "frozen", "top1", ("classification", dataset, PROBE)),
        ]
    imagenet = ("classification", "mini-imagenet", FINETUNE)
    seventh = [
        _column("ImageNet-1K", "top-1", "top1", imagenet, "Table 7 pixels vs tokens", top1),
        _column("COCO", "AP box", "box_ap", detection, "Table 7 pixels vs tokens", box),
        _column("ADE20K", "mIoU", "miou", segmentation, "Table 7 pixels vs tokens", miou),
    ]
    return [
        _table("table4", "COCO object detection, Mask R-CNN", dense, fourth),
        _table("table5", "ADE20K semantic segmentation, UperNet", dense, fifth, "Frozen: ours."),
        _table(
            "table6",
            "Transfer classification, top-1 accuracy",
            ("random", "supervised", "mae-pixel", "mae-norm-pixel", "mae-dvae-token"),
            sixth,
        ),
        _table(
            "table7",
            "Pixels or tokens as the MAE reconstruction target",
            ("mae-pixel", "mae-norm-pixel", "mae-dvae-token"),
            seventh,
        ),
    ]


def _table(
    name: str, title: str, inits: Iterable[str], columns: Iterable[Column], note: str = ""
) -> Table:
    rows = tuple(Row(init=init, title=ROWS[init]) for init in inits)
    source = f"arXiv:2111.06377 Table {name[-1]}"
    return Table(
        name=name, title=title, source=source, rows=rows, columns=tuple(columns), note=note
    )


def _column(
    group: str,
    title: str,
    metric: str,
    what: tuple[str, str, str],
    table: str = "",
    paper: tuple[str, str, str] | None = None,
) -> Column:
    task, dataset, recipe = what
    setting = Setting(dataset=dataset, backbones=("vit_mini_patch8",), recipe=recipe)
    published = None
    if paper:
        published = Published(table=table, task=paper[0], dataset=paper[1], metric=paper[2])
    return Column(
        title=title,
        group=group,
        task=task,
        metric=metric,
        scales={"mini": setting},
        published=published,
    )
