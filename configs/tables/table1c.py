"""MAE Table 1(c): mask tokens in the encoder. What they cost in time is Table 2."""

from configs.tables._ablations import row, table

TABLE = table(
    name="table1c",
    title="Mask token, top-1 accuracy",
    published="Table 1(c) mask token",
    rows=[
        row("mask-tokens", "encoder w/ [M]", encoder="with-mask-token"),
        row("baseline", "encoder w/o [M]", encoder="without-mask-token"),
    ],
    note="Default: without. The paper's column of FLOPs is not measured; for time see Table 2.",
)
