"""MAE Figure 7: how long is pretrained."""

from configs.tables._ablations import row, table

TABLE = table(
    name="fig7",
    title="Length of pretraining, top-1 accuracy",
    published="Figure 7 schedule length",
    rows=[
        row(f"epochs-{epochs}", f"{epochs} epochs", x=epochs, pretrain_epochs=epochs)
        for epochs in (100, 200, 400, 800, 1600)
    ],
    note="In the miniature its own 1500 iterations stand for 800 epochs.",
    x_title="epochs of pretraining",
)
