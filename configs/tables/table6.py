"""MAE Table 6: classification transfer to iNaturalist and Places.

The paper fine-tunes MAE only. Here every init is a row, and two columns are ours, without a
published counterpart: frozen features (linear probe) of the same training images.
"""

from mae_bench.records import Column, Published, Row, Setting, Table


def _column(group: str, title: str, mini: str, recipe: str, published: str | None) -> Column:
    return Column(
        title=title,
        group=group,
        task="classification",
        metric="top1",
        scales={
            "mini": Setting(dataset=mini, backbones=("vit_mini_patch8",), recipe=recipe),
        },
        published=published
        and Published(
            table="Table 6 iNat and Places", task="finetune", dataset=published, metric="top1"
        ),
    )


FINETUNE, PROBE = "classification/mini_finetune", "classification/mini_linear_probe"
TABLE = Table(
    name="table6",
    title="Transfer classification, top-1 accuracy",
    source="arXiv:2111.06377 Table 6",
    note="Frozen: a linear probe on the same images, ours; the paper has only fine-tuning.",
    rows=(
        Row(init="random", title="random init"),
        Row(init="supervised", title="supervised"),
        Row(init="mae-pixel", title="MAE, pixels"),
        Row(init="mae-norm-pixel", title="MAE"),
        Row(init="mae-dvae-token", title="MAE, dVAE tokens"),
    ),
    columns=(
        _column("iNat 2018", "fine-tuned", "mini-inat", FINETUNE, "inat-2018"),
        _column("iNat 2018", "frozen", "mini-inat", PROBE, None),
        _column("Places365", "fine-tuned", "mini-places", FINETUNE, "places-365"),
        _column("Places365", "frozen", "mini-places", PROBE, None),
    ),
)
