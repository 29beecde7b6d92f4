"""Training of detectors: exact resume, micro-batches, several processes, artefacts."""

import csv
import json

import PIL.Image
import pytest
import torch
from tiny_detection import job_in, killed_in, lazy, prepare, run_in, run_with
from tiny_training import in_processes

from backbones import create_backbone
from backbones.checkpoints import fingerprint, save_backbone
from mae_bench.errors import UserError
from mae_bench.job import Stopped
from mae_bench.recipes import load_recipe
from tasks import data as datasets
from tasks import detection
from tasks.detection import config, training
from tasks.engine import STATE_FILE
from tasks.engine.order import seed_step

# isort: split
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage

pytestmark = pytest.mark.detectron2


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run_in(folder, root)


MICRO = {"solver.accumulation": 2, "model.head_norm": "SyncBN", "model.drop_path": 0.2}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="plain"),
        pytest.param(MICRO, id="micro-batches", marks=pytest.mark.slow),
    ],
)
def test_ten_steps_equal_five_kill_and_five(root, tmp_path, changes):
    """Killed in step 8, after the save at 5: same weights to the bit, same scores."""
    changes = {"solver.iterations": 10, "solver.save_every": 5, **changes}
    folders = [tmp_path / "whole", tmp_path / "killed"]
    killed_in(folders[1], root, 8, **changes)
    assert torch.load(folders[1] / STATE_FILE, weights_only=True)["step"] == 5
    undisturbed, resumed = (run_in(folder, root, **changes) for folder in folders)
    first, second = (torch.load(f / STATE_FILE, weights_only=True) for f in folders)
    assert first["step"] == second["step"] == 10
    assert fingerprint(first["model"]) == fingerprint(second["model"])
    files = [(folder / detection.MODEL_FILE).read_bytes() for folder in folders]
    assert files[0] == files[1]
    assert resumed.metrics == undisturbed.metrics
    assert resumed.facts["fingerprint_at_step_0"] == undisturbed.facts["fingerprint_at_step_0"]


def test_a_run_that_is_asked_to_stop_saves_its_state_and_continues(root, whole, tmp_path):
    job = job_in(tmp_path / "run", root)
    answers = iter([False, False, False, True])
    job.should_stop = lambda: next(answers, True)
    with pytest.raises(Stopped):
        detection.run(job)
    assert torch.load(job.folder / STATE_FILE, weights_only=True)["step"] == 4
    assert run_in(job.folder, root).metrics == whole[1].metrics


def test_micro_batches_add_up_to_the_mean_gradient(root):
    """Each with what it alone would draw, against two backward passes done by hand."""
    cfg = config.DictConfig(lazy(root, **{"model.drop_path": 0.3}))
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    batch = next(iter(instantiate(cfg.dataloader.train)))
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for part, item in enumerate(batch):
        model.zero_grad()
        seed_step(3, 0, part, 2)
        with EventStorage():
            sum(model([item]).values()).backward()
        for total, parameter in zip(expected, model.parameters(), strict=True):
            if parameter.grad is not None:
                total += parameter.grad / 2
    model.zero_grad()
    trainer = training.Trainer(model, [batch], torch.optim.SGD(model.parameters(), 0.0), 3, 2)
    trainer.iter = 0
    with EventStorage():
        trainer._differentiate(batch)
    for total, parameter in zip(expected, model.parameters(), strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, total, rtol=1e-4, atol=1e-6)


# Every anchor and every proposal counts, so that no sampling depends on who has which image.
SHARED = {
    "solver.iterations": 1,
    "solver.warmup_iterations": 0,
    "solver.batch_size": 4,
    "model.fpn_norm": "SyncBN",
    "model.rpn_samples": 10**6,
    "model.roi_samples": 10**6,
}


def curve_of(folder):
    (line,) = (folder / "metrics.jsonl").read_text().splitlines()
    return json.loads(line)


def gradients_are_fp16(folder):
    """Whether the first step's gradients, in Adam's first moments, have passed through fp16."""
    moments = torch.load(folder / STATE_FILE, weights_only=True)["optimizer"]["state"].values()
    gradients = 10 * torch.cat([moment["exp_avg"].flatten() for moment in moments])
    gradients = gradients[gradients.abs() > 1e-4]
    rounding = (gradients.half().float() / gradients - 1).abs()
    return (rounding < 1e-6).float().mean() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("compressed", [False, True])
def test_two_processes_do_what_one_does(root, tmp_path, compressed):
    """Losses of the RPN to rounding; those of regions are means over a process's own."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    changes = {**SHARED, "solver.fp16_compression": compressed}
    one = run_in(alone, root, **changes)
    assert in_processes(2, run_with, together, root, changes) == [0, 0]
    first, second = curve_of(alone), curve_of(together)
    for part in ("loss_rpn_cls", "loss_rpn_loc"):
        assert second[part] == pytest.approx(first[part], rel=1e-4)
    assert second["loss"] == pytest.approx(first["loss"], rel=0.1)
    assert second["lr"] == first["lr"] and one.facts["processes"] == 1
    assert gradients_are_fp16(together) == compressed and not gradients_are_fp16(alone)
    # The finished training is only scored again, by one process: each image counted once by two.
    facts = json.loads((together / "outcome.json").read_text())
    assert facts["facts"]["processes"] == 2
    scored = run_in(together, root, **changes)
    for name, metric in scored.metrics.items():
        assert facts["metrics"][name]["value"] == pytest.approx(metric.value, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solver.amp": "float16"}, "solver.amp=float16 needs a GPU"),
        ({"solver.accumulation": 4}, r"batch_size 2 cannot be divided over 1 .* x 4 micro-batches"),
    ],
)
def test_what_cannot_be_trained_here_is_refused(root, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        detection.run(job_in(tmp_path / "run", root, **changes))


def test_a_batch_too_small_for_batch_norm_is_said():
    model = torch.nn.Sequential(torch.nn.SyncBatchNorm(4))
    facts = training.division(64, 8, model)
    assert facts["images_per_norm"] == 8 and "BatchNorm sees 8 images" in facts["hint"]
    assert "hint" not in training.division(64, 4, model)
    assert "images_per_norm" not in training.division(4, 1, torch.nn.Sequential())


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


def test_detectron2s_checkpointer_reads_the_result(root, whole):
    folder, _ = whole
    model = instantiate(lazy(root)["model"])
    DetectionCheckpointer(model).load(str(folder / detection.MODEL_FILE))
    state = torch.load(folder / STATE_FILE, weights_only=True)["model"]
    assert fingerprint(model.state_dict()) == fingerprint(state)
    assert list(folder.glob("events.out.tfevents.*"))


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
