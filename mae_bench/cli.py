"""The command line. Errors are one line and exit code 2; nothing heavy is imported up front."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mae_bench.errors import UserError, unknown
from mae_bench.plan import TABLES, TOKENIZER_INIT, check_scale
from mae_bench.progress import make_console
from mae_bench.recipes import list_recipes, parse_override
from mae_bench.records import Scale, Setting
from mae_bench.request import Request, Single

app = typer.Typer(
    help="Does it transfer? The MAE paper's transfer tables for any pretrained ViT.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
backbones_app = typer.Typer(help="Encoders.", no_args_is_help=True)
data_app = typer.Typer(help="Datasets.", no_args_is_help=True)
app.add_typer(backbones_app, name="backbones")
app.add_typer(data_app, name="data")

WorkDir = Annotated[Path, typer.Option(help="Where runs, records and logs go.")]
DataRoot = Annotated[
    Path | None, typer.Option(help="Where the datasets are  [default: WORK_DIR/data]")
]
ScaleName = Annotated[str, typer.Option(help="mini or paper.")]
Seed = Annotated[int, typer.Option(help="Seed of the run and of what it needs.")]
Sets = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a recipe key; TASK:KEY for one task."
    ),
]
Backbone = Annotated[str, typer.Option(help="See `mae-bench backbones list`.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Runs at a time  [default: number of cores]")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the graph of runs and stop.")]
Smoke = Annotated[
    bool, typer.Option("--smoke", help="Two iterations of everything; the numbers mean nothing.")
]
Force = Annotated[bool, typer.Option("--force", help="Repeat runs that are done.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the report  [default: report]")]
WORK_DIR = Path("work_dirs")
MINI_BACKBONE = "vit_mini_patch8"
MAX_SEED = 2**32 - 1  # NumPy's


@app.command()
def reproduce(
    tables: Annotated[list[str], typer.Argument(help=f"{', '.join(TABLES)}, transfer or all.")],
    scale: ScaleName = "mini",
    data_root: DataRoot = None,
    work_dir: WorkDir = WORK_DIR,
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "0",
    only: Annotated[
        list[str],
        typer.Option(
            metavar="FIELD=GLOB", help="Only these cells, e.g. 'init=mae*'; given twice: both."
        ),
    ] = [],  # noqa: B006 (typer copies it)
    launcher: Annotated[str, typer.Option(help="local.")] = "local",
    workers: Workers = None,
    init: Annotated[
        list[str],
        typer.Option(metavar="NAME=CHECKPOINT", help="Weights from a file instead of a training."),
    ] = [],  # noqa: B006
    overrides: Sets = [],  # noqa: B006
    dry_run: DryRun = False,
    smoke: Smoke = False,
    force: Force = False,
    out: Out = None,
) -> None:
    """Train and score what the tables need, print them, write the report."""
    from mae_bench import launchers, session

    launchers.check_launcher(launcher)
    request = Request(
        tables=tuple(tables),
        scale=check_scale(scale),
        seeds=_seeds(seeds),
        data_root=(data_root or work_dir / "data").absolute(),
        only=tuple(only),
        overrides=dict(parse_override(text) for text in overrides),
        smoke=smoke,
        inits=dict(_init(text) for text in init),
    )
    out = out or (work_dir / "smoke-report" if smoke else Path("report"))
    options = session.Options(work_dir, workers or _cores(), force, out, _command())
    _finish(session.dry_run(request, options) if dry_run else session.run(request, options))


@app.command()
def pretrain(
    target: Annotated[str, typer.Option(help="What MAE reconstructs.")] = "norm-pixel",
    tokenizer: Annotated[
        Path | None, typer.Option(help="For the target dvae-token: ours, or DALL-E's encoder.")
    ] = None,
    backbone: Backbone = MINI_BACKBONE,
    scale: ScaleName = "mini",
    seed: Seed = 0,
    data_root: DataRoot = None,
    work_dir: WorkDir = WORK_DIR,
    overrides: Sets = [],  # noqa: B006
    dry_run: DryRun = False,
    smoke: Smoke = False,
    force: Force = False,
) -> None:
    """Pretrain one backbone with MAE and say where its checkpoint is."""
    from tasks.pretraining import TARGETS

    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    single = Single(init=f"mae-{target}", backbone=_backbone(backbone))
    inits = {TOKENIZER_INIT: tokenizer} if tokenizer else {}
    _single(single, scale, seed, data_root, work_dir, overrides, dry_run, smoke, force, inits)


@app.command()
def transfer(
    task: Annotated[str, typer.Option(help="classification, detection or segmentation.")],
    dataset: Annotated[str, typer.Option(help="See `mae-bench data list`.")],
    backbone: Backbone = MINI_BACKBONE,
    init: Annotated[str | None, typer.Option(help="Where the weights come from.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Or: a file with the weights.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Below configs/, e.g. detection/mini.")] = None,
    scale: ScaleName = "mini",
    seed: Seed = 0,
    data_root: DataRoot = None,
    work_dir: WorkDir = WORK_DIR,
    overrides: Sets = [],  # noqa: B006
    dry_run: DryRun = False,
    smoke: Smoke = False,
    force: Force = False,
) -> None:
    """Train and score one backbone on one task."""
    from tasks import data

    data.get_dataset(dataset)
    if (init is None) == (checkpoint is None):
        raise UserError("give either --init NAME or --checkpoint FILE (one of them, not both)")
    inits = {checkpoint.stem: checkpoint} if checkpoint else {}
    setting = Setting(
        dataset=dataset,
        backbones=(_backbone(backbone),),
        recipe=_recipe(task, recipe, check_scale(scale)),
    )
    data.check_use(dataset, task)
    name = init or next(iter(inits))
    single = Single(init=name, backbone=backbone, task=task, setting=setting)
    _single(single, scale, seed, data_root, work_dir, overrides, dry_run, smoke, force, inits)


@app.command()
def status(work_dir: WorkDir = WORK_DIR) -> None:
    """Say what is done, running, failed and missing of what was asked for last."""
    from mae_bench import overview
    from mae_bench.workspace import Workspace

    workspace = Workspace(work_dir)
    view = overview.status(Request.read(workspace).plan(), workspace)
    make_console().print(overview.render_status(view))


@app.command()
def report(
    work_dir: WorkDir = WORK_DIR,
    out: Out = None,
    formats: Annotated[
        str, typer.Option("--format", help="Comma-separated: html, md, tex, csv, json.")
    ] = "html,md,tex,csv,json",
) -> None:
    """Write the report of what was asked for last, as far as it is there."""
    from mae_bench import session
    from mae_bench.workspace import Workspace

    workspace = Workspace(work_dir)
    request = Request.read(workspace)
    names = [name.strip() for name in formats.split(",")]
    written = session.report(request, workspace, out or Path("report"), names)
    typer.echo("\n".join(str(path) for path in written))


@app.command()
def doctor(work_dir: WorkDir = WORK_DIR) -> None:
    """Say what is installed, what fits together, and how to fix what does not."""
    from mae_bench import doctor as examination

    findings = examination.examine(work_dir)
    make_console().print(examination.render(findings))
    _finish(all(finding.fits for finding in findings))


@app.command()
def visualize(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    checkpoint: Annotated[Path, typer.Option(help="Of an MAE pretraining.")],
    out: Annotated[Path, typer.Option(help="The figure to write.")],
    mask_ratio: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.75,
    seed: Annotated[int, typer.Option(help="Of the mask.")] = 0,
) -> None:
    """Draw what an MAE sees, what it reconstructs, and the original."""
    for path in (checkpoint, *images):
        if not path.is_file():
            raise UserError(f"{path}: there is no such file")
    from tasks.pretraining.visualize import visualize as draw

    draw(checkpoint, images, out, mask_ratio, seed)
    typer.echo(out)


@backbones_app.command("list")
def list_backbones() -> None:
    """Print the names that --backbone knows."""
    from backbones import list_backbones as names

    typer.echo("\n".join(names()))


@data_app.command("list")
def list_data() -> None:
    """Print the names of the datasets."""
    from tasks.data import DATASETS

    typer.echo("\n".join(DATASETS))


@data_app.command("prepare")
def prepare_data(
    name: Annotated[str, typer.Argument(help="mini (all of the miniature) or a dataset.")],
    data_root: Annotated[Path, typer.Option(help="Where to put it.")] = WORK_DIR / "data",
) -> None:
    """Generate the miniature datasets, unless they are there."""
    from mae_bench.workspace import require_space
    from tasks import data

    mini = [known for known in data.DATASETS if known.startswith("mini-")]
    if name != "mini" and name not in data.DATASETS:
        raise unknown("dataset", name, ["mini", *data.DATASETS])
    require_space(data_root, "--data-root")
    for dataset in mini if name == "mini" else [name]:
        data.prepare(dataset, data_root)
        typer.echo(data_root / dataset)


def _single(
    single: Single,
    scale: str,
    seed: int,
    data_root: Path | None,
    work_dir: Path,
    overrides: Sequence[str],
    dry_run: bool,
    smoke: bool,
    force: bool,
    inits: dict[str, Path],
) -> None:
    from mae_bench import session

    request = Request(
        single=single,
        scale=check_scale(scale),
        seeds=_seeds(str(seed)),
        data_root=(data_root or work_dir / "data").absolute(),
        overrides=dict(parse_override(text) for text in overrides),
        smoke=smoke,
        inits=inits,
    )
    options = session.Options(work_dir, _cores(), force, None, _command())
    _finish(session.dry_run(request, options) if dry_run else session.run(request, options))


def _seeds(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"seeds {text!r}: non-negative integers are needed, as in --seeds 0,1,2")
    seeds = tuple(dict.fromkeys(int(part) for part in parts))
    if max(seeds) > MAX_SEED:
        raise UserError(f"seed {max(seeds)} is too large; {MAX_SEED} is the largest")
    return seeds


def _init(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UserError(f"--init {text!r} is not of the form NAME=CHECKPOINT")
    return name, Path(path)


def _backbone(name: str) -> str:
    from backbones import list_backbones as names

    if name not in names():
        raise unknown("backbone", name, names())
    return name


def _recipe(task: str, given: str | None, scale: Scale) -> str:
    """Return the recipe asked for, or the first that the task has for this scale."""
    from tasks import TASKS
    from tasks.pretraining import INITS, TOKENIZER

    transfers = set(TASKS) - {init.task for init in [*INITS.values(), TOKENIZER]}
    if task not in transfers:
        raise unknown("task", task, transfers)
    own = [name for name in list_recipes() if name.startswith(f"{task}/")]
    if given is not None and given not in own:
        raise unknown(f"recipe for {task}", given, own)
    fitting = [given] if given else [name for name in own if name.startswith(f"{task}/{scale}")]
    if not fitting:
        raise UserError(f"{task} has no {scale} recipe. Known: {', '.join(own)}")
    return fitting[0]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _command() -> str:
    return shlex.join(["mae-bench", *sys.argv[1:]])


def _finish(good: bool) -> None:
    raise typer.Exit(0 if good else 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 good, 1 something failed, 2 bad input."""
    try:
        code = app(args=arguments, prog_name="mae-bench", standalone_mode=False)
    except UserError as error:
        return _complain(str(error))
    except PermissionError as error:
        return _complain(f"no permission for {error.filename}; give a folder that is yours")
    except (KeyboardInterrupt, typer.Abort):
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    except Exception as error:
        # The class of typer's usage errors has moved between its releases.
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        if "\n" not in message:
            return _complain(message)
        # A command without its arguments: the message is its help.
        print(message, file=sys.stderr)
        return 2
    return code if isinstance(code, int) else 0


def _complain(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2
