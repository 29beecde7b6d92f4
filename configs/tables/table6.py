"""MAE Table 6: classification transfer to iNaturalist and Places.

The paper fine-tunes MAE only. Here every init is a row, and some columns are ours, without a
published counterpart: frozen features (linear probe) of the same training images, and the mean over
classes where validation images are not equally many for each.
"""

from mae_bench.records import Column, Published, Row, Scale, Setting, Table

BACKBONES = ("vit_base_patch16", "vit_large_patch16", "vit_huge_patch14")
PROBE = ("classification/mini_linear_probe", "classification/linear_probe")
INAT = ("classification/mini_finetune", "classification/inat")
PLACES = ("classification/mini_finetune", "classification/places")
LARGE = {"data.image_size": 448, "data.crop_ratio": 1.0}


def _column(
    group: str,
    title: str,
    recipes: tuple[str, str],
    dataset: str,
    *,
    mini: str | None = None,
    published: str | None = None,
    large: bool = False,
    metric: str = "top1",
) -> Column:
    scales: dict[Scale, Setting] = {
        "paper": Setting(
            dataset=dataset,
            backbones=BACKBONES[-1:] if large else BACKBONES,
            recipe=recipes[1],
            overrides=LARGE if large else {},
        )
    }
    if mini:
        scales["mini"] = Setting(dataset=mini, backbones=("vit_mini_patch8",), recipe=recipes[0])
    return Column(
        title=title,
        group=group,
        task="classification",
        metric=metric,
        scales=scales,
        published=published
        and Published(
            table="Table 6 iNat and Places", task="finetune", dataset=published, metric="top1"
        ),
    )


def _columns(
    group: str, recipes: tuple[str, str], dataset: str, published: str, mini: str | None = None
) -> tuple[Column, ...]:
    tuned, large = "fine-tuned", "fine-tuned, 448 px"
    frozen = (_column(group, "frozen", PROBE, dataset, mini=mini),) if mini else ()
    return (
        _column(group, tuned, recipes, dataset, mini=mini, published=published),
        _column(group, large, recipes, dataset, published=published, large=True),
        *frozen,
    )


TABLE = Table(
    name="table6",
    title="Transfer classification, top-1 accuracy",
    source="arXiv:2111.06377 Table 6",
    note=(
        "Frozen: a linear probe on the same images, ours; the paper has only fine-tuning. Its lr "
        "and epochs were not published; ours are in classification/inat and classification/places. "
        "Validation images of iNat 2018 and 2019 are equally many for each class: there the mean "
        "per class is the top-1 accuracy."
    ),
    rows=(
        Row(init="random", title="random init"),
        Row(init="supervised", title="supervised"),
        Row(init="mae-pixel", title="MAE, pixels"),
        Row(init="mae-norm-pixel", title="MAE"),
        Row(init="mae-dvae-token", title="MAE, dVAE tokens"),
    ),
    columns=(
        *_columns("iNat 2017", INAT, "inat2017", "inat-2017"),
        _column("iNat 2017", "mean per class", INAT, "inat2017", metric="mean_per_class"),
        *_columns("iNat 2018", INAT, "inat2018", "inat-2018", "mini-inat"),
        *_columns("iNat 2019", INAT, "inat2019", "inat-2019"),
        *_columns("Places205", PLACES, "places205", "places-205"),
        *_columns("Places365", PLACES, "places365", "places-365", "mini-places"),
    ),
)
