"""MAE Figure 5: how much is masked."""

from configs.tables._ablations import row, table

TABLE = table(
    name="fig5",
    title="Masking ratio, top-1 accuracy",
    published="Figure 5 masking ratio",
    rows=[
        row(f"mask-ratio-{percent}", f"{percent}%", x=percent, mask_ratio=percent / 100)
        for percent in (10, 20, 30, 40, 50, 60, 70, 75, 80, 90)
    ],
    x_title="masking ratio (%)",
)
