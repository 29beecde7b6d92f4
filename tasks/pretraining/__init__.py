"""Inits: where the weights of a transfer run come from, and which pretraining makes them.

Plain data, read by the planner; importing it loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mae_bench.registry import Registry

# What MAE reconstructs. A new target is a class in targets.py and one line here; the init
# `mae-<target>` follows from it.
TARGETS = Registry(
    "target",
    {
        "pixel": "tasks.pretraining.targets:Pixel",
        "norm-pixel": "tasks.pretraining.targets:NormPixel",
        "pca": "tasks.pretraining.targets:Pca",
        "dvae-token": "tasks.pretraining.targets:DvaeToken",
    },
)


@dataclass(frozen=True)
class Init:
    """How an init is made.

    Attributes:
        task: task that makes it; None for weights that are random or only imported.
        recipe: per scale, path below configs/.
        overrides: recipe keys that set this init apart.
        needs_tokenizer: a tokenizer is trained first and read as upstream "tokenizer".
        imported: only a file given with `--init NAME=FILE` can provide it.
    """

    task: str | None = None
    recipe: dict[str, str] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    needs_tokenizer: bool = False
    imported: bool = False


def _mae(target: str, ablation: dict[str, Any] | None = None) -> Init:
    return Init(
        task="pretraining",
        recipe={"mini": "pretraining/mini_mae", "paper": "pretraining/mae"},
        overrides={"model.target": target, **(ablation or {})},
        needs_tokenizer=target == "dvae-token",
    )


# What sets one variant of MAE on pixels apart from the default, the init `mae-pixel/<name>`. What
# depends on the scale, too, is among the `variants` of the recipes: there all of them are trained
# as long as the paper's ablations. Every target has a "baseline" of that length.
BASELINE = "baseline"
ABLATIONS: dict[str, dict[str, Any]] = {
    "mask-tokens": {"model.encoder_mask_tokens": True},
    **{f"decoder-depth-{depth}": {"model.decoder_depth": depth} for depth in (1, 2, 4, 8, 12)},
    **{f"decoder-width-{width}": {} for width in (128, 256, 512, 768, 1024)},
    "augmentation-none": {"data.augmentation": "none"},
    "augmentation-fixed": {"data.augmentation": "fixed"},
    "augmentation-jitter": {"data.augmentation": "random+jitter"},
    "block-50": {"model.sampling": "block", "model.mask_ratio": 0.5},
    "block-75": {"model.sampling": "block", "model.mask_ratio": 0.75},
    "grid-75": {"model.sampling": "grid", "model.mask_ratio": 0.75},
    **{
        f"mask-ratio-{percent}": {"model.mask_ratio": percent / 100}
        for percent in (10, 20, 30, 40, 50, 60, 70, 75, 80, 90)
    },
    **{f"epochs-{epochs}": {} for epochs in (100, 200, 400, 800, 1600)},
}

INITS: dict[str, Init] = {
    "random": Init(),
    "supervised": Init(
        task="supervised",
        recipe={"mini": "pretraining/mini_supervised", "paper": "pretraining/supervised"},
    ),
    **{f"mae-{target}": _mae(target) for target in TARGETS},
    **{f"mae-{target}/{BASELINE}": _mae(target) for target in TARGETS},
    **{f"mae-pixel/{name}": _mae("pixel", changes) for name, changes in ABLATIONS.items()},
    "dino": Init(imported=True),
    "moco-v3": Init(imported=True),
    "beit": Init(imported=True),
}

# The tokenizer behind `mae-dvae-token`, trained by its own task before the pretraining.
TOKENIZER = Init(
    task="tokenizer",
    recipe={"mini": "pretraining/mini_tokenizer", "paper": "pretraining/tokenizer"},
)

# What everything is pretrained on, per scale.
PRETRAINING_DATASET = {"mini": "mini-imagenet", "paper": "imagenet"}
