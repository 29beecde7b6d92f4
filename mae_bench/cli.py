"""The command line. Errors are one line and exit code 2; nothing heavy is imported up front."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mae_bench import backbones_cli, data_cli, report_cli, work_cli
from mae_bench.errors import UserError, naming_full_disk, unknown
from mae_bench.launch import Launch, launching
from mae_bench.plan import START_INIT, TABLES, TOKENIZER_INIT, check_scale
from mae_bench.progress import make_console
from mae_bench.recipes import list_recipes, parse_override
from mae_bench.records import Scale, Setting
from mae_bench.report_cli import Out
from mae_bench.request import Request, Single, parse_inits, parse_seeds
from mae_bench.work_cli import WORK_DIR, WorkDir

if TYPE_CHECKING:
    from mae_bench import session

app = typer.Typer(
    help="Does it transfer? The MAE paper's transfer tables for any pretrained ViT.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(backbones_cli.app, name="backbones")
app.add_typer(data_cli.app, name="data")

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
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the graph of runs with their costs, and stop.")
]
Format = Annotated[str, typer.Option("--format", help="Of --dry-run: text or json.")]
Smoke = Annotated[
    bool, typer.Option("--smoke", help="Two iterations of everything; the numbers mean nothing.")
]
Force = Annotated[bool, typer.Option("--force", help="Repeat runs that are done.")]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Try runs again that failed before.")
]
FORMATS = ("text", "json")
MINI_BACKBONE = "vit_mini_patch8"


@app.command()
@launching
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
    init: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[:FORMAT]=FILE",
            help="Weights from a file instead of a training; its format, if not to be detected.",
        ),
    ] = [],  # noqa: B006
    overrides: Sets = [],  # noqa: B006
    dry_run: DryRun = False,
    format: Format = "text",
    smoke: Smoke = False,
    force: Force = False,
    retry_failed: RetryFailed = False,
    out: Out = None,
    *,
    launch: Launch,
) -> None:
    """Train and score what the tables need, print them, write the report."""
    from mae_bench import session

    request = Request(
        tables=tuple(tables),
        scale=check_scale(scale),
        seeds=parse_seeds(seeds),
        data_root=(data_root or work_dir / "data").absolute(),
        only=tuple(only),
        overrides=dict(parse_override(text) for text in overrides),
        smoke=smoke,
        **parse_inits(init),
    )
    out = out or (work_dir / "smoke-report" if smoke else Path("report"))
    options = session.Options(work_dir, launch, force, out, _command(), retry_failed)
    _go(request, options, _shown(dry_run, format))


@app.command()
@launching
def pretrain(
    target: Annotated[
        str | None, typer.Option(help="What MAE reconstructs.  [default: norm-pixel]")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="Instead of MAE on a target: supervised, another init, or tokenizer."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="For the target dvae-token: ours, or DALL-E's encoder.")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(help="Continue from this mae.safetensors (or .pth), with a new schedule."),
    ] = None,
    backbone: Backbone = MINI_BACKBONE,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Own images: imagefolder:DIR, filelist:FILE, tar:DIR  [default: the scale's]"
        ),
    ] = None,
    scale: ScaleName = "mini",
    seed: Seed = 0,
    data_root: DataRoot = None,
    work_dir: WorkDir = WORK_DIR,
    overrides: Sets = [],  # noqa: B006
    dry_run: DryRun = False,
    format: Format = "text",
    smoke: Smoke = False,
    force: Force = False,
    *,
    launch: Launch,
) -> None:
    """Pretrain one backbone, by default with MAE, and say where its checkpoint is."""
    from tasks import data

    if dataset is not None:
        dataset = data.absolute(dataset)
        data.check_use(dataset, "pretraining")
    init = _pretrained(init, target)
    if tokenizer and init != "mae-dvae-token":
        raise UserError(f"{init} needs no tokenizer; --tokenizer goes with --target dvae-token")
    single = Single(init=init, backbone=_backbone(backbone), dataset=dataset)
    files = {TOKENIZER_INIT: tokenizer, START_INIT: start}
    inits = {name: path for name, path in files.items() if path}
    shown = _shown(dry_run, format)
    _single(single, scale, seed, data_root, work_dir, overrides, shown, smoke, force, launch, inits)


@app.command()
@launching
def transfer(
    task: Annotated[str, typer.Option(help="classification, frozen, detection or segmentation.")],
    dataset: Annotated[str, typer.Option(help="See `mae-bench data list`.")],
    backbone: Backbone = MINI_BACKBONE,
    init: Annotated[str | None, typer.Option(help="Where the weights come from.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Or: a file with the weights.")] = None,
    checkpoint_format: Annotated[
        str | None, typer.Option(help="Of that file (mae, timm, ...); detected when left out.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Below configs/, e.g. detection/mini.")] = None,
    scale: ScaleName = "mini",
    seed: Seed = 0,
    data_root: DataRoot = None,
    work_dir: WorkDir = WORK_DIR,
    overrides: Sets = [],  # noqa: B006
    dry_run: DryRun = False,
    format: Format = "text",
    smoke: Smoke = False,
    force: Force = False,
    *,
    launch: Launch,
) -> None:
    """Train and score one backbone on one task."""
    from tasks import data

    dataset = data.absolute(dataset)
    data.get_dataset(dataset)
    if (init is None) == (checkpoint is None):
        raise UserError("give either --init NAME or --checkpoint FILE (one of them, not both)")
    if checkpoint_format and not checkpoint:
        raise UserError("--checkpoint-format is of a file: give --checkpoint FILE, too")
    inits = {checkpoint.stem: checkpoint} if checkpoint else {}
    formats = {checkpoint.stem: checkpoint_format} if checkpoint and checkpoint_format else {}
    setting = Setting(
        dataset=dataset,
        backbones=(_backbone(backbone, task),),
        recipe=_recipe(task, recipe, check_scale(scale), data.is_source(dataset)),
    )
    data.check_use(dataset, task)
    name = init or next(iter(inits))
    single = Single(init=name, backbone=backbone, task=task, setting=setting)
    shown = _shown(dry_run, format)
    _single(
        single,
        scale,
        seed,
        data_root,
        work_dir,
        overrides,
        shown,
        smoke,
        force,
        launch,
        inits,
        formats,
    )


for verb in (work_cli.status, report_cli.report, work_cli.clean):
    app.command()(verb)


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
    checkpoint: Annotated[
        Path,
        typer.Option(help="mae.safetensors of a pretraining, or a file of MAE's with decoder."),
    ],
    out: Annotated[Path, typer.Option(help="The figure to write: .png, .pdf or .svg.")],
    mask_ratio: Annotated[
        list[float] | None,
        typer.Option(min=0.0, max=1.0, help="Given twice: both in one figure.  [default: 0.75]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the mask.")] = 0,
    target: Annotated[
        str | None, typer.Option(help="For a file of MAE's: pixel or norm-pixel.")
    ] = None,
) -> None:
    """Draw what an MAE sees, what it reconstructs, and the original."""
    for path in (checkpoint, *images):
        if not path.is_file():
            raise UserError(f"{path}: there is no such file")
    from tasks.pretraining.visualize import visualize as draw

    notes = draw(checkpoint, images, out, mask_ratio or [0.75], seed, target)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(out)


def _pretrained(init: str | None, target: str | None) -> str:
    """Return the init that `pretrain` is asked for."""
    from tasks.pretraining import TARGETS

    if init and target:
        raise UserError("give either --target or --init (one of them, not both)")
    target = target or "norm-pixel"
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    return init or f"mae-{target}"


def _single(
    single: Single,
    scale: str,
    seed: int,
    data_root: Path | None,
    work_dir: Path,
    overrides: Sequence[str],
    shown: str | None,
    smoke: bool,
    force: bool,
    launch: Launch,
    inits: dict[str, Path],
    formats: dict[str, str] | None = None,
) -> None:
    from mae_bench import session

    request = Request(
        single=single,
        scale=check_scale(scale),
        seeds=parse_seeds(str(seed)),
        data_root=(data_root or work_dir / "data").absolute(),
        overrides=dict(parse_override(text) for text in overrides),
        smoke=smoke,
        inits=inits,
        formats=formats or {},
    )
    # Who gives the command for a single run again wants it tried again.
    options = session.Options(work_dir, launch, force, None, _command(), retry_failed=True)
    _go(request, options, shown)


def _shown(dry_run: bool, format: str) -> str | None:
    """Return how the plan is to be shown; None to carry it out."""
    if format not in FORMATS:
        raise unknown("format of --dry-run", format, FORMATS)
    if format != FORMATS[0] and not dry_run:
        raise UserError(f"--format {format} is for --dry-run; reports have `mae-bench report`")
    return format if dry_run else None


def _go(request: Request, options: session.Options, shown: str | None) -> None:
    from mae_bench import session

    if shown is not None:
        _finish(session.dry_run(request, options, as_json=shown == "json"))
    try:
        _finish(session.run(request, options))
    except KeyboardInterrupt as end:
        # typer would make an exit code of it and drop what it says.
        typer.echo(str(end) or "stopped; the same command continues", err=True)
        raise typer.Exit(130) from None


def _backbone(name: str, task: str = "") -> str:
    """Return the name if the task can use it; whether timm knows its own is seen when it is built.

    Looking would import torch.
    """
    from backbones import TIMM
    from backbones import list_backbones as names
    from tasks import ANY_ENCODER

    of_timm = name.startswith(TIMM) and task in ANY_ENCODER
    if not of_timm and name not in names():
        raise unknown("backbone", name, names())
    return name


def _recipe(task: str, given: str | None, scale: Scale, own_data: bool) -> str:
    """Return the recipe asked for, or the task's default for this scale, or for own data."""
    from tasks import DEFAULT_RECIPES, TASKS, WITHOUT_WEIGHTS
    from tasks.pretraining import INITS, TOKENIZER

    pretrainings = {init.task for init in [*INITS.values(), TOKENIZER]}
    transfers = set(TASKS) - pretrainings - set(WITHOUT_WEIGHTS)
    if task not in transfers:
        raise unknown("task", task, transfers)
    own = [name for name in list_recipes() if name.startswith(f"{task}/")]
    if given is not None and given not in own:
        raise unknown(f"recipe for {task}", given, own)
    if given is not None:
        return given
    # Whoever asks for the paper's scale gets its recipe, on whatever data.
    kinds = ("own", scale) if own_data and scale == "mini" else (scale,)
    defaults = [DEFAULT_RECIPES[task, kind] for kind in kinds if (task, kind) in DEFAULT_RECIPES]
    fitting = [*defaults, *(name for name in own if name.startswith(f"{task}/{scale}"))]
    if not fitting:
        raise UserError(f"{task} has no {scale} recipe. Known: {', '.join(own)}")
    return fitting[0]


def _command() -> str:
    return shlex.join(["mae-bench", *sys.argv[1:]])


def _finish(good: bool) -> None:
    raise typer.Exit(0 if good else 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 good, 1 something failed, 2 bad input."""
    try:
        _check_text(sys.argv[1:] if arguments is None else arguments)
        with naming_full_disk("the folder that was being written to"):
            code = app(args=arguments, prog_name="mae-bench", standalone_mode=False)
    except UserError as error:
        return _complain(str(error))
    except PermissionError as error:
        return _complain(f"no permission for {error.filename}; give a folder that is yours")
    except (KeyboardInterrupt, typer.Abort):
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


def _check_text(arguments: Sequence[str]) -> None:
    """Refuse names that no record could hold."""
    for text in arguments:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{text!a} is not UTF-8; give a file or name that is") from None


def _complain(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2
