"""The classification task from a folder of images to its scores, and faults that it must notice."""

import json
import shutil

import pytest
import torch
from tiny_classification import job_on, run_on, write_set
from tiny_training import in_processes
from torch import nn
from torch.utils.data import Subset

from backbones import create_backbone
from mae_bench.errors import UserError
from mae_bench.job import Stopped
from tasks import classification, distributed, engine
from tasks.classification import Classifier
from tasks.classification.checks import check_classes

PROBE = "classification/mini_linear_probe"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("set"))


def curve(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- what a run says -------------------------------------------------------------------------


def test_fine_tuning_learns_colours(images, tmp_path):
    outcome = run_on(images, tmp_path, solver__iterations=30)
    assert outcome.metrics["top1"].value > 60
    assert outcome.metrics["mean_per_class"].value == outcome.metrics["top1"].value
    facts = outcome.facts
    assert (facts["classes"], facts["training_images"], facts["validation_images"]) == (3, 24, 15)
    assert facts["epochs"] == 10 and facts["frozen_parameters"] == 0
    assert 0 <= outcome.data_time_share <= 1 and outcome.images_per_second > 0
    assert (tmp_path / "parameters.csv").is_file() and (tmp_path / "load_report.json").is_file()


def test_probe_trains_its_head_alone(images, tmp_path):
    facts = run_on(images, tmp_path, PROBE).facts
    assert facts["trained_parameters"] == 96 * 3 + 3
    fingerprints = facts["frozen_fingerprint"]
    assert fingerprints["before_training"] == fingerprints["after_training"]
    names = [line.split(",")[0] for line in (tmp_path / "parameters.csv").read_text().split("\n")]
    assert names == ["name", "head.weight", "head.bias", ""]


def test_half_a_block_and_its_frozen_part(images, tmp_path):
    facts = run_on(images, tmp_path, model__trained_blocks=0.5).facts
    mlp = 2 * 96 + 96 * 384 + 384 + 384 * 96 + 96
    assert facts["trained_parameters"] == mlp + 2 * 96 + 96 * 3 + 3
    assert facts["frozen_parameters"] > 3 * mlp


def test_averaged_weights_are_scored_beside_the_last(images, tmp_path):
    metrics = run_on(images, tmp_path, model__ema_decay=0.5).metrics
    assert set(metrics) == {
        *("top1", "mean_per_class", "top1_without_ema", "mean_per_class_without_ema")
    }


@pytest.mark.parametrize("recipe", ["classification/mini_finetune", PROBE])
def test_stopped_and_continued_is_the_same_run(images, tmp_path, recipe):
    """All that a step draws (mixing, erasing, drop path) and BatchNorm's statistics continue."""
    options = dict(model__mixup=0.8, model__cutmix=1.0, data__erasing=0.5, solver__accumulation=2)
    options = options if recipe != PROBE else {}
    whole = run_on(images, tmp_path / "whole", recipe, **options)
    job = job_on(images, tmp_path / "cut", recipe, **options)
    calls = iter(range(100))
    job.should_stop = lambda: next(calls) >= 3
    with pytest.raises(Stopped):
        classification.run(job)
    continued = run_on(images, tmp_path / "cut", recipe, **options)
    assert continued.metrics == whole.metrics
    states = [torch.load(tmp_path / name / "state.pth")["model"] for name in ("whole", "cut")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert curve(tmp_path / "cut")[-1] == curve(tmp_path / "whole")[-1]


def train_as_one_of(images, folder):
    outcome = run_on(images, folder, solver__iterations=3, model__drop_path_rate=0.0)
    told = {"top1": outcome.metrics["top1"].value, "processes": outcome.facts["processes"]}
    (folder / f"{distributed.rank()}.json").write_text(json.dumps(told))


@pytest.mark.slow
def test_two_processes_train_as_one(images, tmp_path):
    train_as_one_of(images, tmp_path / "1")
    assert in_processes(2, train_as_one_of, images, tmp_path / "2") == [0, 0]
    alone, first, second = (
        json.loads((tmp_path / place).read_text()) for place in ("1/0.json", "2/0.json", "2/1.json")
    )
    assert first == second == {"top1": pytest.approx(alone["top1"], abs=7), "processes": 2}
    assert len(curve(tmp_path / "2")) == len(curve(tmp_path / "1")), "one process writes the curve"
    for a, b in zip(curve(tmp_path / "1"), curve(tmp_path / "2"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)


# --- scores ----------------------------------------------------------------------------------


def test_mean_per_class_of_a_long_tail():
    labels = torch.tensor([0] * 8 + [1] * 2)
    scored = engine.count(torch.zeros(10, dtype=torch.long), labels, 3)
    assert (scored.top1, scored.mean_per_class) == (80.0, 50.0)


class Numbered(torch.utils.data.Dataset):
    """Seven samples, which neither two nor three processes divide."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return {"images": torch.tensor(float(index)), "labels": index % 3}


class Counting(nn.Module):
    """Right for all but the sample 4, of class 1; notes what it saw."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.register_buffer("mean", torch.zeros(()))

    def data_preprocessor(self, batch, training):
        return batch

    def forward(self, images, labels, mode):
        self.seen += images.tolist()
        answers = torch.where(images == 4, 0, labels)
        return {"logits": torch.eye(3)[answers] + self.mean}


def score(folder):
    distributed.start()
    model = Counting()
    model.mean += distributed.rank()  # as a running mean is each process's own
    found = engine.accuracy(model, Numbered(), job_on("imagefolder:x", folder), batch_size=2)
    told = [found.top1, found.mean_per_class, model.seen, float(model.mean)]
    (folder / f"{distributed.rank()}.json").write_text(json.dumps(told))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_sample_is_scored_once_at_any_world_size(tmp_path, processes):
    assert in_processes(processes, score, tmp_path) == [0] * processes
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(processes)]
    assert sorted(number for *_, seen, _ in told for number in seen) == list(range(7))
    for top1, mean_per_class, _, buffer in told:
        assert (top1, mean_per_class) == (pytest.approx(600 / 7), pytest.approx(250 / 3))
        assert buffer == 0.0, "all score the model of the main process"


# --- mutations -------------------------------------------------------------------------------


def test_padded_validation_is_noticed(tmp_path, monkeypatch):
    """What a DistributedSampler does: the set is filled up with its first samples."""
    monkeypatch.setattr(
        "tasks.engine.scoring.Subset", lambda dataset, own: Subset(dataset, [*own, 0])
    )
    with pytest.raises(RuntimeError, match=r"8 samples were scored of a set of 7"):
        engine.accuracy(Counting(), Numbered(), job_on("imagefolder:x", tmp_path))


def test_an_encoder_that_is_not_frozen_is_noticed(images, tmp_path, monkeypatch):
    def careless(model, *arguments, **options):
        with torch.no_grad():
            model.encoder.blocks[0].mlp.fc1.weight += 1e-7
        return fit(*arguments, **options)

    fit = engine.fit
    monkeypatch.setattr(
        engine, "fit", lambda job, model, *a, **k: careless(model, job, model, *a, **k)
    )
    with pytest.raises(RuntimeError, match="frozen part of the encoder changed"):
        run_on(images, tmp_path / "probe", PROBE)
    with pytest.raises(RuntimeError, match="frozen part of the encoder changed"):
        run_on(images, tmp_path / "partial", model__trained_blocks=1)


def features_of_two_scales(count):
    """Frozen features whose informative direction is a thousand times smaller than another."""
    labels = torch.arange(count) % 2
    features = torch.randn(count, 96) * 1000
    features[:, 0] = labels - 0.5
    return features, labels


def probe_loss(norm):
    torch.manual_seed(0)
    model = Classifier(create_backbone("vit_mini_patch8", img_size=16), 2, frozen=True)
    assert isinstance(model.norm, nn.BatchNorm1d) and not model.norm.affine
    model.norm = norm or model.norm
    features, labels = features_of_two_scales(256)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model.head(model.norm(features)), labels)
        loss.backward()
        optimizer.step()
    return float(loss)


def test_a_probe_without_its_batchnorm_fails_on_raw_features():
    """What the BatchNorm is for: features of any scale, one lr."""
    assert probe_loss(None) < 0.3
    assert not probe_loss(nn.Identity()) < 10


def test_labels_shifted_by_one_are_refused(images, tmp_path, monkeypatch):
    from tasks.data import images as module

    def shifted(name, root, split):
        found = read(name, root, split)
        return type(found)(found.paths, [label + 1 for label in found.labels], found.classes)

    read = module.classification_split
    monkeypatch.setattr(module, "classification_split", shifted)
    with pytest.raises(UserError, match=r"has labels 3, but the head has 3 outputs, for 0 to 2"):
        run_on(images, tmp_path)


# --- bad input -------------------------------------------------------------------------------


def broken_set(kind, root):
    write_set(root, train=2, val=1)
    if kind == "empty class":
        (root / "train" / "nothing").mkdir()
    elif kind == "class only scored":
        shutil.rmtree(root / "train" / "class1")
    elif kind == "flat val":
        for number, path in enumerate(sorted((root / "val").rglob("*.png"))):
            path.rename(root / "val" / f"{number}.png")
        for folder in (root / "val").iterdir():
            if folder.is_dir():
                folder.rmdir()
    elif kind == "no val":
        shutil.rmtree(root / "val")
    elif kind == "one class":
        for split in ("train", "val"):
            for label in (1, 2):
                shutil.rmtree(root / split / f"class{label}")
    return root


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty class", r"train/nothing: class folder holds no image"),
        ("class only scored", r"val/class1.*without training images"),
        ("flat val", r"val: holds no class folder; give val/<class>/<image>"),
        ("no val", r"val: does not exist"),
        ("one class", r"has 1 class; classification needs two or more"),
    ],
)
def test_sets_that_cannot_be_learnt(tmp_path, kind, message):
    root = broken_set(kind, tmp_path / "set")
    for recipe in ("classification/mini_finetune", "frozen/mini"):
        with pytest.raises(UserError, match=message):
            run_on(root, tmp_path / recipe, recipe)


def test_class_lists_that_differ(images, tmp_path, monkeypatch):
    from tasks.data import images as module

    def other(name, root, split):
        found = read(name, root, split)
        return type(found)(found.paths, found.labels, found.classes[: 2 if split == "val" else 3])

    read = module.classification_split
    monkeypatch.setattr(module, "classification_split", other)
    with pytest.raises(UserError, match=r"train has 3 classes and val 2, or others; labels"):
        run_on(images, tmp_path)


def test_classes_of_lists():
    check_classes("filelist:x", ["a", "b"], [0, 1, 1], [1])
    with pytest.raises(UserError, match=r"1 of 2 classes have validation images.*: 'b'; add"):
        check_classes("filelist:x", ["a", "b"], [0, 0], [1])
    with pytest.raises(UserError, match=r"images in class folders and others in none"):
        check_classes("imagefolder:x", ["", "a", "b"], [0, 1, 2], [1, 2])
    with pytest.raises(UserError, match=r"labels 2, 7, but the head has 2 outputs"):
        check_classes("filelist:x", ["a", "b"], [0, 1, 7], [2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"solver__accumulation": 32, "solver__batch_size": 32},
            r"1 processes x solver.accumulation 32 = 32 micro-batches.*24 images",
        ),
        ({"solver__batch_size": 32}, r"batch of 32 is larger than the training set of 24 images"),
        ({"model__trained_blocks": 5}, r"trained_blocks=5: 0.5 .*whole number from 1 to 4"),
        ({"model__trained_blocks": 0}, r"trained_blocks=0: .*for 0 use a linear probe"),
        ({"model__frozen": True, "model__trained_blocks": 1}, r"with model.frozen no block"),
        ({"model__pool": "max"}, r"unknown pooling 'max'"),
        ({"solver__optimizer": "larz"}, r"unknown optimizer 'larz'"),
        ({"model__mixup": 0.8, "solver__batch_size": 7}, r"even number of images"),
    ],
)
def test_settings_that_cannot_be(images, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run_on(images, tmp_path, **options)


def test_pyramids_and_missing_class_tokens_are_refused():
    with pytest.raises(UserError, match="pools the tokens of a plain encoder"):
        Classifier(create_backbone("timm:resnet18"), 2)
    with pytest.raises(UserError, match=r"model.pool=token needs a class token"):
        Classifier(create_backbone("vit_mini_patch8", class_token=False), 2, pool="token")
