"""Protocols: what the recipes say, what becomes of it in mmseg's terms, and in the optimizer."""

from functools import partial

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import LinearLR, PolyLR, build_optim_wrapper
from PIL import Image
from torch import nn

from backbones.groups import DECAY_RULES, parameter_rules
from mae_bench import protocol
from mae_bench.plan import load_tables
from mae_bench.recipes import CONFIGS, list_recipes, load_recipe
from tasks.engine import polynomial_lr
from tasks.segmentation import building
from tasks.segmentation.config import model_config, sized
from tasks.segmentation.pipelines import views_pipeline

# isort: split
from mmseg.registry import MODELS

pytestmark = pytest.mark.mmseg
NAMES = [name for name in list_recipes() if name.startswith("segmentation/")]
PUBLISHED = [
    (16_000, 38.65), (32_000, 43.97), (48_000, 45.96), (64_000, 45.28), (80_000, 46.01),
    (96_000, 46.81), (112_000, 46.85), (128_000, 47.69), (144_000, 47.68), (160_000, 48.15),
]  # fmt: skip


def upernet(name="upernet", backbone="vit_base_patch16", init="mae-norm-pixel", **overrides):
    return load_recipe(f"segmentation/{name}", overrides, backbone=backbone, init=init)


def test_the_protocol_of_table_5():
    recipe = upernet()
    data, model, solver, test = (recipe[key] for key in ("data", "model", "solver", "test"))
    assert (data["image_size"], data["crop_size"], data["scale_range"]) == (512, 512, [0.5, 2.0])
    assert data["class_max_share"] == 0.75
    assert model["taps"] == [3, 5, 7, 11] and model["scales"] == [4, 2, 1, 0.5]
    assert (model["pool_scales"], model["aux_weight"]) == ([1, 2, 3, 6], 0.4)
    assert (solver["iterations"], solver["warmup_iterations"]) == (160_000, 1500)
    assert (solver["batch_size"], solver["lr"], solver["layer_decay"]) == (16, 1e-4, 0.65)
    assert (solver["betas"], solver["weight_decay"]) == ([0.9, 0.999], 0.05)
    assert (test["mode"], test["stride"], test["scales"]) == ("slide", 341, [1.0])
    assert [tuple(point) for point in recipe["reference"]["curve"]] == PUBLISHED


def test_sizes_follow_the_encoder():
    large, huge = upernet(backbone="vit_large_patch16"), upernet(backbone="vit_huge_patch14")
    assert large["model"]["taps"] == [7, 11, 15, 23]
    # Thirds and half of 32 blocks, to the nearest.
    thirds = [round(32 * share) - 1 for share in (1 / 3, 1 / 2, 2 / 3, 1)]
    assert huge["model"]["taps"] == thirds == [10, 15, 20, 31]
    assert huge["data"]["crop_size"] % 14 == 0 and huge["test"]["stride"] == 518 * 2 // 3
    assert large["reference"]["curve"] is None, "nobody published one"


@pytest.mark.parametrize("backbone", ["vit_base_patch16", "vit_large_patch16"])
def test_one_setting_serves_every_init(backbone):
    """Of what is searched for; BEiT's weights need BEiT's architecture, and no more."""
    inits = ("random", "supervised", "moco-v3", "beit", "mae-norm-pixel", "mae-pixel")
    solvers = [upernet(backbone=backbone, init=init)["solver"] for init in inits]
    assert all(solver == solvers[0] for solver in solvers)
    beit = upernet(backbone=backbone, init="beit")["model"]
    assert beit["architecture"] == backbone.replace("vit", "beit")
    (table,) = load_tables(["table5-lr"])
    grids = [column.scales["paper"].overrides for column in table.columns]
    assert {tuple(grid) for grid in grids} == {("solver.lr",)} and len(grids) > 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("upernet_mmseg", {"lr": 1e-4, "layer_decay": 0.65, "amp": "float16"}),
        ("upernet_beit", {"lr": 7e-4, "layer_decay": 0.65, "decay_rule": "beit-seg"}),
        ("upernet_fair", {"lr": 8e-5, "layer_decay": 0.8}),
        ("upernet_640", {"lr": 1e-4}),
    ],
)
def test_published_variants_are_the_recipe_with_differences(name, expected):
    recipe = upernet(name)
    assert expected.items() <= recipe["solver"].items()
    assert set(recipe) == set(upernet())
    large = upernet(name, backbone="vit_large_patch16")
    if name == "upernet_beit":
        assert (large["solver"]["lr"], large["solver"]["layer_decay"]) == (2e-5, 0.95)
    if name == "upernet_640":
        assert (recipe["data"]["crop_size"], recipe["test"]["stride"]) == (640, 426)
        assert large["solver"]["accumulation"] == 2


def test_the_papers_100_epochs():
    changes = {"solver.epochs": 100}
    from tasks.engine import duration

    assert duration(upernet(**changes)["solver"], 20_210) == (126_312, 1500)


@pytest.mark.parametrize("name", NAMES)
def test_cards_mark_what_differs(name):
    card = protocol.card(name, upernet(name.partition("/")[2]), "vit_base_patch16", "mae-pixel")
    marked = {line.name for line in card.differences}
    if name == "segmentation/upernet":
        assert {"iterations", "no weight decay", "precision", "schedule"} <= marked
        assert not {"crop", "batch", "learning rate", "taps", "layer-wise lr decay"} & marked
    if name == "segmentation/upernet_mmseg":
        assert not {"precision", "no weight decay", "learning rate"} & marked


def meta_model(name="upernet", backbone="vit_base_patch16", **overrides):
    recipe = upernet(name, backbone, **overrides)
    with torch.device("meta"), building():
        return MODELS.build(model_config(recipe, 150, backbone, None)), recipe["solver"]


# Parameter -> (layer, decayed by our rule, decayed by the published code).
GOLDEN = {
    "cls_token": (0, False, True),
    "pos_embed": (0, False, True),
    "patch_embed.proj.weight": (0, True, True),
    "patch_embed.proj.bias": (0, False, False),
    "blocks.0.norm1.weight": (1, False, False),
    "blocks.0.attn.qkv.weight": (1, True, True),
    "blocks.0.attn.relative_position_bias_table": (1, False, True),
    "blocks.0.gamma_1": (1, False, False),
    "blocks.5.mlp.fc1.bias": (6, False, False),
    "blocks.11.mlp.fc2.weight": (12, True, True),
    "blocks.11.attn.relative_position_bias_table": (12, False, True),
}
OUTSIDE = {
    "backbone.pyramid.levels.0.0.weight": True,
    "backbone.pyramid.levels.0.1.weight": False,
    "decode_head.fpn_bottleneck.conv.weight": True,
    "decode_head.fpn_bottleneck.bn.weight": False,
    "decode_head.conv_seg.bias": False,
    "auxiliary_head.conv_seg.weight": True,
}


@pytest.mark.parametrize(("name", "place"), [("upernet", 1), ("upernet_mmseg", 2)])
def test_golden_parameter_groups(name, place):
    model, solver = meta_model(name)
    arguments = (solver["weight_decay"], solver["layer_decay"], solver["decay_rule"])
    rules = {r.name: r for r in parameter_rules(model, model.backbone.encoder, *arguments)}
    assert len(rules) == sum(p.requires_grad for p in model.parameters())
    for parameter, facts in GOLDEN.items():
        rule = rules[f"backbone.encoder.{parameter}"]
        assert rule.layer == facts[0] and rule.lr_scale == pytest.approx(0.65 ** (13 - facts[0]))
        assert rule.weight_decay == (0.05 if facts[place] else 0.0), parameter
    for parameter, decayed in OUTSIDE.items():
        assert (rules[parameter].layer, rules[parameter].lr_scale) == (13, 1.0)
        assert rules[parameter].weight_decay == (0.05 if decayed else 0.0), parameter
    tables = [rule for name, rule in rules.items() if "relative_position_bias_table" in name]
    assert len(tables) == 12


def test_a_table_that_is_decayed_is_another_rule():
    """The mutation: taking tables out of the rule makes the golden table fail."""
    assert "relative_position_bias_table" in DECAY_RULES["upernet"].names
    for other in ("mae-finetune", "beit-seg"):
        assert "relative_position_bias_table" not in DECAY_RULES[other].names


def test_the_architecture_at_512():
    model, _ = meta_model()
    blocks = model.backbone.encoder.blocks
    assert all(
        block.attn.relative_position_bias_table.shape == (63 * 63 + 3, 12) for block in blocks
    )
    assert model.backbone.encoder.pos_embed.shape == (1, 1 + 32 * 32, 768)
    assert model.backbone.encoder.num_prefix_tokens == 1
    assert model.decode_head.channels == 768 and model.auxiliary_head.channels == 256
    assert model.auxiliary_head.loss_decode.loss_weight == 0.4
    assert not model.decode_head.align_corners and not model.auxiliary_head.align_corners
    assert model.backbone.out_indices == (3, 5, 7, 11)
    norms = [module for module in model.modules() if "Norm" in type(module).__name__]
    assert all(isinstance(norm, nn.LayerNorm | nn.SyncBatchNorm) for norm in norms)
    assert {isinstance(norm, nn.LayerNorm) for norm in norms} == {True, False}


@pytest.mark.parametrize(
    ("backbone", "init"),
    [
        ("vit_large_patch16", "random"),
        ("vit_huge_patch14", "random"),
        ("vit_base_patch16", "beit"),
        ("moco_base_patch16", "random"),
        ("deit_base_distilled_patch16", "random"),
        ("vit_mini_patch8", "random"),
        ("timm:resnet18", "random"),
        ("timm:convnext_atto", "random"),
        ("timm:vit_tiny_patch16_224", "random"),
    ],
)
def test_any_backbone_takes_the_protocol(backbone, init):
    recipe = upernet(backbone=backbone, init=init)
    if backbone.startswith("timm:"):
        with building():
            model = MODELS.build(model_config(recipe, 5, backbone, None))
        assert model.decode_head.channels == (192 if "vit" in backbone else 512)
        return
    with torch.device("meta"), building():
        model = MODELS.build(model_config(recipe, 5, backbone, None))
    assert model.decode_head.channels == model.backbone.encoder.embed_dim
    if init == "beit":
        assert model.backbone.encoder.pos_embed is None


def test_lr_against_mmengines_schedulers():
    """Warm-up from 1e-6, then linear; mmengine's ends one step earlier, at zero."""
    total, warmup, peak = 300, 40, 2.0
    ours = partial(polynomial_lr, total=total, warmup=warmup, peak=peak, start=1e-6)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    theirs = [
        LinearLR(optimizer, start_factor=1e-6, begin=0, end=warmup, by_epoch=False),
        PolyLR(optimizer, power=1.0, eta_min=0.0, begin=warmup, end=total, by_epoch=False),
    ]
    for step in range(total):
        near = peak / warmup if step < warmup else peak / (total - warmup)
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1.01 * near)
        optimizer.step()
        for schedule in theirs:
            schedule.step()
    assert ours(0) == peak * 1e-6 and ours(warmup) == peak
    assert ours(total - 1) == pytest.approx(peak / (total - warmup))
    middle = [ours(step) for step in (warmup, 170, 300)]
    assert middle == pytest.approx([peak, peak / 2, 0.0])


def test_published_scales_keep_the_short_side_at_the_crop():
    scales = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    pipeline = views_pipeline(upernet(**{"test.scales": scales, "test.flip": True}), {"type": "x"})
    views = pipeline[1]["transforms"]
    assert [view["scale"][1] for view in views[0]] == [512, 512, 512, 640, 768, 896]
    assert [flip["prob"] for flip in views[1]] == [0.0, 1.0]


@pytest.fixture(scope="module")
def ade20k(tmp_path_factory):
    """Two images of ADE20K's layout."""
    root = tmp_path_factory.mktemp("data")
    top = root / "ADEChallengeData2016"
    for split in ("training", "validation"):
        for kind, image in (
            ("images", Image.new("RGB", (64, 48))),
            ("annotations", Image.fromarray(np.full((48, 64), 7, np.uint8))),
        ):
            (top / kind / split).mkdir(parents=True)
            image.save(top / kind / split / f"a.{'jpg' if kind == 'images' else 'png'}")
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    rows += [f"{k}\t0\t0\t0\t0\tname{k};other" for k in range(1, 151)]
    (top / "objectInfo150.txt").write_text("\n".join(rows))
    return root


# Those of the miniature and for own data are built in other tests.
@pytest.mark.parametrize("name", [name for name in NAMES if "/upernet" in name])
def test_every_file_is_an_mmseg_config(name, ade20k, monkeypatch):
    monkeypatch.setenv("MAE_BENCH_DATA_ROOT", str(ade20k))
    config = Config.fromfile(CONFIGS / f"{name}.py")
    assert config.model.decode_head.num_classes == 150
    assert config.train_cfg == dict(
        type="IterBasedTrainLoop", max_iters=160_000, val_interval=16_000
    )
    assert config.optim_wrapper.type == "AmpOptimWrapper", "mixed precision that is on"
    assert config.optim_wrapper.dtype in {"float16", "bfloat16"}
    assert config.model.test_cfg.mode == "slide" and config.tta_model.type == "MultiScaleFlip"
    assert config.train_dataloader.batch_size == 16
    model, solver = meta_model(name.partition("/")[2])
    # Mixed precision wants a GPU.
    plain = {key: value for key, value in config.optim_wrapper.items() if key != "dtype"}
    with building():
        optimizer = build_optim_wrapper(model, {**plain, "type": "OptimWrapper"}).optimizer
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    arguments = (solver["weight_decay"], solver["layer_decay"], solver["decay_rule"])
    for rule in parameter_rules(model, model.backbone.encoder, *arguments):
        group = groups[id(model.get_parameter(rule.name))]
        assert group["lr"] == solver["lr"] * rule.lr_scale, rule.name
        assert group["weight_decay"] == rule.weight_decay, rule.name


def test_a_file_of_ones_own(ade20k, tmp_path, monkeypatch):
    """Another encoder; micro-batches in mmengine's terms, which counts passes."""
    monkeypatch.setenv("MAE_BENCH_DATA_ROOT", str(ade20k))
    (tmp_path / "large.py").write_text(
        "_base_ = []\nfrom tasks.segmentation import config_of\n"
        "globals().update(config_of('segmentation/upernet_640', backbone='vit_large_patch16'))\n"
    )
    config = Config.fromfile(tmp_path / "large.py")
    assert config.train_cfg.max_iters == 320_000
    assert [schedule.end for schedule in config.param_scheduler] == [3000, 320_000]
    assert config.optim_wrapper.accumulative_counts == 2
    assert config.train_dataloader.batch_size == 8
    assert config.model.decode_head.channels == 1024


def test_sizes_that_are_given_stay():
    recipe = upernet()
    assert sized(recipe, None, "vit_base_patch16") == recipe
