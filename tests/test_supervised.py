"""Supervised pretraining: average of the weights, mixup and cutmix, schedule in epochs."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from PIL import Image
from torch import nn

from backbones import create_backbone
from mae_bench import cli
from mae_bench.errors import UserError
from mae_bench.recipes import load_recipe
from tasks import engine
from tasks.data.images import training_transform
from tasks.data.mixing import Mixing, mixing
from tasks.pretraining.supervised import SupervisedPretraining
from tests.tiny_training import Noisy, job_in


class Weight(BaseModel):
    """One weight that every step changes; may fail at a step."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.fail_at, self.trace = fail_at, []

    def forward(self, images, labels, mode="loss"):
        if self.fail_at is not None and len(self.trace) == self.fail_at:
            raise RuntimeError("power cut")
        self.count += 1
        self.trace.append(self.layer.weight.detach().clone())
        return {"loss": self.layer(images).square().mean()}


def train(folder, fail_at=None):
    torch.manual_seed(0)
    model = Weight(fail_at)
    average = engine.WeightAverage(model, decay=0.7)
    start = model.layer.weight.detach().clone()
    engine.fit(job_in(folder), model, None, Noisy(), hooks=[average])
    return model, average, start


def test_average_is_the_formula(tmp_path):
    model, average, expected = train(tmp_path)
    for weight in [*model.trace[1:], model.layer.weight.detach()]:
        expected = 0.7 * expected + 0.3 * weight
    torch.testing.assert_close(average.model.layer.weight, expected, atol=1e-6, rtol=1e-6)
    assert not torch.equal(average.model.layer.weight, model.layer.weight)
    assert average.model.count == model.count == 6


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(UserError, match=rf"model.ema_decay={decay}: a number between 0 and 1"):
        engine.WeightAverage(Weight(None), decay)


def test_average_continues_exactly(tmp_path):
    _, whole, _ = train(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path / "cut", fail_at=4)
    _, continued, _ = train(tmp_path / "cut")
    assert torch.equal(continued.model.layer.weight, whole.model.layer.weight)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_targets_follow_the_mixed_pixels(mixup, cutmix):
    """Image i is filled with the value i, so a mixed image tells how much of whom is in it."""
    classes, smoothing, batch = 6, 0.1, 4
    images = torch.arange(float(batch)).view(-1, 1, 1, 1).expand(-1, 3, 16, 16).contiguous()
    labels = torch.tensor([0, 2, 3, 5])
    mix = Mixing(mixup, cutmix, smoothing, classes)
    kinds = set()
    for seed in range(8):
        np.random.seed(seed)
        before = images.clone()
        mixed, targets = mix(images, labels)
        assert torch.equal(images, before)
        # Image 0 is mixed with image 3: its mean is 3 * (1 - lambda).
        share = 1 - float(mixed[0].mean()) / 3
        off, on = smoothing / classes, 1 - smoothing + smoothing / classes
        for i in range(batch):
            expected = torch.full((classes,), off)
            expected[labels[i]] = off + share * (on - off)
            expected[labels[batch - 1 - i]] = off + (1 - share) * (on - off)
            torch.testing.assert_close(targets[i], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(targets.sum(1), torch.ones(batch))
        kinds.add("cut" if len(mixed[0].unique()) > 1 or share in {0.0, 1.0} else "mix")
    wanted = {"mix"} if not cutmix else {"cut"} if not mixup else {"mix", "cut"}
    assert kinds == wanted


def test_mixing_needs_pairs():
    with pytest.raises(UserError, match=r"even number of images per pass, not 3"):
        Mixing(0.8, 1.0, 0.1, 4)(torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2]))
    assert mixing({"label_smoothing": 0.1}, 4) is None
    assert mixing({"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.1}, 4) is None


def test_loss_is_soft_cross_entropy_of_the_mixed_batch():
    torch.manual_seed(0)
    encoder = create_backbone("vit_mini_patch8", img_size=16)
    model = SupervisedPretraining(encoder, 5, 0.1, Mixing(0.8, 1.0, 0.1, 5)).eval()
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    np.random.seed(1)
    loss = model(images, labels)["loss"]
    np.random.seed(1)
    mixed, targets = model.mix(images, labels)
    logits = model(mixed, labels, mode="predict")["logits"]
    torch.testing.assert_close(loss, -(targets * logits.log_softmax(1)).sum(1).mean())


def test_without_mixing_the_loss_is_smoothed_cross_entropy():
    torch.manual_seed(0)
    encoder = create_backbone("vit_mini_patch8", img_size=16)
    model = SupervisedPretraining(encoder, 5, 0.1).eval()
    images, labels = torch.randn(3, 3, 16, 16), torch.tensor([0, 4, 2])
    logits = model(images, labels, mode="predict")["logits"]
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(model(images, labels)["loss"], expected)


def test_rand_augment_and_erasing_change_the_image():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))
    plain = training_transform(32, (1.0, 1.0))
    full = training_transform(32, (1.0, 1.0), "rand-m9-mstd0.5-inc1", erasing=1.0)
    results = []
    for transform in (plain, full, full):
        engine.seed_all(0)
        results.append(transform(image))
    assert results[1].shape == (3, 32, 32)
    assert torch.equal(results[1], results[2])
    assert not torch.equal(results[0], results[1])
    with pytest.raises(UserError, match=r"'random-9' is not timm's"):
        training_transform(32, (1.0, 1.0), "random-9")


@pytest.mark.parametrize(
    ("backbone", "epochs", "drop_path"),
    [
        ("vit_base_patch16", 300, 0.1),
        ("vit_large_patch16", 200, 0.2),
        ("vit_huge_patch14", 200, 0.2),
    ],
)
def test_paper_recipe(backbone, epochs, drop_path):
    """arXiv:2111.06377 Table 11: actual lr 1.6e-3 at batch 4096, 312.8 steps an epoch."""
    recipe = load_recipe("pretraining/supervised", backbone=backbone)
    solver = recipe["solver"]
    assert engine.scaled_lr(solver["base_lr"], solver["batch_size"]) == pytest.approx(1.6e-3)
    assert recipe["model"]["drop_path_rate"] == drop_path
    steps = 1281167 / 4096
    assert engine.duration(solver, 1281167) == (round(epochs * steps), round(20 * steps))


def test_duration_prefers_iterations():
    solver = {"iterations": 7, "epochs": 3, "warmup_iterations": None, "warmup_epochs": 0.5}
    assert engine.duration({**solver, "batch_size": 4}, 10) == (7, 1)
    assert engine.duration({**solver, "iterations": None, "batch_size": 4}, 10) == (8, 1)
    neither = {**solver, "iterations": None, "epochs": None, "batch_size": 4}
    with pytest.raises(UserError, match="training has no length"):
        engine.duration(neither, 10)


@pytest.mark.parametrize("name", ["mini_mae", "mini_supervised", "mini_tokenizer", "mae"])
def test_every_recipe_can_be_trained_in_epochs(name):
    changes = {"solver.iterations": None, "solver.epochs": 3}
    changes |= {"solver.warmup_iterations": None, "solver.warmup_epochs": 1}
    solver = load_recipe(f"pretraining/{name}", {**changes, "solver.batch_size": 5})["solver"]
    assert engine.duration(solver, 100) == (60, 20)


@pytest.mark.parametrize(
    ("init", "task"), [("supervised", "supervised"), ("tokenizer", "tokenizer")]
)
def test_it_is_pretrained_by_the_same_command(init, task, tmp_path, capsys):
    arguments = ["pretrain", "--init", init, "--dry-run", "--work-dir", str(tmp_path)]
    assert cli.main([*arguments, "--format", "json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert (run["task"], run["init"]) == (task, init)
