"""Scores where model zoos look for them: OpenMMLab's metafile.yml, Hugging Face's model-index.

Means over seeds of complete cells; what is not complete is left out. No weights are named: what is
published where, whoever publishes it adds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mae_bench.aggregate import Cell, ColumnResult, TableResult
from mae_bench.records import Record
from mae_bench.report import wording

# Our task -> OpenMMLab's name for it, and Hugging Face's.
TASKS = {
    "classification": ("Image Classification", "image-classification"),
    "frozen": ("Image Classification", "image-classification"),
    "detection": ("Object Detection", "object-detection"),
    "segmentation": ("Semantic Segmentation", "image-segmentation"),
}
INSTANCES = ("Instance Segmentation", "image-segmentation")
COLLECTION = "MAE-bench"
DECIMALS = 4
PAPER = {
    "Title": "Masked Autoencoders Are Scalable Vision Learners",
    "URL": "https://arxiv.org/abs/2111.06377",
}


def metafile(results: Iterable[TableResult], records: Mapping[str, Record]) -> str:
    """Return metafile.yml: one model per init, backbone, dataset and recipe."""
    models: dict[tuple[str, ...], dict[str, Any]] = {}
    for init, column, cell in _scored(results):
        setting = column.setting
        assert setting is not None
        key = (init, column.backbone, setting.dataset, setting.recipe, str(setting.overrides))
        if key not in models:
            models[key] = _model(init, column, cell, records)
        found = models[key]["Results"]
        name = _task(column)[0]
        entry = next((one for one in found if one["Task"] == name), None)
        if entry is None:
            entry = {"Task": name, "Dataset": _line(setting.dataset), "Metrics": {}}
            found.append(entry)
        entry["Metrics"][_metric(column)] = _rounded(cell.mean)
    return _yaml({
        "Collections": [{"Name": COLLECTION, "Paper": PAPER}],
        "Models": _with_names(models.values()),
    })


def model_index(results: Iterable[TableResult], records: Mapping[str, Record]) -> str:
    """Return the front matter of a model card: one model per init and backbone."""
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    del records
    models: dict[str, list[EvalResult]] = {}
    seen: set[tuple[str, ...]] = set()
    for init, column, cell in _scored(results):
        setting = column.setting
        assert setting is not None
        key = (init, column.backbone, *_what(column))
        if key in seen:  # of several tables
            continue
        seen.add(key)
        name = f"{_line(init)} {column.backbone}"
        models.setdefault(name, []).append(
            EvalResult(
                task_type=_task(column)[1],
                dataset_type=_line(setting.dataset),
                dataset_name=_line(setting.dataset),
                dataset_config=_line(setting.recipe),
                dataset_args=dict(setting.overrides) or None,
                metric_type=column.column.metric,
                metric_value=_rounded(cell.mean),
                metric_name=_line(column.column.title),
                metric_args={"num_seeds": len(cell.values), "sd": _rounded(cell.sd)},
            )
        )
    index = [
        entry
        for name, scores in models.items()
        for entry in eval_results_to_model_index(name, scores)
    ]
    return f"---\n{_yaml({'model-index': index})}---\n"


def _scored(results: Iterable[TableResult]) -> Iterator[tuple[str, ColumnResult, Cell]]:
    """The complete cells of tasks that score models: times and losses of pretraining do not."""
    for result in results:
        for row in result.rows:
            for column, cell in zip(result.columns, row.cells, strict=True):
                if column.setting and cell.complete and column.column.task in TASKS:
                    yield row.row.init, column, cell


def _what(column: ColumnResult) -> tuple[str, ...]:
    setting = column.setting
    assert setting is not None
    return setting.dataset, setting.recipe, str(setting.overrides), column.column.metric


def _model(
    init: str, column: ColumnResult, cell: Cell, records: Mapping[str, Record]
) -> dict[str, Any]:
    setting = column.setting
    assert setting is not None
    digests = [
        record.checkpoint_sha256
        for seed in cell.seeds
        if (record := records.get(seed.run_id or "")) and record.checkpoint_sha256
    ]
    metadata: dict[str, Any] = {
        "Training Data": _line(setting.dataset),
        "Architecture": column.backbone,
        "Initialization": _line(init),
        "Seeds": [seed.seed for seed in cell.seeds],
        "Runs": [seed.run_id for seed in cell.seeds],
    }
    if setting.overrides:
        metadata["Settings"] = dict(setting.overrides)
    if digests:
        metadata["Checkpoint SHA256"] = digests
    parts = (init, column.backbone, setting.recipe, setting.dataset)
    return {
        "Name": "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-") for part in parts),
        "In Collection": COLLECTION,
        "Config": _line(f"configs/{setting.recipe}.py"),
        "Metadata": metadata,
        "Results": [],
    }


def _with_names(models: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Names must differ: what has one already gets a number."""
    seen: dict[str, int] = {}
    named = []
    for model in models:
        number = seen[model["Name"]] = seen.get(model["Name"], 0) + 1
        named.append({**model, "Name": f"{model['Name']}-{number}"} if number > 1 else model)
    return named


def _rounded(value: float | None) -> float | None:
    """Cards are for people; results.json has every digit."""
    return None if value is None else round(value, DECIMALS)


def _task(column: ColumnResult) -> tuple[str, str]:
    return INSTANCES if column.column.metric.startswith("mask") else TASKS[column.column.task]


def _metric(column: ColumnResult) -> str:
    """OpenMMLab's names where it has one."""
    names = {"box_ap": "box AP", "mask_ap": "mask AP", "miou": "mIoU", "top1": "Top 1 Accuracy"}
    return names.get(column.column.metric, column.column.metric)


def _line(text: str) -> str:
    return " ".join(wording.printable(text).split())


def _yaml(content: Any) -> str:
    import yaml

    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100))
