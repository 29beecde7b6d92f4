"""Recipes of detection as LazyConfigs: schedules, models, parameter groups, protocols."""

import json

import numpy as np
import pytest
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from tiny_detection import TINY, lazy, prepare

from backbones.checkpoints import fingerprint
from backbones.groups import parameter_rules
from mae_bench.cli import main
from mae_bench.errors import UserError
from mae_bench.recipes import CONFIGS, load_recipe
from tasks.detection import config
from tasks.detection.data import num_classes
from tasks.detection.model import PIXEL_MEAN, PIXEL_STD

# isort: split
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import SimpleTrainer, hooks

pytestmark = pytest.mark.detectron2


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("coco"))


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_schedule_warms_up_linearly_and_ends_low(schedule):
    multiplier = instantiate(config._schedule(schedule, 100, 10))
    values = [multiplier(step / 100) for step in range(100)]
    assert values[0] == pytest.approx(0.001)
    assert np.allclose(np.diff(values[:10], 2), 0, atol=1e-12)
    assert int(np.argmax(values)) == 10
    if schedule == "cosine":
        assert values[50] == pytest.approx(0.5) and values[99] < 1e-3
    else:
        assert {round(v, 6) for v in values[10:]} == {1.0, 0.1, 0.01}
        assert values[88] == pytest.approx(1.0) and values[89] == pytest.approx(0.1)


def test_a_step_schedule_of_two_steps():
    multiplier = instantiate(config._schedule("step", 2, 1))
    assert [multiplier(step / 2) for step in range(2)] == pytest.approx([0.001, 1.0])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("solver.schedule", "linear", r"solver.schedule 'linear'.* cosine, step"),
        ("solver.amp", "half", r"solver.amp 'half'.* bfloat16, float16, none"),
        ("solver.warmup_iterations", 6, r"warmup_iterations=6 .* of 6 iterations; set it lower"),
    ],
)
def test_a_solver_that_cannot_be_is_refused(root, key, value, message):
    with pytest.raises(UserError, match=message):
        lazy(root, **{key: value})


def test_the_recipe_file_is_a_lazyconfig_for_detectron2s_own_tools(root, monkeypatch):
    """What tools/lazyconfig_train_net.py does with it, for two steps."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    cfg = LazyConfig.load(str(CONFIGS / "detection" / "mini.py"))
    cfg = LazyConfig.apply_overrides(cfg, ["train.max_iter=2", "dataloader.train.batch_size=2"])
    assert json.loads(json.dumps(load_recipe("detection/mini"))) == cfg.recipe
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    trainer = SimpleTrainer(model, instantiate(cfg.dataloader.train), optimizer)
    trainer.register_hooks([hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier))])
    before = fingerprint(model.state_dict())
    trainer.train(0, cfg.train.max_iter)
    assert fingerprint(model.state_dict()) != before
    assert instantiate(cfg.dataloader.evaluator)._use_fast_impl is False
    assert len(instantiate(cfg.dataloader.test)) == TINY.num_val


def test_the_effective_config_can_be_saved_and_read_again(root, tmp_path):
    cfg = config.DictConfig(lazy(root), flags={"allow_objects": True})
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    again = LazyConfig.load(str(tmp_path / "config.yaml"))
    torch.manual_seed(0)
    first = instantiate(cfg.model)
    torch.manual_seed(0)
    second = instantiate(again.model)
    assert fingerprint(first.state_dict()) == fingerprint(second.state_dict())


def test_pixels_are_normalised_as_in_pretraining(root):
    assert np.allclose(PIXEL_MEAN, 255 * np.array(IMAGENET_DEFAULT_MEAN))
    assert np.allclose(PIXEL_STD, 255 * np.array(IMAGENET_DEFAULT_STD))
    model = instantiate(lazy(root)["model"])
    assert model.input_format == "RGB"
    red = torch.tensor([255.0, 0, 0])[:, None, None].expand(3, 96, 96)
    pixels = model.preprocess_image([{"image": red}]).tensor[0, :, 0, 0]
    expected = (np.array([1.0, 0, 0]) - IMAGENET_DEFAULT_MEAN) / IMAGENET_DEFAULT_STD
    assert np.allclose(pixels, expected, atol=1e-5)


def test_mask_rcnn_has_the_recipes_shape(root):
    changes = {
        "model.box_convs": 2,
        "model.rpn_convs": 2,
        "model.head_norm": "BN",
        "model.fpn_norm": "BN",
    }
    model = instantiate(lazy(root, **changes)["model"])
    norms = {n for n, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    heads = {"roi_heads.box_head.conv2.norm", "roi_heads.mask_head.mask_fcn3.norm"}
    assert heads | {"backbone.fpn_output2.norm"} <= norms
    assert len(model.proposal_generator.rpn_head.conv) == 2
    assert not any(name.startswith("proposal_generator") for name in norms)
    classes = num_classes("mini-coco", root)
    assert model.roi_heads.box_predictor.cls_score.out_features == classes + 1
    assert model.roi_heads.mask_head.predictor.out_channels == classes


def test_golden_parameter_groups(root):
    """Layer-wise decay on the encoder only; no weight decay for positions, norms and biases."""
    model = instantiate(lazy(root)["model"])
    encoder = model.backbone.bottom_up.encoder
    rules = {r.name: r for r in parameter_rules(model, encoder, 0.1, 0.5)}
    prefix = "backbone.bottom_up.encoder."
    golden = {
        prefix + "pos_embed": (0.5**5, 0.0),
        prefix + "patch_embed.proj.weight": (0.5**5, 0.1),
        prefix + "blocks.0.attn.qkv.weight": (0.5**4, 0.1),
        prefix + "blocks.3.mlp.fc2.bias": (0.5, 0.0),
        "backbone.bottom_up.pyramid.levels.0.weight": (1.0, 0.1),
        "backbone.fpn_output2.weight": (1.0, 0.1),
        "roi_heads.box_predictor.cls_score.bias": (1.0, 0.0),
    }
    assert {name: (rules[name].lr_scale, rules[name].weight_decay) for name in golden} == golden
    assert prefix + "norm.weight" not in rules
    groups = config.optimizer_groups(model, 1e-3, 0.1, 0.5, "mae-finetune")
    assert {group["lr"] for group in groups} == {1e-3 * 0.5**k for k in range(6)}


# --- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "recipe"),
    [
        ((), "detection/own_data"),
        (("--scale", "paper"), "detection/li"),
        (("--recipe", "detection/vitdet"), "detection/vitdet"),
    ],
)
@pytest.mark.parametrize("backbone", ["vit_tiny_patch16", "timm:resnet18"])
def test_own_data_is_one_command(root, tmp_path, capsys, backbone, options, recipe):
    """With the recipe made for it, unless another one or the paper's scale is asked for."""
    data = f"coco-format:{root / 'mini-coco' / 'coco'}"
    command = ["transfer", "--task", "detection", "--dataset", data, "--backbone", backbone]
    command += ["--init", "random", "--set", "solver.epochs=12", *options]
    where = ["--work-dir", str(tmp_path), "--dry-run", "--format", "json"]
    assert main([*command, *where]) == 0
    (planned,) = json.loads(capsys.readouterr().out)["runs"]
    assert planned["recipe"] == recipe and planned["backbone"] == backbone


def test_own_data_sets_size_and_length(root):
    """96 px, as the images are; twelve passes over ten images by fours."""
    data = f"coco-format:{root / 'mini-coco' / 'coco'}"
    recipe = load_recipe("detection/own_data", {"solver.epochs": 12}, backbone="vit_mini_patch8")
    cfg = config.lazy_config(recipe, backbone="vit_mini_patch8", dataset=data, data_root=root)
    assert cfg["model"].backbone.square_pad == 96 and cfg["train"].max_iter == 30
    assert instantiate(cfg["model"].roi_heads.num_classes) == num_classes("mini-coco", root)
    assert recipe["data"]["image_size"] is None, "the recipe itself is not changed"
    theirs = load_recipe("detection/own_data", backbone="timm:vit_small_patch8_224")
    assert theirs["model"]["strides"] == recipe["model"]["strides"] == [4, 8, 16]
