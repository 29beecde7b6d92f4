"""Claims: which process has a run's folder, decided without clocks and without file locks.

A claim is a file `.claim-N` that names its holder; the highest N counts, and an empty one is free.
Who wants the folder creates N + 1, which a file system allows once. The holder touches its file
every few seconds. Others never compare that time stamp with a clock: they watch whether it changes.
So clocks that differ do no harm, nor does a network file system whose locks do nothing.

On one machine nobody has to wait: there the holder's process is looked up.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from random import SystemRandom

SECONDS_BETWEEN_BEATS = 5.0
SECONDS_BETWEEN_LOOKS = 0.25
# Twice what an NFS client may go on believing of a folder (acdirmax, 60 s).
PATIENCE_SECONDS = 120.0
# Exit code of a process that finds its claim taken from it.
LOST = 79
NAME = re.compile(r"\.claim-(\d+)")


class Claimed(Exception):
    """Another process holds the folder."""


@dataclass(frozen=True)
class Holder:
    """A process, so that another one can tell whether it is still there.

    Attributes:
        place: what processes share that see each other; see `_place`.
        started: start of the process since boot (ticks), since pids are used again.
        since: Unix time by its own clock; to be shown, never to be compared.
    """

    place: str = ""
    host: str = "unknown"
    pid: int = 0
    started: int | None = None
    since: float = 0.0

    @classmethod
    def here(cls) -> Holder:
        """Return this process."""
        return cls(_place(), platform.node(), os.getpid(), _started(os.getpid()), time.time())

    def is_alive(self) -> bool | None:
        """Whether the process is there; None if that cannot be seen from here."""
        if self.place != _place():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            # Somebody else's. /proc may be closed to us, so only a different start tells anything.
            return _started(self.pid) in {None, self.started}
        return _started(self.pid) == self.started


@dataclass(frozen=True)
class Claim:
    """A claim as found on disk; `beat` changes while its holder lives and means nothing else."""

    path: Path
    holder: Holder
    beat: int


class Watch:
    """Tells the living from the dead by watching; keep one for as long as you wait.

    Args:
        patience: seconds without a sign of life after which a holder that cannot be looked up
            counts as dead. By this process's own monotonic clock.
    """

    def __init__(
        self, patience: float = PATIENCE_SECONDS, clock: Callable[[], float] = time.monotonic
    ):
        self._patience, self._clock = patience, clock
        self._seen: dict[Path, tuple[int, float]] = {}

    def is_held(self, folder: Path) -> bool:
        """Whether a live process holds the folder, as far as is known by now."""
        claim = current(folder)
        return claim is not None and self.is_alive(claim)

    def is_alive(self, claim: Claim) -> bool:
        """Whether a claim's holder lives. One that has been silent for too long loses it."""
        known = claim.holder.is_alive()
        if known is not None:
            return known
        now = self._clock()
        beat, since = self._seen.get(claim.path, (None, now))
        if beat != claim.beat:
            self._seen[claim.path] = (claim.beat, now)
            return True
        if now - since < self._patience:
            return True
        # Should the holder live after all, it sees this and ends.
        _free(claim.path)
        return False


def current(folder: Path) -> Claim | None:
    """Return the claim that counts, None if the folder is free."""
    while number := _latest(folder):
        path = _path(folder, number)
        # Gone: a newer one has come, or the folder went.
        with suppress(FileNotFoundError), path.open() as file:
            text, beat = file.read(), os.fstat(file.fileno()).st_mtime_ns
            return Claim(path, _holder(text), beat) if text else None
    return None


@contextmanager
def hold(folder: Path, wait: bool = True, beat: float = SECONDS_BETWEEN_BEATS) -> Iterator[None]:
    """Hold a folder; one that another process holds is waited for, and taken over if that dies.

    Should this process be taken for dead (suspended for minutes, cut off from the file server),
    it ends with exit code `LOST` as soon as it notices.

    Args:
        beat: seconds between signs of life.

    Raises:
        Claimed: it is held, and `wait` is off.
    """
    watch = Watch()
    while (path := _take(folder, watch)) is None:
        if not wait:
            raise Claimed(str(folder))
        time.sleep(SECONDS_BETWEEN_LOOKS * SystemRandom().uniform(0.5, 1.5))
    released = threading.Event()
    heart = threading.Thread(target=_show_life, args=(path, released, beat), daemon=True)
    heart.start()
    try:
        yield
    finally:
        released.set()
        heart.join()
        _free(path)


def remove(folder: Path) -> None:
    """Remove a folder that nobody holds.

    Raises:
        Claimed: somebody does.
    """
    if not folder.exists():
        return
    own = _take(folder, Watch())
    if own is None:
        raise Claimed(str(folder))
    # The claim last: who looks in between finds the folder taken.
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path != own:
            path.unlink(missing_ok=True)
    own.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _take(folder: Path, watch: Watch) -> Path | None:
    """Try once to get the folder; returns the claim's file."""
    folder.mkdir(parents=True, exist_ok=True)
    number = _latest(folder)
    claim = current(folder)
    if claim is not None:
        if claim.path != _path(folder, number) or watch.is_alive(claim):
            return None
        _free(claim.path)
    own = _path(folder, number + 1)
    if not _create(own, json.dumps(asdict(Holder.here()))):
        return None
    # We may have seen the folder as it was: then a higher number has come since. And where files
    # are created empty (see `_create`) its neighbour below may only have looked free.
    if _latest(folder) != number + 1 or not _is_free(_path(folder, number)):
        own.unlink(missing_ok=True)
        return None
    for older in range(number, 0, -1):
        if not _unlinked(_path(folder, older)):
            break
    return own


def _create(path: Path, content: str) -> bool:
    """Create a file that is not there, on any file system; False if somebody else was first.

    A link brings the content along; where there are no links the file is empty for a moment.
    """
    draft = path.with_name(f".claim.{uuid.uuid4().hex}.tmp")
    try:
        draft.write_text(content)
        try:
            os.link(draft, path)
        except FileExistsError:
            # The answer to a first try that succeeded may have been lost on the network.
            return draft.stat().st_nlink == 2
        except OSError:
            with path.open("x") as file:
                file.write(content)
        return True
    except (FileExistsError, FileNotFoundError):
        return False
    finally:
        draft.unlink(missing_ok=True)


def _show_life(path: Path, released: threading.Event, seconds: float) -> None:
    while not released.wait(seconds):
        try:
            lost = _is_free(path)
            if not lost:
                os.utime(path)
        except OSError:
            # The file server is away; there is time until the patience of others ends.
            continue
        if lost:
            print(f"{path.parent} was taken over by another process", file=sys.stderr, flush=True)
            os._exit(LOST)


def _path(folder: Path, number: int) -> Path:
    return folder / f".claim-{number}"


def _latest(folder: Path) -> int:
    """Highest number of a claim, 0 if there is none."""
    with suppress(FileNotFoundError, NotADirectoryError):
        names = (NAME.fullmatch(entry.name) for entry in os.scandir(folder))
        return max((int(name[1]) for name in names if name), default=0)
    return 0


def _free(path: Path) -> None:
    # Takes no space, so it also works on a full disk. Gone: a newer claim has come.
    with suppress(FileNotFoundError):
        os.truncate(path, 0)


def _is_free(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except FileNotFoundError:
        return True


def _unlinked(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _holder(text: str) -> Holder:
    """Whoever the text names; nobody in particular if it is damaged, then only time tells."""
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        return Holder()


@cache
def _place() -> str:
    """What processes share that can look each other up: host, boot, and space of process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex


def _started(pid: int) -> int | None:
    """Start of a live process in ticks since boot, None if it is gone or only its exit code is."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])
