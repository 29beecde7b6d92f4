"""As a program: a small `reproduce` with a task of each kind, killed again and again.

    python kills.py WORK_DIR KILLS SEED SECONDS

Each attempt is killed at a random moment within SECONDS, the last one is left alone.

One process imports everything once and forks each attempt, so that the time goes into what is to be
killed and not into imports; everything else is the real thing.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil

COMMAND = [
    *("reproduce", "table4", "table7", "--smoke", "--workers", "2"),
    *("--only", "init=mae-dvae-token|supervised"),
    *("--set", "solver.iterations=6", "--set", "solver.save_every=2"),
]
SMALL = {
    "mini-imagenet": {"train_per_class": 12, "val_per_class": 2},
    "mini-coco": {"num_train": 12, "num_val": 4},
    "mini-ade20k": {"num_train": 12, "num_val": 4},
}


def prepare() -> None:
    """Import what runs need, make the data sets small, and fork runs from here."""
    os.environ["MAE_BENCH_PRELOAD"] = "tokenizer pretraining supervised classification detection"
    os.environ["MAE_BENCH_PRELOAD"] += " segmentation"
    from mae_bench import launchers, preload  # noqa: F401
    from tasks import data

    for name, sizes in SMALL.items():
        known = data.DATASETS[name]
        data.DATASETS[name] = replace(known, spec=replace(known.spec, **sizes))
    launchers._fork_server = lambda tasks: multiprocessing.get_context("fork")


def attempt(work_dir: Path) -> int:
    """Begin a `reproduce` in a process of its own; returns its id."""
    child = os.fork()
    if child:
        return child
    from mae_bench import cli

    os.setsid()
    with (work_dir / "output.txt").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        out = ["--work-dir", str(work_dir / "work"), "--out", str(work_dir / "report")]
        os._exit(cli.main([*COMMAND, *out]))


def kill_tree(pid: int) -> None:
    """Kill a process with all that it has started, all at once."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    os.waitpid(pid, 0)
    psutil.wait_procs(family, timeout=20)


def main(work_dir: Path, kills: int, seed: int, seconds: float) -> None:
    """Kill so many attempts, let one more end; prints its exit code and how long it took."""
    work_dir.mkdir(exist_ok=True)
    prepare()
    moments = random.Random(seed)
    for _ in range(kills):
        child = attempt(work_dir)
        time.sleep(moments.uniform(0.0, seconds))
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "all was done before it could be killed"
        kill_tree(child)
    started = time.monotonic()
    _, status = os.waitpid(attempt(work_dir), 0)
    print(os.waitstatus_to_exitcode(status), time.monotonic() - started)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
