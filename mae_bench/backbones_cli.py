"""`mae-bench backbones`: what encoders there are, what a checkpoint is, and its conversion.

Tables on a terminal, plain columns in a pipe, JSON on request. Listing imports no torch.
"""

from __future__ import annotations

import dataclasses
import inspect as introspection
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mae_bench.errors import UserError
from mae_bench.printing import print_json, print_table

app = typer.Typer(help="Encoders and their checkpoints.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
File = Annotated[Path, typer.Argument(help="A checkpoint of any known format.", metavar="FILE")]
FORMAT_HELP = "What the file's format is; detected from its keys when left out."
MILLION = 1e6


@app.command("list")
def list_backbones(
    timm: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Names of timm's models instead: 'swin*'.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the encoders that --backbone knows, with size, cost at 224 px and source."""
    if timm is not None:
        _list_timm(timm, as_json)
        return
    from backbones import describe
    from backbones import list_backbones as names

    described = [describe(name) for name in names()]
    if as_json:
        print_json([dataclasses.asdict(known) for known in described])
        return
    columns = ("name", "parameters", "GFLOPs at 224", "patch", "source")
    rows = [
        (
            known.name,
            f"{known.parameters / MILLION:.2f} M",
            f"{known.gflops:.2f}",
            str(known.strides[0]),
            known.source,
        )
        for known in described
    ]
    print_table(columns, rows)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A name of the list, or timm:NAME.")],
    as_json: AsJson = False,
) -> None:
    """Print what one encoder is made of, the maps that it gives, and its options."""
    from backbones import describe

    known = describe(name)
    facts: dict[str, Any] = {**dataclasses.asdict(known), **_sizes(name)}
    facts["pyramid"] = _pyramid(known.strides, known.channels)
    facts["options"] = _options(name)
    if as_json:
        print_json(facts)
        return
    facts["parameters"] = f"{known.parameters} ({known.parameters / MILLION:.2f} M)"
    facts["gflops"] = f"{known.gflops:.2f} at {known.img_size} px"
    _print_facts(facts)


@app.command()
def inspect(
    file: File,
    format: Annotated[str | None, typer.Option("--format", help=FORMAT_HELP)] = None,
    keys: Annotated[bool, typer.Option("--keys", help="List what becomes of every key.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what a checkpoint is: format, architecture, keys, decoder, hashes."""
    from backbones import inspection
    from backbones.checkpoints import read_checkpoint

    checkpoint = read_checkpoint(file, format)
    facts = inspection.inspect(checkpoint)
    fates = inspection.keys(checkpoint) if keys else []
    if as_json:
        print_json({**facts, "fates": fates} if keys else facts)
        return
    _print_facts(facts)
    if keys:
        rows = [
            (fate["key"], fate["is"], "x".join(map(str, fate.get("shape", [])))) for fate in fates
        ]
        print_table(("key", "is", "shape"), rows)


@app.command()
def convert(
    file: File,
    out: Annotated[Path, typer.Argument(help="The file to write: .pth or .safetensors.")],
    target: Annotated[
        str,
        typer.Option("--format", help="timm, mae, detectron2, mmseg, or safetensors (our own)."),
    ],
    source: Annotated[str | None, typer.Option("--from", help=FORMAT_HELP)] = None,
) -> None:
    """Write a checkpoint in another project's names; no value changes."""
    from backbones.checkpoints import read_checkpoint
    from backbones.convert import TARGETS
    from backbones.convert import convert as write
    from mae_bench.errors import unknown

    if target not in TARGETS:
        raise unknown("format to write", target, TARGETS)
    checkpoint = read_checkpoint(file, source)
    left_out = write(checkpoint, out, target)
    typer.echo(f"{file} ({checkpoint.format}) -> {out} ({target})")
    typer.echo(f"{len(checkpoint.weights)} keys of the encoder, every value unchanged")
    for reason in dict.fromkeys(left_out.values()):
        number = sum(why == reason for why in left_out.values())
        typer.echo(f"{number} keys left out: {reason}")


def _list_timm(pattern: str, as_json: bool) -> None:
    import timm

    names = [f"timm:{name}" for name in timm.list_models(pattern)]
    if not names:
        raise UserError(
            f"timm {timm.__version__} has no model {pattern!r}; '*' stands for anything"
        )
    if as_json:
        print_json(names)
    else:
        typer.echo("\n".join(names))


def _sizes(name: str) -> dict[str, Any]:
    from backbones.architectures import ARCHITECTURES

    if name not in ARCHITECTURES:
        return {}
    known = ARCHITECTURES[name]
    return {"width": known.embed_dim, "depth": known.depth, "heads": known.num_heads}


def _pyramid(strides: Sequence[int], channels: Sequence[int]) -> list[str]:
    """The maps that detection and segmentation get."""
    if len(strides) > 1:
        pairs = zip(strides, channels, strict=True)
        return [f"stride {stride}: {width} channels" for stride, width in pairs]
    from backbones.pyramid import TapPyramid

    scales = introspection.signature(TapPyramid).parameters["scales"].default
    levels = [strides[0] / scale for scale in scales]
    return [f"stride {stride:g}: {channels[0]} channels, resampled" for stride in levels]


def _options(name: str) -> dict[str, Any]:
    """Option of `create_backbone` -> its value here; timm's options are timm's to document."""
    from backbones.architectures import ARCHITECTURES

    if name not in ARCHITECTURES:
        return {}
    from backbones.vit import VisionTransformer

    signature = introspection.signature(VisionTransformer.__init__)
    defaults = {
        option: parameter.default
        for option, parameter in signature.parameters.items()
        if parameter.default is not parameter.empty
    }
    return {**defaults, **ARCHITECTURES[name].arguments()}


def _print_facts(facts: Mapping[str, Any]) -> None:
    print_table((), list(_rows(facts)))


def _rows(facts: Mapping[str, Any], within: str = "") -> Iterable[tuple[str, str]]:
    for name, value in facts.items():
        label = f"{within}: {name}" if within else name
        if isinstance(value, Mapping) and value:
            yield from _rows(value, label)
        elif isinstance(value, list | tuple):
            yield label, ", ".join(map(str, value)) or "-"
        else:
            yield label, "-" if value is None or value == {} else str(value)
