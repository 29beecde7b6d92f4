"""MAE Table 1(b): width of the decoder."""

from configs.tables._ablations import row, table

TABLE = table(
    name="table1b",
    title="Decoder width, top-1 accuracy",
    published="Table 1(b) decoder width",
    rows=[
        row(f"decoder-width-{width}", f"{width} (mini: {width // 8})", decoder_width=width)
        for width in (128, 256, 512, 768, 1024)
    ],
    note="Default: 512. The miniature's decoder has an eighth of each width.",
)
