"""Users' own images by name: a folder, a list of files, tar shards.

`imagefolder:DIR`, `filelist:FILE` and `tar:PLACE` can stand wherever a dataset's name does. Reading
lists needs neither torch nor Pillow.

Where a source has no validation images of its own, every 50th of its sorted images is held out.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mae_bench.errors import UserError
from mae_bench.job import write_atomically
from tasks.data.formats import (
    SPLITS,
    LabeledImages,
    Member,
    Tell,
    check_split,
    read_lines,
    refuse,
)

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
HELD_OUT = 50
# Where offsets into tar shards are kept, below the data root.
INDEX_FOLDER = ".tar-index"


class Entry(NamedTuple):
    """An image of a source: where it is, its class, and the split if it names one."""

    place: Path | Member
    label: str
    split: str | None = None


def read_source(name: str, data_root: Path, split: str, tell: Tell = refuse) -> LabeledImages:
    """Images of "train" or "val".

    Args:
        data_root: where the offsets into tar shards are kept for the next time; a list of files
            may name what is below it, too.

    Raises:
        UserError: nothing there, no image, or so few that none is left to train on.
    """
    check_split(split)
    kind, _, place = name.partition(":")
    entries = KINDS[kind].entries(place, data_root, tell)
    classes = sorted({entry.label for entry in entries}, key=_by_number)
    rank = {label: number for number, label in enumerate(classes)}
    if any(entry.split == "val" for entry in entries):
        chosen = [entry for entry in entries if (entry.split == "val") == (split == "val")]
    else:
        chosen = [e for i, e in enumerate(entries) if (i % HELD_OUT == 0) == (split == "val")]
    if not chosen:
        raise UserError(
            f"dataset {name!r} has {len(entries)} images in all and none for {split}; at least one "
            "to train on and one to validate on are needed"
        )
    return LabeledImages([e.place for e in chosen], [rank[e.label] for e in chosen], classes)


def source_fingerprint(name: str) -> str:
    """Hex digits over the names and sizes of a source's files (for tar shards: of the shards)."""
    kind, _, place = name.partition(":")
    files = [*KINDS[kind].files(place)]
    root = os.path.commonpath([path.parent for path in files])
    digest = hashlib.sha256(kind.encode())
    for path in files:
        size = path.stat().st_size if path.exists() else None
        digest.update(os.fsencode(f"\n{path.relative_to(root)} {size}"))
    return digest.hexdigest()[:16]


def check_labels(name: str, tell: Tell) -> None:
    """Tell what keeps the folders of an `imagefolder:` from being labels; other kinds have lists.

    Who pretrains needs no labels, so reading the images does not ask for this.
    """
    kind, _, place = name.partition(":")
    root = Path(place)
    if kind != "imagefolder" or not (root / "train").is_dir():
        return
    trained, scored = (_classes(root / split, tell) for split in ("train", "val"))
    for label in sorted(scored - trained):
        tell("class-lists", root / "val" / label, "is a class without training images")


def _classes(folder: Path, tell: Tell) -> set[str]:
    """The class folders of a split that hold images."""
    if not folder.is_dir():
        tell("split-missing", folder, "does not exist; labels are scored on it")
        return set()
    found = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    classes = {entry.name for entry in found if entry.is_dir()}
    loose = [entry.name for entry in found if entry.name not in classes and _is_image(entry.name)]
    if not classes:
        tell("flat-folder", folder, f"holds no class folder; give {folder.name}/<class>/<image>")
    elif loose:
        said = f"{min(loose)!r}, image 1 of {len(loose)} that are in no class folder"
        tell("flat-folder", folder, f"holds {said}; give {folder.name}/<class>/<image>")
    empty = {label for label in classes if not any(_images_below(folder / label))}
    for label in sorted(empty):
        tell("empty-class", folder / label, "class folder holds no image")
    return classes - empty


def _by_number(label: str) -> tuple[int, str]:
    return (int(label), "") if label.isdecimal() else (-1, label)


# --- a folder --------------------------------------------------------------------------------


def _folder_files(place: str) -> list[Path]:
    root = Path(place)
    if not root.is_dir():
        raise UserError(f"imagefolder:{place}: there is no such folder")
    found = sorted(_images_below(root))
    if not found:
        raise UserError(
            f"imagefolder:{place}: the folder holds no image ({', '.join(sorted(SUFFIXES))})"
        )
    return found


def _images_below(folder: Path, above: tuple[os.stat_result, ...] = ()) -> Iterator[Path]:
    """Links are followed, but not into a folder that one is in already; hidden names are left out.

    Args:
        above: the folders on the way here.
    """
    here = os.stat(folder)
    if any(os.path.samestat(here, known) for known in above):
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _images_below(folder / entry.name, (*above, here))
            elif _is_image(entry.name):
                yield folder / entry.name


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _folder_entries(place: str, data_root: Path, tell: Tell) -> list[Entry]:
    """`{train,val}/<class>/...`, `<class>/...` or images alone."""
    root, paths = Path(place), _folder_files(place)
    has_splits = (root / "train").is_dir()
    entries = []
    for path in paths:
        parts = path.relative_to(root).parts
        split = parts[0] if has_splits else None
        if has_splits and split not in SPLITS:
            continue
        rest = parts[1:] if has_splits else parts
        entries.append(Entry(path, rest[0] if len(rest) > 1 else "", split))
    if not entries:
        raise UserError(f"imagefolder:{place}: its train and val folders hold no image")
    return entries


# --- a list of files -------------------------------------------------------------------------


def _list_entries(place: str, data_root: Path, tell: Tell) -> list[Entry]:
    """What a list names, if it is below the list's own folder or the data root."""
    allowed = (os.path.abspath(root) + os.sep for root in (Path(place).parent, data_root))
    roots = tuple(dict.fromkeys(allowed))
    entries = []
    for entry in _listed(place):
        if os.path.abspath(str(entry.place)).startswith(roots):
            entries.append(entry)
        else:
            where = " and ".join(roots)
            tell("outside-root", Path(place), f"names {entry.place}, which is outside of {where}")
    return entries


def _listed(place: str) -> list[Entry]:
    """One path a line, from the list's own folder on; a label (a number) after each, or none."""
    listing = Path(place)
    if not listing.is_file():
        raise UserError(f"filelist:{place}: there is no such file")
    lines = [line.strip() for line in read_lines(listing, "the list")]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise UserError(f"filelist:{place}: the list is empty; it needs one path a line")
    matches = [re.fullmatch(r"(.+?)[ \t]+(\d+)", line) for line in lines]
    pairs = [match for match in matches if match]
    # A name may end in a number too; a list with labels has one in every line.
    if len(pairs) == len(lines):
        return [Entry(listing.parent / pair[1], pair[2]) for pair in pairs]
    if pairs and (listing.parent / pairs[0][1]).exists():
        odd = lines[matches.index(None)]
        raise UserError(
            f"filelist:{place}: the line {odd!r} has no label behind it, {pairs[0][0]!r} has one; "
            "give a whole number from 0 on in every line, or in none"
        )
    return [Entry(listing.parent / line, "") for line in lines]


def _listed_files(place: str) -> list[Path]:
    paths = [Path(str(entry.place)) for entry in _listed(place)]
    if not any(path.exists() for path in paths):
        raise UserError(
            f"filelist:{place}: none of its {len(paths)} files exists; the first is {paths[0]}. "
            "Paths are relative to the folder of the list"
        )
    return [Path(place), *paths]


# --- tar shards ------------------------------------------------------------------------------


def _shards(place: str) -> list[Path]:
    """A folder of *.tar, a file, a glob pattern, or a range as in train-{000..146}.tar."""
    span = re.search(r"\{(\d+)\.\.(\d+)\}", place)
    if span:
        first, last = span.groups()
        numbers = (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
        paths = [Path(place.replace(span[0], number)) for number in numbers]
    elif Path(place).is_dir():
        paths = sorted(Path(place).glob("*.tar"))
    else:
        paths = [Path(path) for path in sorted(glob.glob(place))]
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        what = f"{missing[0]} does not exist" if missing else "no *.tar file is there"
        raise UserError(f"tar:{place}: {what}")
    return paths


def _tar_entries(place: str, data_root: Path, tell: Tell) -> list[Entry]:
    """All images of the shards; those of shards with "val" in their name are for validation."""
    shards = _shards(place)
    has_val = any("val" in shard.name for shard in shards)
    entries = []
    for shard, members in zip(shards, _index(shards, data_root), strict=True):
        split = ("val" if "val" in shard.name else "train") if has_val else None
        entries += [Entry(Member(shard, *member), label, split) for *member, label in members]
    if not entries:
        raise UserError(f"tar:{place}: the {len(shards)} shards hold no image")
    return entries


def _index(shards: Sequence[Path], data_root: Path) -> list[list[Any]]:
    """Per shard [name, offset, size, label] of each image, from the last time if it still holds."""
    stats = [(str(s), s.stat().st_size, s.stat().st_mtime_ns) for s in shards]
    key = hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]
    path = data_root / INDEX_FOLDER / f"{key}.json"
    with suppress(OSError, ValueError):
        return json.loads(path.read_text())
    found = [_scan(shard) for shard in shards]
    with suppress(OSError):  # a data root that cannot be written: scan again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(found))
    return found


def _scan(shard: Path) -> list[list[Any]]:
    """Headers of one shard. A label is the `.cls` file of the same key, or the folder inside."""
    images: list[tuple[str, tarfile.TarInfo]] = []
    labels: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, _, file = member.name.rpartition("/")
                key, _, suffix = file.partition(".")
                if not member.isfile() or file.startswith("."):
                    continue
                if f".{suffix.rpartition('.')[2].lower()}" in SUFFIXES:
                    images.append((f"{folder}/{key}", member))
                elif suffix == "cls":
                    content = archive.extractfile(member)
                    labels[f"{folder}/{key}"] = content.read().decode().strip() if content else ""
    except (tarfile.TarError, EOFError, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{shard} is not a whole, uncompressed tar archive ({error}); fetch or pack it again"
        ) from None
    end = shard.stat().st_size
    for _, member in images:
        if member.offset_data + member.size > end:
            raise UserError(f"{shard} is cut off inside {member.name}; fetch it again")
    return [
        [m.name, m.offset_data, m.size, labels.get(key, m.name.rpartition("/")[0])]
        for key, m in images
    ]


class Kind(NamedTuple):
    """A kind of source: what its place is called, its files, its images."""

    place: str
    files: Callable[[str], Iterable[Path]]
    entries: Callable[[str, Path, Tell], list[Entry]]


KINDS = {
    "imagefolder": Kind("DIR", _folder_files, _folder_entries),
    "filelist": Kind("FILE", _listed_files, _list_entries),
    "tar": Kind("DIR, FILE or PATTERN", _shards, _tar_entries),
}
