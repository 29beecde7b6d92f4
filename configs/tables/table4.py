"""MAE Table 4: COCO detection and instance segmentation with Mask R-CNN.

At mini scale, `random` is added to the rows: a floor that catches label and loader faults.
"""

from mae_bench.records import Column, Published, Row, Setting, Table

MINI = Setting(dataset="mini-coco", backbones=("vit_mini_patch8",), recipe="detection/mini")


def _column(title: str, metric: str, task: str, published: str) -> Column:
    return Column(
        title=title,
        group="COCO",
        task="detection",
        metric=metric,
        scales={"mini": MINI},
        published=Published(
            table="Table 4 COCO", task=task, dataset="coco-2017-val", metric=published
        ),
    )


TABLE = Table(
    name="table4",
    title="COCO object detection and instance segmentation, Mask R-CNN",
    source="arXiv:2111.06377 Table 4",
    rows=(
        Row(init="random", title="random init"),
        Row(init="supervised", title="supervised"),
        Row(init="moco-v3", title="MoCo v3"),
        Row(init="beit", title="BEiT"),
        Row(init="mae-norm-pixel", title="MAE"),
    ),
    columns=(
        _column("AP box", "box_ap", "detection", "AP-box"),
        _column("AP mask", "mask_ap", "instance-segmentation", "AP-mask"),
    ),
)
