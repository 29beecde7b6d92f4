"""Datasets on disk: their names, where they lie, what identifies them.

Importing this module loads neither torch nor OpenCV, so that planning can ask for fingerprints.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mae_bench.errors import UserError
from tasks.data import fingerprints
from tasks.data.catalog import (
    DATASETS,
    LAYOUTS,
    Counts,
    Dataset,
    Split,
    absolute,
    check_use,
    get_dataset,
    home,
    is_source,
)
from tasks.data.formats import Ade20kSplit, CocoSplit, LabeledImages, Tell, refuse
from tasks.data.sources import KINDS, read_source, source_fingerprint
from tasks.data.specs import Spec, spec_fingerprint

__all__ = [
    "DATASETS",
    "Ade20kSplit",
    "CocoSplit",
    "Counts",
    "Dataset",
    "LabeledImages",
    "Tell",
    "absolute",
    "ade20k_split",
    "check_use",
    "classification_split",
    "coco_split",
    "fingerprint",
    "get_dataset",
    "home",
    "is_source",
    "prepare",
    "read_split",
    "refuse",
]

MARKER = "fingerprint.txt"


def fingerprint(name: str, data_root: Path) -> str:
    """Hex digits that identify the dataset's content; for a generated one known beforehand.

    Raises:
        UserError: the dataset is not there, or not whole.
    """
    dataset = get_dataset(name)
    if dataset.spec:
        return spec_fingerprint(dataset.spec)
    with _readable():
        if dataset.layout in KINDS:
            return source_fingerprint(name)
        place = home(name, data_root)
        return fingerprints.fingerprint(place, LAYOUTS[dataset.layout].parts(place))


def read_split(name: str, data_root: Path, split: str, tell: Tell = refuse) -> Split:
    """Read "train" or "val" of any dataset, as its layout says.

    Args:
        tell: hears of labels and lists that are wrong; by default the first one is an error.

    Raises:
        UserError: something is missing, or cannot be read.
    """
    dataset, place = get_dataset(name), home(name, data_root)
    with _readable():
        if dataset.layout in KINDS:
            return read_source(name, data_root, split, tell)
        read = LAYOUTS[dataset.layout].read
        return read(place, split, tell) if dataset.kind == "labelled" else read(place, split)


@contextmanager
def _readable() -> Iterator[None]:
    """Say in one line what is no folder, no file, or closed to this user."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error


def classification_split(name: str, data_root: Path, split: str) -> LabeledImages:
    """Images and labels of "train" or "val"."""
    check_use(name, "classification")
    found = read_split(name, data_root, split)
    assert isinstance(found, LabeledImages)
    return found


def coco_split(name: str, data_root: Path, split: str) -> CocoSplit:
    """Instance file and image folder of "train" or "val"."""
    check_use(name, "detection")
    found = read_split(name, data_root, split)
    assert isinstance(found, CocoSplit)
    return found


def ade20k_split(name: str, data_root: Path, split: str) -> Ade20kSplit:
    """Image and map folders of "train" or "val"."""
    check_use(name, "segmentation")
    found = read_split(name, data_root, split)
    assert isinstance(found, Ade20kSplit)
    return found


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
