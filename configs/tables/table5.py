"""MAE Table 5: ADE20K semantic segmentation with UperNet.

`random` is added as a floor that catches label and loader faults. At mini scale a second column is
ours, without a published counterpart: UperNet over the frozen encoder.
"""

from mae_bench.records import Column, Published, Row, Setting, Table

MINI = {"dataset": "mini-ade20k", "backbones": ("vit_mini_patch8",)}


def _column(title: str, scales: dict[str, Setting], published: Published | None) -> Column:
    return Column(
        title=title,
        group="ADE20K",
        task="segmentation",
        metric="miou",
        scales=scales,
        published=published,
    )


TABLE = Table(
    name="table5",
    title="ADE20K semantic segmentation, UperNet",
    source="arXiv:2111.06377 Table 5",
    note=(
        "Frozen: UperNet over an encoder that is not trained, ours; the paper trains it. The paper "
        "searched lr for every entry; here one lr serves all, and table5-lr is the search."
    ),
    rows=(
        Row(init="random", title="random init"),
        Row(init="supervised", title="supervised"),
        Row(init="moco-v3", title="MoCo v3"),
        Row(init="beit", title="BEiT"),
        Row(init="mae-norm-pixel", title="MAE"),
    ),
    columns=(
        _column(
            "mIoU",
            {
                "mini": Setting(**MINI, recipe="segmentation/mini"),
                "paper": Setting(
                    dataset="ade20k",
                    backbones=("vit_base_patch16", "vit_large_patch16"),
                    recipe="segmentation/upernet",
                ),
            },
            Published(
                table="Table 5 ADE20K",
                task="semantic-segmentation",
                dataset="ade20k-val",
                metric="mIoU",
            ),
        ),
        _column("mIoU, frozen", {"mini": Setting(**MINI, recipe="segmentation/mini_frozen")}, None),
    ),
)
