"""Scores of detection: evaluators against each other, several processes, scores while training."""

import json
from types import SimpleNamespace

import numpy as np
import pycocotools.mask
import pytest
import torch
from tiny_detection import job_in, killed_in, lazy, prepare, run_in, run_with
from tiny_training import in_processes

from mae_bench.job import Stopped
from mae_bench.records import Metric
from tasks import data as datasets
from tasks import detection
from tasks.detection import config, scores, watching
from tasks.detection.data import evaluator, num_classes, register
from tasks.detection.picture import truth_of

# isort: split
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

pytestmark = pytest.mark.detectron2


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("coco"))


def truth_as_predictions(root, shift=0):
    """Score the truth itself, its classes shifted cyclically."""
    coco = evaluator("mini-coco", root)
    coco.reset()
    classes = num_classes("mini-coco", root)
    for record in DatasetCatalog.get(register("mini-coco", root, "val")):
        truth = truth_of(record)
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
        self.truths = {record["image_id"]: truth_of(record) for record in records}

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


def test_a_single_class_has_its_score_too(tmp_path):
    folder = prepare(tmp_path)
    for split in ("train", "val"):
        path = datasets.coco_split("mini-coco", folder, split).json
        content = json.loads(path.read_text())
        content["categories"] = [dict(id=4, name="thing")]
        for item in content["annotations"]:
            item["category_id"] = 4
        path.write_text(json.dumps(content))
    cfg = config.DictConfig(lazy(folder))
    results = scores.evaluate(job_in(tmp_path / "run", folder), cfg, Oracle(folder))
    expected = {"thing": pytest.approx(100)}
    assert scores.per_class(results) == {"box_ap": expected, "mask_ap": expected}


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


# --- the two evaluators ----------------------------------------------------------------------


def corners(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def random_results(images, classes, objects, repeats, crowds=0.1, rounded=False):
    """An instance file and detections that are its objects, shaken, at times of another class.

    Args:
        objects: most in an image; `repeats`: most detections of one.
        rounded: scores of one digit, so that many are equal.
    """
    rng, side = np.random.default_rng(images), 64
    truth = dict(images=[], annotations=[], categories=[dict(id=c, name=f"c{c}") for c in classes])
    found = []

    def rle(box):
        x, y, w, h = box
        (code,) = pycocotools.mask.frPyObjects(
            [[x, y, x + w, y, x + w, y + h, x, y + h]], side, side
        )
        return {**code, "counts": code["counts"].decode()}

    for image in range(7, 7 + images):
        truth["images"].append(dict(id=image, width=side, height=side, file_name=f"{image}.png"))
        for _ in range(rng.integers(0, objects + 1)):
            box = [*rng.uniform(0, 38, 2), *rng.uniform(2, 26, 2)]
            item = dict(id=1 + len(truth["annotations"]), image_id=image, bbox=box)
            item |= dict(category_id=int(rng.choice(classes)), area=box[2] * box[3])
            item["iscrowd"] = int(rng.random() < crowds)
            coded = item["iscrowd"] or rng.random() < 0.5
            item["segmentation"] = rle(box) if coded else [corners(*box)]
            truth["annotations"].append(item)
            for _ in range(rng.integers(0, repeats + 1)):
                box = np.maximum(np.add(item["bbox"], rng.normal(0, 3, 4)), [0, 0, 1, 1]).tolist()
                score = rng.random()
                right = rng.random() < 0.8
                found.append(
                    dict(
                        image_id=image,
                        category_id=item["category_id"] if right else int(rng.choice(classes)),
                        bbox=box,
                        score=round(score, 1) if rounded else score,
                        segmentation=rle(box),
                    )
                )
    return truth, found


WORLDS = {
    "sparse": dict(images=40, classes=[2, 3, 7], objects=5, repeats=2),
    "dense, equal scores": dict(images=6, classes=[1, 5], objects=30, repeats=8, rounded=True),
    "more than 100 an image": dict(images=2, classes=[1], objects=60, repeats=8),
    "crowded": dict(images=15, classes=[1, 2], objects=8, repeats=3, crowds=0.7),
    "classes without objects": dict(images=8, classes=[*range(1, 40)], objects=2, repeats=2),
    "nothing but crowds": dict(images=4, classes=[3], objects=4, repeats=2, crowds=1.1),
    "no objects": dict(images=4, classes=[3, 4], objects=0, repeats=1),
    "nothing found": dict(images=9, classes=[1, 2], objects=3, repeats=0),
}


@pytest.mark.parametrize("world", WORLDS)
def test_the_fast_evaluator_has_the_numbers_of_pycocotools(world):
    truth, found = random_results(**WORLDS[world])
    ids = [image["id"] for image in truth["images"]][:-1]  # the last one does not count
    slow, fast = (scores.coco_scores(truth, found, ids, fast=fast) for fast in (False, True))
    assert slow.keys() == fast.keys() == {"bbox", "segm"}
    for kind, expected in slow.items():
        assert fast[kind] == pytest.approx(expected, abs=1e-9, rel=0, nan_ok=True), kind
    if world in {"sparse", "crowded"}:
        assert 0 < slow["bbox"]["AP"] < 99 and slow["bbox"]["AP"] != slow["segm"]["AP"]


def test_scores_in_memory_are_those_of_detectron2s_evaluator(root, tmp_path):
    """Every second object found, shaken and cut; all scores of all classes."""
    coco = evaluator("mini-coco", root, str(tmp_path))
    truth, ids = coco._coco_api.dataset, [image["id"] for image in coco._coco_api.dataset["images"]]
    memory = [watching.InMemory(truth, ids, fast) for fast in (False, True)]
    rng = torch.Generator().manual_seed(0)
    coco.reset()
    for record in DatasetCatalog.get(register("mini-coco", root, "val")):
        known = truth_of(record)
        found = Instances((record["height"], record["width"]))
        found.pred_boxes = Boxes(torch.as_tensor(known.boxes[::2]) + torch.rand(4, generator=rng))
        masks = torch.as_tensor(known.masks[::2]).clone()
        masks[:, :: 5 + len(masks)] = False
        found.pred_masks, found.pred_classes = masks, torch.as_tensor(known.labels[::2])
        found.scores = torch.rand(len(masks), generator=rng)
        for one in (coco, *memory):
            one.process([record], [{"instances": found}])
    expected = coco.evaluate(img_ids=ids)
    assert 10 < expected["bbox"]["AP"] < 90 and 10 < expected["segm"]["AP"] < 90
    for one in memory:
        for kind, values in one.evaluate().items():
            assert values == pytest.approx(dict(expected[kind]), abs=1e-9, rel=0, nan_ok=True)


@pytest.mark.parametrize("first_id", [0, 1, 2**70])
def test_files_may_lack_area_and_crowd_flags_and_count_from_0(root, tmp_path, first_id):
    """pycocotools takes a match with annotation 0 for none, and stops where a key is missing.

    faster-coco-eval finds nothing where an id has more than 64 bits.
    """
    folder = prepare(tmp_path)
    path = datasets.coco_split("mini-coco", folder, "val").json
    content = json.loads(path.read_text())
    areas = [item["area"] for item in content["annotations"]]
    for number, item in enumerate(content["annotations"], start=first_id):
        item["id"] = number
        del item["area"], item["iscrowd"]
    path.write_text(json.dumps(content))
    results = truth_as_predictions(folder)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)
    filled = evaluator("mini-coco", folder)._coco_api.dataset["annotations"]
    assert [item["area"] for item in filled] == pytest.approx(areas, rel=0.2)
    assert [item["id"] for item in filled] == [*range(1, len(areas) + 1)]


# --- several processes -----------------------------------------------------------------------


def test_two_processes_score_each_image_once(root, tmp_path):
    """Three images: one process has two of them."""
    short = {"solver.iterations": 2, "solver.warmup_iterations": 1, "test.max_images": 3}
    changes = {**short, "test.score_threshold": 0.0, "test.validate_every": 1}
    folder = tmp_path / "run"
    assert in_processes(2, run_with, folder, root, changes) == [0, 0]
    found = torch.load(folder / "inference" / "instances_predictions.pth", weights_only=False)
    images = json.loads(datasets.coco_split("mini-coco", root, "val").json.read_text())["images"]
    expected = sorted(image["id"] for image in images)[:3]
    assert sorted(one["image_id"] for one in found) == expected
    together = json.loads((folder / "outcome.json").read_text())
    alone = run_in(folder, root, **changes)  # trained already: only scored
    for name, metric in alone.metrics.items():
        assert together["metrics"][name]["value"] == pytest.approx(metric.value, abs=1e-9)
    assert [*together["facts"]["validation_mask_ap"]] == ["1", "2"]


@pytest.mark.parametrize("seen", [[1, 2], [1, 2, 3, 3], [1, 2, 2]])
def test_an_image_that_is_missing_or_counted_twice_stops_the_run(seen):
    scores.check_seen_once([3, 1, 2], [1, 2, 3])
    with pytest.raises(RuntimeError, match=r"3 were to be, each once"):
        scores.check_seen_once(seen, [1, 2, 3])


# --- while training --------------------------------------------------------------------------


def validation_of_an_oracle(root, folder, step=4):
    cfg = config.DictConfig(lazy(root))
    hook = watching.Validation(job_in(folder, root), cfg, every=2)
    hook.trainer = SimpleNamespace(iter=step - 1, max_iter=6, model=Oracle(root).train())
    return hook


@pytest.mark.parametrize("fast", [True, False])
def test_the_truth_scores_100_while_training(root, tmp_path, monkeypatch, fast):
    used = []
    score = scores.coco_scores
    monkeypatch.setattr(watching, "has_fast_evaluator", lambda: fast)
    monkeypatch.setattr(watching, "coco_scores", lambda *a: used.append(a[3]) or score(*a))
    hook = validation_of_an_oracle(root, tmp_path)
    hook.after_step()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "step": 4,
        "box_ap": pytest.approx(100),
        "mask_ap": pytest.approx(100),
    }
    assert used == [fast] and hook.trainer.model.training
    end = {kind: dict.fromkeys(scores.SCORES, 50.0) for kind in scores.KINDS}
    facts = watching.curves(tmp_path, 6, end)
    assert facts["validation_box_ap"] == {"4": pytest.approx(100), "6": 50.0}
    assert facts["validated_with"].startswith("faster-coco-eval " if fast else "pycocotools ")


@pytest.mark.parametrize("step", [3, 6])
def test_only_due_steps_are_scored_and_not_the_last(root, tmp_path, step):
    validation_of_an_oracle(root, tmp_path, step).after_step()
    assert not (tmp_path / "metrics.jsonl").exists()
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0}\n')
    assert watching.curves(tmp_path, 6, {}) == {}


def test_a_stop_while_scoring_leaves_the_state_to_the_next_step(root, tmp_path):
    hook = validation_of_an_oracle(root, tmp_path)
    hook.job.should_stop = lambda: True
    with pytest.raises(Stopped):
        hook._score()
    hook.after_step()
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.slow
def test_scoring_changes_no_weight_and_the_curve_survives_a_kill(root, tmp_path):
    """Without, with, and killed behind a point of the curve."""
    plain, watched, killed = (tmp_path / name for name in ("plain", "watched", "killed"))
    changes = {"model.drop_path": 0.2, "test.max_images": 2}
    every = {**changes, "test.validate_every": 2}
    run_in(plain, root, **changes)
    killed_in(killed, root, 6, **every)
    first, second = run_in(watched, root, **every), run_in(killed, root, **every)
    files = [(folder / detection.MODEL_FILE).read_bytes() for folder in (plain, watched, killed)]
    assert files[0] == files[1] == files[2]
    assert [*first.facts["validation_box_ap"]] == ["2", "4", "6"]
    for name in ("validation_box_ap", "validation_mask_ap", "validated_with"):
        assert first.facts[name] == second.facts[name]
