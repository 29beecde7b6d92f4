"""Is a dataset what it says? Every rule that it breaks, with file and value; and sizes, histograms.

The same rules keep a run from starting on a dataset with a fault, as far as lists and jsons show it
(`check`); only `verify` reads the images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_bench.errors import UserError
from tasks import data
from tasks.data import sources
from tasks.data.catalog import get_dataset, home
from tasks.data.formats import SPLITS, Member
from tasks.data.verify.ade20k import Ade20k
from tasks.data.verify.coco import Coco
from tasks.data.verify.kinds import Kind, Place, texts
from tasks.data.verify.labelled import Labelled
from tasks.data.verify.rules import RULES, Finding, Findings, Rule
from tasks.data.verify.scan import Scan, scan, scan_image, scan_map

__all__ = ["RULES", "Finding", "Report", "Rule", "check", "check_images", "verify"]

# In the dataset's own folder it says that fewer images than published are there on purpose.
SUBSET_FILE = "subset.txt"
# Rules without which an image is of no use to a run.
UNUSABLE = {"missing-image", "unreadable-image", "image-size", "image-depth", "map-size"}
# How many faults an error names.
FAULTS_NAMED = 3
KINDS: dict[str, type[Kind]] = {"labelled": Labelled, "coco": Coco, "ade20k": Ade20k}
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        subset: whether fewer images than published are allowed.
        fingerprint: as in the records of runs; None if the dataset is not whole.
        splits: split -> facts (images, classes, histogram, ...).
        files_read: images and maps whose content was read.
    """

    dataset: str
    home: str
    subset: bool
    fingerprint: str | None
    splits: dict[str, dict[str, Any]]
    findings: list[Finding]
    files_read: int

    @property
    def faults(self) -> list[Finding]:
        """Findings that are no notes."""
        return [finding for finding in self.findings if finding.level == "fault"]


class _Examination:
    """One dataset while it is looked at.

    Attributes:
        found: what is wrong with it.
        facts: split -> sizes, histogram.
    """

    def __init__(self, name: str, data_root: Path, subset: bool = False):
        self.name, self.data_root = name, data_root
        self.dataset, self.home = get_dataset(name), home(name, data_root)
        self.subset = subset or (self.home / SUBSET_FILE).is_file()
        self.found, self.facts, self.files_read = Findings(), {}, 0
        self.kind = KINDS[self.dataset.kind](self.dataset, self.home, self.found)

    def read_lists(self, labels: bool) -> None:
        """Read both splits and check what their lists say.

        Args:
            labels: whether a user's own images need labels.
        """
        self.facts: dict[str, dict[str, Any]] = {}
        for split in SPLITS:
            try:
                found = data.read_split(self.name, self.data_root, split, self.found)
                self.facts[split] = self.kind.add(split, found)
            except (UserError, OSError) as error:
                self.found("layout", self.home, str(error))
        if labels:
            sources.check_labels(self.name, self.found)
        if labels or self.dataset.layout not in sources.KINDS:
            self.kind.check()
        self._check_counts()
        train, val = ({*texts(self.kind.images(split))} for split in SPLITS)
        for path in sorted(train & val):
            self.found("shared-file", path, "is in train and in val")

    def _check_counts(self) -> None:
        counts = self.dataset.counts
        right = [
            self._check_count(split, rule, what, getattr(counts, published, None))
            for split in self.facts
            for rule, what, published in (
                ("count", "images", split),
                ("class-count", "classes", "classes"),
            )
        ]
        self.found.complete = counts is not None and len(right) == 4 and all(right)

    def _check_count(self, split: str, rule: str, what: str, published: int | None) -> bool:
        here = self.facts[split][what]
        if what == "images" and not here:
            self.found("empty-split", self.home, f"{split} holds no image")
        if published is None or here == published:
            return True
        if not self.subset or here > published:
            hint = f"a subset is named as such by a file {SUBSET_FILE} in its folder, or --subset"
            wrong = f"{split} has {here} {what}, {published} are published; {hint}"
            self.found(rule, self.home, wrong)
        return False

    def check_files(self) -> None:
        """Ask whether everything that is listed is there."""
        for split in SPLITS:
            places = self.kind.images(split)
            if not any(isinstance(place, Member) for place in places[:1]):
                for path in texts(places):
                    if not os.path.exists(path):
                        self.found("missing-image", path, "is listed and not there")

    def read_images(self, workers: int | None, progress: Progress) -> None:
        """Read every image and map once."""
        self._progress = progress
        self._total = sum(
            len(self.kind.images(split)) + len(self.kind.maps(split)) for split in SPLITS
        )
        contents: dict[bytes, str] = {}
        for split in ("val", "train"):
            for place, seen in self._scan(self.kind.images(split), scan_image, workers):
                if split == "val":
                    contents[seen.digest] = str(place)
                elif seen.digest in contents:
                    same = f"has the content of {contents[seen.digest]}"
                    self.found("overlap", str(place), same)
                self.kind.saw_image(split, place, seen)
            for place, seen in self._scan(self.kind.maps(split), scan_map, workers):
                self.kind.saw_map(split, place, seen)
            if split in self.facts:
                self.facts[split] |= self.kind.finish(split)

    def _scan(
        self, places: Sequence[Place], look: Callable[[Place], Scan], workers: int | None
    ) -> Iterator[tuple[Place, Scan]]:
        """Those that can be read; of the others it is told why not."""
        for place, seen in zip(places, scan(places, look, workers), strict=True):
            self.files_read += 1
            self._progress(self.files_read, self._total)
            if seen.missing:
                self.found("missing-image", str(place), "is listed and not there")
            elif seen.error:
                self.found("unreadable-image", str(place), seen.error)
            else:
                yield place, seen


def verify(
    name: str,
    data_root: Path,
    *,
    subset: bool = False,
    read_images: bool = True,
    workers: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Look at a dataset from its lists to its last image.

    Args:
        subset: of a published dataset, fewer images and classes are there on purpose.
        read_images: False: only lists, and whether the files are there.
        workers: threads that read; by default one for each core.
        progress: told files read and files in all.

    Raises:
        UserError: unknown, or nothing is there at all.
    """
    one = _Examination(name, data_root, subset)
    if not one.home.exists() and one.dataset.layout != "tar":
        raise UserError(
            f"dataset {name!r} is missing: {one.home} does not exist; check --data-root, "
            "or run `mae-bench data prepare mini` for the miniature sets"
        )
    one.read_lists(labels=True)
    if read_images:
        one.read_images(workers, progress)
    else:
        one.check_files()
    return Report(
        dataset=name,
        home=str(one.home),
        subset=one.subset,
        fingerprint=_fingerprint(name, data_root),
        splits=one.facts,
        findings=one.found.read(),
        files_read=one.files_read,
    )


def _fingerprint(name: str, data_root: Path) -> str | None:
    try:
        return data.fingerprint(name, data_root)
    except UserError:
        return None


def check(name: str, data_root: Path, task: str, subset: bool = False) -> None:
    """Refuse a dataset with a fault that shows without reading images, before anything is trained.

    What is generated needs no check. Of a user's own images without labels only the lists count:
    training leaves broken ones out, up to a limit.

    Raises:
        UserError: the first faults, and how to see all.
    """
    data.check_use(name, task)
    one = _Examination(name, data_root, subset)
    if one.dataset.spec:
        return
    one.read_lists(labels=task == "classification")
    if one.dataset.layout not in sources.KINDS:
        one.check_files()
    _refuse(name, data_root, one.found)


def check_images(
    name: str,
    data_root: Path,
    splits: Sequence[str] = SPLITS,
    progress: Progress = lambda done, total: None,
) -> None:
    """Refuse a dataset with an image that cannot be used: missing, broken, of another size.

    Reads every image of the splits, so it is for those that a run would read to no purpose. What
    is generated needs no check.

    Raises:
        UserError: the first faults, and how to see all.
    """
    one = _Examination(name, data_root)
    if one.dataset.spec:
        return
    for split in splits:
        one.kind.add(split, data.read_split(name, data_root, split, one.found))
    one.read_images(None, progress)
    _refuse(name, data_root, one.found, UNUSABLE)


def _refuse(name: str, data_root: Path, found: Findings, rules: Collection[str] = RULES) -> None:
    faults = [f for f in found.read() if f.level == "fault" and f.rule in rules]
    if faults:
        named = "; ".join(f"{f.file}: {f.value} ({f.rule})" for f in faults[:FAULTS_NAMED])
        more = f"; and {len(faults) - FAULTS_NAMED} more" if len(faults) > FAULTS_NAMED else ""
        raise UserError(
            f"dataset {name!r} has faults: {named}{more}. `mae-bench data verify {name} "
            f"--data-root {data_root}` shows all"
        )
