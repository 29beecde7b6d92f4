"""Backbone weights on disk: any known format is read, loaded whole or refused.

Our own format is safetensors with a header that names the architecture; its parameters have our
names. See `backbones.formats` for the others.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from backbones.architectures import ARCHITECTURES
from backbones.containers import State, read_contents, unwrap
from backbones.fitting import Fitted, check_sizes, fit
from backbones.formats import FORMATS, Reading, recognise
from backbones.load_report import LoadReport, fingerprint
from backbones.positions import Grid
from backbones.published import Published, check_published, file_hashes
from backbones.timm_models import TimmBackbone
from mae_bench.errors import UserError
from mae_bench.job import write_atomically

FORMAT = "mae-bench"
DECODER = "decoder, not used here"


@dataclass(frozen=True)
class Checkpoint:
    """A file's weights under our names.

    Attributes:
        format: name in `backbones.formats.FORMATS`.
        backbone: name in `backbones.list_backbones()` that it fits, None if there is none.
        weights: our name -> value, as in the file.
        sources: our name -> the file's key.
        decoder: MAE's own name (decoder_*, mask_token) -> value; empty where there is none.
        explained: the file's key -> why it is not in `weights`.
        header: strings that the file says about itself.
        published: what is known of the published file of this name.
    """

    path: Path
    format: str
    backbone: str | None
    weights: Mapping[str, Tensor]
    sources: Mapping[str, str]
    decoder: Mapping[str, Tensor]
    explained: Mapping[str, str]
    header: Mapping[str, str]
    sha256: str
    published: str | None = None

    @property
    def grid(self) -> Grid | None:
        """(h, w) of the positions as the file says, None where it does not."""
        sides = self.header.get("grid", "").split("x")
        return (int(sides[0]), int(sides[1])) if len(sides) == 2 else None

    @property
    def num_heads(self) -> int | None:
        """Attention heads, where the file, its tables or its architecture tell."""
        if "heads" in self.header:
            return int(self.header["heads"])
        for name, value in self.weights.items():
            if name.endswith("relative_position_bias_table"):
                return value.shape[1]
            if name.endswith("rel_pos_h"):
                return self.weights["patch_embed.proj.weight"].shape[0] // value.shape[1]
        if self.backbone is None or self.format == FORMAT:
            return None
        return ARCHITECTURES[self.backbone].num_heads


def read_checkpoint(
    path: str | Path, format: str | None = None, names: Collection[str] = ()
) -> Checkpoint:
    """Read a file of any known format; nothing in it can run code.

    Args:
        format: its name; detected from all of the keys when not given.
        names: parameters of a model that is not one of ours; a file with just these names, and
            perhaps a classifier's, is taken as timm's.

    Raises:
        UserError: no such file, damage, code in it, no known format or several, another content
            than the published file of this name, weights that are incomplete or not finite.
    """
    path = Path(path)
    contents = read_contents(path)
    state = unwrap(contents.tree, str(path))
    header = {**contents.header, **state.header}
    sha256, md5 = file_hashes(path)
    published = check_published(path, sha256, md5)
    name, reading = _recognise(path, state, header, format, names, published)
    weights = {ours: state.tensors[key] for key, ours in reading.names.items()}
    decoder = {theirs: state.tensors[key] for key, theirs in reading.decoder.items()}
    _check_values(path, name, {**weights, **decoder}, header)
    return Checkpoint(
        path=path,
        format=name,
        backbone=header.get("backbone") or _guess(name, weights),
        weights=weights,
        sources={ours: key for key, ours in reading.names.items()},
        decoder=decoder,
        explained={**reading.left_out, **dict.fromkeys(reading.decoder, DECODER), **state.rest},
        header=header,
        sha256=sha256,
        published=str(published) if published else None,
    )


def _recognise(
    path: Path,
    state: State,
    header: Mapping[str, str],
    format: str | None,
    names: Collection[str],
    published: Published | None,
) -> tuple[str, Reading]:
    marked = header.get("format", "")
    if format is None and marked in FORMATS:
        format = marked
    if format is None and marked.startswith(FORMAT):
        raise UserError(
            f"{path} was written by MAE-bench, but is no backbone (format {marked!r}); give the "
            "backbone.safetensors beside it"
        )
    may_be_timms = format == "timm" or (
        format is None and state.container in FORMATS["timm"].containers
    )
    if may_be_timms and not set(names).isdisjoint(state.tensors):
        head = re.compile(r"(?:head|fc|classifier|last_linear|fc_norm)\..*")
        left = {key: "classifier, not used here" for key in state.tensors if key not in names}
        if all(head.match(key) for key in left):
            own = {key: key for key in state.tensors if key in names}
            return "timm", Reading(names=own, left_out=left)
    if format is None and published:
        format = published.format
    return recognise(state, str(path), format)


def _check_values(
    path: Path, format: str, weights: Mapping[str, Tensor], header: Mapping[str, str]
) -> None:
    if (
        "fingerprint" in header
        and format == FORMAT
        and fingerprint(weights) != header["fingerprint"]
    ):
        raise UserError(f"{path} is damaged: its values do not match the fingerprint in its header")
    # Files that we converted say what their positions are, whatever the format usually has.
    complaint = "" if "positions" in header else FORMATS[format].check(weights)
    if complaint:
        raise UserError(f"{path}: {complaint}")
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{path}: {name} has values that are not finite; it cannot be used")
    parts = defaultdict(set)
    for name in weights:
        if match := re.match(r"(\w*blocks)\.(\d+)\.(.+)", name):
            stack, number, part = match.groups()
            parts[stack, int(number)].add(part)
    for (stack, number), found in parts.items():
        most = parts[max((key for key in parts if key[0] == stack), key=lambda k: len(parts[k]))]
        if absent := sorted(most - found):
            raise UserError(f"{path}: {stack}.{number} lacks {absent[0]}, which other blocks have")
        if {"attn.q_bias", "attn.v_bias"} & found and not {"attn.q_bias", "attn.v_bias"} <= found:
            raise UserError(f"{path}: {stack}.{number} has one of q_bias and v_bias, not both")


def _guess(format: str, weights: Mapping[str, Tensor]) -> str | None:
    """Name of the encoder of these sizes and parts, None if there is none."""
    if "patch_embed.proj.weight" not in weights or "blocks.0.attn.qkv.weight" not in weights:
        return None
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    family = "vit"
    if "dist_token" in weights:
        family = "deit"
    elif "blocks.0.attn.q_bias" in weights:
        family = "beit"
    elif format.startswith("moco"):
        family = "moco"
    for name, known in ARCHITECTURES.items():
        sizes = (known.embed_dim, known.depth, known.patch_size)
        if name.startswith(family) and sizes == (width, depth, patch):
            return name
    return None


def load_backbone(model: nn.Module, path: str | Path, format: str | None = None) -> LoadReport:
    """Load a file into an encoder; every key fits, is explained, or nothing is loaded.

    Positions, relative tables and the patch projection are resampled where sizes differ.

    Args:
        model: one of `backbones.create_backbone`.
        format: see `read_checkpoint`.

    Raises:
        UserError: see `read_checkpoint`; or weights that do not fit the encoder.
    """
    foreign = isinstance(model, TimmBackbone)
    checkpoint = read_checkpoint(path, format, model.state_dict() if foreign else ())
    if foreign:
        checkpoint = _in_timms_names(checkpoint, model)
    try:
        _check_heads(checkpoint, model)
        fitted = fit(checkpoint.weights, model, checkpoint.grid)
    except UserError as error:
        what = f"{checkpoint.format}, {checkpoint.backbone or 'no encoder known here'}"
        raise UserError(f"{path} ({what}) does not fit this backbone: {error}") from None
    model.load_state_dict(fitted.weights)
    return _report(checkpoint, fitted, model)


def check_fits(path: str | Path, format: str | None, names: Collection[str]) -> None:
    """Refuse a file that none of these encoders could be loaded with, without building them.

    Compares width, depth and heads: the rest is up to the options that a task builds them with.

    Args:
        format: see `read_checkpoint`.
        names: of encoders; of timm's nothing is known here, and they pass.

    Raises:
        UserError: see `read_checkpoint`; or the weights are of another size than all of these.
    """
    if not all(name in ARCHITECTURES for name in names):
        return
    checkpoint = read_checkpoint(path, format)
    errors = []
    for name in names:
        known = ARCHITECTURES[name]
        try:
            check_sizes(checkpoint.weights, (known.embed_dim, known.depth))
            _same_heads(checkpoint, known.num_heads)
        except UserError as error:
            errors.append(str(error).replace("the backbone", name))
    if errors and len(errors) == len(names):
        fits = checkpoint.backbone or "no encoder known here"
        raise UserError(
            f"{path} ({checkpoint.format}, {fits}) fits none of the backbones asked for: "
            f"{'; '.join(errors)}. Give another file, or another backbone"
        )


def _in_timms_names(checkpoint: Checkpoint, model: nn.Module) -> Checkpoint:
    """Where timm spells a name as we do not (layer scale of its ViT), take timm's."""
    expected, spelling = model.state_dict(), FORMATS["timm"].spelling
    names = {n: n if n in expected else spelling.theirs(n) or n for n in checkpoint.weights}
    return replace(
        checkpoint,
        weights={names[name]: value for name, value in checkpoint.weights.items()},
        sources={names[name]: key for name, key in checkpoint.sources.items()},
    )


def _check_heads(checkpoint: Checkpoint, model: nn.Module) -> None:
    own = getattr(model.blocks[0].attn, "num_heads", None) if hasattr(model, "blocks") else None
    _same_heads(checkpoint, own)


def _same_heads(checkpoint: Checkpoint, own: int | None) -> None:
    """Another number of heads fits in every shape, and is another network all the same."""
    if own and checkpoint.num_heads and own != checkpoint.num_heads:
        raise UserError(f"it has {checkpoint.num_heads} attention heads, the backbone {own}")


def _report(checkpoint: Checkpoint, fitted: Fitted, model: nn.Module) -> LoadReport:
    sources, state = checkpoint.sources, model.state_dict()
    changed = fitted.resized.keys() | fitted.new.keys()
    loaded = tuple(sorted(fitted.weights.keys() - changed))
    kept = {name: checkpoint.weights[name] for name in loaded}
    report = LoadReport(
        file=str(checkpoint.path),
        format=checkpoint.format,
        sha256=checkpoint.sha256,
        published=checkpoint.published,
        loaded=loaded,
        renamed={name: sources[name] for name in loaded if sources[name] != name},
        resized=fitted.resized,
        explained={
            **checkpoint.explained,
            **{sources[name]: reason for name, reason in fitted.explained.items()},
        },
        new=fitted.new,
        fingerprint=fingerprint(checkpoint.weights),
        loaded_fingerprint=fingerprint(kept),
        encoder_fingerprint=fingerprint(state),
    )
    report.check(state)
    return report


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return (header, tensors) of any safetensors file; nothing in it can run code.

    Raises:
        UserError: no such file, or not safetensors.
    """
    contents = read_contents(path)
    if contents.kind != "safetensors":
        raise UserError(f"{path} is not a safetensors file (it is of kind {contents.kind})")
    return dict(contents.header), dict(contents.tree)


def write_tensors(model: nn.Module, path: Path, header: Mapping[str, str]) -> None:
    """Write a module's tensors and their fingerprint; the file appears whole or not at all."""
    write_weights(model.state_dict(), path, header)


def write_weights(weights: Mapping[str, Tensor], path: Path, header: Mapping[str, str]) -> None:
    """Write named tensors as safetensors with their fingerprint; whole or not at all."""
    weights = {name: value.cpu().contiguous() for name, value in weights.items()}
    header = {**header, "fingerprint": fingerprint(weights)}
    write_atomically(path, _in_order(save(weights, metadata=header)), durable=True)


def _in_order(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file, so that equal weights make equal files.

    The library writes them in the order of a hash table, another one in each process.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:start])
    entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
    text = json.dumps(entries, separators=(",", ":")).encode()
    # The format pads with spaces to whole 8 bytes; offsets count from the end of the header.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[start:]


def save_backbone(model: nn.Module, path: Path, about: Mapping[str, str]) -> None:
    """Write the encoder's weights.

    Args:
        about: strings for the header: backbone name, init, recipe, provenance.
    """
    sizes = {}
    if hasattr(model, "grid"):
        heads = model.blocks[0].attn.num_heads
        sizes = {"grid": "x".join(map(str, model.grid)), "heads": str(heads)}
    write_tensors(model, path, {**about, "format": FORMAT, **sizes})
