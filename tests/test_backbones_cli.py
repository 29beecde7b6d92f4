"""`mae-bench backbones`: what it prints, in a pipe and as JSON."""

import json

import published_layouts as layouts
import pytest
import torch

from backbones import create_backbone, list_backbones
from backbones.checkpoints import read_checkpoint
from backbones.load_report import fingerprint
from mae_bench.cli import main


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = main(["backbones", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def full(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / ("long_" * 20 + "name.pth")
    torch.save(layouts.mae_full(create_backbone("vit_mini_patch8").state_dict()), path)
    return path


def test_list_has_a_line_for_each_with_the_recipes_numbers(run):
    code, out, _ = run("list")
    lines = [line.split() for line in out.splitlines()]
    assert code == 0 and lines[0][:2] == ["name", "parameters"]
    assert [line[0] for line in lines[1:]] == list_backbones()
    base = next(line for line in lines if line[0] == "vit_base_patch16")
    assert base[1:5] == ["85.80", "M", "17.58", "16"]
    known = {entry["name"]: entry for entry in json.loads(run("list", "--json")[1])}
    assert round(known["vit_huge_patch14"]["parameters"] / 1e6, 2) == 630.76
    names = run("list", "--timm", "swin_tiny*")[1].split()
    assert "timm:swin_tiny_patch4_window7_224" in names
    assert run("list", "--timm", "nothing")[0] == 2


def test_show(run):
    code, out, _ = run("show", "beit_mini_patch8")
    assert code == 0 and "options: relative_positions" in out and "stride 2: 96 channels" in out
    facts = json.loads(run("show", "beit_mini_patch8", "--json")[1])
    assert (facts["width"], facts["depth"], facts["heads"]) == (96, 4, 3)
    assert facts["options"]["qkv_bias"] == "qv"
    facts = json.loads(run("show", "timm:test_resnet", "--json")[1])
    assert facts["strides"] == [4, 8, 16, 32]
    code, _, error = run("show", "vit_bse")
    assert code == 2 and "Did you mean vit_base_patch16" in error


def test_inspect(run, full):
    code, out, _ = run("inspect", full)
    assert code == 0 and str(full) in out
    lines = dict(line.split("  ", 1) for line in out.splitlines())
    assert lines["format"].strip() == "mae-full"
    facts = json.loads(run("inspect", full, "--json", "--keys")[1])
    read = read_checkpoint(full)
    assert facts["sha256"] == read.sha256 and facts["fingerprint"] == fingerprint(read.weights)
    assert facts["architecture"] == dict(
        width=96, depth=4, heads=3, patch_size=[8, 8], channels=3, grid=[8, 8]
    )
    assert facts["positions"] == "fixed sine-cosine, order of mae"
    assert facts["decoder"] == {"width": layouts.DECODER_WIDTH, "depth": 2}
    assert len(facts["fates"]) == 54 + 32 + 3
    listed = [line.split() for line in run("inspect", full, "--keys")[1].splitlines()]
    assert ["blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.weight", "288x96"] in listed
    code, _, error = run("inspect", full, "--format", "beit")
    assert code == 2 and "is no beit file" in error


def test_convert(run, full, tmp_path):
    out = tmp_path / "out.pth"
    code, text, _ = run("convert", full, out, "--format", "timm")
    assert code == 0 and "32 keys left out: decoder, not used here" in text
    assert fingerprint(read_checkpoint(out).weights) == fingerprint(read_checkpoint(full).weights)
    back = tmp_path / "back.pth"
    assert run("convert", out, back, "--format", "mae")[0] == 0
    assert read_checkpoint(back).format == "mae"
    flat = tmp_path / "flat.pth"
    torch.save(dict(create_backbone("vit_mini_patch8").state_dict()), flat)
    code, _, error = run("convert", flat, tmp_path / "x.safetensors", "--format", "safetensors")
    assert code == 2 and "several formats: timm, dino" in error
    arguments = ("convert", flat, tmp_path / "x.safetensors", "--format", "safetensors")
    assert run(*arguments, "--from", "dino")[0] == 0
    code, _, error = run("convert", tmp_path / "none.pth", out, "--format", "nonsense")
    assert code == 2 and "unknown format to write" in error
