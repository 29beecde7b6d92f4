"""Mask R-CNN on the miniature: data, scores, schedule, exact resume, artefacts."""

import csv
import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from backbones import create_backbone
from backbones.checkpoints import fingerprint, save_backbone
from backbones.groups import parameter_rules
from mae_bench.errors import UserError
from mae_bench.job import Job
from mae_bench.recipes import CONFIGS, load_recipe
from mae_bench.records import Metric, Run
from tasks import data as datasets
from tasks import detection
from tasks.data.specs import SPECS
from tasks.detection import config, scores, training
from tasks.detection.data import evaluator, num_classes, register, test_loader, train_loader
from tasks.detection.model import PIXEL_MEAN, PIXEL_STD
from tasks.detection.picture import Detections, draw
from tasks.engine import STATE_FILE

# isort: split
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.engine import SimpleTrainer, hooks
from detectron2.structures import Boxes, Instances

pytestmark = pytest.mark.detectron2
test_loader.__test__ = False
TINY = replace(SPECS["mini-coco"], num_train=10, num_val=4)
FAST = {
    "solver.iterations": 6,
    "solver.batch_size": 2,
    "solver.save_every": 3,
    "solver.warmup_iterations": 2,
    "model.fpn_channels": 32,
    "model.box_fc": 32,
}


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    datasets.prepare("mini-coco", folder, TINY)
    return folder


def job_in(folder, root, upstream=None, **overrides):
    values = load_recipe("detection/mini", {**FAST, **overrides})
    run = Run(
        task="detection",
        task_version=1,
        dataset="mini-coco",
        data_fingerprint="tiny",
        backbone="vit_mini_patch8",
        init="random",
        recipe="detection/mini",
        recipe_values=values,
        seed=3,
    )
    folder.mkdir(exist_ok=True)
    return Job(run, folder, root, upstream or {})


def lazy(root, **overrides):
    recipe = load_recipe("detection/mini", {**FAST, **overrides})
    return config.lazy_config(
        recipe, backbone="vit_mini_patch8", dataset="mini-coco", data_root=root, seed=3
    )


# --- data ------------------------------------------------------------------------------------


def write_coco(folder, images, annotations, categories=((5, "red"),)):
    """A COCO-format `mini-coco` of the given images (name -> array) in both splits."""
    top = folder / "mini-coco" / "coco"
    (top / "annotations").mkdir(parents=True)
    records = []
    for index, (name, pixels) in enumerate(images.items()):
        height, width = pixels.shape[:2]
        records.append(dict(id=index + 1, file_name=name, height=height, width=width))
        for split in ("train2017", "val2017"):
            (top / split).mkdir(exist_ok=True)
            PIL.Image.fromarray(pixels).save(top / split / name)
    content = dict(
        images=records,
        annotations=[dict(id=i + 1, iscrowd=0, **a) for i, a in enumerate(annotations)],
        categories=[dict(id=i, name=n) for i, n in categories],
    )
    for split in ("train2017", "val2017"):
        (top / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def red_l(tmp_path):
    """One image: an L of pure red on blue, given as a polygon; asymmetric both ways."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[..., 2] = 255
    pixels[10:50, 20:30] = pixels[40:50, 20:60] = (255, 0, 0)
    polygon = [20, 10, 30, 10, 30, 40, 60, 40, 60, 50, 20, 50]
    annotation = dict(
        image_id=1, category_id=5, bbox=[20, 10, 40, 40], area=700, segmentation=[polygon]
    )
    return write_coco(tmp_path, {"a.png": pixels, "b.png": pixels}, [annotation])


def mapper(flip=0.5, scale=(0.5, 1.6)):
    """The recipe's own mapper, with another jitter."""
    changes = {"data.flip": flip, "data.min_scale": scale[0], "data.max_scale": scale[1]}
    return instantiate(lazy("nowhere", **changes)["dataloader"].train.mapper)


def test_masks_and_boxes_stay_on_their_object_through_jitter(red_l):
    """In RGB order, the mask is where the red is; the box is the mask's; only image 1 has any."""
    loader = iter(train_loader("mini-coco", red_l, mapper(), 1))
    seen = set()
    for _ in range(40):
        (item,) = next(loader)
        assert item["image"].shape == (3, 96, 96) and item["image_id"] == 1
        if not len(item["instances"]):
            continue
        image, objects = item["image"].int(), item["instances"]
        mask = objects.gt_masks.tensor[0]
        red = (image[0] > 128) & (image[2] < 128)
        # Resampling blurs the outline: compare areas and centres, not single pixels.
        assert (red ^ mask).sum() <= 0.2 * mask.sum() + 20
        rows, columns = torch.nonzero(mask, as_tuple=True)
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert objects.gt_boxes.tensor[0].tolist() == [float(v) for v in tight]
        assert objects.gt_classes.tolist() == [0]
        seen.add(tuple(objects.gt_boxes.tensor[0].tolist()))
    assert len(seen) > 20


def test_flip_moves_the_mask_with_the_image(red_l):
    masks = []
    for flip in (0.0, 1.0):
        loader = iter(train_loader("mini-coco", red_l, mapper(flip, (1.0, 1.0)), 1))
        (item,) = next(loader)
        assert item["image"].shape == (3, 96, 96)
        content = item["image"][0, :72]  # 60 x 80 on a 96 px box is 72 x 96
        red = content.float() * item["instances"].gt_masks.tensor[0, :72]
        assert red.sum() / 255 == pytest.approx(1.44 * 700, rel=0.1)
        masks.append(item["instances"].gt_masks.tensor[0, :72])
    assert torch.equal(masks[0].flip(1), masks[1]) and not torch.equal(*masks)


def test_order_depends_on_position_only(root):
    """The same batches for any worker count, and from the middle."""

    def batches(count, **options):
        loader = iter(train_loader("mini-coco", root, mapper(), 3, seed=7, **options))
        return [next(loader) for _ in range(count)]

    whole, workers = batches(6), batches(6, num_workers=2)
    late = batches(2, start=12)
    for left, right in [*zip(whole, workers, strict=True), *zip(whole[4:], late, strict=True)]:
        for a, b in zip(left, right, strict=True):
            assert a["image_id"] == b["image_id"]
            assert torch.equal(a["image"], b["image"])
            assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)


def test_validation_reads_each_image_once_with_and_without_objects(red_l):
    plain = DatasetMapper(False, augmentations=[], image_format="RGB")
    loader = test_loader("mini-coco", red_l, plain)
    assert [item["image_id"] for (item,) in loader] == [1, 2]


def test_the_catalog_follows_the_data_root(root, red_l):
    name = register("mini-coco", red_l, "train")
    DatasetCatalog.get(name)
    assert MetadataCatalog.get(name).thing_classes == ["red"]
    assert register("mini-coco", root, "train") == name
    DatasetCatalog.get(name)
    classes = datasets.coco_split("mini-coco", root, "train").classes
    assert MetadataCatalog.get(name).thing_classes == classes
    assert num_classes("mini-coco", red_l) == 1


def test_a_batch_larger_than_the_set_is_refused(red_l):
    with pytest.raises(UserError, match=r"batch of 2 .* set of 1 images .* solver.batch_size"):
        train_loader("mini-coco", red_l, mapper(), 2)


# --- scores ----------------------------------------------------------------------------------


def truth_as_predictions(root, shift=0):
    """Score the truth itself, its classes shifted cyclically."""
    coco = evaluator("mini-coco", root)
    coco.reset()
    classes = num_classes("mini-coco", root)
    for record in DatasetCatalog.get(register("mini-coco", root, "val")):
        truth = scores._truth(record)
        found = Instances((record["height"], record["width"]))
        found.pred_boxes = Boxes(torch.as_tensor(truth.boxes))
        found.pred_masks = torch.as_tensor(truth.masks)
        found.pred_classes = (torch.as_tensor(truth.labels) + shift) % classes
        found.scores = torch.ones(len(found))
        coco.process([record], [{"instances": found}])
    return coco.evaluate()


def test_the_truth_scores_100_through_the_gaps_of_the_category_ids(root):
    path = datasets.coco_split("mini-coco", root, "val").json
    ids = [category["id"] for category in json.loads(path.read_text())["categories"]]
    assert sorted(ids) != list(range(1, len(ids) + 1)), "the miniature should have gaps, as COCO"
    metrics = scores.metrics_of(truth_as_predictions(root))
    assert metrics["box_ap"].value == pytest.approx(100)
    assert metrics["mask_ap"].value == pytest.approx(100)
    assert metrics["box_ap"].unit == "AP" and metrics["box_ap"].higher_is_better
    assert scores.metrics_of(truth_as_predictions(root, shift=1))["box_ap"].value < 20


class Oracle(torch.nn.Module):
    """A detector that knows the truth."""

    def __init__(self, root):
        super().__init__()
        records = DatasetCatalog.get(register("mini-coco", root, "val"))
        self.truths = {record["image_id"]: scores._truth(record) for record in records}

    def forward(self, batch):
        (item,) = batch
        truth = self.truths[item["image_id"]]
        found = Instances((item["height"], item["width"]))
        found.pred_boxes = Boxes(torch.as_tensor(truth.boxes))
        found.pred_masks = torch.as_tensor(truth.masks)
        found.pred_classes = torch.as_tensor(truth.labels)
        found.scores = torch.ones(len(found))
        return [{"instances": found}]


@pytest.mark.parametrize("max_images", [2, None])
def test_scored_are_the_images_read_and_no_others(root, tmp_path, max_images):
    cfg = config.DictConfig(lazy(root, **{"test.max_images": max_images}))
    results = scores.evaluate(job_in(tmp_path / "run", root), cfg, Oracle(root))
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert "Average Precision" in (tmp_path / "run/inference/pycocotools.txt").read_text()


def test_nothing_found_is_0_and_an_absent_size_is_no_score():
    nan = float("nan")
    empty = dict.fromkeys(scores.SCORES, nan) | {"AP-ball": nan, "AP-box": 3.5}
    results = {"bbox": empty, "segm": empty | {"AP": 12.5, "APs": 3.0}}
    metrics = scores.metrics_of(results)
    assert metrics["box_ap"] == Metric(value=0.0, unit="AP")
    assert metrics["mask_ap"].value == 12.5 and metrics["mask_ap_small"].value == 3.0
    assert set(metrics) == {
        *("box_ap", "box_ap50", "box_ap75"),
        *("mask_ap", "mask_ap50", "mask_ap75", "mask_ap_small"),
    }
    assert scores.per_class(results)["box_ap"] == {"box": 3.5}


def test_the_picture_shows_truth_and_predictions():
    image = np.full((20, 30, 3), 200, np.uint8)
    mask = np.zeros((1, 20, 30), bool)
    mask[0, 5:10, 5:15] = True
    found = Detections(np.array([[5.0, 5, 15, 10]]), mask, [0], [0.9])
    nothing = Detections(np.zeros((0, 4)), np.zeros((0, 20, 30), bool), [])
    with_box, without = (draw([image], [d], [nothing], ["ball"]) for d in (found, nothing))
    assert with_box.startswith(b"\x89PNG") and with_box != without


# --- configuration ---------------------------------------------------------------------------


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


# --- the task --------------------------------------------------------------------------------


def run_in(folder, root, die_at=None):
    """Run the task; with `die_at`, be killed at the start of that step."""
    torch.set_num_threads(1)
    step = training.Trainer.run_step

    def dying(self):
        if self.iter + 1 == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self)

    training.Trainer.run_step = dying
    try:
        return detection.run(job_in(folder, root))
    finally:
        training.Trainer.run_step = step


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run_in(folder, root)


def test_six_steps_equal_three_kill_and_three(root, whole, tmp_path):
    """Killed in step 5, after the save at 3: same weights to the bit, same scores."""
    process = multiprocessing.get_context("spawn").Process(target=run_in, args=(tmp_path, root, 5))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert torch.load(tmp_path / STATE_FILE, weights_only=True)["step"] == 3
    resumed, (folder, undisturbed) = run_in(tmp_path, root), whole
    first, second = (torch.load(f / STATE_FILE, weights_only=True) for f in (folder, tmp_path))
    assert first["step"] == second["step"] == 6
    assert fingerprint(first["model"]) == fingerprint(second["model"])
    files = [(f / detection.MODEL_FILE).read_bytes() for f in (folder, tmp_path)]
    assert files[0] == files[1]
    assert resumed.metrics == undisturbed.metrics
    assert resumed.facts["fingerprint_at_step_0"] == undisturbed.facts["fingerprint_at_step_0"]


def test_workers_change_no_weight(root, tmp_path):
    files = []
    for workers in (0, 2):
        short = {"solver.iterations": 3, "test.max_images": 1, "data.num_workers": workers}
        folder = tmp_path / str(workers)
        detection.run(job_in(folder, root, **short))
        files.append((folder / detection.MODEL_FILE).read_bytes())
    assert files[0] == files[1]


def test_a_finished_training_is_only_scored_again(root, whole, monkeypatch):
    folder, outcome = whole
    monkeypatch.setattr(training.Trainer, "run_step", lambda self: pytest.fail("trained again"))
    assert detection.run(job_in(folder, root)).metrics == outcome.metrics


def test_a_run_leaves_its_scores_and_artefacts(root, whole):
    folder, outcome = whole
    expected = {f"{kind}_ap{level}" for kind in ("box", "mask") for level in ("", "50", "75")}
    assert expected <= set(outcome.metrics)
    assert all(0 <= metric.value <= 100 for metric in outcome.metrics.values())
    assert outcome.images_per_second > 0
    assert outcome.facts["train_images"] == 10 and outcome.facts["val_images"] == 4
    assert outcome.facts["iterations"] == 6 and outcome.facts["batch_size"] == 2
    for name in ("config.yaml", "load_report.json", "metrics.json", detection.MODEL_FILE):
        assert (folder / name).stat().st_size > 0, name
    assert PIL.Image.open(folder / outcome.pictures[0].path).width > 600
    truth = json.loads(datasets.coco_split("mini-coco", root, "val").json.read_text())
    results = json.loads((folder / "inference" / "coco_instances_results.json").read_text())
    assert {item["category_id"] for item in results} <= {c["id"] for c in truth["categories"]}
    curve = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert curve[-1]["step"] == 6 and {"loss", "lr", "loss_mask", "loss_rpn_cls"} <= set(curve[-1])
    progress = json.loads((folder / "progress.json").read_text())
    assert (progress["phase"], progress["step"], progress["total"]) == ("evaluate", 4, 4)
    with (folder / "parameters.csv").open() as file:
        names = {row["name"] for row in csv.DictReader(file)}
    state = torch.load(folder / STATE_FILE, weights_only=True)["model"]
    frozen = {name for name in state if name.startswith("backbone.bottom_up.encoder.norm.")}
    assert len(frozen) == 2 and names == state.keys() - frozen


def test_the_upstream_checkpoint_is_what_training_starts_from(root, tmp_path):
    torch.manual_seed(11)
    encoder = create_backbone("vit_mini_patch8")
    save_backbone(encoder, tmp_path / "mae.safetensors", {"backbone": "vit_mini_patch8"})
    expected = fingerprint(encoder.state_dict())
    changes = {"solver.iterations": 2, "solver.warmup_iterations": 1, "test.max_images": 1}
    upstream = {"backbone": tmp_path / "mae.safetensors"}
    outcome = detection.run(job_in(tmp_path / "run", root, upstream, **changes))
    assert outcome.facts["fingerprint_at_step_0"] == expected
    report = json.loads((tmp_path / "run" / "load_report.json").read_text())
    assert report["checkpoint"]["fingerprint"] == report["fingerprint_at_step_0"] == expected
    assert len(report["checkpoint"]["loaded"]) == len(encoder.state_dict())


def test_a_loaded_backbone_that_was_initialised_again_is_noticed(root, tmp_path):
    encoder = create_backbone("vit_mini_patch8")
    save_backbone(encoder, tmp_path / "mae.safetensors", {"backbone": "vit_mini_patch8"})
    job = job_in(tmp_path / "run", root)
    cfg = lazy(root)["model"]
    cfg.backbone.checkpoint = str(tmp_path / "mae.safetensors")
    model = instantiate(cfg)
    torch.nn.init.normal_(model.backbone.bottom_up.encoder.blocks[0].attn.qkv.weight)
    with pytest.raises(RuntimeError, match="something initialised"):
        detection.write_audit(job, model)


def test_a_diverging_run_says_what_to_do(root, tmp_path):
    with pytest.raises(FloatingPointError, match=r"diverged at step \d; lower solver.lr"):
        detection.run(job_in(tmp_path / "run", root, **{"solver.lr": 1e30}))


@pytest.mark.parametrize("amp", [None, "bfloat16"])
def test_smoke_overrides_make_a_run_of_two_steps(root, tmp_path, amp):
    values = load_recipe("detection/mini", {"solver.amp": amp}, smoke=True)
    job = job_in(tmp_path / "run", root)
    job.run.recipe_values.clear()
    job.run.recipe_values.update(values)
    outcome = detection.run(job)
    assert outcome.facts["iterations"] == 2
    progress = json.loads((tmp_path / "run" / "progress.json").read_text())
    assert progress["total"] == values["test"]["max_images"]


def test_splits_with_other_categories_are_refused(red_l, tmp_path):
    path = datasets.coco_split("mini-coco", red_l, "val").json
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(UserError, match="has no annotations"):
        detection.check_data(job_in(tmp_path / "run", red_l))
    content["categories"][0]["name"] = "green"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"different categories \(red and green\)"):
        detection.check_data(job_in(tmp_path / "run", red_l))


@pytest.mark.slow
def test_it_learns_eight_images_by_heart(root, tmp_path):
    """Trained on few images without jitter and scored on the same ones."""
    folder = tmp_path / "data"
    datasets.prepare("mini-coco", folder, replace(TINY, num_train=8))
    train, val = (datasets.coco_split("mini-coco", folder, s) for s in ("train", "val"))
    val.json.write_text(train.json.read_text())
    for image in Path(train.images).iterdir():
        (Path(val.images) / image.name).write_bytes(image.read_bytes())
    changes = {
        "data.min_scale": 1.0,
        "data.max_scale": 1.0,
        "solver.iterations": 250,
        "solver.batch_size": 4,
        "solver.warmup_iterations": 20,
        "solver.save_every": 250,
        "model.fpn_channels": 64,
        "model.box_fc": 256,
    }
    metrics = detection.run(job_in(tmp_path / "run", folder, **changes)).metrics
    assert metrics["box_ap"].value > 70
    assert metrics["mask_ap"].value > 60
