"""What the tables of pretraining costs share: columns of the timed steps."""

from mae_bench.records import Column, Published, Setting


def column(
    title: str, metric: str, table: str, published: str, paper_backbones: tuple[str, ...]
) -> Column:
    """A metric of the task `wallclock`, and what it is called among published numbers."""
    return Column(
        title=title,
        group="pretraining",
        task="wallclock",
        metric=metric,
        scales={
            "mini": Setting(
                dataset="mini-imagenet",
                backbones=("vit_tiny_patch16",),
                recipe="pretraining/mini_wallclock",
            ),
            "paper": Setting(
                dataset="imagenet",
                backbones=paper_backbones,
                recipe="pretraining/wallclock",
            ),
        },
        published=Published(
            table=table, task="pretrain-cost", dataset="imagenet-1k", metric=published
        ),
    )
