"""Whole runs: a user's own data by one command, several processes, several views."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import in_processes, job_in

from backbones import create_backbone
from backbones.checkpoints import fingerprint, save_backbone
from mae_bench.cli import main
from mae_bench.job import Stopped
from mae_bench.recipes import load_recipe
from tasks import distributed, segmentation
from tasks.segmentation import build_segmentor, building, mmseg_config
from tasks.segmentation.scores import evaluate

# isort: split
from mmengine.model import revert_sync_batchnorm
from mmseg.registry import DATASETS

pytestmark = [pytest.mark.mmseg, pytest.mark.slow]
CLASSES = ["wall", "disc", "box", "bar"]
SIDE = 64
COLOURS = np.array([[0, 0, 0], [120, 110, 100], [200, 60, 50], [50, 180, 80], [60, 80, 210]])


def draw(seed):
    """A disc, a box and a bar on a wall, each of its own colour; picture and map (1 to 4)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    labels = np.ones((SIDE, SIDE), np.uint8)
    disc, box = random.integers(12, 28, 2), random.integers(36, 50, 2)
    labels[np.hypot(y - disc[0], x - disc[1]) < 11] = 2
    labels[(abs(y - box[0]) < 11) & (abs(x - box[1]) < 11)] = 3
    labels[(abs(x - random.integers(48, 58)) < 5) & (y < 30)] = 4
    picture = COLOURS[labels] + random.integers(-20, 21, (SIDE, SIDE, 3))
    return picture.clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Eight images that are training and validation set at once."""
    home = tmp_path_factory.mktemp("shapes")
    for split in ("train", "val"):
        for kind in ("images", "annotations"):
            (home / kind / split).mkdir(parents=True)
        for seed in range(8):
            picture, labels = draw(seed)
            Image.fromarray(picture).save(home / "images" / split / f"{seed}.png")
            Image.fromarray(labels).save(home / "annotations" / split / f"{seed}.png")
    (home / "classes.txt").write_text("\n".join(CLASSES))
    return home


def transfer(home, work, *options):
    command = ("transfer", "--task", "segmentation", "--dataset", f"ade20k-format:{home}")
    assert main([*command, "--work-dir", str(work), *map(str, options)]) == 0
    (record,) = (json.loads(path.read_text()) for path in work.glob("runs/*/record.json"))
    return record, next(work.glob("runs/*/record.json")).parent


def test_a_users_own_data_by_one_command_overfits_eight_images(shapes, tmp_path):
    encoder = create_backbone("vit_mini_patch8")
    save_backbone(encoder, tmp_path / "encoder.safetensors", {"backbone": "vit_mini_patch8"})
    changes = {
        "solver.epochs": 300,
        "solver.lr": 4e-3,
        "solver.num_workers": 0,
        "data.scale_range": [1.0, 1.0],
        "data.class_max_share": 1.0,
        "model.drop_path_rate": 0.0,
        "model.channels": 32,
        "model.dropout": 0.0,
        "test.validate_every": 150,
    }
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    weights = ("--backbone", "vit_mini_patch8", "--checkpoint", tmp_path / "encoder.safetensors")
    record, folder = transfer(shapes, tmp_path / "work", *weights, *sets)
    outcome = record["outcome"]
    assert record["run"]["recipe"] == "segmentation/own_data"
    assert outcome["metrics"]["miou"]["value"] > 90
    facts = outcome["facts"]
    assert facts["load_report"]["fingerprint"] == fingerprint(encoder.state_dict())
    assert set(facts["iou_per_class"]) == set(CLASSES)
    assert list(facts["validation_miou"]) == ["150"]
    assert facts["computed_in"] == {"encoder": "float32", "decode_head": "float32"}
    with Image.open(folder / outcome["pictures"][0]["path"]) as picture:
        assert min(picture.size) > 300
    assert "segmentor.pth" in {path.name for path in folder.iterdir()}


SHORT = {
    "data.image_size": 32,
    "data.crop_size": 32,
    "solver.iterations": 4,
    "solver.epochs": None,
    "solver.batch_size": 4,
    "solver.num_workers": 0,
    "solver.save_every": 2,
    "test.validate_every": 2,
    "model.channels": 8,
    "model.aux_channels": 8,
}


def short_job(folder, home, **overrides):
    recipe = load_recipe("segmentation/own_data", backbone="vit_mini_patch8")
    for key, value in {**SHORT, **overrides}.items():
        section, name = key.split(".")
        recipe[section][name] = value
    job = job_in(folder)
    about = {"task": "segmentation", "dataset": f"ade20k-format:{home}"}
    about |= {"backbone": "vit_mini_patch8", "recipe_values": recipe}
    job.run = job.run.model_copy(update=about)
    return job


def score_of(folder, home, overrides):
    """The task as the runner calls it; every process leaves what it found."""
    outcome = segmentation.run(short_job(folder, home, **overrides))
    (folder / f"{distributed.rank()}.json").write_text(outcome.model_dump_json())


def outcomes(count, folder, home, **overrides):
    assert in_processes(count, score_of, folder, str(home), overrides) == [0] * count
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


def test_two_processes_score_every_image_once(shapes, tmp_path):
    """As one process scores the model that they saved."""
    odd = {"test.max_images": 5}
    both = outcomes(2, tmp_path / "run", shapes, **odd)
    assert both[0]["metrics"] == both[1]["metrics"]
    assert both[0]["facts"]["norm_images"] == 2, "BatchNorm is not synchronised on a CPU"
    job = short_job(tmp_path / "again", shapes, **odd)
    config = mmseg_config(job.recipe, dataset=job.run.dataset, backbone="vit_mini_patch8")
    with building():
        model = build_segmentor(config["model"], 0)
        validation = DATASETS.build(config["val_dataloader"]["dataset"])
    saved = torch.load(tmp_path / "run" / "segmentor.pth")["state_dict"]
    revert_sync_batchnorm(model).load_state_dict(saved)
    scores, _ = evaluate(model, validation)
    found = {name: metric.value for name, metric in scores.metrics().items()}
    assert found == {name: metric["value"] for name, metric in both[0]["metrics"].items()}


@pytest.mark.parametrize("views", [{}, {"test.scales": [0.75, 1.25], "test.flip": True}])
def test_bfloat16_micro_batches_and_views_continue_bit_identically(views, shapes, tmp_path):
    """4 = 2 + 2, in bfloat16, in two passes, with scores on the way."""
    options = {"solver.amp": "bfloat16", "solver.accumulation": 2, **views}
    whole = segmentation.run(short_job(tmp_path / "whole", shapes, **options))
    broken = short_job(tmp_path / "broken", shapes, **options)
    steps = iter([False, True])
    broken.should_stop = lambda: next(steps, False)
    with pytest.raises(Stopped):
        while True:
            segmentation.run(broken)
    again = segmentation.run(short_job(tmp_path / "broken", shapes, **options))
    assert again.metrics == whole.metrics
    assert again.facts["validation_miou"] == whole.facts["validation_miou"]
    assert whole.facts["computed_in"] == {"encoder": "bfloat16", "decode_head": "bfloat16"}
    states = [
        torch.load(tmp_path / name / "segmentor.pth")["state_dict"] for name in ("whole", "broken")
    ]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
