"""MAE Table 7: pixels against tokens as reconstruction targets."""

from mae_bench.records import Column, Published, Row, Setting, Table

BACKBONES = ("vit_base_patch16", "vit_large_patch16", "vit_huge_patch14")


def _column(
    group: str,
    title: str,
    task: str,
    metric: str,
    mini: tuple[str, str],
    published: tuple[str, ...],
    paper: tuple[str, str] | None = None,
    sizes: int = 2,
) -> Column:
    scales = {"mini": _setting(("vit_mini_patch8",), *mini)}
    if paper:
        scales["paper"] = _setting(BACKBONES[:sizes], *paper)
    kind, published_dataset, published_metric = published
    return Column(
        title=title,
        group=group,
        task=task,
        metric=metric,
        scales=scales,
        published=Published(
            table="Table 7 pixels vs tokens",
            task=kind,
            dataset=published_dataset,
            metric=published_metric,
        ),
    )


def _setting(backbones: tuple[str, ...], dataset: str, recipe: str) -> Setting:
    return Setting(dataset=dataset, backbones=backbones, recipe=recipe)


TABLE = Table(
    name="table7",
    title="Pixels or tokens as the MAE reconstruction target",
    source="arXiv:2111.06377 Table 7",
    rows=(
        Row(init="mae-pixel", title="pixel (w/o norm)"),
        Row(init="mae-norm-pixel", title="pixel (w/ norm)"),
        Row(init="mae-dvae-token", title="dVAE token"),
    ),
    columns=(
        _column(
            "ImageNet-1K",
            "top-1",
            "classification",
            "top1",
            ("mini-imagenet", "classification/mini_finetune"),
            ("finetune", "imagenet-1k", "top1"),
            ("imagenet", "classification/finetune"),
            sizes=3,
        ),
        _column(
            "COCO",
            "AP box",
            "detection",
            "box_ap",
            ("mini-coco", "detection/mini"),
            ("detection", "coco-2017-val", "AP-box"),
            ("coco", "detection/li"),
        ),
        _column(
            "ADE20K",
            "mIoU",
            "segmentation",
            "miou",
            ("mini-ade20k", "segmentation/mini"),
            ("semantic-segmentation", "ade20k-val", "mIoU"),
            ("ade20k", "segmentation/upernet"),
        ),
    ),
)
