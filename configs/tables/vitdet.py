"""ViTDet on COCO: Mask R-CNN and Cascade R-CNN under its own protocol, not that of Table 4."""

from mae_bench.records import Column, Published, Row, Setting, Table

METRICS = {
    "AP box": ("box_ap", "AP-box"),
    "AP mask": ("mask_ap", "AP-mask"),
}
# What makes ViTDet out of the miniature's recipe.
MINI = {
    "model.pyramid": "last",
    "model.relative_positions": "decomposed",
    "model.window_size": 6,
    "model.fpn_norm": "LN",
    "model.head_norm": "LN",
    "solver.schedule": "step",
    "solver.layer_decay": 0.8,
    "solver.decay_rule": "vitdet",
}


def _column(group: str, title: str, cascade: bool) -> Column:
    metric, published = METRICS[title]
    return Column(
        title=title,
        group=group,
        task="detection",
        metric=metric,
        scales={
            "mini": Setting(
                dataset="mini-coco",
                backbones=("vit_mini_patch8",),
                recipe="detection/mini",
                overrides={**MINI, "model.cascade": cascade},
            ),
            "paper": Setting(
                dataset="coco",
                backbones=("vit_base_patch16", "vit_large_patch16", "vit_huge_patch14"),
                recipe="detection/vitdet",
                overrides={"model.cascade": cascade},
            ),
        },
        published=Published(
            table=f"{group} on COCO", task="detection", dataset="coco-2017-val", metric=published
        ),
    )


TABLE = Table(
    name="vitdet",
    title="COCO under the ViTDet protocol",
    source="arXiv:2203.16527, detectron2 projects/ViTDet",
    note=(
        "Another protocol than Table 4's: simple pyramid, layer norm, layer-wise lr decay, step "
        "schedule. Its numbers do not compare with those."
    ),
    rows=(
        Row(init="random", title="random init"),
        Row(init="supervised", title="supervised"),
        Row(init="mae-norm-pixel", title="MAE"),
    ),
    columns=tuple(
        _column(group, title, cascade)
        for group, cascade in (("Mask R-CNN", False), ("Cascade R-CNN", True))
        for title in METRICS
    ),
)
