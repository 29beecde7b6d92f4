"""MAE Table 1(a): depth of the decoder."""

from configs.tables._ablations import row, table

TABLE = table(
    name="table1a",
    title="Decoder depth, top-1 accuracy",
    published="Table 1(a) decoder depth",
    rows=[
        row(f"decoder-depth-{depth}", f"{depth} block{'s' * (depth > 1)}", decoder_depth=depth)
        for depth in (1, 2, 4, 8, 12)
    ],
    note="Default: 8 blocks; 1 in the miniature.",
)
