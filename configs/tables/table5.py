"""MAE Table 5: ADE20K semantic segmentation with UperNet (`random` added as a floor)."""

from mae_bench.records import Column, Published, Row, Setting, Table

TABLE = Table(
    name="table5",
    title="ADE20K semantic segmentation, UperNet",
    source="arXiv:2111.06377 Table 5",
    rows=(
        Row(init="random", title="random init"),
        Row(init="supervised", title="supervised"),
        Row(init="moco-v3", title="MoCo v3"),
        Row(init="beit", title="BEiT"),
        Row(init="mae-norm-pixel", title="MAE"),
    ),
    columns=(
        Column(
            title="mIoU",
            group="ADE20K",
            task="segmentation",
            metric="miou",
            scales={
                "mini": Setting(
                    dataset="mini-ade20k",
                    backbones=("vit_mini_patch8",),
                    recipe="segmentation/mini",
                )
            },
            published=Published(
                table="Table 5 ADE20K",
                task="semantic-segmentation",
                dataset="ade20k-val",
                metric="mIoU",
            ),
        ),
    ),
)
