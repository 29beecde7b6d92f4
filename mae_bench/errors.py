"""The one error a user sees, and the "did you mean" behind it."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# A full disk, a full quota, a file larger than this process may write.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class UserError(Exception):
    """Bad input: what was wrong, the value given, what is allowed, what to do.

    The command line prints it as one line and exits with code 2, without a traceback.
    """


class NoSpace(UserError):
    """The disk is full: nothing is wrong with what was asked for, and nothing saved is lost."""


@contextmanager
def naming_full_disk(place: object) -> Iterator[None]:
    """Turn the failure to write, wherever in the body it comes from, into one clear error.

    Args:
        place: what was being written to, as far as one knows.

    Raises:
        NoSpace: the disk was full.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_full(error) or isinstance(error, NoSpace):
            raise
        said = (
            str(error)
            if isinstance(error, UserError)
            else (
                f"no space left on the disk of {place}; what was saved there before is whole. "
                "Make room and give the same command again: it continues"
            )
        )
        raise NoSpace(said) from error


def is_disk_full(failure: BaseException) -> bool:
    """Whether it, or what caused it, says that there is no space left."""
    current: BaseException | None = failure
    while current is not None:
        if isinstance(current, NoSpace) or getattr(current, "errno", None) in FULL:
            return True
        current = current.__cause__ or current.__context__
    return False


def unknown(kind: str, given: str, known: Iterable[str]) -> UserError:
    """Return (not raise) the error for a name that is not known, with the nearest known names."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return UserError(f"unknown {kind} {given!r}.{hint} Known: {', '.join(names) or '(none)'}")
