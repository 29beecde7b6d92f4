"""SHA-256 of files, remembered so that planning with large checkpoints takes no time."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from mae_bench.job import write_atomically

# A file that was written this recently may be written again without its time stamp changing.
SECONDS_TO_SETTLE = 2.0


def sha256(path: Path) -> str:
    """Return the hash of a file's content, hex.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """Return `sha256(path)`, read again only when the file's size, time or inode has changed.

    Remembered in `$XDG_CACHE_HOME/mae-bench/hashes.json` (default ~/.cache). What is started from
    the file is checked against its content once more, so a stale answer cannot go unnoticed.

    Raises:
        OSError: the file cannot be read.
    """
    path, status = path.absolute(), path.stat()
    mark = [status.st_size, status.st_mtime_ns, status.st_ino]
    known = _read()
    if known.get(str(path), [None])[0] == mark:
        return str(known[str(path)][1])
    digest = sha256(path)
    if time.time() - status.st_mtime > SECONDS_TO_SETTLE:
        _write({**known, str(path): [mark, digest]})
    return digest


def _file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "mae-bench" / "hashes.json"


def _read() -> dict[str, list[object]]:
    try:
        found = json.loads(_file().read_text())
        good = {path: entry for path, entry in found.items() if len(entry) == 2}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
    return good


def _write(known: dict[str, list[object]]) -> None:
    """Without a place to write, files are hashed each time."""
    with suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        there = {path: entry for path, entry in known.items() if Path(path).exists()}
        write_atomically(_file(), json.dumps(there, indent=1))
