"""Every published layout is known by its keys alone, read whole, or refused with its name."""

import hashlib
import json
from typing import NamedTuple

import numpy as np
import published_layouts as layouts
import pytest
import torch
from safetensors.torch import save_file

from backbones import create_backbone, published
from backbones.checkpoints import load_backbone, read_checkpoint
from backbones.formats import FORMATS
from backbones.load_report import fingerprint
from mae_bench.errors import UserError


class Case(NamedTuple):
    """A layout: its format, the encoder that it holds, and what of the encoder it lacks."""

    format: str
    backbone: str = "vit_mini_patch8"
    options: dict = {}
    lacks: tuple[str, ...] = ()
    num_decoder: int = 0


NORM = ("norm.weight", "norm.bias")
DECOMPOSED = dict(relative_positions="decomposed", window_size=4)
CASES = {
    "mae": Case("mae"),
    "mae_full": Case("mae-full", num_decoder=32),
    "mae_gan": Case("mae-full", num_decoder=32),
    "mae_finetuned": Case("mae-finetuned", lacks=NORM),
    "timm": Case("timm"),
    "timm_layer_scale": Case("timm", options=dict(layer_scale=0.1)),
    "deit": Case("deit", options=dict(positions="learned")),
    "deit_distilled": Case("deit", "deit_mini_distilled_patch8"),
    "beit_pretrain": Case("beit", "beit_mini_patch8", dict(relative_positions="shared")),
    "beit_finetuned": Case("beit", "beit_mini_patch8", lacks=NORM),
    "beit_abs": Case(
        "beit",
        "beit_mini_patch8",
        dict(relative_positions=None, positions="learned", layer_scale=None),
    ),
    "moco_v3": Case("moco-v3", "moco_mini_patch8"),
    "moco_v3_linear": Case("moco-v3-linear", "moco_mini_patch8"),
    "dino": Case("dino", options=dict(positions="learned")),
    "mmpretrain": Case("mmpretrain", num_decoder=32),
    "mmpretrain_deit3": Case("mmpretrain", options=dict(layer_scale=1.0)),
    "mmseg": Case("mmseg", "beit_mini_patch8"),
    "mmseg_vit": Case("mmseg"),
    "mmseg_ours": Case("mmseg", "beit_mini_patch8"),
    "vitdet": Case("detectron2", options=DECOMPOSED, lacks=NORM),
    "detectron2_ours": Case("detectron2", options=dict(relative_positions="shared", window_size=4)),
}


def tree_of(name):
    case = CASES[name]
    torch.manual_seed(0)
    encoder = create_backbone(case.backbone, **case.options)
    state = layouts.random_like(encoder.state_dict())
    return case, state, getattr(layouts, name)(state)


def save(tree, tmp_path, name="file.pth"):
    torch.save(tree, tmp_path / name)
    return tmp_path / name


def all_keys(tree):
    """Keys of the weights, and the other entries."""
    if "teacher" in tree:
        parts = [f"{who}.{name}" for who in ("teacher", "student") for name in tree[who]]
        return {*parts, *(tree.keys() - {"teacher", "student"})}
    container = next((c for c in ("model", "state_dict") if c in tree), None)
    return {*tree[container], *(tree.keys() - {container})} if container else {*tree}


def test_every_format_has_a_case():
    assert {case.format for case in CASES.values()} == {*FORMATS} - {"mae-bench"}


@pytest.mark.parametrize("name", CASES)
def test_format_is_detected_and_every_key_accounted_for(name, tmp_path):
    case, state, tree = tree_of(name)
    read = read_checkpoint(save(tree, tmp_path))
    assert read.format == case.format
    assert read.backbone == case.backbone
    assert {*read.sources.values(), *read.explained} == all_keys(tree)
    assert len(read.decoder) == case.num_decoder
    absent = state.keys() - read.weights.keys()
    assert absent == {*case.lacks}
    assert all(torch.equal(value, state[key]) for key, value in read.weights.items())


@pytest.mark.parametrize("name", CASES)
def test_encoder_has_the_files_values_bit_by_bit(name, tmp_path):
    case, state, tree = tree_of(name)
    path = save(tree, tmp_path)
    other = create_backbone(case.backbone, **case.options)
    report = load_backbone(other, path, case.format)
    assert {*report.loaded, *report.new} == other.state_dict().keys() and not report.resized
    assert {*report.new} == {*case.lacks}
    loaded = other.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in report.loaded)
    report.check(loaded)
    if not case.lacks:
        assert report.fingerprint == report.encoder_fingerprint == fingerprint(loaded)


def test_decoder_has_maes_names(tmp_path):
    _, _, tree = tree_of("mae_full")
    theirs = read_checkpoint(save(tree, tmp_path)).decoder
    assert all(torch.equal(tree["model"][name], value) for name, value in theirs.items())
    _, _, tree = tree_of("mmpretrain")
    assert read_checkpoint(save(tree, tmp_path)).decoder.keys() == theirs.keys()


@pytest.mark.parametrize("container", ["safetensors", "npz", "pkl"])
def test_other_containers(container, tmp_path):
    _, state, tree = tree_of("vitdet")
    path = tmp_path / f"file.{container}"
    if container == "safetensors":
        save_file({k: v.clone() for k, v in tree["model"].items()}, path)
    elif container == "npz":
        np.savez(path, **{name: value.numpy() for name, value in tree["model"].items()})
    else:
        layouts.save_pickle(tree, path)
    read = read_checkpoint(path, "detectron2")
    assert all(torch.equal(value, state[name]) for name, value in read.weights.items())


@pytest.mark.parametrize("name", ["dino_backbone", "openmmlab"])
def test_ambiguity_asks_for_the_format(name, tmp_path):
    encoder = create_backbone("vit_mini_patch8")
    tree = getattr(layouts, name)(encoder.state_dict())
    path = save(tree, tmp_path)
    names = {"dino_backbone": ["timm", "dino"], "openmmlab": ["mmpretrain", "mmseg"]}[name]
    with pytest.raises(UserError, match=rf"several formats: {', '.join(names)}. Say .* --format"):
        read_checkpoint(path)
    for given in names:
        assert read_checkpoint(path, given).format == given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("beit", r"is no beit file: .*it needs blocks.0.attn.q_bias.*It fits: mae\."),
        ("meae", r"unknown checkpoint format 'meae'. Did you mean mae"),
    ],
)
def test_wrong_format_is_refused(given, message, tmp_path):
    _, _, tree = tree_of("mae")
    with pytest.raises(UserError, match=message):
        read_checkpoint(save(tree, tmp_path), given)


def test_unknown_layout_names_the_nearest_and_the_keys(tmp_path):
    _, _, tree = tree_of("mae")
    tree["model"]["adapter.weight"] = torch.ones(1)
    with pytest.raises(UserError, match=r"fits no known format; nearest is mae.*adapter.weight"):
        read_checkpoint(save(tree, tmp_path))
    with pytest.raises(UserError, match=r"no weights under .* it has epoch"):
        read_checkpoint(save({"epoch": 3}, tmp_path))
    with pytest.raises(UserError, match="weights under model and under state_dict"):
        read_checkpoint(save({**tree, "state_dict": tree["model"]}, tmp_path))
    with pytest.raises(UserError, match="tensors under 'extra', beside 'model'"):
        read_checkpoint(save({**tree, "extra": {"w": torch.ones(2)}}, tmp_path))


def transposed(table):
    grid = table[:, 1:].unflatten(1, (8, 8)).transpose(1, 2).flatten(1, 2)
    return torch.cat([table[:, :1], grid], dim=1)


def exchanged(table):
    first, second, third, fourth = table.chunk(4, dim=2)
    mixed = torch.cat([second, first, fourth, third], dim=2)
    return torch.cat([table[:, :1], mixed[:, 1:]], dim=1)


def renamed(old, new):
    return lambda state: state.update({new: state.pop(old)})


def dropped(*ends):
    return lambda state: [state.pop(name) for name in [*state] if name.endswith(ends)]


def positions(change):
    return lambda state: state.update(pos_embed=change(state["pos_embed"]))


@pytest.mark.parametrize(
    ("name", "mutate", "message"),
    [
        ("mae", renamed("blocks.1.attn.qkv.weight", "blocks.1.attn.query.weight"), "query"),
        ("mae", dropped("blocks.2.mlp.fc1.bias"), r"blocks.2 lacks mlp.fc1.bias"),
        ("mae", dropped("qkv.bias"), r"missing blocks.0.attn.qkv.bias"),
        ("mae", positions(transposed), "order 'moco-v3'"),
        ("mae", positions(exchanged), "sine and cosine exchanged"),
        ("mae_full", positions(transposed), "order 'moco-v3'"),
        ("moco_v3", None, "order 'mae'"),
        ("beit_pretrain", dropped("gamma_1", "gamma_2"), "needs layer scale"),
        ("beit_pretrain", dropped("gamma_2"), "needs layer scale"),
        ("timm_layer_scale", dropped("ls1.gamma", "ls2.gamma"), "missing blocks.0.gamma_1"),
        ("beit_pretrain", dropped("q_bias"), r"needs blocks.0.attn.q_bias"),
        ("beit_finetuned", dropped("blocks.1.attn.q_bias"), "blocks.1 lacks attn.q_bias"),
        ("mmseg", dropped("q_bias"), "one of q_bias and v_bias"),
        ("mmseg", dropped("q_bias", "v_bias"), "missing blocks.0.attn.q_bias"),
        ("deit", lambda s: s["norm.weight"].fill_(torch.nan), "norm.weight has values .*finite"),
    ],
)
def test_mutations_are_caught_and_nothing_is_loaded(name, mutate, message, tmp_path):
    case, _, tree = tree_of(name)
    container = "model" if "model" in tree else "state_dict"
    if name == "moco_v3":
        state = tree[container]
        key = "module.base_encoder.pos_embed"
        state[key] = transposed(state[key])
    else:
        mutate(tree.get(container, tree))
    path = save(tree, tmp_path)
    other = create_backbone(case.backbone, **case.options)
    before = fingerprint(other.state_dict())
    with pytest.raises(UserError, match=message):
        load_backbone(other, path)
    assert fingerprint(other.state_dict()) == before


def test_published_files_are_known_by_name_and_hash(tmp_path, monkeypatch):
    _, _, tree = tree_of("deit")
    path = save(tree, tmp_path, "deit_base_patch16_224-b5f2ef4d.pth")
    with pytest.raises(UserError, match=r"name of a published file .*published one with b5f2ef4d"):
        read_checkpoint(path)
    with pytest.raises(UserError, match="published"):
        read_checkpoint(path, "deit")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = dict(file=path.name, url="somewhere", backbone="x", format="deit", init="supervised")
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([{**entry, "sha256": digest[:8]}]))
    monkeypatch.setattr(published, "LIST", listed)
    report = load_backbone(create_backbone("vit_mini_patch8"), path)
    how = f"supervised; SHA-256 begins with {digest[:8]}, as published"
    assert report.published == f"{path.name} ({how})"
    assert report.sha256 == digest


def test_the_list_of_published_files_is_sound():
    files = published.list_published()
    assert len({entry.file for entry in files}) == len(files) > 30
    assert all(entry.url.endswith(entry.file) and entry.format in FORMATS for entry in files)
    assert all(entry.init and entry.backbone for entry in files)
