"""Optimizer, groups, schedule and crop of classification against formulas; a golden curve."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_classification import run_on, write_set
from torch import nn

from backbones import create_backbone
from backbones.groups import parameter_groups, parameter_rules
from mae_bench.recipes import load_recipe
from tasks import engine
from tasks.classification import build
from tasks.data import LabeledImages, classification_split
from tasks.data.images import denormalise, training_transform
from tasks.engine.lars import lars

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("set"))


# --- LARS ------------------------------------------------------------------------------------


def train_layer(make_optimizer, steps=5):
    torch.manual_seed(0)
    layer, inputs = nn.Linear(6, 4), torch.randn(steps, 8, 6)
    optimizer = make_optimizer(layer)
    for x in inputs:
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
    return layer


def naive_lars(layer, inputs, lr, momentum, decay=0.0, sum_of_lengths=False):
    """facebookresearch/mae util/lars.py in words: trust ratio for matrices, SGD for vectors."""
    speed = {name: torch.zeros_like(p) for name, p in layer.named_parameters()}
    for x in inputs:
        layer.zero_grad()
        layer(x).square().mean().backward()
        with torch.no_grad():
            for name, p in layer.named_parameters():
                step = p.grad.clone()
                if p.ndim > 1:
                    length = (step + decay * p).norm()
                    if sum_of_lengths:
                        length = step.norm() + decay * p.norm()
                    step = (step + decay * p) * 0.001 * p.norm() / length
                speed[name] = momentum * speed[name] + step
                p -= lr * speed[name]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_against_the_formula(decay):
    def groups(layer):
        return parameter_groups(layer, parameter_rules(layer, None, decay), 3.0)

    torch.manual_seed(0)
    expected, inputs = nn.Linear(6, 4), torch.randn(5, 8, 6)
    naive_lars(expected, inputs, lr=3.0, momentum=0.9, decay=decay, sum_of_lengths=True)
    found = train_layer(lambda layer: lars(groups(layer), momentum=0.9))
    torch.testing.assert_close(found.weight, expected.weight, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.bias, expected.bias, atol=1e-6, rtol=1e-5)


def test_without_decay_it_is_the_published_code_too():
    torch.manual_seed(0)
    expected, inputs = nn.Linear(6, 4), torch.randn(5, 8, 6)
    naive_lars(expected, inputs, lr=3.0, momentum=0.9)
    found = train_layer(lambda layer: lars([{"params": layer.parameters(), "lr": 3.0}], 0.9))
    torch.testing.assert_close(found.weight, expected.weight, atol=1e-6, rtol=1e-5)


def test_a_zero_matrix_is_not_divided_by():
    layer = nn.Linear(2, 2)
    nn.init.zeros_(layer.weight)
    optimizer = lars([{"params": layer.parameters(), "lr": 0.5}], 0.0)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(layer.weight, torch.full((2, 2), -0.5))


# --- groups and schedule ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "depth", "recipe", "decay"),
    [
        ("vit_base_patch16", 12, "finetune", 0.65),
        ("vit_large_patch16", 24, "finetune", 0.75),
        ("vit_base_patch16", 12, "finetune_paper", 0.75),
    ],
)
def test_layer_decay_of_a_classifier(name, depth, recipe, decay):
    """r^(d + 1 - k) for layer k of the published code; the norm behind the pooling and the head 1.

    With every value also in a golden table, for ViT-B and ViT-L.
    """
    values = load_recipe(f"classification/{recipe}", backbone=name)
    with torch.device("meta"):
        encoder = create_backbone(name)
        model = build(encoder, 1000, values["model"])
    solver = values["solver"]
    rules = parameter_rules(model, encoder, solver["weight_decay"], solver["layer_decay"])
    for rule in rules:
        inner = rule.name.removeprefix("encoder.")
        layer = depth + 1
        if inner.startswith(("patch_embed", "cls_token", "pos_embed")):
            layer = 0
        elif inner.startswith("blocks."):
            layer = int(inner.split(".")[1]) + 1
        assert rule.lr_scale == pytest.approx(decay ** (depth + 1 - layer), rel=1e-12), rule.name
        parameter = dict(model.named_parameters())[rule.name]
        exempt = parameter.ndim == 1 or inner in {"pos_embed", "cls_token"}
        assert rule.weight_decay == (0.0 if exempt else 0.05), rule.name
    pooled_by_mean = recipe == "finetune"
    assert ("norm.weight" in {rule.name for rule in rules}) == pooled_by_mean
    if pooled_by_mean:
        lines = [f"{r.name} {r.layer} {r.lr_scale:.10g} {r.weight_decay:g}" for r in rules]
        assert lines == (GOLDEN / f"finetune_{name}.txt").read_text().splitlines()


def test_schedule_is_the_published_one():
    """util/lr_sched.py: by fractional epoch, warm-up from 0, half a cosine to min_lr."""
    recipe = load_recipe("classification/finetune", backbone="vit_base_patch16")["solver"]
    steps = 1281167 / 1024
    total, warmup = engine.duration(recipe, 1281167)
    assert (total, warmup) == (round(100 * steps), round(5 * steps))
    peak = engine.scaled_lr(recipe["base_lr"], recipe["batch_size"])
    assert peak == pytest.approx(2e-3)
    for step in (0, 1, warmup - 1, warmup, total // 2, total - 1):
        epoch = step / steps
        expected = peak * epoch / 5
        if epoch >= 5:
            expected = 1e-6 + (peak - 1e-6) * 0.5 * (1 + math.cos(math.pi * (epoch - 5) / 95))
        found = engine.cosine_lr(step, total, warmup, peak, recipe["min_lr"])
        assert found == pytest.approx(expected, rel=2e-4, abs=1e-9), step


def test_lr_follows_the_batch(images, tmp_path):
    peaks = {}
    for batch in (4, 8):
        options = dict(solver__batch_size=batch, solver__iterations=10, solver__min_lr=0.0)
        run_on(images, tmp_path / str(batch), **options)
        line = (tmp_path / str(batch) / "metrics.jsonl").read_text()
        peaks[batch] = json.loads(line)["lr"]
    assert peaks[8] == pytest.approx(2 * peaks[4], rel=1e-9)


# --- crop ------------------------------------------------------------------------------------


def test_single_draw_crop_against_the_formula():
    """One draw of area and shape; a box that sticks out is cut, not drawn again."""
    rows, columns = np.mgrid[:48, :64]
    image = Image.fromarray(np.stack([rows * 4, columns * 3, rows + columns], 2).astype(np.uint8))
    transform = training_transform(16, (0.08, 1.0), augmentation="single-draw")
    cut = 0
    for seed in range(40):
        torch.manual_seed(seed)
        found = denormalise(transform(image)[None])[0] * 255
        torch.manual_seed(seed)
        area = 48 * 64 * torch.empty(()).uniform_(0.08, 1.0).item()
        shape = math.exp(torch.empty(()).uniform_(math.log(3 / 4), math.log(4 / 3)).item())
        width, height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        cut += width > 64 or height > 48
        width, height = min(width, 64), min(height, 48)
        top = torch.randint(48 - height + 1, ()).item()
        left = torch.randint(64 - width + 1, ()).item()
        box = image.crop((left, top, left + width, top + height))
        expected = np.asarray(box.resize((16, 16), Image.Resampling.BICUBIC), dtype=np.float32)
        expected = torch.from_numpy(expected).permute(2, 0, 1)
        differences = [(found - e).abs().max() for e in (expected, expected.flip(2))]
        assert min(differences) < 1e-3
    assert cut > 3


# --- golden curve ----------------------------------------------------------------------------


def losses(folder, monkeypatch):
    """Loss of each step, to the last digit."""
    found = []

    def report(self, phase, step, total, **scalars):
        found.extend(scalars.values() if phase == "train" else ())

    monkeypatch.setattr("mae_bench.job.Job.report", report)
    run_on(
        write_set(folder / "images"),
        folder / "run",
        data__rand_augment="rand-m9-mstd0.5-inc1",
        data__erasing=0.25,
        model__mixup=0.8,
        model__cutmix=1.0,
        solver__iterations=10,
        solver__accumulation=2,
    )
    return found


CURVE = GOLDEN / "finetune_curve.txt"


def test_golden_curve(tmp_path, monkeypatch):
    """Ten steps of fine-tuning with everything on, equal to the last digit on one thread.

    The file says where it was made; other kernels may round differently in the last digits. Delete
    it and run the test to renew it, and say why in the change log.
    """
    version, kernels = torch.__version__.partition("+")[0], torch.backends.cpu.get_cpu_capability()
    where = f"# torch {version}, {kernels}"
    found = losses(tmp_path, monkeypatch)
    if not CURVE.exists():
        CURVE.write_text("\n".join([where, *map(repr, found)]) + "\n")
        pytest.fail(f"{CURVE} was written; run the test again")
    there, *lines = CURVE.read_text().splitlines()
    expected = [float(line) for line in lines]
    assert found == (expected if there == where else pytest.approx(expected, rel=1e-4))


def shifted(name, data_root, split):
    found = classification_split(name, data_root, split)
    labels = [(label + 1) % len(found.classes) for label in found.labels]
    return LabeledImages(found.paths, labels, found.classes)


FAULTS = {
    "lr not scaled by the batch": ("engine.solver.scaled_lr", lambda base_lr, batch_size: base_lr),
    "layer decay off": (
        "engine.solver.parameter_rules",
        lambda model, encoder, decay, _, rule: parameter_rules(model, encoder, decay, 1.0, rule),
    ),
    "no warm-up": (
        "engine.solver.cosine_lr",
        lambda step, warmup, **rest: engine.cosine_lr(step, warmup=0, **rest),
    ),
    "labels shifted by one": ("data.images.classification_split", shifted),
    "hard targets": ("classification.mixing", lambda settings, num_classes: None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_curve_notices(tmp_path, monkeypatch, fault):
    """Faults that train without a word."""
    place, mutant = FAULTS[fault]
    monkeypatch.setattr(f"tasks.{place}", mutant)
    expected = [float(line) for line in CURVE.read_text().splitlines()[1:]]
    assert losses(tmp_path, monkeypatch) != pytest.approx(expected, rel=1e-4)
