"""Every command and example of the pages on backbones and on frameworks is run, in its order.

A Python block that opens with the name of a file is written to that file; others run here, with the
names of those before. Shell blocks run in the same folder; `mae-bench` alone is called at once.
"""

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from backbones import create_backbone
from backbones.checkpoints import save_backbone
from mae_bench.cli import main
from tasks import data
from tasks.data.specs import SPECS

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# (\w+\.py)\n")


def blocks(page, section=""):
    """(language, text) of the code blocks of a page, or of one of its sections."""
    text = (ROOT / "docs" / page).read_text()
    if section:
        text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return BLOCK.findall(text)


def shell(text, folder, capsys):
    """Run the commands; returns what they printed."""
    lines = text.splitlines()
    if all(line.startswith("mae-bench ") for line in lines):
        capsys.readouterr()
        for line in lines:
            assert main(shlex.split(line, comments=True)[1:]) == 0, line + capsys.readouterr().err
        return capsys.readouterr().out
    done = subprocess.run(
        ["bash", "-euc", text], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout + done.stderr


def run(page, folder, capsys, section=""):
    """Run the blocks in the folder; returns what each shell block printed."""
    printed, names = [], {}
    for language, text in blocks(page, section):
        if language == "bash":
            printed.append(shell(text, folder, capsys))
        elif file := FILE_NAME.match(text):
            (folder / file[1]).write_text(text)
        else:
            exec(compile(text, page, "exec"), names)
    return printed


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a checkpoint, small data, and the environment's programs."""
    encoder = create_backbone("vit_mini_patch8")
    save_backbone(encoder, tmp_path / "backbone.safetensors", {"backbone": "vit_mini_patch8"})
    for name in ("mini-coco", "mini-ade20k"):
        data.prepare(name, tmp_path / "data", replace(SPECS[name], num_train=8, num_val=2))
    monkeypatch.setenv("MAE_BENCH_DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_backbones(folder, capsys):
    listed, inspected = run("backbones.md", folder, capsys)
    assert "vit_huge_patch14" in listed and '"timm:resnet18"' in listed
    assert "every value unchanged" in inspected


@pytest.mark.parametrize("section", ["timm", "Parameter groups"])
def test_timm_and_groups(section, folder, capsys):
    run("frameworks.md", folder, capsys, section)
    assert section == "timm" or (folder / "parameters.csv").is_file()


@pytest.mark.slow
@pytest.mark.detectron2
def test_detectron2(folder, capsys):
    run("frameworks.md", folder, capsys, "detectron2")
    assert (folder / "out" / "model_final.pth").is_file()


@pytest.mark.slow
@pytest.mark.mmseg
def test_mmsegmentation(folder, capsys):
    (printed,) = run("frameworks.md", folder, capsys, "mmsegmentation")
    assert printed.count("mIoU:") >= 2


def test_every_block_is_in_a_section_that_is_run():
    sections = ("timm", "Parameter groups", "detectron2", "mmsegmentation")
    in_sections = [block for section in sections for block in blocks("frameworks.md", section)]
    assert sorted(in_sections) == sorted(blocks("frameworks.md")) and len(in_sections) == 7
