"""MAE Table 5: ADE20K semantic segmentation with UperNet (`random` added as a floor).

A second column is ours, without a published counterpart: UperNet over the frozen encoder.
"""

from mae_bench.records import Column, Published, Row, Setting, Table


def _column(title: str, mini: str, published: Published | None) -> Column:
    return Column(
        title=title,
        group="ADE20K",
        task="segmentation",
        metric="miou",
        scales={
            "mini": Setting(dataset="mini-ade20k", backbones=("vit_mini_patch8",), recipe=mini)
        },
        published=published,
    )


TABLE = Table(
    name="table5",
    title="ADE20K semantic segmentation, UperNet",
    source="arXiv:2111.06377 Table 5",
    note="Frozen: UperNet over an encoder that is not trained, ours; the paper trains it.",
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
            "segmentation/mini",
            Published(
                table="Table 5 ADE20K",
                task="semantic-segmentation",
                dataset="ade20k-val",
                metric="mIoU",
            ),
        ),
        _column("mIoU, frozen", "segmentation/mini_frozen", None),
    ),
)
