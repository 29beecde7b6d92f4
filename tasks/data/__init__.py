"""Datasets on disk: their names, where they lie, what identifies them.

Importing this module loads neither torch nor OpenCV, so that planning can ask for fingerprints.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mae_bench.errors import UserError, unknown
from tasks.data.formats import (
    CLASSIFICATION_READERS,
    Ade20kSplit,
    CocoSplit,
    LabeledImages,
    read_ade20k,
    read_coco,
)
from tasks.data.sources import KINDS, absolute, is_source, read_source, source_fingerprint
from tasks.data.specs import SPECS, Spec, spec_fingerprint

__all__ = [
    "DATASETS",
    "Ade20kSplit",
    "CocoSplit",
    "Dataset",
    "LabeledImages",
    "absolute",
    "ade20k_split",
    "classification_split",
    "coco_split",
    "fingerprint",
    "get_dataset",
    "is_source",
    "prepare",
]

MARKER = "fingerprint.txt"


@dataclass(frozen=True)
class Dataset:
    """A dataset that can be named.

    Attributes:
        layout: "coco", "ade20k", a key of `formats.CLASSIFICATION_READERS` or of `sources.KINDS`.
        spec: how it is generated; None for one that must be there.
    """

    layout: str
    spec: Spec | None = None


DATASETS: dict[str, Dataset] = {
    "mini-imagenet": Dataset("imagefolder", SPECS["mini-imagenet"]),
    "mini-coco": Dataset("coco", SPECS["mini-coco"]),
    "mini-ade20k": Dataset("ade20k", SPECS["mini-ade20k"]),
    "mini-inat": Dataset("inat", SPECS["mini-inat"]),
    "mini-places": Dataset("places365", SPECS["mini-places"]),
}


def get_dataset(name: str) -> Dataset:
    """Look a dataset up, or one of the user's own (see `sources`).

    Raises:
        UserError: not known, with the nearest names.
    """
    if is_source(name):
        return Dataset(name.partition(":")[0])
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    return DATASETS[name]


def fingerprint(name: str, data_root: Path) -> str:
    """Hex digits that identify the dataset's content; for a generated one known beforehand."""
    if is_source(name):
        return source_fingerprint(name)
    spec = get_dataset(name).spec
    if spec is None:
        raise UserError(f"dataset {name!r} below {data_root} has no fingerprint yet")
    return spec_fingerprint(spec)


def prepare(name: str, data_root: Path, spec: Spec | None = None) -> None:
    """Generate a miniature set unless it is there, whole and of this fingerprint.

    Drawn in a folder beside its place and renamed at the end, under a lock: it appears whole or
    not at all, and of several processes that ask at once one draws and the others wait.

    Args:
        spec: takes the place of the registered one (tests draw smaller sets).

    Raises:
        UserError: the data root cannot be written.
    """
    spec = spec or get_dataset(name).spec
    if spec is None:
        return
    folder, expected = data_root / name, spec_fingerprint(spec)
    if _is_whole(folder, expected):
        return
    try:
        with _locked(data_root / f".{name}.lock"):
            if not _is_whole(folder, expected):
                _generate(spec, folder, expected)
    except OSError as error:
        raise UserError(
            f"cannot write dataset {name!r} below {data_root}: {error.strerror or error}; "
            "make room there or choose another --data-root"
        ) from error


def _is_whole(folder: Path, expected: str) -> bool:
    marker = folder / MARKER
    return marker.is_file() and marker.read_text().strip() == expected


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _generate(spec: Spec, folder: Path, expected: str) -> None:
    from tasks.data.miniature import write

    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    write(spec, partial)
    (partial / MARKER).write_text(expected + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


# Task -> layouts that it reads.
USES: dict[str, tuple[str, ...]] = {
    "pretraining": (*CLASSIFICATION_READERS, *KINDS),
    "classification": (*CLASSIFICATION_READERS, *KINDS),
    "detection": ("coco",),
    "segmentation": ("ade20k",),
}


def check_use(name: str, task: str) -> None:
    """Refuse a dataset that a task cannot read.

    Raises:
        UserError: with the datasets that it can.
    """
    if get_dataset(name).layout not in USES[task]:
        known = [name for name, dataset in DATASETS.items() if dataset.layout in USES[task]]
        own = [f"{kind}:{KINDS[kind].place}" for kind in KINDS if kind in USES[task]]
        suitable = ", ".join(known + own)
        raise UserError(f"dataset {name!r} is not one for {task}; these are: {suitable}")


def _located(name: str, data_root: Path, task: str) -> tuple[str, Path]:
    """Layout of a dataset and the folder that holds its top folder, if it is one for this task."""
    check_use(name, task)
    dataset = get_dataset(name)
    return dataset.layout, data_root / name if dataset.spec else data_root


def classification_split(name: str, data_root: Path, split: str) -> LabeledImages:
    """Images and labels of "train" or "val"."""
    if is_source(name):
        return read_source(name, data_root, split)
    layout, root = _located(name, data_root, "classification")
    return CLASSIFICATION_READERS[layout](root, split)


def coco_split(name: str, data_root: Path, split: str) -> CocoSplit:
    """Instance file and image folder of "train" or "val"."""
    _, root = _located(name, data_root, "detection")
    return read_coco(root, split)


def ade20k_split(name: str, data_root: Path, split: str) -> Ade20kSplit:
    """Image and map folders of "train" or "val"."""
    _, root = _located(name, data_root, "segmentation")
    return read_ade20k(root, split)
