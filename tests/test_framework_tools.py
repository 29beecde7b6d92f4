"""Our config files under the training tools of detectron2 and mmseg, as they ship them."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backbones import create_backbone
from backbones.checkpoints import fingerprint
from tasks import data
from tasks.data.specs import SPECS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
MAIN = os.environ.get("MAE_BENCH_DETECTRON2")
LAZY_TOOL = Path("tools", "lazyconfig_train_net.py")


def site_packages(package):
    return Path(importlib.util.find_spec(package).origin).parents[1]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in ("mini-coco", "mini-ade20k"):
        data.prepare(name, folder, replace(SPECS[name], num_train=8, num_val=2))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An encoder in MAE's layout, and its fingerprint."""
    encoder = create_backbone("vit_mini_patch8")
    path = tmp_path_factory.mktemp("checkpoint") / "mae.pth"
    torch.save({"model": encoder.state_dict()}, path)
    return path, fingerprint(encoder.state_dict())


def run(tool, *arguments, root, cwd, path=""):
    """Run the tool in a process of its own, as its users do; returns what it printed."""
    environment = {**os.environ, "MAE_BENCH_DATA_ROOT": str(root), "PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, str(tool), *map(str, arguments)],
        env=environment,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def part(weights, prefix):
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


RELEASES = {"as installed": site_packages("detectron2"), "main": MAIN and Path(MAIN)}


@pytest.mark.detectron2
@pytest.mark.parametrize("release", RELEASES)
def test_lazyconfig_train_net_trains_and_evaluates_our_file(release, root, checkpoint, tmp_path):
    """Unchanged, with overrides on its command line; the weights it starts from are the file's."""
    where = RELEASES[release]
    if not where:
        pytest.skip("MAE_BENCH_DETECTRON2 names no checkout of detectron2's main branch")
    if not (where / LAZY_TOOL).is_file():
        pytest.skip(f"no {LAZY_TOOL} beside this detectron2 ({where})")
    path, expected = checkpoint
    tool, common = where / LAZY_TOOL, dict(root=root, cwd=tmp_path)
    if release == "main":
        common["path"] = where
    config = ("--config-file", ROOT / "configs/detection/mini.py")
    short = (
        "train.max_iter=2",
        "train.eval_period=2",
        "train.log_period=1",
        "dataloader.train.batch_size=2",
    )
    # With an lr of 0 what is saved at the end is what the training started from.
    still = ("optimizer.params.lr=0.0", "optimizer.lr=0.0", f"model.backbone.checkpoint={path}")
    printed = run(tool, *config, *short, *still, "train.output_dir=out", **common)
    assert "copypaste: Task: bbox" in printed and "copypaste: Task: segm" in printed
    trained = torch.load(tmp_path / "out/model_final.pth", weights_only=False)["model"]
    assert fingerprint(part(trained, "backbone.bottom_up.encoder.")) == expected
    logged = [json.loads(line) for line in (tmp_path / "out/metrics.json").open()]
    assert any(line.get("total_loss", 0) > 0 and line["iteration"] == 1 for line in logged)
    again = ("--eval-only", "train.init_checkpoint=out/model_final.pth", "train.output_dir=again")
    scored = run(tool, *config, *again, **common)
    scores = [
        [line.split("copypaste: ")[1] for line in text.splitlines() if "copypaste: " in line]
        for text in (printed, scored)
    ]
    assert scores[0] == scores[1] and len(scores[0]) == 6


@pytest.mark.mmseg
def test_mmsegs_train_and_test_run_our_file(root, checkpoint, tmp_path):
    """Unchanged: two iterations, and the same score once more by the other tool."""
    tools = site_packages("mmseg") / "mmseg/.mim/tools"
    if not (tools / "train.py").is_file():
        pytest.skip(f"this mmseg ships no tools ({tools})")
    path, expected = checkpoint
    config, common = ROOT / "configs/segmentation/mini.py", dict(root=root, cwd=tmp_path)
    overrides = (
        "train_cfg.max_iters=2",
        "train_cfg.val_interval=2",
        "train_dataloader.batch_size=2",
        f"model.backbone.checkpoint={path}",
        "optim_wrapper.optimizer.lr=0",
    )
    train = run(tools / "train.py", config, "--work-dir=out", "--cfg-options", *overrides, **common)
    trained = torch.load(tmp_path / "out/iter_2.pth", weights_only=False)["state_dict"]
    encoder = part(trained, "backbone.encoder.")
    # Stored positions are those of the crop, as the file's are: nothing was resized.
    assert fingerprint(encoder) == expected
    test = run(tools / "test.py", config, "out/iter_2.pth", "--work-dir=again", **common)
    scores = [text[text.rindex("aAcc:") :].split("data_time")[0] for text in (train, test)]
    assert scores[0] == scores[1] and "mIoU" in scores[0]
