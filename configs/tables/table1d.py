"""MAE Table 1(d): what is reconstructed."""

from configs.tables._ablations import row, table

TABLE = table(
    name="table1d",
    title="Reconstruction target, top-1 accuracy",
    published="Table 1(d) target",
    rows=[
        row("baseline", "pixel (w/o norm)", target="pixel"),
        row("baseline", "pixel (w/ norm)", init="mae-norm-pixel", target="norm-pixel"),
        row("baseline", "PCA", init="mae-pca", target="pca-96"),
        row("baseline", "dVAE token", init="mae-dvae-token", target="dvae-token"),
    ],
    note="Default: pixels without normalisation.",
)
