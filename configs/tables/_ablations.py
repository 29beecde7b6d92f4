"""What the ablations share: ViT-L on ImageNet-1K, fine-tuned and linearly probed."""

from collections.abc import Iterable

from mae_bench.records import Column, Published, Row, Scalar, Scale, Setting, Table

RECIPES: dict[str, dict[Scale, str]] = {
    "ft": {"mini": "classification/mini_finetune", "paper": "classification/finetune_paper"},
    "lin": {"mini": "classification/mini_linear_probe", "paper": "classification/linear_probe"},
}
PUBLISHED_TASKS = {"ft": "finetune", "lin": "linear-probe"}
DATA: dict[Scale, tuple[str, str]] = {
    "mini": ("mini-imagenet", "vit_mini_patch8"),
    "paper": ("imagenet", "vit_large_patch16"),
}


def row(
    name: str, title: str, init: str = "mae-pixel", x: float | None = None, **ablation: Scalar
) -> Row:
    """One variant: the init `mae-pixel/<name>`, and what it is called among published numbers."""
    return Row(init=f"{init}/{name}", title=title, ablation=ablation, x=x)


def table(
    name: str,
    title: str,
    published: str,
    rows: Iterable[Row],
    note: str = "",
    x_title: str | None = None,
    more: tuple[Column, ...] = (),
) -> Table:
    """The variants, each fine-tuned ("ft") and linearly probed ("lin"), and `more` columns."""
    return Table(
        name=name,
        title=title,
        source=f"arXiv:2111.06377 {published.partition(' ')[0]} {published.split()[1]}",
        rows=tuple(rows),
        columns=(*(_column(kind, published) for kind in RECIPES), *more),
        note=note,
        x_title=x_title,
    )


def _column(kind: str, published: str) -> Column:
    return Column(
        title=kind,
        group="ImageNet-1K",
        task="classification",
        metric="top1",
        scales={
            scale: Setting(dataset=dataset, backbones=(backbone,), recipe=RECIPES[kind][scale])
            for scale, (dataset, backbone) in DATA.items()
        },
        published=Published(
            table=published, task=PUBLISHED_TASKS[kind], dataset="imagenet-1k", metric="top1"
        ),
    )
