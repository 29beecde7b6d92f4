"""MAE Table 1(e): augmentation of the images that are reconstructed."""

from configs.tables._ablations import row, table

TABLE = table(
    name="table1e",
    title="Data augmentation, top-1 accuracy",
    published="Table 1(e) augmentation",
    rows=[
        row("augmentation-none", "none", augmentation="none (centre crop, no flip)"),
        row("augmentation-fixed", "crop, fixed size", augmentation="crop-fixed-size (with flip)"),
        row("baseline", "crop, random size", augmentation="crop-random-size (with flip)"),
        row(
            "augmentation-jitter",
            "crop + color jitter",
            augmentation="crop-random-size + colour jitter",
        ),
    ],
    note="Default: crops of random size. The strength of the colour jitter was not published.",
)
