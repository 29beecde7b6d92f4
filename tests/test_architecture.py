"""Who may import whom, and that planning stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("mae_bench", "backbones", "tasks", "configs")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
ENGINES = {
    "detectron2": ("tasks.detection", "backbones.detectron2", "configs.detection"),
    "mmseg": ("tasks.segmentation", "backbones.mmseg", "configs.segmentation"),
}
SHARED = ("tasks.data", "tasks.distributed", "tasks.engine")
# The harness from the bottom up: a module imports only what stands in a lower line.
LAYERS = (
    ("errors", "claims", "significance"),
    ("records", "registry", "cluster", "devices"),
    ("recipes", "job", "provenance", "published"),
    ("hashing", "selection", "sharing", "flops", "accumulation", "protocol"),
    ("cost",),
    ("plan",),
    ("deviations",),
    ("workspace", "aggregate", "ranks", "schedule"),
    ("runner", "report", "progress", "request", "grouping"),
    ("preload", "overview", "doctor", "worker", "collection"),
    ("placing", "comparison", "lint"),
    ("crew", "processes", "slurm_job"),
    ("launchers", "slurm"),
    ("slurm_watch",),
    ("launch",),
    ("session", "cleaning"),
    ("printing",),
    ("work_cli", "backbones_cli"),
    ("data_cli", "report_cli"),
    ("cli",),
    ("__main__",),
)
LAYER = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(path: Path, top_level: bool = False) -> Iterator[str]:
    """Yield every imported module as "package.module" (and "package.module.name")."""
    tree = ast.parse(path.read_text(), filename=str(path))
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def task_of(module: str) -> str:
    """The task a module belongs to ("tasks.detection.config" -> "tasks.detection")."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    for name in imports(MODULES[module]):
        if within(module, "backbones"):
            assert not within(name, "tasks", "configs"), name
        if within(module, "configs.tables"):
            allowed = ("mae_bench.records", "configs.tables")
            assert not within(name, *PACKAGES) or within(name, *allowed), name
        if within(module, "tasks"):
            harness = ("errors", "registry", "records", "job", "recipes", "provenance")
            allowed = [f"mae_bench.{part}" for part in harness]
            assert not within(name, "mae_bench") or within(name, *allowed), name
        if within(module, "mae_bench") and within(name, "mae_bench"):
            lower, higher = name.split(".")[1:2] or ["errors"], module.split(".")[1:2] or ["cli"]
            if lower[0] in LAYER and lower != higher:
                assert LAYER[lower[0]] < LAYER[higher[0]], name


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("tasks.")])
def test_tasks_do_not_import_each_other(module: str) -> None:
    for name in imports(MODULES[module]):
        if within(name, "tasks") and name in MODULES and name != "tasks":
            assert within(name, *SHARED, task_of(module)), name


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_have_few_importers(engine: str) -> None:
    importers = {
        module for module, path in MODULES.items() if any(within(n, engine) for n in imports(path))
    }
    assert importers, f"nobody imports {engine}"
    assert all(within(module, *ENGINES[engine]) for module in importers), importers


def test_every_module_of_the_harness_has_its_layer() -> None:
    names = {name.split(".")[1] for name in MODULES if name.startswith("mae_bench.")}
    assert names == set(LAYER)


def test_no_junk_drawers() -> None:
    parts = {part for name in MODULES for part in name.split(".")}
    assert not parts & {"utils", "util", "common", "misc", "helpers"}


@pytest.mark.parametrize("name", ["mae_bench", "tasks", "tasks.pretraining", "tasks.data"])
def test_planning_does_not_name_torch_at_the_top(name: str) -> None:
    modules = [m for m in MODULES if m == name or (name == "mae_bench" and within(m, name))]
    for module in modules:
        assert not any(within(n, "torch") for n in imports(MODULES[module], top_level=True)), module


HEAVY = ("torch", "timm", "mmengine", "mmseg", "detectron2", "cv2", "matplotlib", "pandas")


@pytest.mark.parametrize(
    "arguments", [["reproduce", "transfer", "--dry-run"], ["--help"], ["backbones", "list"]]
)
def test_light_commands_stay_light(arguments: list[str], tmp_path) -> None:
    script = (
        "import sys, time; start = time.perf_counter()\n"
        "from mae_bench.cli import main\n"
        f"code = main({arguments!r}); seconds = time.perf_counter() - start\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
        "sys.exit(code)"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")
