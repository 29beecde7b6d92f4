"""Where a number was made: code, packages, machine, and what the run took from it.

Everything is asked of this machine; what it does not tell is left out, never guessed.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from mae_bench.records import Provenance, Run, content_hash

PACKAGES = (
    "mae-bench",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "onedl-mmengine",
    "onedl-mmcv",
    "onedl-mmsegmentation",
    "pb1-detectron2",
    "detectron2",
    "pycocotools",
    "opencv-python-headless",
)
# What of a checkout can change a number; a report or a work folder beside it cannot.
SOURCES = ("mae_bench", "backbones", "tasks", "configs", "third_party", "pyproject.toml")
GPU_ORDER = (
    "cuDNN may choose another algorithm each time (torch.backends.cudnn.deterministic is off)",
    "backward passes that add atomically on the GPU (interpolation, RoIAlign, indexing) sum in "
    "any order (torch.use_deterministic_algorithms is off)",
)


@dataclass(frozen=True)
class Usage:
    """What a run took from the machine; NaN and None where nobody knows.

    Attributes:
        peak_memory_mb: resident memory of the run's process.
        peak_gpu_memory_mb: memory that torch had allocated on the GPU.
        energy_joules: of the GPU while the run went on, others' work on it included.
    """

    peak_memory_mb: float = math.nan
    peak_gpu_memory_mb: float | None = None
    energy_joules: float | None = None


class Meter:
    """Measures this process's run from now on.

    Args:
        fresh: the run begins here. The energy of one that continues an interrupted attempt would
            be a part of it only, so none is told.
    """

    def __init__(self, fresh: bool = True):
        code_version()  # now, not when the run ends: somebody may edit the sources meanwhile
        self._energy = _gpu_energy() if fresh else None

    def read(self) -> Usage:
        """Return what was used so far."""
        before, now = self._energy, _gpu_energy()
        torch = _torch_on_gpu()
        return Usage(
            peak_memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            peak_gpu_memory_mb=torch.cuda.max_memory_allocated() / 2**20 if torch else None,
            energy_joules=None if before is None or now is None else now - before,
        )


def collect(
    run: Run,
    command: str,
    started: float,
    seconds: float,
    usage: Usage,
    phases: Mapping[str, float],
    weights_sha256: Mapping[str, str],
) -> Provenance:
    """Return the provenance of a run that has just ended, in this process or in one that died.

    Args:
        started: Unix time of its (last) start.
        seconds: spent on it, interrupted attempts included.
        phases: phase -> seconds, as far as the task has told; the rest becomes "other".
        weights_sha256: role -> hash of the file that it started from.
    """
    commit, dirty = code_version()
    told = {name: float(spent) for name, spent in phases.items()}
    return Provenance(
        started=utc(started),
        seconds=seconds,
        phases={**told, "other": max(seconds - sum(told.values()), 0.0)},
        peak_memory_mb=usage.peak_memory_mb,
        peak_gpu_memory_mb=usage.peak_gpu_memory_mb,
        energy_joules=usage.energy_joules,
        commit=commit,
        dirty=dirty,
        packages=packages(),
        hardware=hardware(),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        command=command,
        recipe_sha256=content_hash(run.recipe_values),
        weights_sha256=dict(weights_sha256),
        not_deterministic=not_deterministic(),
    )


def utc(seconds: float) -> str:
    """Return a Unix time in ISO 8601, to the second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


@cache
def code_version() -> tuple[str | None, bool | None]:
    """Return the commit of this package and whether its sources have changes since.

    Of the checkout that the package is imported from, whatever folder one stands in; of the
    installer's note if it was installed from a repository; Nones if neither tells.
    """
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) == root:
            return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", *SOURCES))
    except (OSError, subprocess.CalledProcessError):
        pass
    return _installed_commit()


def _installed_commit() -> tuple[str | None, bool | None]:
    """PEP 610: pip and uv note the commit of a package installed from a repository."""
    with suppress(metadata.PackageNotFoundError, ValueError, KeyError):
        note = metadata.distribution("mae-bench").read_text("direct_url.json")
        return json.loads(note or "{}")["vcs_info"]["commit_id"], None
    return None, None


@cache
def packages() -> dict[str, str]:
    """Return the versions of Python and of what changes numbers, where installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def hardware() -> dict[str, str]:
    """Return processor, cores, system; with a GPU also its name, number, driver and CUDA."""
    found = {
        "cpu": cpu_model(),
        "cores": str(os.cpu_count()),
        "machine": platform.machine(),
        "system": platform.platform(terse=True),
    }
    torch = _torch_on_gpu()
    if torch:
        found["gpu"] = torch.cuda.get_device_name()
        found["gpus"] = str(torch.cuda.device_count())
        found["cuda"] = str(torch.version.cuda)
        found["cudnn"] = str(torch.backends.cudnn.version())
        found["driver"] = _driver() or "unknown"
    return found


def not_deterministic() -> tuple[str, ...]:
    """Return what may differ when the same run is repeated on the same machine."""
    found: tuple[str, ...] = ()
    torch = _torch_on_gpu()
    if torch and not torch.are_deterministic_algorithms_enabled():
        found = GPU_ORDER[1:] if torch.backends.cudnn.deterministic else GPU_ORDER
    return found


@cache
def cpu_model() -> str:
    """Return the processor's name, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def _torch_on_gpu() -> Any:
    """torch if this process has imported it and used a GPU; asking must not wake one up."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None


def _nvml() -> Any:
    """NVIDIA's management library, started; None where there is none."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return None
    return pynvml


def _driver() -> str | None:
    nvml = _nvml()
    return str(nvml.nvmlSystemGetDriverVersion()) if nvml else None


def _gpu_energy() -> float | None:
    """Joules that the first visible GPU has used since its driver started."""
    nvml = _nvml()
    if nvml is None:
        return None
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    with suppress(Exception):
        by_index = first.isdecimal()
        find = nvml.nvmlDeviceGetHandleByIndex if by_index else nvml.nvmlDeviceGetHandleByUUID
        device = find(int(first) if by_index else first)
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(device)) / 1000
    return None
