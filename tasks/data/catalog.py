"""The datasets that have a name: layout, place below the data root, how large they are.

Users' own are named KIND:PLACE, as `imagefolder:DIR` or `coco-format:DIR`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mae_bench.errors import UserError, unknown
from tasks.data import dense, labelled
from tasks.data.formats import (
    SPLITS,
    Ade20kSplit,
    CocoSplit,
    LabeledImages,
    existing,
    first_existing,
)
from tasks.data.sources import KINDS
from tasks.data.specs import SPECS, Spec

Split = LabeledImages | CocoSplit | Ade20kSplit


class Parts(NamedTuple):
    """What a dataset consists of: files that are read as text, and folders of images or maps."""

    annotations: list[Path]
    folders: list[Path]


class Layout(NamedTuple):
    """How a kind of dataset lies on disk.

    Attributes:
        kind: what a split of it is: "labelled", "coco" or "ade20k".
        read: the dataset's own folder and a split -> what is there; of labelled images also who
            is told of faults.
        parts: the dataset's own folder -> everything that its fingerprint covers.
        landmark: what is in the dataset's own folder, and tells it from others.
    """

    kind: str
    read: Callable[..., Split]
    parts: Callable[[Path], Parts]
    landmark: str = "train"


def _parts(annotations: tuple[str, ...], *folders: tuple[str, ...]) -> Callable[[Path], Parts]:
    """Parts with fixed names; of the alternatives for a folder the first that is there."""
    return lambda home: Parts(
        [existing(home / name, "the annotation file") for name in annotations],
        [first_existing(home, names, "the image folder") for names in folders],
    )


def _inat(year: int, images: str) -> Layout:
    files = tuple(f"{split}{year}.json" for split in SPLITS)
    read = partial(labelled.read_inat, year=year)
    return Layout("labelled", read, _parts(files, (images,)), files[1])


def _places365(size: str) -> Layout:
    lists = (labelled.PLACES365_CATEGORIES, *labelled.PLACES365_LISTS.values())
    folders = labelled.PLACES365_FOLDERS[size].values()
    read = partial(labelled.read_places365, size=size)
    return Layout("labelled", read, _parts(lists, *folders), lists[0])


def _easyformat_parts(home: Path) -> Parts:
    listing = labelled.easyformat_categories(home)
    return Parts([listing] if listing else [], _split_folders(home).folders)


def _split_folders(home: Path) -> Parts:
    return Parts([], [existing(home / split, f"the {split} split") for split in SPLITS])


def _coco_format_parts(home: Path) -> Parts:
    splits = [dense.read_coco_format(home, split) for split in SPLITS]
    return Parts([split.json for split in splits], [split.images for split in splits])


def _ade20k_format_parts(home: Path) -> Parts:
    splits = [dense.read_ade20k_format(home, split) for split in SPLITS]
    folders = [folder for split in splits for folder in (split.images, split.annotations)]
    return Parts([dense.ade20k_class_list(home)], folders)


LAYOUTS: dict[str, Layout] = {
    "imagenet": Layout("labelled", labelled.read_imagefolder, _split_folders),
    "inat2017": _inat(2017, "train_val_images"),
    "inat2018": _inat(2018, "train_val2018"),
    "inat2019": _inat(2019, "train_val2019"),
    "places205": Layout(
        "labelled",
        labelled.read_places205,
        _parts(tuple(labelled.PLACES205_LISTS.values()), (labelled.PLACES205_IMAGES,)),
        labelled.PLACES205_LISTS["train"],
    ),
    "places365": _places365("large"),
    "places365-small": _places365("256"),
    "places365-easyformat": Layout(
        "labelled", labelled.read_places365_easyformat, _easyformat_parts
    ),
    "coco": Layout(
        "coco",
        dense.read_coco,
        _parts(
            tuple(f"annotations/instances_{split}2017.json" for split in SPLITS),
            ("train2017",),
            ("val2017",),
        ),
        "annotations",
    ),
    "ade20k": Layout(
        "ade20k",
        dense.read_ade20k,
        _parts(("objectInfo150.txt",), ("images",), ("annotations",)),
        "objectInfo150.txt",
    ),
    "coco-format": Layout("coco", dense.read_coco_format, _coco_format_parts),
    "ade20k-format": Layout("ade20k", dense.read_ade20k_format, _ade20k_format_parts),
}
# Kind of a user's own dataset -> what is given behind the colon.
OWN = {
    **{kind: known.place for kind, known in KINDS.items()},
    "coco-format": "DIR",
    "ade20k-format": "DIR",
}


class Counts(NamedTuple):
    """Size of a published dataset; None where no reliable source was found."""

    classes: int
    train: int | None
    val: int | None


@dataclass(frozen=True)
class Dataset:
    """A dataset that can be named.

    Attributes:
        layout: a key of `LAYOUTS` or, of a user's own images, of `sources.KINDS`.
        spec: how it is generated; None for one that must be there.
        places: folders below the data root that it may be in; the first is the customary one.
        counts: of the published dataset.
    """

    layout: str
    spec: Spec | None = None
    places: tuple[str, ...] = ()
    counts: Counts | None = None

    @property
    def kind(self) -> str:
        """What a split of it is: "labelled", "coco" or "ade20k"."""
        return "labelled" if self.layout in KINDS else LAYOUTS[self.layout].kind


def _mini(name: str, layout: str, place: str) -> Dataset:
    return Dataset(layout, SPECS[name], (f"{name}/{place}",))


PLACES365_COUNTS = Counts(365, 1_803_460, 36_500)
# Source of the counts: the owners' pages, as collected by torchvision, visipedia/inat_comp and
# zhoubolei/places_devkit. For the training images of Places205 no reliable count was found.
DATASETS: dict[str, Dataset] = {
    "imagenet": Dataset("imagenet", None, ("imagenet",), Counts(1000, 1_281_167, 50_000)),
    "inat2017": Dataset("inat2017", None, ("inat2017",), Counts(5089, 579_184, 95_986)),
    "inat2018": Dataset("inat2018", None, ("inat2018",), Counts(8142, 437_513, 24_426)),
    "inat2019": Dataset("inat2019", None, ("inat2019",), Counts(1010, 265_213, 3_030)),
    "places205": Dataset("places205", None, ("places205",), Counts(205, None, 20_500)),
    "places365": Dataset("places365", None, ("places365",), PLACES365_COUNTS),
    "places365-small": Dataset("places365-small", None, ("places365",), PLACES365_COUNTS),
    "places365-easyformat": Dataset(
        "places365-easyformat",
        None,
        ("places365_standard", "places365-easyformat"),
        PLACES365_COUNTS,
    ),
    "coco": Dataset("coco", None, ("coco",), Counts(80, 118_287, 5_000)),
    "ade20k": Dataset(
        "ade20k",
        None,
        ("ADEChallengeData2016", "ade/ADEChallengeData2016", "ade20k/ADEChallengeData2016"),
        Counts(150, 20_210, 2_000),
    ),
    "mini-imagenet": _mini("mini-imagenet", "imagenet", "imagenet"),
    "mini-coco": _mini("mini-coco", "coco", "coco"),
    "mini-ade20k": _mini("mini-ade20k", "ade20k", "ADEChallengeData2016"),
    "mini-inat": _mini("mini-inat", "inat2018", "inat2018"),
    "mini-places": _mini("mini-places", "places365-small", "places365"),
}
# Tasks that read something else than labelled images.
KIND_OF_TASK: Mapping[str, str] = {"detection": "coco", "segmentation": "ade20k"}


def is_source(name: str) -> bool:
    """Whether a dataset's name is of the form KIND:PLACE.

    Raises:
        UserError: it is, but the kind is unknown or the place missing.
    """
    kind, colon, place = name.partition(":")
    if not colon:
        return False
    if kind not in OWN:
        raise unknown("kind of dataset", kind, OWN)
    if not place:
        raise UserError(f"dataset {name!r} names no place; give {kind}:{OWN[kind]}")
    return True


def absolute(name: str) -> str:
    """The same source, named so that other processes find it too; other names as they are."""
    if not is_source(name):
        return name
    kind, _, place = name.partition(":")
    return f"{kind}:{os.path.abspath(os.path.expanduser(place))}"


def get_dataset(name: str) -> Dataset:
    """Look a dataset up, or one of the user's own.

    Raises:
        UserError: not known, with the nearest names.
    """
    if is_source(name):
        return Dataset(name.partition(":")[0])
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    return DATASETS[name]


def check_use(name: str, task: str) -> None:
    """Refuse a dataset that a task cannot read.

    Raises:
        UserError: with the datasets that it can.
    """
    kind = KIND_OF_TASK.get(task, "labelled")
    if get_dataset(name).kind != kind:
        known = [name for name, dataset in DATASETS.items() if dataset.kind == kind]
        own = [f"{own}:{place}" for own, place in OWN.items() if Dataset(own).kind == kind]
        suitable = ", ".join(known + own)
        raise UserError(f"dataset {name!r} is not one for {task}; these are: {suitable}")


def home(name: str, data_root: Path) -> Path:
    """The dataset's own folder, whether it is there or not.

    A named one lies below the data root under its customary name, or is the data root itself.
    """
    dataset = get_dataset(name)
    if is_source(name):
        return Path(name.partition(":")[2])
    for place in dataset.places:
        if (data_root / place).exists():
            return data_root / place
    if not dataset.spec and (data_root / LAYOUTS[dataset.layout].landmark).exists():
        return data_root
    return data_root / dataset.places[0]
