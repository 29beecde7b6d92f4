"""MAE Table 1(c): mask tokens in the encoder. What they cost in time is Table 2."""

from configs.tables._ablations import row, table
from configs.tables._costs import column

PUBLISHED = "Table 1(c) mask token"
TABLE = table(
    name="table1c",
    title="Mask token, top-1 accuracy",
    published=PUBLISHED,
    rows=[
        row("mask-tokens", "encoder w/ [M]", encoder="with-mask-token"),
        row("baseline", "encoder w/o [M]", encoder="without-mask-token"),
    ],
    note="Default: without. FLOPs: of a training step, as torch counts them; for time see Table 2.",
    more=(
        column(
            "FLOPs",
            "relative_flops",
            PUBLISHED,
            "relative-training-flops",
            paper_backbones=("vit_large_patch16",),
        ),
    ),
)
