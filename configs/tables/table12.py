"""MAE Table 12: frozen features of ImageNet-1K; beside the linear probe two cheaper readings, ours.

iGPT, two further rows of the paper, is no ViT and has no row here.
"""

from mae_bench.records import Column, Published, Row, Setting, Table

BACKBONES = ("vit_base_patch16", "vit_large_patch16", "vit_huge_patch14")


def _column(
    title: str, task: str, metric: str, recipe: str, published: Published | None = None
) -> Column:
    mini, paper = {
        "probe": ("classification/mini_linear_probe", "classification/linear_probe"),
        "frozen": ("frozen/mini", "frozen/paper"),
    }[recipe]
    return Column(
        title=title,
        group="ImageNet-1K",
        task=task,
        metric=metric,
        scales={
            "mini": Setting(dataset="mini-imagenet", backbones=("vit_mini_patch8",), recipe=mini),
            "paper": Setting(dataset="imagenet", backbones=BACKBONES, recipe=paper),
        },
        published=published,
    )


TABLE = Table(
    name="table12",
    title="Frozen features of masked encoding methods, top-1 accuracy",
    source="arXiv:2111.06377 Table 12",
    note=(
        "k-NN (20 neighbours) and 10 images per class (ridge regression, mean of three draws) are "
        "ours: the same frozen features, without a schedule."
    ),
    rows=(
        Row(init="random", title="random init"),
        Row(init="beit", title="BEiT"),
        Row(init="mae-norm-pixel", title="MAE"),
    ),
    columns=(
        _column(
            "linear probe",
            "classification",
            "top1",
            "probe",
            Published(
                table="Table 12 linear probing",
                task="linear-probe",
                dataset="imagenet-1k",
                metric="top1",
            ),
        ),
        _column("k-NN", "frozen", "knn_top1", "frozen"),
        _column("10 per class", "frozen", "low_shot_10_top1", "frozen"),
    ),
)
