"""The protocols of Li et al. and of ViTDet as published: recipes, models, groups, tables, cards."""

import re
from collections import Counter

import pytest
import torch
from published_layouts import beit_pretrain, random_like, save_pickle
from tiny_detection import composed, prepare

from backbones import create_backbone
from backbones.checkpoints import load_backbone
from backbones.groups import parameter_rules
from mae_bench import protocol
from mae_bench.plan import load_tables, make_plan
from mae_bench.recipes import CONFIGS, load_recipe
from tasks import detection
from tasks.detection import config
from tasks.detection.model import encoder_options

# isort: split
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import NaiveSyncBatchNorm

pytestmark = pytest.mark.detectron2


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("coco"))


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine without COCO."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def on_meta(recipe, backbone, **options):
    """The model without weights: ViT-B takes no memory and no time."""
    model = composed(recipe, backbone, **options)["model"]
    heads = model.roi_heads
    heads.num_classes = heads.mask_head.num_classes = 80
    predictors = heads.box_predictors if "box_predictors" in heads else [heads.box_predictor]
    for predictor in predictors:
        predictor.num_classes = 80
    with torch.device("meta"):
        return instantiate(model)


# --- numbers of the recipes ----------------------------------------------------------------------

BASE, LARGE, HUGE = "vit_base_patch16", "vit_large_patch16", "vit_huge_patch14"


@pytest.mark.parametrize(
    ("backbone", "init", "lr", "weight_decay", "drop_path", "epochs"),
    [
        (BASE, "mae-norm-pixel", 8e-5, 0.1, 0.1, 100),
        (BASE, "supervised", 8e-5, 0.1, 0.1, 100),
        (BASE, "beit", 8e-5, 0.1, 0.1, 100),
        (BASE, "moco-v3", 1.6e-4, 0.1, 0.1, 100),
        (BASE, "random", 1.6e-4, 0.2, 0.1, 400),
        (LARGE, "mae-norm-pixel", 8e-5, 0.1, 0.3, 100),
        (LARGE, "moco-v3", 1.6e-4, 0.1, 0.3, 100),
        (LARGE, "random", 1.6e-4, 0.2, 0.3, 400),
    ],
)
def test_li_by_size_and_init(backbone, init, lr, weight_decay, drop_path, epochs):
    """arXiv:2111.11429 Sec. 2.4, 4.1, 4.2."""
    recipe = load_recipe("detection/li", backbone=backbone, init=init)
    solver = recipe["solver"]
    assert (solver["lr"], solver["weight_decay"], solver["epochs"]) == (lr, weight_decay, epochs)
    assert recipe["model"]["drop_path"] == drop_path
    assert (recipe["model"]["initialisation"] == "beit") == (init == "random")
    assert (recipe["model"]["layer_scale"] is not None) == (init == "beit")


@pytest.mark.parametrize(
    ("backbone", "layer_decay", "drop_path", "iterations"),
    [(BASE, 0.7, 0.1, 183_228), (LARGE, 0.8, 0.4, 183_228), (HUGE, 0.9, 0.5, 137_421)],
)
def test_vitdet_by_size(backbone, layer_decay, drop_path, iterations):
    """detectron2 projects/ViTDet; iterations are 100 and 75 epochs of 117,266 images by 64."""
    cfg = composed("vitdet", backbone)
    assert cfg["train"].max_iter == iterations
    assert cfg["optimizer"].params.layer_decay == layer_decay
    assert cfg["model"].backbone.drop_path_rate == drop_path
    assert cfg["lr_multiplier"].warmup_length == 250 / iterations


@pytest.mark.parametrize(
    ("epochs", "batch", "iterations", "warmup"),
    [(25, 64, 45_807, 458), (50, 64, 91_614, 458), (1, 16, 7_329, 1_832)],
)
def test_iterations_come_from_epochs_batch_and_data(epochs, batch, iterations, warmup):
    changes = {"solver.epochs": epochs, "solver.batch_size": batch}
    solver = load_recipe("detection/li", changes, backbone=BASE)["solver"]
    assert config.steps(solver, "coco", "nowhere") == (iterations, warmup)


def test_an_epoch_is_a_pass_over_the_images_with_objects(root):
    solver = load_recipe("detection/own_data", {"solver.epochs": 12})["solver"]
    assert config.steps(solver, "mini-coco", root) == (12 * 10 // 4, 1)
    with pytest.raises(config.UserError, match=r"warmup_epochs=0.5 leaves nothing of .* 1 iter"):
        config.steps({**solver, "epochs": 0.25}, "mini-coco", root)


@pytest.mark.parametrize(
    ("total", "milestones"), [(184_375, [163_889, 177_546]), (138_281, [122_916, 133_159])]
)
def test_vitdets_milestones_are_the_published_ones(total, milestones):
    assert list(config._schedule("step", total, 250).scheduler.milestones) == milestones


# --- models --------------------------------------------------------------------------------------


def test_li_has_the_papers_modules():
    """Norms after FPN, box and mask convolutions, none in the RPN; two and four convolutions."""
    model = on_meta("li", BASE)
    norms = Counter(
        name.split(".")[0] + "." + name.split(".")[1].rstrip("2345")
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.SyncBatchNorm)
    )
    # Four FPN levels with a lateral and an output convolution; four box, four mask convolutions.
    assert norms == {"backbone.fpn_lateral": 4, "backbone.fpn_output": 4} | {
        "roi_heads.box_head": 4,
        "roi_heads.mask_head": 4,
    }
    assert len(model.proposal_generator.rpn_head.conv) == 2
    encoder = model.backbone.bottom_up.encoder
    assert [i for i, b in enumerate(encoder.blocks) if not b.attn.window_size] == [2, 5, 8, 11]
    assert model.backbone.bottom_up.taps == (2, 5, 8, 11)
    assert {b.attn.window_size for b in encoder.blocks} == {0, 14}
    tables = {n: tuple(p.shape) for n, p in encoder.named_parameters() if "relative" in n}
    assert tables == {
        "rel_pos_bias.relative_position_bias_table": (127**2, 12),
        "window_rel_pos_bias.relative_position_bias_table": (27**2, 12),
    }
    shapes = {name: (s.channels, s.stride) for name, s in model.backbone.output_shape().items()}
    assert shapes == {f"p{k}": (256, 2**k) for k in (2, 3, 4, 5, 6)}
    assert model.backbone.padding_constraints["square_size"] == 1024


def test_parameters_as_rebuilt_by_others():
    """118.67 M in hustvl/MIMDet's README: positions of the 64 x 64 grid, windows of 16."""
    ours = sum(p.numel() for p in on_meta("li", BASE).parameters())
    their_positions, their_windows = (64**2 - 14**2) * 768, (31**2 - 27**2) * 12
    assert (ours + their_positions + their_windows) / 1e6 == pytest.approx(118.67, abs=0.01)


def test_the_rpn_may_be_normalised_too():
    model = on_meta("li", BASE, **{"model.rpn_norm": "SyncBN"})
    head = model.proposal_generator.rpn_head
    assert sum(isinstance(m, torch.nn.SyncBatchNorm) for m in head.modules()) == 2


def test_beits_file_brings_its_relative_positions(tmp_path):
    """Its one table goes to windows and to global blocks; absolute positions start at zero."""
    torch.manual_seed(0)
    source = create_backbone("beit_mini_patch8", depth=8, relative_positions="shared")
    state = random_like(source.state_dict())
    save_pickle(beit_pretrain(state), tmp_path / "beit.pth")
    changes = {"data.image_size": 128, "model.window_size": 8}
    recipe = load_recipe("detection/li", changes, backbone=BASE, init="beit")
    options = encoder_options(recipe, "vit_mini_patch8")
    encoder = create_backbone("vit_mini_patch8", depth=8, **options)
    report = load_backbone(encoder, tmp_path / "beit.pth")
    table = "rel_pos_bias.relative_position_bias_table"
    # Windows as large as the grid of pretraining: the same table but for the class token's rows.
    loaded = encoder.state_dict()
    assert torch.equal(loaded[f"window_{table}"], state[table][:-3])
    assert loaded[table].shape == (31**2, 3) and loaded[table].any()
    assert set(report.new) == {"pos_embed"} and not loaded["pos_embed"].any()
    for name in ("blocks.0.attn.q_bias", "blocks.3.gamma_2", "blocks.1.attn.qkv.weight"):
        assert torch.equal(loaded[name], state[name])


def test_the_miniature_takes_beits_files_too(tmp_path):
    source = create_backbone("beit_mini_patch8", relative_positions="shared")
    state = random_like(source.state_dict())
    save_pickle(beit_pretrain(state), tmp_path / "beit.pth")
    recipe = load_recipe("detection/mini", backbone="vit_mini_patch8", init="beit")
    encoder = create_backbone("vit_mini_patch8", **encoder_options(recipe, "vit_mini_patch8"))
    report = load_backbone(encoder, tmp_path / "beit.pth")
    assert set(report.new) == {"pos_embed"} and set(report.loaded) >= {"cls_token"}


@pytest.mark.parametrize("cascade", [False, True])
def test_vitdet_has_its_modules(cascade):
    model = on_meta("vitdet", HUGE, **{"model.cascade": cascade})
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules())
    encoder = model.backbone.encoder
    assert encoder.patch_size == 16 and encoder.blocks[0].attn.rel_pos_h.shape == (27, 80)
    assert encoder.blocks[7].attn.rel_pos_h.shape == (127, 80)
    heads = model.roi_heads
    boxes = list(heads.box_head) if cascade else [heads.box_head]
    assert len(boxes) == (3 if cascade else 1)
    assert all(type(box.conv1.norm).__name__ == "LayerNorm2d" for box in boxes)
    if cascade:
        assert [m.thresholds[1] for m in heads.proposal_matchers] == [0.5, 0.6, 0.7]
        weights = [p.box2box_transform.weights for p in heads.box_predictor]
        assert [tuple(w) for w in weights] == [(w, w, w / 2, w / 2) for w in (10, 20, 30)]


def test_synchronised_norms_work_between_cpus():
    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.SyncBatchNorm(4)))
    torch.nn.init.normal_(model[0][0].weight)
    weight = model[0][0].weight.clone()
    detection.training.synchronise_on_cpu(model)
    assert isinstance(model[0][0], NaiveSyncBatchNorm) and torch.equal(model[0][0].weight, weight)


# --- parameter groups ----------------------------------------------------------------------------

# Pattern of names inside the encoder or outside of it -> layer id, whether it decays; first fit.
LI_GROUPS = (
    (r"encoder\.pos_embed", 0, False),
    (r"encoder\.patch_embed\.proj\.(weight|bias)", 0, True),
    (r"encoder\.(window_)?rel_pos_bias\..*table", 13, False),
    (r"encoder\.blocks\.(\d+)\.norm[12]\.(weight|bias)", None, False),
    (r"encoder\.blocks\.(\d+)\.(attn|mlp)\..*", None, True),
    (r"pyramid\.levels\.0\.1\.(weight|bias)", 13, False),
    (r"pyramid\.levels\..*", 13, True),
    (r".*\.norm\.(weight|bias)", 13, False),
    (r"(backbone\.fpn|proposal_generator|roi_heads).*", 13, True),
)
VITDET_GROUPS = (
    (r"encoder\.pos_embed", 0, False),
    (r"encoder\.patch_embed\.proj\.(weight|bias)", 0, True),
    (r"encoder\.blocks\.(\d+)\.norm[12]\.(weight|bias)", None, False),
    # Relative positions decay with their block: ViTDet exempts absolute ones only.
    (r"encoder\.blocks\.(\d+)\.(attn|mlp)\..*", None, True),
    (r"pyramid\.levels\.0\.0\.1\.(weight|bias)", 13, False),
    (r"pyramid\.levels\.\d\.[24]\.(weight|bias)", 13, False),
    (r"pyramid\.levels\..*", 13, True),
    (r".*\.norm\.(weight|bias)", 13, False),
    (r"(proposal_generator|roi_heads).*", 13, True),
)


@pytest.mark.parametrize(
    ("recipe", "golden", "decay", "count"),
    [("li", LI_GROUPS, 1.0, 223), ("vitdet", VITDET_GROUPS, 0.7, 245)],
)
def test_golden_lr_and_weight_decay_of_every_parameter(recipe, golden, decay, count):
    """Of ViT-B, 12 blocks: lr scale is decay^(13 - layer). No pattern is left without a fit."""
    model = on_meta(recipe, BASE)
    encoder = config.adapter.encoder_of(model.backbone)
    solver = load_recipe(f"detection/{recipe}", backbone=BASE)["solver"]
    rules = parameter_rules(
        model, encoder, solver["weight_decay"], solver["layer_decay"], solver["decay_rule"]
    )
    used = set()
    for rule in rules:
        name = re.sub(r"^backbone\.(bottom_up\.)?(?=encoder|pyramid)", "", rule.name)
        pattern, layer, decays = next(g for g in golden if re.fullmatch(g[0], name))
        used.add(pattern)
        layer = int(re.fullmatch(pattern, name)[1]) + 1 if layer is None else layer
        assert rule.lr_scale == pytest.approx(decay ** (13 - layer)), rule.name
        assert rule.weight_decay == (0.1 if decays else 0.0), rule.name
    assert used == {pattern for pattern, _, _ in golden}
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {rule.name for rule in rules} == trainable and len(rules) == count


# --- files, cards, tables ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["li", "vitdet"])
def test_protocols_are_lazyconfigs_on_a_machine_without_the_data(nowhere, name):
    cfg = LazyConfig.load(str(CONFIGS / "detection" / f"{name}.py"))
    assert cfg.train.max_iter == 183_228 and cfg.train.amp.enabled
    assert cfg.dataloader.train.dataset == "coco" and cfg.model.backbone.name == BASE
    assert cfg.train.ddp.fp16_compression == (name == "vitdet")


def test_the_card_marks_what_differs_from_the_paper():
    def differences(recipe, backbone, init):
        values = load_recipe(f"detection/{recipe}", backbone=backbone, init=init)
        card = protocol.card(f"detection/{recipe}", values, backbone, init)
        return {line.name for line in card.differences}

    always = {"epochs", "model selection", "learning rates tried", "padding of images"}
    always |= {"precision", "norm inside the x4 level"}  # said in more words than the paper's
    for init in ("mae-norm-pixel", "moco-v3", "supervised", "random"):
        for backbone in (BASE, LARGE):
            assert differences("li", backbone, init) <= always, (init, backbone)
    assert differences("li", BASE, "beit") - always == {"absolute positions"}
    for backbone in (BASE, LARGE, HUGE):
        assert differences("vitdet", backbone, "mae-norm-pixel") == {"images per epoch"}


def test_li_table1_gives_random_weights_four_times_the_epochs(tmp_path):
    plan = make_plan(load_tables(["li-table1"]), "paper", [0], tmp_path)
    epochs = {}
    for planned in plan.runs:
        run = planned.run
        if run.task == "detection" and run.backbone == BASE:
            epochs.setdefault(run.init, set()).add(run.recipe_values["solver"]["epochs"])
    assert epochs["random"] == {100, 200, 400}
    assert epochs["mae-norm-pixel"] == epochs["supervised"] == {25, 50, 100}


def test_tables_of_detection_share_their_runs(tmp_path):
    """The longest column of li-table1 is Table 4, and Table 7's MAE row too."""
    for scale in ("mini", "paper"):
        plans = [
            make_plan(load_tables([name]), scale, [0], tmp_path)
            for name in ("table4", "li-table1", "table7")
        ]
        ids = [{p.run.id for p in plan.runs if p.run.task == "detection"} for plan in plans]
        assert ids[0] < ids[1] and len(ids[0] & ids[2]) == (1 if scale == "mini" else 2)


def test_vitdets_cells_are_its_own(tmp_path):
    plan = make_plan(load_tables(["table4", "vitdet"]), "paper", [0], tmp_path)
    cells = {key.table: set() for key in plan.cells}
    for key, cell in plan.cells.items():
        cells[key.table].add(cell.run_id)
    assert not (cells["table4"] & cells["vitdet"]) - {None}
    runs = [p.run for p in plan.runs if p.run.recipe == "detection/vitdet"]
    assert {run.backbone for run in runs} == {BASE, LARGE, HUGE}
    assert {run.recipe_values["model"]["cascade"] for run in runs} == {False, True}
