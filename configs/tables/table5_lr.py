"""The search for lr that MAE's Table 5 speaks of: the same grid for every init, ours.

The paper searched lr for every entry and published neither grid nor choice. Every row gets the same
trials here; the best of a row is what Table 5's procedure would print.
"""

from mae_bench.records import Column, Published, Row, Setting, Table

LEARNING_RATES = (5e-5, 1e-4, 2e-4, 4e-4)


def _column(lr: float) -> Column:
    return Column(
        title=f"lr {lr:g}",
        group="ADE20K",
        task="segmentation",
        metric="miou",
        scales={
            "paper": Setting(
                dataset="ade20k",
                backbones=("vit_base_patch16", "vit_large_patch16"),
                recipe="segmentation/upernet",
                overrides={"solver.lr": lr},
            )
        },
        published=Published(
            table="Table 5 ADE20K",
            task="semantic-segmentation",
            dataset="ade20k-val",
            metric="mIoU",
        ),
        x=lr,
    )


TABLE = Table(
    name="table5-lr",
    title="ADE20K by learning rate, UperNet",
    source="arXiv:2111.06377 Table 5 and A.4",
    note="The same four learning rates for every init; the published value is the paper's best.",
    x_title="learning rate",
    rows=(
        Row(init="supervised", title="supervised"),
        Row(init="moco-v3", title="MoCo v3"),
        Row(init="beit", title="BEiT"),
        Row(init="mae-norm-pixel", title="MAE"),
    ),
    columns=tuple(map(_column, LEARNING_RATES)),
)
