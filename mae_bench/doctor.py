"""What is installed, what fits together, and the line that fixes what does not.

Imports are tried in a child process, so that a broken library cannot take the doctor along.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from mae_bench.provenance import cpu_model
from mae_bench.workspace import MIN_FREE_BYTES

MIN_MEMORY_BYTES = 4_000_000_000
SECONDS_PER_IMPORT = 300
MARK = "mae-bench-doctor:"


@dataclass(frozen=True)
class Component:
    """A library that runs need.

    Attributes:
        distributions: names it may be installed under, ours first.
        probe: Python that fails where the library is broken; may set `note`.
    """

    name: str
    distributions: tuple[str, ...]
    probe: str


COMPONENTS = (
    Component(
        "torch",
        ("torch",),
        "import torch\n"
        "note = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'",
    ),
    Component(
        "torchvision",
        ("torchvision",),
        "import torch, torchvision.ops\ntorchvision.ops.nms(torch.zeros(1, 4), torch.ones(1), 0.5)",
    ),
    Component("timm", ("timm",), "import timm"),
    Component("mmengine", ("onedl-mmengine", "mmengine"), "import mmengine.runner"),
    Component("mmcv", ("onedl-mmcv", "mmcv"), "import mmcv.cnn"),
    Component(
        "mmseg", ("onedl-mmsegmentation", "mmsegmentation"), "import mmseg.models, backbones.mmseg"
    ),
    Component(
        "detectron2",
        ("pb1-detectron2", "detectron2"),
        "import backbones.detectron2, detectron2.modeling",
    ),
    Component("pycocotools", ("pycocotools",), "import pycocotools.cocoeval"),
)

CHILD = f"""
import json, sys, warnings
warnings.simplefilter("ignore")
for name, probe in json.loads(sys.argv[1]):
    scope, error = {{}}, None
    try:
        exec(probe, scope)
    except BaseException as caught:
        error = f"{{type(caught).__name__}}: {{caught}}".splitlines()[0]
    answer = [name, error, scope.get("note", "")]
    print("\\n{MARK}" + json.dumps(answer), flush=True)
"""


@dataclass(frozen=True)
class Finding:
    """What was found about one thing: a line of the doctor's table."""

    name: str
    found: str
    wanted: str
    fits: bool
    note: str = ""
    fix: str = ""


def examine(work_dir: Path) -> list[Finding]:
    """Return a finding for Python, each component and the machine."""
    answers = _try_imports(COMPONENTS)
    return [
        _python(),
        *(_component(component, *answers[component.name]) for component in COMPONENTS),
        *_machine(work_dir),
    ]


def render(findings: Iterable[Finding]) -> RenderableType:
    """Return the table, and below it a line to type for each thing that does not fit."""
    grid = Grid("", "found", "wanted", "fits", "", box=box.SIMPLE_HEAD, pad_edge=False)
    fixes = []
    for finding in findings:
        fits = Text("yes", "green") if finding.fits else Text("no", "red")
        grid.add_row(finding.name, finding.found, finding.wanted, fits, Text(finding.note))
        if finding.fix and not finding.fits:
            fixes.append(Text(f"fix {finding.name}: {finding.fix}"))
    return Group(grid, *fixes)


def _python() -> Finding:
    wanted = metadata.metadata("mae-bench")["Requires-Python"] or ""
    found = platform.python_version()
    fits = not wanted or Requirement(f"python{wanted}").specifier.contains(found)
    fix = "rm -rf .venv && make setup, with a Python of that version on PATH"
    return Finding("python", found, wanted, fits, sys.executable, fix)


def _requirements() -> dict[str, Requirement]:
    """Distribution -> what our own metadata asks of it."""
    lines = metadata.requires("mae-bench") or []
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def _component(component: Component, error: str | None, note: str) -> Finding:
    versions = {}
    for name in component.distributions:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    ours = component.distributions[0]
    requirement = _requirements().get(ours)
    found = next(iter(versions.values()), "not installed")
    wanted = str(requirement.specifier) if requirement else ""
    # Another distribution of the same library (official detectron2) has its own version numbers.
    fits = ours not in versions or not requirement or requirement.specifier.contains(found)
    return Finding(
        component.name,
        found,
        wanted,
        fits and error is None,
        error or note or "imports",
        f"uv sync --reinstall-package {ours}",
    )


def _try_imports(components: Iterable[Component]) -> dict[str, tuple[str | None, str]]:
    """Return name -> (error or None, note); a component that kills the child is named as such."""
    left = {component.name: component.probe for component in components}
    answers: dict[str, tuple[str | None, str]] = {}
    while left:
        code, output = _run_child(json.dumps(list(left.items())))
        for line in output.splitlines():
            if line.startswith(MARK):
                name, error, note = json.loads(line.removeprefix(MARK))
                answers[name] = (error, note)
                left.pop(name)
        if left:
            crashed = next(iter(left))
            answers[crashed] = (f"importing it ended the process with code {code}", "")
            left.pop(crashed)
    return answers


def _run_child(argument: str) -> tuple[int | str, str]:
    command = [sys.executable, "-c", CHILD, argument]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS_PER_IMPORT, check=False
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        return "none in time", output.decode() if isinstance(output, bytes) else output
    return done.returncode, done.stdout


def _machine(work_dir: Path) -> list[Finding]:
    memory = psutil.virtual_memory().total
    place = next(path for path in (work_dir, *work_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    return [
        Finding("cpu", f"{os.cpu_count()} cores", "", True, cpu_model()),
        Finding(
            "memory",
            _gigabytes(memory),
            f">={_gigabytes(MIN_MEMORY_BYTES)}",
            memory >= MIN_MEMORY_BYTES,
            fix="use --workers 1, or a machine with more memory",
        ),
        Finding(
            "disk",
            f"{_gigabytes(free)} free",
            f">={_gigabytes(MIN_FREE_BYTES)}",
            free >= MIN_FREE_BYTES,
            str(place),
            "make room, or give another --work-dir",
        ),
    ]


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
