"""The one error a user sees, and the "did you mean" behind it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: what was wrong, the value given, what is allowed, what to do.

    The command line prints it as one line and exits with code 2, without a traceback.
    """


def unknown(kind: str, given: str, known: Iterable[str]) -> UserError:
    """Return (not raise) the error for a name that is not known, with the nearest known names."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return UserError(f"unknown {kind} {given!r}.{hint} Known: {', '.join(names) or '(none)'}")
