"""MAE Table 1(c): mask tokens in the encoder. What they cost in time is Table 2."""

from configs.tables._ablations import row, table
from mae_bench.records import Column, Published, Setting

PUBLISHED = "Table 1(c) mask token"
FLOPS = Column(
    title="FLOPs",
    group="pretraining",
    task="wallclock",
    metric="relative_flops",
    scales={
        "mini": Setting(
            dataset="mini-imagenet",
            backbones=("vit_tiny_patch16",),
            recipe="pretraining/mini_wallclock",
        ),
        "paper": Setting(
            dataset="imagenet",
            backbones=("vit_large_patch16",),
            recipe="pretraining/wallclock",
        ),
    },
    published=Published(
        table=PUBLISHED,
        task="pretrain-cost",
        dataset="imagenet-1k",
        metric="relative-training-flops",
    ),
)
TABLE = table(
    name="table1c",
    title="Mask token, top-1 accuracy",
    published=PUBLISHED,
    rows=[
        row("mask-tokens", "encoder w/ [M]", encoder="with-mask-token"),
        row("baseline", "encoder w/o [M]", encoder="without-mask-token"),
    ],
    note="Default: without. FLOPs: of a training step, as torch counts them; for time see Table 2.",
    more=(FLOPS,),
)
