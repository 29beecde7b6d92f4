"""Li et al., Table 1 by schedule: Mask R-CNN on COCO after three lengths of fine-tuning.

The paper prints the best of the three; `Figure 2` has MAE's value at each. A random init is given
four times the epochs.
"""

from mae_bench.records import Column, Published, Row, Setting, Table

# Title -> iterations at mini scale, epochs from pretrained weights and from random ones.
LENGTHS = {"25": (125, 25, 100), "50": (250, 50, 200), "100": (500, 100, 400)}
METRICS = {
    "AP box": ("box_ap", "detection", "AP-box"),
    "AP mask": ("mask_ap", "instance-segmentation", "AP-mask"),
}


def _column(group: str, length: str) -> Column:
    metric, task, published = METRICS[group]
    iterations, epochs, from_random = LENGTHS[length]
    longest = length == "100"
    return Column(
        title=f"{length} epochs",
        group=group,
        task="detection",
        metric=metric,
        scales={
            "mini": Setting(
                dataset="mini-coco",
                backbones=("vit_mini_patch8",),
                recipe="detection/mini",
                overrides={"solver.iterations": iterations},
            ),
            "paper": Setting(
                dataset="coco",
                backbones=("vit_base_patch16", "vit_large_patch16"),
                recipe="detection/li",
                overrides={"solver.epochs": {"random": from_random, "*": epochs}},
            ),
        },
        published=Published(
            table="Table 1" if longest else "Figure 2 (numbers given by an author)",
            task=task,
            dataset="coco-2017-val",
            metric=published,
        ),
        ablation=None if longest else {"finetune_epochs": epochs},
    )


TABLE = Table(
    name="li-table1",
    title="COCO by length of fine-tuning, Mask R-CNN, Li et al.",
    source="arXiv:2111.11429 Table 1 and Figure 2",
    note=(
        "From random weights four times as many epochs (100, 200, 400). The published value beside "
        "100 epochs is the paper's best of the three lengths. At mini scale a quarter, half and "
        "all of the miniature's iterations, for every init."
    ),
    rows=(
        Row(init="random", title="random init"),
        Row(init="supervised", title="supervised"),
        Row(init="moco-v3", title="MoCo v3"),
        Row(init="beit", title="BEiT"),
        Row(init="mae-norm-pixel", title="MAE"),
    ),
    columns=tuple(_column(group, length) for group in METRICS for length in LENGTHS),
)
