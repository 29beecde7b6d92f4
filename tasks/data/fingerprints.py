"""What identifies a dataset on disk: its annotation files, the names and sizes of its images.

A file that is overwritten in place by another of the same size goes unnoticed; `data verify` reads
the files themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mae_bench.job import write_atomically
from tasks.data.catalog import Parts

# A walk that took less is repeated rather than remembered.
SECONDS_WORTH_REMEMBERING = 1.0
# A folder that has changed this recently may change again without its time stamp telling.
SECONDS_TO_SETTLE = 2.0


def fingerprint(home: Path, parts: Parts) -> str:
    """16 hex digits over the annotation files' content and all names and sizes in the folders.

    Walking a million files is slow, so the answer is remembered in `$XDG_CACHE_HOME/mae-bench`
    (default ~/.cache) with the times of the folders and of the annotation files; adding, removing
    or renaming a file changes the time of its folder.

    Raises:
        OSError: something cannot be read.
    """
    memory = _memory(home)
    known = _recall(memory, parts)
    if known:
        return known
    started, digest, folders = time.monotonic(), hashlib.sha256(), []
    for path in parts.annotations:
        digest.update(os.fsencode(f"{_name(path, home)} {_content(path)}\n"))
    for top in parts.folders:
        digest.update(os.fsencode(f"{_name(top, home)}\n"))
        for folder, name, size in walk(top):
            if size is None:
                folders.append(folder)
            else:
                place = os.path.relpath(folder, top)
                digest.update(os.fsencode(f"{place}/{name} {size}\n"))
    found = digest.hexdigest()[:16]
    if time.monotonic() - started > SECONDS_WORTH_REMEMBERING:
        _remember(memory, parts, folders, found)
    return found


def walk(top: Path) -> Iterator[tuple[str, str, int | None]]:
    """Everything below a folder in a fixed order: (folder, name, size); None for a folder itself.

    Links are followed, but into no folder twice. Hidden files are left out.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [str(top)]
    while waiting:
        folder = waiting.pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        yield folder, "", None
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append(entry.path)
                else:
                    yield folder, entry.name, _size(entry)


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:  # a link to nothing
        return -1


def _name(path: Path, home: Path) -> str:
    return os.path.relpath(path, home)


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _memory(home: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    key = hashlib.sha256(os.path.abspath(home).encode()).hexdigest()[:16]
    return cache / "mae-bench" / "datasets" / f"{key}.json"


def _times(paths: list[str]) -> list[int]:
    return [os.stat(path).st_mtime_ns for path in paths]


def _watched(parts: Parts, folders: list[str]) -> list[str]:
    return [*map(str, parts.annotations), *map(str, parts.folders), *folders]


def _recall(memory: Path, parts: Parts) -> str | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memory.read_text())
        if known["times"] == _times(_watched(parts, known["folders"])):
            return str(known["fingerprint"])
    return None


def _remember(memory: Path, parts: Parts, folders: list[str], found: str) -> None:
    """Without a place to write, the folders are walked each time."""
    with suppress(OSError):
        times = _times(_watched(parts, folders))
        if time.time() - max(times) / 1e9 < SECONDS_TO_SETTLE:
            return
        memory.parent.mkdir(parents=True, exist_ok=True)
        content = {"fingerprint": found, "folders": folders, "times": times}
        write_atomically(memory, json.dumps(content))
