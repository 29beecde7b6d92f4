"""What runs cost: as measured where runs like them are done, else by formula and a stated speed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from mae_bench.flops import NUM_TRAIN, model_of, training_flops
from mae_bench.records import Record, Run, Scale, Strict
from tasks import WITHOUT_WEIGHTS
from tasks.data.extent import Extent

# What MAE reconstructs hardly changes how long a run takes.
IGNORED = frozenset({"model.target"})


class Speed(NamedTuple):
    """What a device computes in a training, all told: far below what its maker says."""

    flops_per_second: float
    device: str
    on_gpu: bool
    source: str


# The first is 1.27e20 FLOPs by the formula of `flops` over 64 x 42 h.
STATED: dict[Scale, Speed] = {
    "paper": Speed(
        13e12,
        "V100",
        True,
        "13 TFLOP/s on a V100: ViT-L, 800 epochs of MAE in 42 h on 64 of them "
        "(facebookresearch/mae PRETRAIN.md)",
    ),
    "mini": Speed(
        40e9,
        "CPU core",
        False,
        "40 GFLOP/s on a core: 37 in detection, 55 in segmentation on a Xeon with AVX-512",
    ),
}
BYTES = 4
# Part of a run's length from which on another one tells its speed: a short one is mostly start-up.
COMPARABLE = 0.1
# Weights and AdamW's two moments; the last state, the one before, and the one being written.
STATE, STATES = 3, 3


class Cost(Strict):
    """Of one run; None where nobody knows.

    Attributes:
        flops: of the training, forward and backward, without evaluation.
        seconds: from start to end.
        gpu_hours, core_hours: one of them, of all its devices together.
        device: what the hours are of.
        disk_bytes: that stay; `peak_disk_bytes`: while it runs.
        source: where time and hours come from.
    """

    flops: float | None = None
    seconds: float | None = None
    gpu_hours: float | None = None
    core_hours: float | None = None
    device: str | None = None
    disk_bytes: int | None = None
    peak_disk_bytes: int | None = None
    source: str = "unknown"


class Estimates:
    """Expectations of runs, from finished runs of the same task, backbone and recipe.

    Args:
        folder: of the runs' folders, to measure their size; None to go by formula.
        extent: of a dataset that is not a published one; None where nobody can say.
    """

    def __init__(
        self,
        records: Iterable[Record] = (),
        folder: Path | None = None,
        extent: Callable[[str], Extent | None] = lambda dataset: None,
    ):
        self._folder, self._extent = folder, extent
        self._done: dict[str, list[Record]] = {}
        self._alike: dict[tuple[str, str], list[Record]] = {}
        self._speeds: dict[tuple[str, str, float], Speed | None] = {}
        self._sizes: dict[str, int] = {}
        self._measured: dict[str, dict[str, Any]] = {}
        for record in records:
            self.learn(record)

    def learn(self, record: Record) -> None:
        """Take in one more record."""
        if record.status == "ok":
            run = record.run
            kind = _kind(run)
            self._done.setdefault(kind, []).append(record)
            self._measured.pop(kind, None)
            self._speeds.clear()
            self._alike.setdefault((run.task, run.backbone), []).append(record)

    def of(self, run: Run) -> float | None:
        """Return the expected seconds, None if no such run has finished yet."""
        measured = self._of_kind(_kind(run))
        return measured["seconds"] if measured else None

    def gpu_memory_mb(self, run: Run) -> float | None:
        """Return the largest peak of GPU memory of such runs, None if none was measured."""
        peaks = [r.provenance.peak_gpu_memory_mb for r in self._done.get(_kind(run), [])]
        return max((peak for peak in peaks if peak is not None), default=None)

    def left(self, run: Run, elapsed: float, progress: dict[str, Any]) -> float | None:
        """Return the seconds that a running run still needs; None if nothing is known."""
        expected = self.of(run)
        if expected is not None and elapsed < expected:
            return expected - elapsed
        step, total = progress.get("step", 0), progress.get("total", 0)
        return elapsed * (total - step) / step if step else None

    def cost(self, run: Run, scale: Scale) -> Cost:
        """Return what a run is expected to cost."""
        flops, kept, peak = self._flops(run), *_disk(run)
        kind = _kind(run)
        measured = self._of_kind(kind)
        if measured:
            kept = self._size(kind, self._done[kind][-1]) or kept
            return Cost(flops=flops, disk_bytes=kept, peak_disk_bytes=peak, **measured)
        if flops is None:
            return Cost(disk_bytes=kept, peak_disk_bytes=peak, source=_why_unknown(run))
        like = (run.task, run.backbone, flops)
        if like not in self._speeds:
            self._speeds[like] = self._speed(*like)
        speed = self._speeds[like] or STATED[scale]
        seconds = flops / speed.flops_per_second
        return Cost(
            flops=flops,
            # On how many devices a stated figure will be run, nobody knows.
            seconds=None if speed.on_gpu and speed == STATED[scale] else seconds,
            gpu_hours=seconds / 3600 if speed.on_gpu else None,
            core_hours=None if speed.on_gpu else seconds / 3600,
            device=speed.device,
            disk_bytes=kept,
            peak_disk_bytes=peak,
            source=speed.source,
        )

    def _of_kind(self, kind: str) -> dict[str, Any] | None:
        """What finished runs of a kind took, worked out once until there is one more."""
        if kind not in self._measured and kind in self._done:
            self._measured[kind] = _measured(self._done[kind])
        return self._measured.get(kind)

    def _speed(self, task: str, backbone: str, flops: float) -> Speed | None:
        """Of finished runs of the same task and backbone that are not much shorter."""
        done = self._alike.get((task, backbone), [])
        known = ((self._flops(record.run) or 0.0, record) for record in done)
        counted = [(its, record) for its, record in known if its and its >= COMPARABLE * flops]
        seconds = sum(_device_seconds(record) for _, record in counted)
        if not seconds:
            return None
        device, on_gpu = _device(counted[-1][1])
        source = f"scaled from {_runs(len(counted))} of this task and backbone on {device}"
        return Speed(sum(flops for flops, _ in counted) / seconds, device, on_gpu, source)

    def _flops(self, run: Run) -> float | None:
        return training_flops(run, None if run.dataset in NUM_TRAIN else self._extent(run.dataset))

    def _size(self, kind: str, record: Record) -> int:
        if kind not in self._sizes:
            folder = self._folder and self._folder / record.id
            self._sizes[kind] = folder_bytes(folder) if folder else 0
        return self._sizes[kind]


def _kind(run: Run) -> str:
    sections: list[tuple[str, object]] = []
    for section, values in sorted(run.recipe_values.items()):
        entries = sorted(values.items()) if isinstance(values, dict) else [("", values)]
        sections += [
            (f"{section}.{key}", value)
            for key, value in entries
            if f"{section}.{key}" not in IGNORED
        ]
    solver: Any = run.recipe_values.get("solver", {})
    # How long epochs are is up to the data.
    dataset = run.dataset if solver.get("iterations") is None else None
    return repr((run.task, run.backbone, dataset, sections))


def _why_unknown(run: Run) -> str:
    if model_of(run) is None:
        return f"no formula knows {run.task} with {run.backbone}, the first run that is done tells"
    return f"how many images {run.dataset} has is not known before it is there"


def _measured(done: list[Record]) -> dict[str, Any]:
    device, on_gpu = _device(done[-1])
    hours = fmean(_device_seconds(record) for record in done) / 3600
    return {
        "seconds": fmean(record.provenance.seconds for record in done),
        "gpu_hours": hours if on_gpu else None,
        "core_hours": None if on_gpu else hours,
        "device": device,
        "source": f"measured in {_runs(len(done))} on {device}",
    }


def _device(record: Record) -> tuple[str, bool]:
    hardware = record.provenance.hardware
    return hardware.get("gpu") or hardware.get("cpu", "unknown"), "gpu" in hardware


def _device_seconds(record: Record) -> float:
    return record.provenance.seconds * record.provenance.world_size


def _runs(number: int) -> str:
    return f"{number} run{'s' if number != 1 else ''}"


def _disk(run: Run) -> tuple[int | None, int | None]:
    """Bytes that a run leaves, and that it needs while it runs; records and logs are nothing."""
    if run.task in WITHOUT_WEIGHTS:
        return 0, 0
    model = model_of(run)
    if model is None:
        return None, None
    whole, encoder = model.whole.parameters, model.encoder.parameters
    kept = {
        "classification": 0.0,
        "frozen": 0.0,
        "supervised": encoder,
        "pretraining": encoder + whole,
    }.get(run.task, whole)
    # A frozen encoder is saved with the rest but has no moments.
    moments = whole - (encoder if model.encoder.frozen else 0.0)
    state = whole + (STATE - 1) * moments
    return round(kept * BYTES), round((kept + STATES * state) * BYTES)


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder; 0 if it is not there."""
    total, folders = 0, [str(folder)]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                total += entry.stat(follow_symlinks=False).st_size
    return total
