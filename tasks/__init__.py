"""What can be run. A task is `run(job: mae_bench.job.Job) -> mae_bench.records.Outcome`.

Reading this module imports neither torch nor any engine.
"""

from __future__ import annotations

from mae_bench.registry import Registry

TASKS = Registry(
    "task",
    {
        "tokenizer": "tasks.pretraining.tokenizer:run",
        "pretraining": "tasks.pretraining.training:run",
        "wallclock": "tasks.pretraining.wallclock:run",
        "supervised": "tasks.pretraining.supervised:run",
        "classification": "tasks.classification:run",
        "frozen": "tasks.classification.frozen:run",
        "detection": "tasks.detection:run",
        "segmentation": "tasks.segmentation:run",
    },
)

# These take an init for what it says about pretraining, not for its weights.
WITHOUT_WEIGHTS = ("wallclock",)

# These work around any encoder, `timm:NAME` included; the others around the project's own.
ANY_ENCODER = ("detection", "segmentation")

# Recipe of `transfer` where none is named, by task and scale, or "own" for a user's own data;
# elsewhere the first whose name begins with the scale.
DEFAULT_RECIPES = {
    ("classification", "paper"): "classification/finetune",
    ("classification", "own"): "classification/own_data",
    ("frozen", "own"): "frozen/paper",
    ("detection", "paper"): "detection/li",
    ("detection", "own"): "detection/own_data",
    ("segmentation", "paper"): "segmentation/upernet",
    ("segmentation", "own"): "segmentation/own_data",
}

# Bumped when the same recipe may give another number; part of every run's id.
TASK_VERSIONS = dict.fromkeys(TASKS, 1) | {"wallclock": 2}
