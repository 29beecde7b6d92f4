"""Imported once by the fork server: the engines that runs need, so that each starts in no time.

Forking after these imports is safe because importing starts no thread and touches no GPU. What
cannot be imported is left to the run that needs it, whose log then says why.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import warnings

import mae_bench.runner  # noqa: F401
from tasks import TASKS

VARIABLE = "MAE_BENCH_PRELOAD"
# What mmengine's Runner imports only when one is built, 2 s of each run.
LIBRARIES = (
    "mmcv",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "setuptools",
    "yapf.yapflib.yapf_api",
)


def preload(names: list[str]) -> None:
    """Import torch and these tasks with what they need, quietly."""
    with (
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        known = [name for name in names if name in TASKS]
        for library in ("torch", *(LIBRARIES if known else ())):
            with contextlib.suppress(Exception):
                importlib.import_module(library)
        for name in known:
            with contextlib.suppress(Exception):
                TASKS[name]


if VARIABLE in os.environ:
    # Who ends a whole group of processes wants the runs to stop, which the launcher sees to. Were
    # the server gone, the launcher would take all of them for dead.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    preload(os.environ[VARIABLE].split())
