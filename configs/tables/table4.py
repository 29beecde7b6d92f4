"""MAE Table 4: COCO detection and instance segmentation with Mask R-CNN, Li et al.'s protocol.

`random` is added to the rows: at mini scale a floor that catches label and loader faults, at paper
scale a row of Li et al.'s own table.
"""

from mae_bench.records import Column, Published, Row, Setting, Table

SCALES = {
    "mini": Setting(dataset="mini-coco", backbones=("vit_mini_patch8",), recipe="detection/mini"),
    "paper": Setting(
        dataset="coco", backbones=("vit_base_patch16", "vit_large_patch16"), recipe="detection/li"
    ),
}


def _column(title: str, metric: str, task: str, published: str) -> Column:
    return Column(
        title=title,
        group="COCO",
        task="detection",
        metric=metric,
        scales=SCALES,
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
