"""MAE Figure 9: partial fine-tuning, from a linear probe to the whole encoder."""

from mae_bench.records import Column, Published, Row, Scale, Setting, Table

# Blocks -> epochs. The paper takes the best of 50, 100 and 200 for each point and says that fewer
# blocks need longer, not which it was: one training a point, ours.
EPOCHS = {0.5: 200, 1: 200, 2: 200, 4: 100, 6: 100, 12: 100, 18: 50, 24: 50}
WHOLE = {"mini": 4, "paper": 24}
PUBLISHED = Published(
    table="Figure 9 partial fine-tuning",
    task="partial-finetune",
    dataset="imagenet-1k",
    metric="top1",
)


def _settings(blocks: float) -> dict[Scale, Setting]:
    """How `blocks` trained blocks are measured; the encoder of the miniature has four."""
    tuned = None if blocks == WHOLE["paper"] else blocks
    settings: dict[Scale, Setting] = {
        "paper": Setting(
            dataset="imagenet",
            backbones=("vit_large_patch16",),
            recipe="classification/finetune_paper" if blocks else "classification/linear_probe",
            overrides={"model.trained_blocks": tuned, "solver.epochs": EPOCHS[blocks]}
            if blocks
            else {},
        )
    }
    if blocks <= WHOLE["mini"]:
        partial = 0 < blocks < WHOLE["mini"]
        settings["mini"] = Setting(
            dataset="mini-imagenet",
            backbones=("vit_mini_patch8",),
            recipe="classification/mini_finetune" if blocks else "classification/mini_linear_probe",
            overrides={"model.trained_blocks": blocks} if partial else {},
        )
    return settings


def _column(blocks: float) -> Column:
    return Column(
        title=f"{blocks:g}",
        group="blocks fine-tuned",
        task="classification",
        metric="top1",
        scales=_settings(blocks),
        published=PUBLISHED,
        ablation={"blocks_tuned": blocks},
        x=blocks,
    )


TABLE = Table(
    name="fig9",
    title="Partial fine-tuning on ImageNet-1K, top-1 accuracy",
    source="arXiv:2111.06377 Figure 9",
    note=(
        "0: a linear probe. 0.5: the MLP of the last block only. The last column is the whole "
        "encoder: 24 blocks of ViT-L, 4 of the miniature's. The paper shows the best of 50, 100 "
        "and 200 epochs for each point; here it is one training a point, longer for fewer blocks."
    ),
    rows=(
        # As the paper's other ablations: pixels, 800 epochs.
        Row(init="mae-pixel/baseline", title="MAE"),
        Row(init="moco-v3", title="MoCo v3"),
    ),
    columns=tuple(_column(blocks) for blocks in (0, *EPOCHS)),
    x_title="number of fine-tuned blocks",
)
