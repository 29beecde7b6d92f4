"""Whether a dataset can be learnt by a classifier, said before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from mae_bench.errors import UserError
from tasks.data.formats import refuse
from tasks.data.sources import check_labels

SHOWN = 5


def check_classes(
    dataset: str, classes: Sequence[str], trained: Sequence[int], scored: Sequence[int]
) -> None:
    """Refuse labels that a head with one output per class cannot learn or would never be asked for.

    Args:
        dataset: its name.
        classes: names, one for each output of the head.
        trained, scored: labels of the training and validation images.

    Raises:
        UserError: a single class, labels beyond the head, classes that are scored but never
            trained; images in no class folder; of an `imagefolder:`, also empty class folders.
    """
    check_labels(dataset, refuse)
    if len(classes) < 2:
        raise UserError(
            f"dataset {dataset!r} has {len(classes)} class; classification needs two or more, as "
            "folders <class>/<image> or as labels of a list"
        )
    found = {*trained, *scored}
    outside = sorted(label for label in found if not 0 <= label < len(classes))
    if outside:
        raise UserError(
            f"dataset {dataset!r} has labels {_few(outside)}, but the head has {len(classes)} "
            f"outputs, for 0 to {len(classes) - 1}; class list and labels must agree"
        )
    if "" in classes:
        raise UserError(
            f"dataset {dataset!r} has images in class folders and others in none; put these into "
            "folders, too, or take them away"
        )
    unseen = sorted({*scored} - {*trained})
    if unseen:
        names = _few([repr(classes[label]) for label in unseen])
        raise UserError(
            f"dataset {dataset!r}: {len(unseen)} of {len(classes)} classes have validation images "
            f"and none for training: {names}; add some, or leave these classes out of validation"
        )


def _few(items: Sequence[object]) -> str:
    shown = ", ".join(map(str, items[:SHOWN]))
    return shown + (", ..." if len(items) > SHOWN else "")
