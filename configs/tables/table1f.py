"""MAE Table 1(f): which patches are masked."""

from configs.tables._ablations import row, table

TABLE = table(
    name="table1f",
    title="Mask sampling, top-1 accuracy",
    published="Table 1(f) mask sampling",
    rows=[
        row("baseline", "random, 75%", sampling="random", mask_ratio=0.75),
        row("block-50", "block, 50%", sampling="block", mask_ratio=0.5),
        row("block-75", "block, 75%", sampling="block", mask_ratio=0.75),
        row("grid-75", "grid, 75%", sampling="grid", mask_ratio=0.75),
    ],
    note="Default: random.",
)
