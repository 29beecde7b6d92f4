"""Segmentation through real mmseg: labels, scores, exact resume, and the same file under mmseg."""

import csv
import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

from backbones import create_backbone
from backbones.checkpoints import fingerprint, save_backbone
from mae_bench.errors import UserError
from mae_bench.job import Job
from mae_bench.recipes import CONFIGS, load_recipe
from mae_bench.records import Run
from tasks import data, segmentation
from tasks.segmentation import build_segmentor, building, mmseg_config
from tasks.segmentation.picture import Example, draw, error_map
from tasks.segmentation.scores import evaluate
from tasks.segmentation.transforms import CachedLoading

# isort: split
from mmseg.registry import DATASETS

pytestmark = pytest.mark.mmseg
QUICK = {
    "data.crop_size": 32,
    "model.channels": 8,
    "solver.batch_size": 4,
    "solver.iterations": 6,
    "solver.save_every": 3,
    "solver.warmup_iterations": 2,
    "test.max_images": 5,
}


@pytest.fixture(autouse=True)
def one_thread():
    """Sums keep their order, as in the harness."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    data.prepare("mini-ade20k", root)
    return root


def make_run(**overrides):
    recipe = load_recipe("segmentation/mini", {**QUICK, **overrides})
    return Run(
        task="segmentation",
        task_version=1,
        dataset="mini-ade20k",
        data_fingerprint="",
        backbone="vit_mini_patch8",
        init="random",
        recipe="segmentation/mini",
        recipe_values=recipe,
        seed=3,
    )


@pytest.fixture
def job(tmp_path, data_root):
    def make(name="run", upstream=None, **overrides):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Job(make_run(**overrides), folder, data_root, upstream or {})

    return make


@pytest.fixture(scope="module")
def parts(data_root):
    """Model, training set and validation set of the quick recipe."""
    config = mmseg_config(make_run().recipe_values, data_root=data_root)
    with building():
        return (
            build_segmentor(config["model"], 0).eval(),
            DATASETS.build(config["train_dataloader"]["dataset"]),
            DATASETS.build(config["val_dataloader"]["dataset"]),
        )


def histogram(labels):
    return np.bincount(np.asarray(labels).ravel(), minlength=256)


def test_labels_are_shifted_exactly_once(parts):
    _, training, validation = parts
    load = training.pipeline.transforms[0]
    for dataset, read in (
        (training, lambda index: load(training.get_data_info(index))["gt_seg_map"]),
        (validation, lambda index: validation[index]["data_samples"].gt_sem_seg.data.numpy()),
    ):
        for index in range(5):
            # Twice: the second time comes from the cache.
            for _ in range(2):
                with Image.open(dataset.get_data_info(index)["seg_map_path"]) as file:
                    stored = histogram(file)
                seen = histogram(read(index))
                assert stored[0] > 0 or stored[1:].any()
                assert seen[255] == stored[0]
                assert np.array_equal(seen[:254], stored[1:255])


def test_the_head_has_the_classes_of_the_list(parts, data_root):
    model, training, validation = parts
    classes = data.ade20k_split("mini-ade20k", data_root, "val").classes
    assert model.num_classes == model.auxiliary_head.num_classes == len(classes)
    assert list(training.metainfo["classes"]) == list(validation.metainfo["classes"]) == classes


def naive_scores(pairs, num_classes):
    """IoU and accuracy of each class, and pixel accuracy, from a confusion matrix."""
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    for truth, prediction in pairs:
        for t, p in zip(truth.ravel(), prediction.ravel(), strict=True):
            if t != 255:
                matrix[t, p] += 1
    hits, truth, prediction = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid="ignore"):
        return hits / (truth + prediction - hits), hits / truth, hits.sum() / matrix.sum()


def test_each_validation_image_is_scored_once_at_its_own_size(parts, job):
    model, _, validation = parts
    reported = []
    scores, examples = evaluate(model, validation, lambda *done: reported.append(done))
    assert reported == [(done, 5) for done in range(1, 6)]
    pairs = []
    for index in range(5):
        with Image.open(validation.get_data_info(index)["seg_map_path"]) as file:
            stored = np.asarray(file).astype(int)
        sample = validation[index]
        batch = {"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]}
        prediction = model.val_step(batch)[0].pred_sem_seg.data[0].numpy()
        assert prediction.shape == stored.shape
        pairs.append((np.where(stored == 0, 255, stored - 1), prediction))
    iou, _, _ = naive_scores(pairs, model.num_classes)
    assert scores.iou == pytest.approx(100 * iou, abs=1e-9, nan_ok=True)
    assert [example.truth.shape for example in examples] == [(96, 96)] * 4


def test_one_window_over_the_image_is_whole_inference(parts, data_root):
    overrides = {"data.crop_size": 96, "test.mode": "slide", "test.stride": 50}
    config = mmseg_config(make_run(**overrides).recipe_values, data_root=data_root)
    assert config["model"]["test_cfg"] == dict(
        mode="slide", crop_size=(96, 96), stride=(50, 50), windows=None
    )
    with building():
        slide = build_segmentor(config["model"], 0).eval()
    sample = parts[2][0]
    batch = {"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]}
    with torch.no_grad():
        expected = slide.val_step(batch)[0].seg_logits.data.clone()
        slide.test_cfg.mode = "whole"
        assert torch.allclose(slide.val_step(batch)[0].seg_logits.data, expected, atol=1e-5)
        slide.test_cfg.update(mode="slide", crop_size=(64, 64))
        assert not torch.allclose(slide.val_step(batch)[0].seg_logits.data, expected, atol=1e-5)


class Mortal(Job):
    """A job whose process dies in a training step."""

    def report(self, phase, step, total, **scalars):
        if phase == "train" and step == 4:
            os.kill(os.getpid(), signal.SIGKILL)


def run_mortal(folder, data_root):
    torch.set_num_threads(1)
    segmentation.run(Mortal(make_run(), folder, data_root))


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(job, data_root):
    whole, broken = job("whole"), job("broken")
    expected = segmentation.run(whole)
    process = multiprocessing.get_context("spawn").Process(
        target=run_mortal, args=(broken.folder, data_root)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert torch.load(broken.folder / "state.pth")["step"] == 3
    outcome = segmentation.run(broken)
    assert outcome.metrics == expected.metrics
    weights = [torch.load(each.folder / "segmentor.pth")["state_dict"] for each in (whole, broken)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    # A third call finds the training done and only scores again.
    assert segmentation.run(broken).metrics == expected.metrics


def test_outcome_of_a_run_from_a_checkpoint(job, tmp_path):
    encoder = create_backbone("vit_mini_patch8", img_size=32)
    save_backbone(encoder, tmp_path / "mae.safetensors", {"backbone": "vit_mini_patch8"})
    this = job(upstream={"backbone": tmp_path / "mae.safetensors"})
    outcome = segmentation.run(this)
    facts = outcome.facts
    assert set(outcome.metrics) == {"miou", "macc", "aacc"}
    assert facts["fingerprint_at_step_0"] == fingerprint(encoder.state_dict())
    assert facts["load_report"]["fingerprint"] == fingerprint(encoder.state_dict())
    assert facts["val_images"] == 5
    json.loads(outcome.model_dump_json())
    for path in (outcome.checkpoint, outcome.pictures[0].path, facts["parameter_groups"]):
        assert (this.folder / path).stat().st_size > 0
    with (this.folder / "parameters.csv").open() as file:
        rules = {row["name"]: row for row in csv.DictReader(file)}
    solver = this.recipe["solver"]
    positions = rules["backbone.encoder.pos_embed"]
    assert float(positions["lr_scale"]) == pytest.approx(solver["layer_decay"] ** 5)
    assert float(positions["weight_decay"]) == 0
    head = rules["decode_head.conv_seg.weight"]
    assert (float(head["lr_scale"]), float(head["weight_decay"])) == (1, solver["weight_decay"])


def test_weights_at_the_start_depend_on_seed_and_checkpoint_only(data_root, tmp_path):
    save_backbone(create_backbone("vit_mini_patch8"), tmp_path / "x.safetensors", {})
    recipe = make_run().recipe_values
    plain = mmseg_config(recipe, data_root=data_root)["model"]
    loaded = mmseg_config(recipe, data_root=data_root, checkpoint=str(tmp_path / "x.safetensors"))
    with building():
        first, again, other = (build_segmentor(plain, seed) for seed in (0, 0, 1))
        third = build_segmentor(loaded["model"], 0)
    assert fingerprint(first.state_dict()) == fingerprint(again.state_dict())
    assert fingerprint(first.state_dict()) != fingerprint(other.state_dict())
    for name in ("decode_head", "auxiliary_head"):
        heads = [fingerprint(getattr(m, name).state_dict()) for m in (first, third, other)]
        assert heads[0] == heads[1] != heads[2]


def test_a_frozen_backbone_stays_as_it_was(job):
    frozen = job("frozen", **{"model.freeze_backbone": True, "solver.iterations": 2})
    outcome = segmentation.run(frozen)
    weights = torch.load(frozen.folder / "segmentor.pth")["state_dict"]
    prefix = "backbone.encoder."
    encoder = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    assert fingerprint(encoder) == outcome.facts["fingerprint_at_step_0"]
    assert outcome.facts["trainable_parameters"] < outcome.facts["parameters"]
    trained = segmentation.run(job("trained", **{"solver.iterations": 2}))
    assert trained.metrics != outcome.metrics


class Fingerprints(Hook):
    """What the encoder's weights are when mmseg's Runner takes its first step."""

    def before_train(self, runner):
        self.at_start = fingerprint(runner.model.backbone.encoder.state_dict())


def test_the_recipe_file_is_an_ordinary_mmseg_config(data_root, tmp_path, monkeypatch):
    monkeypatch.setenv("MAE_BENCH_DATA_ROOT", str(data_root))
    config = Config.fromfile(CONFIGS / "segmentation" / "mini.py")
    encoder = create_backbone("vit_mini_patch8", img_size=config.model.backbone.img_size)
    save_backbone(encoder, tmp_path / "x.safetensors", {})
    config.merge_from_dict({
        "work_dir": str(tmp_path / "work"),
        "model.backbone.checkpoint": str(tmp_path / "x.safetensors"),
        "train_cfg.max_iters": 2,
        "train_cfg.val_interval": 2,
        "train_dataloader.batch_size": 2,
        "val_dataloader.dataset.indices": 3,
    })
    runner = Runner.from_cfg(config)
    hook = Fingerprints()
    runner.register_hook(hook)
    runner.train()
    assert runner.iter == 2
    assert hook.at_start == fingerprint(encoder.state_dict())
    assert fingerprint(runner.model.backbone.encoder.state_dict()) != hook.at_start
    assert (tmp_path / "work" / "iter_2.pth").is_file()


def test_mmseg_gives_our_segmentor_the_same_score(job, data_root, tmp_path):
    this = job()
    outcome = segmentation.run(this)
    config = Config(mmseg_config(this.recipe, data_root=data_root))
    config.update(work_dir=str(tmp_path), load_from=str(this.folder / outcome.checkpoint))
    theirs = Runner.from_cfg(config).test()
    for ours, name in (("miou", "mIoU"), ("macc", "mAcc"), ("aacc", "aAcc")):
        assert theirs[name] == pytest.approx(outcome.metrics[ours].value, abs=0.0051)


def test_loading_once_hands_out_copies():
    calls = []
    loading = CachedLoading([lambda results: calls.append(1) or {**results, "img": np.zeros(3)}])
    for _ in range(3):
        result = loading({"img_path": "a"})
        assert not result["img"].any()
        result["img"] += 1
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"solver.batch_size": 1}, "at least 2"),
        ({"solver.batch_size": 100_000}, "larger than the training set"),
        ({"test.mode": "hole"}, "test.mode is 'hole'; it must be 'whole' or 'slide'"),
        ({"data.crop_size": 30}, "no multiple of"),
    ],
)
def test_settings_that_cannot_work_are_refused(job, overrides, message):
    with pytest.raises(UserError, match=message):
        segmentation.run(job(**overrides))


def test_error_map():
    truth = np.array([[0, 1], [2, 255]])
    example = Example(np.zeros((2, 2, 3), np.uint8), truth, np.array([[0, 2], [2, 0]]))
    picture, share = error_map(example)
    assert share == pytest.approx(1 / 3)
    red = (picture == (214, 39, 40)).all(-1)
    assert red.tolist() == [[False, True], [False, False]]


def test_any_name_of_a_class_can_be_drawn(tmp_path):
    """matplotlib takes a $ for a formula and leaves out names with a leading underscore."""
    names = [r"$\frac$", "_background", "n" * 300]
    truth = np.arange(9).reshape(3, 3) % 3
    example = Example(np.zeros((3, 3, 3), np.uint8), truth, truth)
    draw([example], {"classes": names, "palette": [[1, 2, 3]] * 3}, tmp_path / "x.svg")
    drawn = (tmp_path / "x.svg").read_text()
    assert all(f"<!-- {name} -->" in drawn for name in [*names[:2], "n" * 24])


@pytest.mark.slow
def test_learns_the_miniature_off_the_floor(job, tmp_path):
    recipe = load_recipe("segmentation/mini")
    changed = {key: recipe[key.split(".")[0]][key.split(".")[1]] for key in QUICK}
    outcome = segmentation.run(job(**changed))
    assert outcome.metrics["miou"].value > 35
    assert Path(tmp_path / "run" / "segmentation.png").is_file()
